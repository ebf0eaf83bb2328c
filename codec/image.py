"""Image files to pictures and back, through Pillow."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from codec import picture as pictures
from codec.errors import DimensionsError, ImageError
from codec.picture import Picture

Pixels = npt.NDArray[np.uint8]
Source = str | os.PathLike[str] | IO[bytes]
_SETTINGS: Final[dict[str, dict[str, Any]]] = {
    # Half the time of Pillow's default, level 6, for two per cent more bytes.
    "PNG": {"compress_level": 4},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
}
_ALPHA: Final = ("PNG", "WEBP", "TIFF", "AVIF", "JPEG2000", "TGA")
"""Formats that hold an alpha channel."""
_METADATA: Final = ("PNG", "JPEG", "WEBP", "TIFF", "AVIF")
"""Formats that hold ICC profiles, EXIF and XMP."""
_JPEG_LIMIT: Final = 65_000
"""Bytes of EXIF or XMP that a JPEG marker holds."""


def name_of(file: Source) -> str:
    """What messages call a file."""
    if isinstance(file, str | os.PathLike):
        return os.fspath(file)
    return str(getattr(file, "name", "the image"))


def read_picture(file: Source, *, strict: bool = False, frame: int | None = None, what: str | None = None) -> Picture:
    """An image file of any kind that Pillow reads, upright according to its EXIF orientation, with its metadata.

    Raises `ImageError` when it cannot be read, holds several frames and none was chosen, or cannot be converted to eight bits;
    `DimensionsError` when it is too large. What is lost on the way is said by an `RdaeWarning`, and refused when `strict`.
    `what` names the file in messages.
    """
    what = what or name_of(file)
    try:
        with pictures.quiet_pillow(), Image.open(file) as image:
            if image.format == "RDAE":
                raise ImageError(f"{what}: is an .rdae stream already")
            if image.format == "EPS":
                raise ImageError(f"{what}: is a program (EPS), which is not run")
            return pictures.from_pillow(image, strict=strict, frame=frame, what=what)
    except DimensionsError as error:
        raise DimensionsError(f"{what}: {error}") from error
    except ImageError:
        raise
    # Decoders of damaged files raise what they like, and all of it means that the file cannot be read.
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError(f"{what}: {_reason(error)}") from error


def read(path: Path) -> Pixels:
    """An image file as H×W×3 uint8, upright. Grey, palette and CMYK images are converted to RGB.

    Raises `ImageError` when the file cannot be read, holds several frames, more than eight bits a channel, or transparency, none of
    which such an array keeps; `DimensionsError` when it is too large.
    """
    picture = read_picture(path, strict=True)
    if picture.alpha is not None and picture.alpha.min() < 255:
        raise ImageError(f"{path}: is transparent in places, which an RGB image cannot keep")
    return np.repeat(picture.pixels[..., None], 3, axis=2) if picture.grey else picture.pixels


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow can read"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]


def _kind_of(ending: str) -> str | None:
    """Pillow's name of the format of a file ending. All its plugins are loaded only when the common ones do not know it."""
    Image.preinit()
    if ending.lower() not in Image.EXTENSION:
        Image.init()
    return Image.EXTENSION.get(ending.lower())


def format_of(path: Path) -> str:
    """Pillow's name of the format that a file name asks for. Raises `ImageError`."""
    kind = _kind_of(path.suffix)
    if kind is None or kind not in Image.SAVE or kind == "RDAE":
        raise ImageError(f"{path}: cannot tell an image format from the name; .png is a safe choice")
    return kind


def format_named(name: str) -> str:
    """Pillow's name of a format, from that or from a file ending such as `jpg`. Raises `ImageError`."""
    kind = _kind_of(f".{name}") or name.upper()
    if kind not in Image.SAVE or kind == "RDAE":
        raise ImageError(f"there is no image format {name!r} to write; png is a safe choice")
    return kind


def write_picture(picture: Picture, file: Path | IO[bytes], kind: str | None = None) -> list[str]:
    """Write a picture to an image file, in the format that its name asks for, or in the one given (Pillow's name or an ending).

    Returns what the format could not hold, in words. Raises `ImageError` when it cannot hold the transparency, or cannot be written.
    """
    what = name_of(file)
    kind = format_of(Path(what)) if kind is None else format_named(kind)
    image, lost = _writable(picture, kind, what)
    settings = {**_SETTINGS.get(kind, {}), **_metadata(picture, kind, lost)}
    # A file goes to a temporary name first, an open one is written to as it is.
    with Atomic(file) if isinstance(file, Path) else contextlib.nullcontext(file) as target:
        try:
            image.save(target, format=kind, **settings)
        except (OSError, ValueError, KeyError, SystemError) as error:
            raise ImageError(f"{what}: {_reason(error)}") from error
    return lost


def _writable(picture: Picture, kind: str, what: str) -> tuple[Image.Image, list[str]]:
    """(the image in a mode that the format takes, what is lost by that)."""
    lost: list[str] = []
    if picture.alpha is not None and kind not in _ALPHA:
        if picture.alpha.min() < 255:
            raise ImageError(f"{what}: {kind} cannot hold the picture's transparency; .png, .webp and .tiff can")
        picture = Picture(picture.pixels, None, picture.icc, picture.exif, picture.xmp)
    image = Image.fromarray(picture.array)
    if picture.icc and kind not in _METADATA:
        from PIL import ImageCms

        # Without its profile a picture changes its colours, unless they are converted.
        try:
            profile = ImageCms.ImageCmsProfile(_bytes_io(picture.icc))
            ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), inPlace=True)
            lost.append("its colour profile (colours are converted to sRGB)")
        except (ImageCms.PyCMSError, OSError, ValueError):
            lost.append("its colour profile")
    return image, lost


def _bytes_io(data: bytes) -> IO[bytes]:
    import io

    return io.BytesIO(data)


def _metadata(picture: Picture, kind: str, lost: list[str]) -> dict[str, Any]:
    """Arguments of Pillow's `save` that write the metadata; what has no place is added to `lost`."""
    info = picture.info()
    if kind not in _METADATA:
        lost += [name.upper() for name in ("exif", "xmp") if name in info]
        return {}
    if kind == "JPEG":
        for name in ("exif", "xmp"):
            if len(info.get(name, b"")) > _JPEG_LIMIT:
                lost.append(f"{name.upper()} (too long for JPEG)")
                del info[name]
    if kind == "PNG" and "xmp" in info:
        from PIL import PngImagePlugin

        chunks = PngImagePlugin.PngInfo()
        try:
            chunks.add_itxt("XML:com.adobe.xmp", info.pop("xmp").decode("utf-8"))
            info["pnginfo"] = chunks
        except UnicodeDecodeError:
            lost.append("XMP (not text)")
    if kind == "TIFF" and "xmp" in info:
        from PIL import TiffImagePlugin

        # There, XMP is one of the tags that EXIF consists of.
        tags = Image.Exif()
        tags.load(info.get("exif", b""))
        tags[TiffImagePlugin.XMP] = info.pop("xmp")
        info["exif"] = tags
    return info


def write(pixels: Pixels, path: Path) -> None:
    """Write H×W×3 uint8 to an image file in the format that its name asks for. Raises `ImageError`."""
    write_picture(pictures.from_array(pixels), path)


def write_bytes(data: bytes, path: Path) -> None:
    """Write a file whole or not at all. Raises `ImageError`."""
    with Atomic(path) as temporary:
        try:
            temporary.write_bytes(data)
        except OSError as error:
            raise ImageError(f"{path}: {_reason(error)}") from error


class Atomic:
    """Context manager that yields a temporary path beside the target, renamed onto it at the end, removed on any error."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Path:
        try:
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.", suffix=".part")
        except OSError as error:
            raise ImageError(f"{self.path}: {_reason(error)}") from error
        os.close(handle)
        # mkstemp's files are private; the result should have the permissions of any new file.
        mask = os.umask(0)
        os.umask(mask)
        self.temporary = Path(name)
        self.temporary.chmod(0o666 & ~mask)
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.temporary.replace(self.path)
        except OSError as error:
            raise ImageError(f"{self.path}: {_reason(error)}") from error
        finally:
            self.temporary.unlink(missing_ok=True)
