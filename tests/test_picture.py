from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import SAMPLES
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

import codec
from codec import image as images
from codec import picture as pictures
from codec.errors import DimensionsError, ImageError, RdaeWarning
from codec.model import Model
from codec.picture import Picture

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF>\xc3\xa9</rdf:RDF></x:xmpmeta>'
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def p3_profile() -> bytes:
    """A Display-P3 profile: sRGB's, with the primaries of P3 (adapted to D50) in the place of its own."""
    profile = bytearray(SRGB)
    primaries = {b"rXYZ": (0.51512, 0.24120, -0.00105), b"gXYZ": (0.29198, 0.69225, 0.04189), b"bXYZ": (0.15710, 0.06657, 0.78407)}
    for i in range(struct.unpack_from(">I", profile, 128)[0]):
        tag, offset, _ = struct.unpack_from(">4sII", profile, 132 + 12 * i)
        if tag in primaries:
            struct.pack_into(">3i", profile, offset + 8, *(round(65536 * v) for v in primaries[tag]))
    return bytes(profile)


P3 = p3_profile()


def exif_with(orientation: int | None = None) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F] = "Camera"
    exif.get_ifd(0x8769)[0x829A] = 0.004
    if orientation:
        exif[0x0112] = orientation
    return exif


def read_back(image: Image.Image, kind: str, **settings: object) -> Picture:
    """As a file of a format that is read again."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return images.read_picture(io.BytesIO(buffer.getvalue()))


@pytest.fixture(scope="module")
def small(photograph: np.ndarray) -> Image.Image:
    return Image.fromarray(photograph[100:140, 200:263])


def with_alpha(image: Image.Image) -> Image.Image:
    out = image.copy()
    out.putalpha(Image.fromarray(np.linspace(0, 255, image.width * image.height).astype(np.uint8).reshape(image.height, image.width)))
    return out


def palette_with_transparency(image: Image.Image) -> tuple[Image.Image, dict[str, object]]:
    return image.quantize(40), {"transparency": 7}


@pytest.mark.parametrize(
    ("mode", "kind", "expected"),
    [
        ("RGB", "PNG", "RGB"),
        ("RGB", "PPM", "RGB"),
        ("RGB", "BMP", "RGB"),
        ("L", "PNG", "L"),
        ("L", "JPEG", "L"),
        ("L", "PPM", "L"),
        ("1", "PNG", "L"),
        ("1", "TIFF", "L"),
        ("P", "PNG", "RGB"),
        ("P", "GIF", "RGB"),
        ("CMYK", "TIFF", "RGB"),
        ("YCbCr", "TIFF", "RGB"),
        ("RGBA", "PNG", "RGBA"),
        ("RGBA", "WEBP", "RGBA"),
        ("LA", "PNG", "LA"),
        ("PA", "TIFF", "RGBA"),
    ],
)
def test_every_mode_becomes_a_picture(small: Image.Image, mode: str, kind: str, expected: str) -> None:
    source = (with_alpha(small) if mode in ("RGBA", "LA", "PA") else small).convert("RGBA" if mode == "PA" else mode)
    if mode == "PA":
        source = small.quantize(30).convert("PA")
    settings: dict[str, object] = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    picture = read_back(source, kind, **settings)
    assert picture.mode == expected
    reference = np.asarray(source.convert(expected))
    if kind == "JPEG":
        assert np.abs(picture.array.astype(int) - reference).mean() < 4
    elif mode != "YCbCr":
        np.testing.assert_array_equal(picture.array, reference)
    assert np.abs(picture.array.astype(int) - reference).mean() < 4


def test_transparent_colours_become_alpha(small: Image.Image) -> None:
    image, settings = palette_with_transparency(small)
    picture = read_back(image, "PNG", **settings)
    assert picture.mode == "RGBA" and picture.alpha is not None
    np.testing.assert_array_equal(picture.alpha == 0, np.asarray(image) == 7)
    grey = Image.fromarray(np.array([[3, 5], [5, 9]], np.uint8))
    picture = read_back(grey, "PNG", transparency=5)
    assert picture.mode == "LA" and picture.alpha is not None and picture.alpha.tolist() == [[255, 0], [0, 255]]
    picture = read_back(Image.new("RGB", (2, 1), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert picture.mode == "RGBA" and picture.alpha is not None and picture.alpha.max() == 0


def sixteen_bit_rgb_png(values: np.ndarray) -> bytes:
    """Pillow writes no PNG of 3×16 bits."""
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


DEEP = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)


def deep_files() -> dict[str, bytes]:
    files = {"rgb png": sixteen_bit_rgb_png(np.dstack([DEEP, DEEP.T.reshape(20, 30), DEEP]))}
    for name, kind in (("grey png", "PNG"), ("grey tiff", "TIFF"), ("grey pgm", "PPM")):
        buffer = io.BytesIO()
        Image.fromarray(DEEP).save(buffer, kind)
        files[name] = buffer.getvalue()
    files["rgb ppm"] = b"P6\n30 20\n65535\n" + np.dstack([DEEP] * 3).astype(">u2").tobytes()
    return files


@pytest.mark.parametrize("name", deep_files())
def test_sixteen_bits_are_rounded_with_a_warning_and_refused_when_strict(name: str) -> None:
    data = deep_files()[name]
    with pytest.warns(RdaeWarning, match="more than eight bits"):
        picture = images.read_picture(io.BytesIO(data))
    channel = picture.pixels if picture.grey else picture.pixels[..., 0]
    assert picture.grey == ("grey" in name)
    np.testing.assert_allclose(channel, DEEP / 257, atol=0.51 if picture.grey or "ppm" in name else 1)
    with pytest.raises(ImageError, match="strict"):
        images.read_picture(io.BytesIO(data), strict=True)


def test_floating_point_and_32_bits_are_refused_by_name() -> None:
    for array, words in ((np.ones((3, 3), np.float32), "floating-point"), (np.full((3, 3), 1 << 20, np.int32), "32 bits")):
        with warnings.catch_warnings(), pytest.raises(ImageError, match=words):
            warnings.simplefilter("ignore")
            read_back(Image.fromarray(array), "TIFF")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_honoured_once_and_the_tag_reset(small: Image.Image, kind: str, orientation: int, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    settings = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    small.save(buffer, kind, exif=exif_with(orientation), **settings)
    picture = images.read_picture(io.BytesIO(buffer.getvalue()))
    turned = np.asarray(small)
    if orientation >= 5:
        turned = turned.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        turned = turned[::-1]
    if orientation in (2, 3, 6, 7):
        turned = turned[:, ::-1]
    assert np.abs(picture.pixels.astype(int) - turned).mean() < (4 if kind == "JPEG" else 0.01)
    # A second reading, as every viewer does it, must not turn it again.
    images.write_picture(picture, tmp_path / "x.png")
    again = images.read_picture(tmp_path / "x.png")
    np.testing.assert_array_equal(again.pixels, picture.pixels)
    with Image.open(tmp_path / "x.png") as image:
        assert image.getexif().get(0x0112, 1) == 1 and image.getexif()[0x010F] == "Camera"


def test_a_turned_xmp_is_reset_too(small: Image.Image) -> None:
    buffer = io.BytesIO()
    xmp = XMP.replace(b"<rdf:RDF>", b'<rdf:RDF tiff:Orientation="6">')
    small.save(buffer, "JPEG", exif=exif_with(6), xmp=xmp)
    picture = images.read_picture(io.BytesIO(buffer.getvalue()))
    assert picture.pixels.shape[:2] == (63, 40)
    assert picture.xmp is not None and b"Orientation" not in picture.xmp


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff", ".avif"])
@pytest.mark.parametrize("grey", [False, True])
def test_metadata_make_the_whole_trip(tiny_model: Model, small: Image.Image, tmp_path: Path, suffix: str, grey: bool) -> None:
    source = small.convert("L") if grey else small
    buffer = io.BytesIO()
    source.save(buffer, "JPEG", icc_profile=P3, exif=exif_with(), xmp=XMP)
    data = codec.compress(io.BytesIO(buffer.getvalue()), model=None)
    codec.decompress(data, tmp_path / f"x{suffix}")
    with Image.open(tmp_path / f"x{suffix}") as back:
        assert back.info["icc_profile"] == P3
        assert back.getexif()[0x010F] == "Camera" and back.getexif().get_ifd(0x8769)[0x829A] == pytest.approx(0.004)
        assert (back.info.get("xmp") or back.info["XML:com.adobe.xmp"].encode()) == XMP
    stripped = codec.compress(io.BytesIO(buffer.getvalue()), strip=True)
    assert codec.decompress_image(stripped).info == {}
    assert len(data) - len(stripped) < len(P3) + len(exif_with().tobytes()) + len(XMP)


def test_exif_is_kept_byte_for_byte(small: Image.Image) -> None:
    """Maker notes with offsets of their own do not survive being written anew."""
    raw = b"Exif\0\0" + exif_with().tobytes().removeprefix(b"Exif\0\0") + b"private data behind the directory"
    assert read_back(small, "JPEG", exif=raw).exif == raw[6:]


def test_what_is_only_layout_does_not_travel(small: Image.Image) -> None:
    """A TIFF file's tags also say how its strips lie, which is nobody's business afterwards."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[315] = "Someone"
    picture = read_back(small, "TIFF", tiffinfo=tags)
    exif = Image.Exif()
    assert picture.exif is not None
    exif.load(picture.exif)
    assert exif[315] == "Someone" and 273 not in exif and 256 not in exif


def test_png_carries_xmp_as_text(small: Image.Image) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("XML:com.adobe.xmp", XMP.decode())
    assert read_back(small, "PNG", pnginfo=chunks).xmp == XMP


def in_srgb(image: Image.Image) -> np.ndarray:
    profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"))
    assert converted is not None
    return np.asarray(converted).astype(float)


def test_a_display_p3_picture_looks_the_same_after_the_trip(tmp_path: Path) -> None:
    with Image.open(SAMPLES / "coffee.png") as opened:
        image = opened.convert("RGB")
    image.save(tmp_path / "p3.jpg", quality=98, subsampling=0, icc_profile=P3)
    with Image.open(tmp_path / "p3.jpg") as opened:
        before = in_srgb(opened)
    codec.compress(tmp_path / "p3.jpg", tmp_path / "p3.rdae")
    codec.decompress(tmp_path / "p3.rdae", tmp_path / "back.png")
    with Image.open(tmp_path / "back.png") as opened:
        after = in_srgb(opened)
    # Shown by its profile, the picture is off by what the codec does to the numbers in the file, no more; without it, by far more.
    restored = np.asarray(Image.open(tmp_path / "back.png")).astype(float)
    coding = np.abs(restored - np.asarray(Image.open(tmp_path / "p3.jpg"))).mean()
    assert np.abs(after - before).mean() < 1.3 * coding
    assert np.abs(restored - before).mean() > 2 * coding
    # In formats without profiles, colours are converted.
    with pytest.warns(RdaeWarning, match="colour profile"):
        codec.decompress(tmp_path / "p3.rdae", tmp_path / "back.ppm")
    np.testing.assert_allclose(np.asarray(Image.open(tmp_path / "back.ppm")), after, atol=1)


def test_cmyk_goes_through_its_profile_or_is_converted_plainly(small: Image.Image) -> None:
    cmyk = small.convert("CMYK")
    plain = read_back(cmyk, "JPEG", quality=100, subsampling=0)
    assert plain.mode == "RGB" and plain.icc is None
    assert np.abs(plain.pixels.astype(int) - np.asarray(cmyk.convert("RGB"))).mean() < 4
    # A damaged profile, or one of other colours, is no reason to fail, and does not describe the result.
    for profile in (b"nonsense" * 40, SRGB):
        assert read_back(cmyk, "JPEG", icc_profile=profile).icc is None


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_several_frames_need_a_choice(kind: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    buffer = io.BytesIO()
    settings = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], **settings)
    data = buffer.getvalue()
    with pytest.raises(ImageError, match="holds 3 frames"):
        images.read_picture(io.BytesIO(data))
    assert images.read_picture(io.BytesIO(data), frame=1).pixels[3, 3].tolist() == [0, 255, 0]
    with pytest.raises(ImageError, match="no frame 3: they are numbered from 0 to 2"):
        images.read_picture(io.BytesIO(data), frame=3)


def test_previews_in_a_camera_s_file_are_left_out_with_a_warning() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(buffer, "MPO", save_all=True, append_images=[Image.new("RGB", (4, 3), "blue")])
    with pytest.warns(RdaeWarning, match="left out"):
        assert images.read_picture(io.BytesIO(buffer.getvalue())).width == 8
    with pytest.raises(ImageError, match="frames"):
        images.read_picture(io.BytesIO(buffer.getvalue()), strict=True)


def test_arrays_of_every_kind() -> None:
    rng = np.random.default_rng(0)
    for shape, mode in (((5, 4), "L"), ((5, 4, 1), "L"), ((5, 4, 2), "LA"), ((5, 4, 3), "RGB"), ((5, 4, 4), "RGBA")):
        array = rng.integers(0, 256, shape, dtype=np.uint8)
        picture = pictures.from_array(array)
        assert picture.mode == mode
        np.testing.assert_array_equal(picture.array, array.reshape(picture.array.shape))
    np.testing.assert_array_equal(pictures.from_array(np.eye(3, dtype=bool)).pixels, 255 * np.eye(3))
    with pytest.warns(RdaeWarning):
        assert pictures.from_array(np.array([[0, 128, 129, 65535]], np.uint16)).pixels.tolist() == [[0, 0, 1, 255]]
    for array in (np.zeros((3, 3, 5), np.uint8), np.zeros((3, 3), np.float64), np.zeros((0, 3), np.uint8), np.zeros(3, np.uint8)):
        with pytest.raises(ImageError, match="an image must be"):
            pictures.from_array(array)


def test_pillow_images_and_limits(monkeypatch: pytest.MonkeyPatch, small: Image.Image) -> None:
    assert pictures.from_pillow(small).to_pillow().tobytes() == small.tobytes()
    from codec import container

    monkeypatch.setattr(container, "MAX_PIXELS", 100)
    with pytest.raises(DimensionsError):
        pictures.from_pillow(small)


@pytest.mark.parametrize("suffix", [".jpg", ".bmp", ".ppm"])
def test_formats_without_transparency_refuse_it_by_name(tmp_path: Path, small: Image.Image, suffix: str) -> None:
    with pytest.raises(ImageError, match="cannot hold the picture's transparency"):
        images.write_picture(pictures.from_pillow(with_alpha(small)), tmp_path / f"x{suffix}")
    opaque = small.copy()
    opaque.putalpha(255)
    images.write_picture(pictures.from_pillow(opaque), tmp_path / f"x{suffix}")
    assert images.read_picture(tmp_path / f"x{suffix}").mode == "RGB"


def test_too_long_for_jpeg(tmp_path: Path, small: Image.Image) -> None:
    picture = Picture(np.asarray(small), xmp=b"x" * 70_000)
    assert images.write_picture(picture, tmp_path / "x.jpg") == ["XMP (too long for JPEG)"]
    assert images.write_picture(picture, tmp_path / "x.png") == []


def test_programs_are_not_run(tmp_path: Path) -> None:
    (tmp_path / "x.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError, match="program"):
        images.read_picture(tmp_path / "x.eps")
