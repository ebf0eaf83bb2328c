"""rdae: a rate–distortion autoencoder for photographs.

>>> import codec, numpy
>>> image = numpy.zeros((32, 48, 3), numpy.uint8)
>>> codec.decompress(codec.compress(image)).shape
(32, 48, 3)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codec.errors import (
    BadMagicError,
    ChecksumError,
    DimensionsError,
    FormatError,
    ImageError,
    ModelError,
    RdaeError,
    TrailingDataError,
    TruncatedError,
    UnknownModelError,
    UnsupportedError,
)
from codec.registry import models

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

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
    "TrailingDataError",
    "TruncatedError",
    "UnknownModelError",
    "UnsupportedError",
    "compress",
    "decompress",
    "load",
    "models",
]


def load(model: str | Path | None = None) -> Model:
    """A shipped model by name (None: the default one), or any model file by path.

    Raises `UnknownModelError` for a name that is not shipped, `ModelError` for a file that is not a model.
    """
    from codec import model as implementation  # torch takes more than a second to import: only when needed

    return implementation.load(model)


def compress(image: npt.NDArray[np.uint8], *, model: str | Path | None = None, quality: int | None = None) -> bytes:
    """The bytes of an `.rdae` file that holds an image, H×W×3 uint8.

    `quality` runs from 1, the smallest file, to the number of qualities that the model has; None is the model's default.
    Raises `ImageError`, `DimensionsError`, `ModelError`.
    """
    return load(model).encode(image, quality)


def decompress(data: bytes, *, model: str | Path | None = None) -> npt.NDArray[np.uint8]:
    """The image H×W×3 uint8 of an `.rdae` file's bytes. The shipped model it was made with is found by its hash, unless one is named.

    Raises the `RdaeError` that fits: `UnknownModelError` when the model is not at hand, a `FormatError` for damaged data.
    """
    from codec import container
    from codec import model as implementation

    chosen = implementation.load_for(container.read(data)) if model is None else load(model)
    return chosen.decode(data)


def __getattr__(name: str) -> Any:
    if name == "Model":
        from codec.model import Model

        return Model
    raise AttributeError(f"module 'codec' has no attribute {name!r}")
