"""As Pillow tests its own plug-ins: sanity, invalid file, truncation at every byte, round trip, bad mode."""

from __future__ import annotations

import io
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import SAMPLES
from PIL import Image, ImageOps, UnidentifiedImageError
from test_picture import P3, XMP, exif_with

import codec
from codec import coder, container
from codec.pillow_plugin import RdaeImageFile


@pytest.fixture
def small(photograph: np.ndarray) -> Image.Image:
    return Image.fromarray(photograph[60:90, 200:250])


def saved(image: Image.Image, model: Path, **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "RDAE", model=model, **settings)
    return buffer.getvalue()


def test_sanity(small: Image.Image, tiny_model_file: Path) -> None:
    with Image.open(io.BytesIO(saved(small, tiny_model_file, quality=2))) as image:
        assert isinstance(image, RdaeImageFile)
        assert (image.format, image.mode, image.size) == ("RDAE", "RGB", (50, 30))
        assert image.get_format_mimetype() == "image/x-rdae" and image.info["quality"] == 2
        image.load()
        image.load()
    assert Image.registered_extensions()[".rdae"] == "RDAE"


def test_importing_codec_is_enough(tmp_path: Path) -> None:
    codec.compress(SAMPLES / "chelsea.png", tmp_path / "x.rdae")
    program = (
        "import sys, codec\nfrom PIL import Image\nimage = Image.open(sys.argv[1])\n"
        "print(image.size, 'torch' in sys.modules, image.convert('L').getpixel((0, 0)) > 0, 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path / "x.rdae")], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "(451, 300) False True True"


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_round_trip(small: Image.Image, tiny_model_file: Path, mode: str, tmp_path: Path) -> None:
    source = small.convert(mode)
    if mode.endswith("A"):
        source.putalpha(small.convert("L"))
    path = tmp_path / "x.rdae"
    source.save(path, model=tiny_model_file, quality=3)
    with Image.open(path) as image:
        assert image.mode == mode
        expected = codec.decompress(path, model=tiny_model_file)
        np.testing.assert_array_equal(np.asarray(image), expected)
        if mode.endswith("A"):
            np.testing.assert_array_equal(np.asarray(image.getchannel("A")), np.asarray(source.getchannel("A")))
    assert path.read_bytes() == codec.compress(source, model=tiny_model_file, quality=3)


def test_only_the_header_is_read_until_the_pixels_are_needed(
    small: Image.Image, tiny_model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            self.taken += len(data)
            return data

    data = saved(small.resize((800, 600)), tiny_model_file, icc_profile=P3)
    file = Counting(data)
    decoded = []
    original = coder.decode
    monkeypatch.setattr(coder, "decode", lambda *arguments: decoded.append(1) or original(*arguments))
    image = Image.open(file)
    assert image.size == (800, 600) and image.info["icc_profile"] == P3
    assert file.taken < 1000 < len(data) / 5 and not decoded
    image.getpixel((3, 3))
    assert decoded == [1]


def test_info_carries_the_metadata(small: Image.Image, tiny_model_file: Path) -> None:
    data = saved(small, tiny_model_file, icc_profile=P3, exif=exif_with(), xmp=XMP)
    with Image.open(io.BytesIO(data)) as image:
        assert image.info["icc_profile"] == P3 and image.info["xmp"] == XMP
        assert image.getexif()[0x010F] == "Camera"
        again = saved(image, tiny_model_file, exif=image.info["exif"], xmp=image.info["xmp"])
    with Image.open(io.BytesIO(again)) as image:
        assert image.info["icc_profile"] == P3 and image.getexif()[0x010F] == "Camera" and image.info["xmp"] == XMP
    assert "icc_profile" not in Image.open(io.BytesIO(saved(small, tiny_model_file))).info


def test_orientation_stays_as_pillow_s_users_expect(small: Image.Image, tiny_model_file: Path) -> None:
    """Neither save nor open turn the pixels; ImageOps.exif_transpose does, once."""
    data = saved(small, tiny_model_file, exif=exif_with(6))
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == small.size and image.getexif()[0x0112] == 6
        upright = ImageOps.exif_transpose(image)
        assert upright.size == small.size[::-1]
        assert Image.open(io.BytesIO(saved(upright, tiny_model_file, exif=upright.getexif()))).getexif().get(0x0112, 1) == 1


def test_targets(small: Image.Image, tiny_model_file: Path) -> None:
    sizes = [len(saved(small, tiny_model_file, quality=quality)) for quality in (1, 2, 3)]
    assert len(saved(small, tiny_model_file, size=sizes[1])) == sizes[1]
    for settings, words in (({"size": 5}, "cannot be coded"), ({"quality": 4}, "no quality 4"), ({"quality": 1, "bpp": 2}, "only one")):
        with pytest.raises(OSError, match=words):
            saved(small, tiny_model_file, **settings)


def test_effort(small: Image.Image, tiny_model_file: Path) -> None:
    data = saved(small, tiny_model_file, quality=1, effort=1)
    assert data == codec.compress(np.asarray(small), model=tiny_model_file, quality=1, effort=1) != saved(small, tiny_model_file, quality=1)
    tuned = saved(small, tiny_model_file, quality=1, tune="ms-ssim")
    assert tuned == codec.compress(np.asarray(small), model=tiny_model_file, quality=1, tune="ms-ssim") != data
    with pytest.raises(OSError, match="effort runs from 0 to 9"):
        saved(small, tiny_model_file, effort=10)


def test_invalid_file() -> None:
    for data in (b"\xd2RDA", b"\xd2RDA" + bytes(40), b"nothing of the kind"):
        with pytest.raises(UnidentifiedImageError):
            Image.open(io.BytesIO(data))
    with pytest.raises(SyntaxError, match="not an"):
        RdaeImageFile(io.BytesIO(b"GIF89a"))


def test_a_forged_length_takes_no_memory(tmp_path: Path) -> None:
    start = b"\xd2RDA\1\1" + bytes(8) + b"\1\0\x09\x09" + container.write_varint(2**35 - 1) + b"\1\0\x80"
    path = tmp_path / "x.rdae"
    for length in (2**34, 2**25):
        path.write_bytes(start + container.write_varint(length) + bytes(50))
        tracemalloc.start()
        with pytest.raises(UnidentifiedImageError):
            Image.open(path)
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
        tracemalloc.stop()


def test_truncation_at_every_byte(small: Image.Image, tiny_model_file: Path) -> None:
    data = saved(small, tiny_model_file, quality=1, icc_profile=P3, xmp=XMP)
    for length in range(len(data)):
        with pytest.raises(OSError), Image.open(io.BytesIO(data[:length])) as image:
            image.load()


def test_every_flipped_byte_is_noticed(small: Image.Image, tiny_model_file: Path) -> None:
    data = saved(small, tiny_model_file, quality=1)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        with pytest.raises(OSError), Image.open(io.BytesIO(bytes(damaged))) as image:
            image.load()


@pytest.mark.parametrize("mode", ["F", "I", "CMYK", "HSV", "I;16"])
def test_bad_mode(tmp_path: Path, tiny_model_file: Path, mode: str) -> None:
    with pytest.raises(OSError, match=f"cannot write mode {mode} as RDAE"):
        Image.new(mode, (4, 4)).save(tmp_path / "x.rdae", model=tiny_model_file)
    assert not (tmp_path / "x.rdae").exists()


def test_a_model_that_is_not_at_hand(small: Image.Image) -> None:
    from conftest import tiny_model_bytes

    from codec.model import from_bytes

    data = from_bytes(tiny_model_bytes(seed=5), "other").encode(np.asarray(small))
    with Image.open(io.BytesIO(data)) as image, pytest.raises(OSError, match="not shipped"):
        image.load()
