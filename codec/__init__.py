"""rdae: a rate–distortion autoencoder for photographs.

>>> import codec, numpy
>>> image = numpy.zeros((32, 48, 3), numpy.uint8)
>>> codec.decompress(codec.compress(image)).shape
(32, 48, 3)

Once this package is imported, Pillow reads and writes `.rdae` files: `PIL.Image.open("photo.rdae")`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codec import pillow_plugin as pillow_plugin
from codec.api import compress, decompress, decompress_image, load
from codec.errors import (
    BadMagicError,
    ChecksumError,
    DimensionsError,
    FormatError,
    ImageError,
    ModelError,
    RdaeError,
    RdaeWarning,
    TrailingDataError,
    TruncatedError,
    UnknownModelError,
    UnsupportedError,
)
from codec.registry import models

if TYPE_CHECKING:
    from codec.model import Model

__version__ = "0.1.0"
__all__ = [
    "BadMagicError",
    "ChecksumError",
    "DimensionsError",
    "FormatError",
    "ImageError",
    "Model",
    "ModelError",
    "RdaeError",
    "RdaeWarning",
    "TrailingDataError",
    "TruncatedError",
    "UnknownModelError",
    "UnsupportedError",
    "compress",
    "decompress",
    "decompress_image",
    "load",
    "models",
]


def __getattr__(name: str) -> Any:
    if name == "Model":
        from codec.model import Model

        return Model
    raise AttributeError(f"module 'codec' has no attribute {name!r}")
