from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codec import container
from codec import image as images
from codec.errors import DimensionsError, ImageError


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tiff", ".bmp", ".ppm"])
def test_lossless_formats_keep_every_pixel(tmp_path: Path, photograph: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    images.write(photograph, path)
    np.testing.assert_array_equal(images.read(path), photograph)


def test_jpeg_out_is_of_high_quality(tmp_path: Path, photograph: np.ndarray) -> None:
    images.write(photograph, tmp_path / "x.jpg")
    assert np.abs(images.read(tmp_path / "x.jpg").astype(int) - photograph).mean() < 2


def test_orientation_is_honoured_once(tmp_path: Path, photograph: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90° clockwise to see it upright
    Image.fromarray(photograph).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(images.read(tmp_path / "x.png"), np.rot90(photograph, -1))


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "RGBA"])
def test_other_modes_become_rgb(tmp_path: Path, photograph: np.ndarray, mode: str) -> None:
    source = Image.fromarray(photograph).convert(mode)
    source.save(tmp_path / "x.tiff")
    np.testing.assert_array_equal(images.read(tmp_path / "x.tiff"), np.asarray(source.convert("RGB")))


def frames(path: Path) -> None:
    Image.new("RGB", (4, 4)).save(path, save_all=True, append_images=[Image.new("RGB", (4, 4), "red")])


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("x.png", lambda p: None, "No such file"),
        ("x.png", lambda p: p.mkdir(), "Is a directory"),
        ("x.png", lambda p: p.write_bytes(b"hello"), "not an image"),
        ("x.png", lambda p: p.write_bytes(b""), "not an image"),
        ("x.png", lambda p: Image.new("RGBA", (4, 4), (1, 2, 3, 100)).save(p), "transparent"),
        ("x.png", lambda p: Image.fromarray(np.zeros((4, 4), np.uint16)).save(p), "eight bits"),
        ("x.tiff", frames, "holds 2 frames"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(tmp_path: Path, name: str, make: Callable[[Path], None], words: str) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(ImageError, match=words) as caught:
        images.read(path)
    assert str(path) in str(caught.value)


def test_truncated_images(tmp_path: Path, photograph: np.ndarray) -> None:
    path = tmp_path / "x.png"
    images.write(photograph, path)
    whole = path.read_bytes()
    for length in (20, 60, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:length])
        with pytest.raises(ImageError, match=r"x\.png"):
            images.read(path)


def test_too_many_pixels(tmp_path: Path, photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    images.write(photograph, tmp_path / "x.png")
    monkeypatch.setattr(container, "MAX_PIXELS", 1000)
    with pytest.raises(DimensionsError, match=r"x\.png: .* exceed"):
        images.read(tmp_path / "x.png")


def test_unknown_output_formats(tmp_path: Path) -> None:
    for name in ("x", "x.xyz", "x.rdae"):
        with pytest.raises(ImageError, match="cannot tell"):
            images.write(np.zeros((4, 4, 3), np.uint8), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    target = tmp_path / "x.bin"
    target.write_bytes(b"before")
    with pytest.raises(RuntimeError), images.Atomic(target) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["x.bin"]
    assert target.read_bytes() == b"before"
    with pytest.raises(ImageError, match="No such file"):
        images.write_bytes(b"", tmp_path / "missing" / "x")
