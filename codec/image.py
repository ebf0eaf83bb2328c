"""Image files to arrays and back, through Pillow."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from codec import container
from codec.errors import DimensionsError, ImageError

Pixels = npt.NDArray[np.uint8]
_DEEP: Final = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def read(path: Path) -> Pixels:
    """An image file as H×W×3 uint8, upright according to its EXIF orientation.

    Grayscale, palette and CMYK images are converted to RGB. Raises `ImageError` when the file cannot be read, holds several
    frames, more than eight bits a channel, or transparency, none of which this release keeps; `DimensionsError` when it is too large.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            try:
                container.check_dimensions(width, height)
            except DimensionsError as error:
                raise DimensionsError(f"{path}: {error}") from error
            if getattr(image, "n_frames", 1) > 1:
                raise ImageError(f"{path}: holds several frames, which are not supported")
            if image.mode in _DEEP:
                raise ImageError(f"{path}: has more than eight bits a channel, which is not supported")
            if image.has_transparency_data and _is_transparent(image):
                raise ImageError(f"{path}: is transparent in places, which is not supported")
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{path}: {_reason(error)}") from error


def _is_transparent(image: Image.Image) -> bool:
    return bool(np.asarray(image.convert("RGBA").getchannel("A")).min(initial=255) < 255)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image that Pillow can read"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]


def write(pixels: Pixels, path: Path) -> None:
    """Write H×W×3 uint8 to an image file in the format that its name asks for. Raises `ImageError`."""
    extensions = Image.registered_extensions()
    kind = extensions.get(path.suffix.lower())
    if kind is None or kind not in Image.SAVE:
        raise ImageError(f"{path}: cannot tell an image format from the name; .png is a safe choice")
    choices: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
    with Atomic(path) as temporary:
        try:
            Image.fromarray(pixels).save(temporary, format=kind, **choices.get(kind, {}))
        except (OSError, ValueError) as error:
            raise ImageError(f"{path}: {_reason(error)}") from error


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
