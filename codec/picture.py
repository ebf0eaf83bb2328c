"""A picture as the codec sees it, and how arrays and Pillow images of every mode become one.

| Pillow mode | coded as |
|---|---|
| RGB, RGBX | RGB |
| L, 1 | grey |
| RGBA, LA, RGBa, La, PA, and anything with a transparent colour | RGB or grey, with an alpha plane |
| P | RGB |
| I;16…, I (of 16 bits); RGB, RGBA, LA of 16 bits | grey, RGB…, rounded to 8 bits with a warning |
| CMYK, LAB | RGB, by their ICC profile where there is one; YCbCr, HSV: RGB |
| F, I of 32 bits | refused |
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from codec import container
from codec.errors import ImageError, RdaeWarning

Pixels = npt.NDArray[np.uint8]
_EXIF_HEADER: Final = b"Exif\0\0"
_DEEP: Final = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_TIFF_FACTS: Final = (270, 271, 272, 282, 283, 296, 305, 306, 315, 33432, 34665, 34853)
"""The tags of a TIFF file that speak of the photograph (and the EXIF and GPS directories), not of how its bytes are laid out."""


@dataclass(frozen=True, eq=False)
class Picture:
    """An upright picture of eight bits a channel, and what travels with it."""

    pixels: Pixels = field(repr=False)
    """H×W×3, or H×W for a grey picture."""
    alpha: Pixels | None = field(default=None, repr=False)
    """H×W, 255 = opaque; None where the picture has no alpha channel."""
    icc: bytes | None = field(default=None, repr=False)
    exif: bytes | None = field(default=None, repr=False)
    """From the TIFF header on."""
    xmp: bytes | None = field(default=None, repr=False)

    @property
    def height(self) -> int:
        """Rows."""
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        """Columns."""
        return self.pixels.shape[1]

    @property
    def grey(self) -> bool:
        """Whether there is one channel only, alpha aside."""
        return self.pixels.ndim == 2

    @property
    def mode(self) -> str:
        """Pillow's name of it: L, LA, RGB or RGBA."""
        return ("L" if self.grey else "RGB") + ("A" if self.alpha is not None else "")

    @property
    def array(self) -> Pixels:
        """All channels in one: H×W, H×W×2, H×W×3 or H×W×4."""
        if self.alpha is None:
            return self.pixels
        return np.dstack([self.pixels, self.alpha])

    def stripped(self) -> Picture:
        """Without colour profile, EXIF and XMP."""
        return replace(self, icc=None, exif=None, xmp=None)

    def to_pillow(self) -> Image.Image:
        """As a Pillow image, with the metadata in its `info`."""
        image = Image.fromarray(self.array)
        image.info.update(self.info())
        return image

    def info(self) -> dict[str, Any]:
        """The metadata under Pillow's names."""
        exif = _EXIF_HEADER + self.exif if self.exif else None
        return {k: v for k, v in (("icc_profile", self.icc), ("exif", exif), ("xmp", self.xmp)) if v}


def from_array(array: npt.NDArray[Any], strict: bool = False) -> Picture:
    """Of an array H×W, H×W×1 (grey), H×W×2 (grey, alpha), H×W×3 (RGB) or H×W×4 (RGBA) of uint8, bool or uint16.

    16 bits are rounded to 8, with an `RdaeWarning`. Raises `ImageError` for other arrays, and for 16 bits when `strict`.
    """
    if array.ndim not in (2, 3) or 0 in array.shape or array.dtype not in (np.uint8, np.bool_, np.uint16) or array.shape[2:] > (4,):
        kind = f"{array.dtype} {'×'.join(map(str, array.shape))}"
        raise ImageError(f"an image must be H×W, or H×W×1 to H×W×4, of uint8 (or bool, or uint16), and not empty: not {kind}")
    if array.dtype == np.uint16:
        _deep("the array", strict)
        array = _to_8_bits(array)
    elif array.dtype == np.bool_:
        array = array * np.uint8(255)
    if array.ndim == 2:
        return Picture(array)
    channels = array.shape[2]
    pixels = array[:, :, 0] if channels < 3 else array[:, :, :3]
    return Picture(pixels, array[:, :, -1] if channels % 2 == 0 else None)


def from_pillow(
    image: Image.Image, *, strict: bool = False, frame: int | None = None, orient: bool = True, what: str = "the image"
) -> Picture:
    """Of a Pillow image of any mode, with its colour profile, EXIF and XMP; `what` names it in messages.

    Its EXIF orientation is applied, and the tag removed, unless `orient` is false. Raises `ImageError` for several frames when none
    is chosen, for modes that cannot be converted, and, when `strict`, for more than eight bits; `DimensionsError` when too large.
    """
    _choose_frame(image, frame, strict, what)
    container.check_dimensions(image.width, image.height)
    if _is_deep(image):
        _deep(what, strict)
    image.load()
    # Most images are upright, and a copy of a large one is not free.
    if orient and image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
    icc = image.info.get("icc_profile") or None
    converted = _eight_bits(image, icc, what)
    if icc and image.mode in ("CMYK", "LAB"):
        icc = None  # the colours are sRGB now
    array = np.asarray(converted)
    picture = from_array(array)
    return replace(picture, icc=icc, exif=_exif(image), xmp=_xmp(image))


def _choose_frame(image: Image.Image, frame: int | None, strict: bool, what: str) -> None:
    frames = int(getattr(image, "n_frames", 1))
    if frame is not None:
        if not 0 <= frame < frames:
            raise ImageError(f"{what}: has no frame {frame}: they are numbered from 0 to {frames - 1}")
        image.seek(frame)
    elif frames > 1:
        if image.format == "MPO" and not strict:
            warnings.warn(f"{what}: further images in the file (previews, depth) are left out", RdaeWarning, stacklevel=2)
            return
        raise ImageError(f"{what}: holds {frames} frames; choose one (--frame N, from 0)")


def _is_deep(image: Image.Image) -> bool:
    """Whether the file has more than eight bits a channel; of some formats, Pillow has dropped the lower ones already."""
    if image.mode in _DEEP:
        return True
    # What decoders are told of the layout of the file's pixels: "RGB;16B", or for PPM the largest value.
    arguments = [tile[3] if isinstance(tile[3], tuple) else (tile[3],) for tile in getattr(image, "tile", [])]
    return any(";16" in word if isinstance(word, str) else word == 65535 for words in arguments for word in words)


def _deep(what: str, strict: bool) -> None:
    if strict:
        raise ImageError(f"{what}: has more than eight bits a channel, which --strict does not give up")
    warnings.warn(f"{what}: has more than eight bits a channel; they are rounded to eight", RdaeWarning, stacklevel=2)


def _to_8_bits(array: npt.NDArray[Any]) -> Pixels:
    """0…65535 to 0…255, rounded, in bands of rows to save memory."""
    out = np.empty(array.shape, np.uint8)
    for top in range(0, len(array), 256):
        out[top : top + 256] = (array[top : top + 256].astype(np.uint32) + 128) // 257
    return out


def _eight_bits(image: Image.Image, icc: bytes | None, what: str) -> Image.Image:
    """The image in mode L, LA, RGB or RGBA."""
    if image.mode in ("L", "LA", "RGB", "RGBA") and "transparency" not in image.info:
        return image
    if image.mode in _DEEP:
        values = np.asarray(image)
        if values.dtype != np.uint16 and (values.min() < 0 or values.max() > 65535):
            raise ImageError(f"{what}: has 32 bits a channel, which is not supported")
        return Image.fromarray(_to_8_bits(values))
    if image.mode in ("CMYK", "LAB"):
        return _managed(image, icc)
    grey = image.mode in ("1", "L", "LA", "La")
    mode = ("L" if grey else "RGB") + ("A" if image.has_transparency_data else "")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode == "F":
        raise ImageError(f"{what}: has floating-point values, which are not supported")
    return image.convert(mode)


def _managed(image: Image.Image, icc: bytes | None) -> Image.Image:
    """A CMYK or LAB image in sRGB, by its own profile where there is a usable one."""
    from PIL import ImageCms

    srgb = ImageCms.createProfile("sRGB")
    with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError):
        if image.mode == "LAB":
            return _transformed(image, ImageCms.createProfile("LAB"), srgb)
        if icc and icc[16:20] == b"CMYK":
            return _transformed(image, ImageCms.ImageCmsProfile(io.BytesIO(icc)), srgb)
    return image.convert("RGB")


def _transformed(image: Image.Image, source: Any, target: Any) -> Image.Image:
    from PIL import ImageCms

    converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    assert converted is not None
    return converted


def _exif(image: Image.Image) -> bytes | None:
    data = image.info.get("exif")
    if not isinstance(data, bytes):
        exif = image.getexif()
        if hasattr(image, "tag_v2"):
            for tag in set(exif) - set(_TIFF_FACTS):
                del exif[tag]
        data = exif.tobytes() if len(exif) else b""
    data = data.removeprefix(_EXIF_HEADER)
    return data if data[:2] in (b"II", b"MM") else None


def _xmp(image: Image.Image) -> bytes | None:
    data = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    return (data.encode() if isinstance(data, str) else bytes(data)) or None


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Without Pillow's warning on large images: `container.MAX_PIXELS` is checked instead."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield
