"""The functions that `import codec` offers. What is heavy to import (torch takes more than a second) is imported when it is needed."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from codec.errors import ImageError, RdaeWarning

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

    from codec.model import Model
    from codec.picture import Picture

File = str | os.PathLike[str] | IO[bytes]
"""A path, or a file that is open in binary mode."""
Region = tuple[int, int, int, int]
"""Left, top, width, height, in pixels."""


def load(model: str | Path | None = None, precision: str = "fp32") -> Model:
    """A shipped model by name (None: the default one), or any model file by path.

    `precision` is what its transforms compute in: "fp32"; "bf16", faster where the processor has it, at the price of up to a tenth of a
    decibel; or "auto", for bf16 where the processor has it, but for fine pictures.

    Raises `UnknownModelError` for a name that is not shipped, `ModelError` for a file that is not a model.
    """
    from codec import model as models

    return models.load(model, precision)


def compress(
    image: npt.NDArray[Any] | Image.Image | File,
    output: File | None = None,
    *,
    model: str | Path | None = None,
    quality: int | None = None,
    bpp: float | None = None,
    size: int | None = None,
    psnr: float | None = None,
    strip: bool = False,
    strict: bool = False,
    frame: int | None = None,
    tile: int | None = None,
    jobs: int = 1,
    precision: str = "fp32",
    effort: int | None = None,
    tune: str = "psnr",
) -> bytes:
    """The bytes of an `.rdae` file that holds an image; they are also written to `output`, where one is given.

    The image is an array (H×W grey, H×W×2 grey and alpha, H×W×3 RGB, H×W×4 RGBA, uint8), a Pillow image, or an image file.
    Pillow images and files keep their colour profile, EXIF and XMP, unless `strip`; the EXIF orientation is applied. `frame` chooses
    one of several; `strict` refuses 16 bits, which are otherwise rounded to 8.

    `quality` runs from 1, the smallest file, to the number of qualities that the model has; None is the model's default. In its
    stead, `bpp` asks for the rate nearest to so many bits per pixel, `size` for the best in at most so many bytes, `psnr` for the
    smallest with at least so many dB; an `RdaeWarning` says when that is out of the model's reach. `tile` is the side of the tiles
    in pixels (128, 256, 512 or 1024, the default; 0 for none), `jobs` the number of threads; `precision` is as in `load`. `effort`, 0…9, is
    how long the encoder searches for a better stream, 0 (None, the default) not at all; `tune`, "psnr" or "ms-ssim", says by what measure
    it should be better. For "ms-ssim" there must be a search, of effort 2 if nothing else is asked for.

    Raises `ImageError`, `DimensionsError`, `ModelError`.
    """
    from codec import encoder, rate, tiles
    from codec import image as images

    picture = _picture(image, strict, frame)
    keep = (bpp, size, psnr) != (None, None, None)
    side = tiles.TILE if tile is None else tile
    prepared = encoder.Encoder(
        load(model, precision), picture.stripped() if strip else picture, tile=side, jobs=jobs, keep=keep, effort=effort, tune=tune
    )
    coded = rate.encode(prepared, quality=quality, bpp=bpp, size=size, psnr=psnr)
    if coded.note:
        warnings.warn(coded.note, RdaeWarning, stacklevel=2)
    if isinstance(output, str | os.PathLike):
        images.write_bytes(coded.data, Path(output))
    elif output is not None:
        output.write(coded.data)
    return coded.data


def decompress(
    data: bytes | File,
    output: File | None = None,
    *,
    format: str | None = None,
    model: str | Path | None = None,
    region: Region | None = None,
    jobs: int = 1,
    precision: str = "fp32",
) -> npt.NDArray[np.uint8]:
    """The image of an `.rdae` file: H×W×3 uint8, of grey pictures H×W, with an alpha channel H×W×4 or H×W×2.

    It is also written to `output`, where one is given, with its metadata, in the format that the name or else `format` asks for
    (PNG for an open file). For a `region`, only the tiles around it are decoded. The model that the file was made with is found by
    its hash, among the shipped ones and those loaded before, unless one is named. `precision` is as in `load`; any precision decodes
    a stream of any other to the same latents.

    Raises the `RdaeError` that fits: `UnknownModelError` when the model is not at hand, a `FormatError` for damaged data.
    """
    picture = _decoded(data, model, region, jobs, precision)
    if output is not None:
        from codec import image as images

        path = isinstance(output, str | os.PathLike)
        lost = images.write_picture(picture, Path(output) if path else output, format or (None if path else "png"))  # type: ignore[arg-type]
        for what in lost:
            warnings.warn(f"the format cannot hold {what}", RdaeWarning, stacklevel=2)
    return picture.array


def decompress_image(
    data: bytes | File, *, model: str | Path | None = None, region: Region | None = None, jobs: int = 1, precision: str = "fp32"
) -> Image.Image:
    """As `decompress`, but a Pillow image of mode RGB, L, RGBA or LA, with `icc_profile`, `exif` and `xmp` in its `info`."""
    return _decoded(data, model, region, jobs, precision).to_pillow()


def _picture(image: npt.NDArray[Any] | Image.Image | File, strict: bool, frame: int | None) -> Picture:
    import numpy as np
    from PIL import Image

    from codec import image as images
    from codec import picture

    if isinstance(image, np.ndarray):
        return picture.from_array(image, strict)
    if isinstance(image, Image.Image):
        return picture.from_pillow(image, strict=strict, frame=frame)
    return images.read_picture(image, strict=strict, frame=frame)


def _decoded(data: bytes | File, model: str | Path | None, region: Region | None, jobs: int, precision: str) -> Picture:
    from codec import container, decoder
    from codec import model as models

    if isinstance(data, str | os.PathLike):
        try:
            data = Path(data).read_bytes()
        except OSError as error:
            raise ImageError(f"{data!s}: {error.strerror}") from error
    elif not isinstance(data, bytes | bytearray | memoryview):
        data = data.read()
    stream = container.read(bytes(data))
    chosen = models.load_for(stream, precision) if model is None else load(model, precision)
    return decoder.decode(chosen, stream, region=region, jobs=jobs)
