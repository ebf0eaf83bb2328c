"""One file at a time: what `rdae compress` and `rdae decompress` do to each, in any process."""

from __future__ import annotations

import io
import os
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from codec import container
from codec.errors import ImageError, RdaeError, RdaeWarning, UnknownModelError
from codec.progress import Progress

if TYPE_CHECKING:
    from codec.model import Model
    from codec.picture import Picture

SUFFIX = ".rdae"
STANDARD = Path("-")
"""Stands for standard input or output."""


@dataclass(frozen=True)
class Options:
    """The settings of a run, the same for all of its files."""

    model: str | None = None
    quality: int | None = None
    bpp: float | None = None
    size: int | None = None
    psnr: float | None = None
    tile: int | None = None
    verify: bool = False
    strip: bool = False
    strict: bool = False
    frame: int | None = None
    region: tuple[int, int, int, int] | None = None
    format: str | None = None
    force: bool = False
    jobs: int = 1
    """Threads for one file."""
    max_pixels: int | None = None
    precision: str = "fp32"
    effort: int | None = None
    tune: str = "psnr"


@dataclass(frozen=True)
class Done:
    """What became of a file."""

    source: Path
    target: Path
    width: int = 0
    height: int = 0
    before: int = 0
    """Bytes read."""
    after: int = 0
    """Bytes written."""
    line: str = ""
    """For people."""
    notes: tuple[str, ...] = ()
    """Warnings."""
    error: str | None = None
    skipped: bool = False


def bits_per_pixel(size: int, width: int, height: int) -> float:
    """Of a whole file."""
    return 8 * size / (width * height)


def read_bytes(path: Path) -> bytes:
    """A whole file, or standard input. Raises `ImageError`."""
    try:
        return sys.stdin.buffer.read() if path == STANDARD else path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error


def write_bytes(data: bytes, path: Path) -> None:
    """A file, whole or not at all, or standard output. Raises `ImageError`."""
    from codec import image as images

    if path != STANDARD:
        return images.write_bytes(data, path)
    if sys.stdout.isatty():
        raise ImageError("image bytes are not written to a terminal: name a file with -o, or redirect the output")
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
    return None


def check_target(target: Path, force: bool) -> None:
    """Raises `ImageError` when the target is not to be written, before any work is done."""
    if target == STANDARD:
        return
    if target.is_dir():
        raise ImageError(f"{target}: is a folder")
    if target.exists() and not force:
        raise ImageError(f"{target}: exists already; --force overwrites it")
    if not target.parent.is_dir():
        raise ImageError(f"{target.parent}: no such folder")


def set_limit(options: Options) -> None:
    """Let images of so many pixels through, ours and Pillow's."""
    if options.max_pixels is not None:
        from PIL import Image

        container.MAX_PIXELS = options.max_pixels
        # Pillow refuses what is twice as large as its own limit; ours is the lower one by then.
        own = Image.MAX_IMAGE_PIXELS or 0
        Image.MAX_IMAGE_PIXELS = max(own, options.max_pixels) if options.max_pixels else None


def compress(source: Path, target: Path, options: Options) -> Done:
    """An image file to an `.rdae` file. Raises an `RdaeError` that names the file."""
    check_target(target, options.force)
    set_limit(options)
    from codec import image as images

    piped = read_bytes(source) if source == STANDARD else None
    before = _size(source) if piped is None else len(piped)
    file = source if piped is None else io.BytesIO(piped)
    picture = images.read_picture(file, strict=options.strict, frame=options.frame, what=_name(source))
    picture = picture.stripped() if options.strip else picture
    from codec import model as models
    from codec import rate
    from codec.encoder import Encoder, effort_of
    from codec.tiles import TILE

    model = models.load(options.model, options.precision)
    progress = Progress(source.name, "steps" if effort_of(options.effort, options.tune) else "windows")
    searching = (options.bpp, options.size, options.psnr) != (None, None, None)
    tile = TILE if options.tile is None else options.tile
    try:
        encoder = Encoder(
            model,
            picture,
            tile=tile,
            jobs=options.jobs,
            keep=searching or options.verify,
            progress=progress,
            effort=options.effort,
            tune=options.tune,
        )
        coded = rate.encode(encoder, quality=options.quality, bpp=options.bpp, size=options.size, psnr=options.psnr)
    except ImageError as error:
        raise ImageError(f"{_name(source)}: {error}") from error
    finally:
        progress.close()
    if coded.note:
        warnings.warn(f"{_name(source)}: {coded.note}", RdaeWarning, stacklevel=2)
    write_bytes(coded.data, target)
    width, height, size = picture.width, picture.height, len(coded.data)
    line = f"{target}: {width}×{height}, {size} bytes, {bits_per_pixel(size, width, height):.3f} bpp"
    if options.verify:
        line += f", {_verified(model, picture, coded.data if target == STANDARD else target.read_bytes(), options.jobs):.2f} dB PSNR"
    return Done(source, target, width, height, before, size, line)


def _verified(model: Model, picture: Picture, data: bytes, jobs: int) -> float:
    """PSNR of the file as it was written, over all channels of the pixels that are not fully transparent."""
    import numpy as np

    from codec import decoder

    restored = decoder.decode(model, container.read(data), jobs=jobs)
    if picture.alpha is not None and not np.array_equal(restored.alpha if restored.alpha is not None else [], picture.alpha):
        raise ImageError("the alpha plane did not come back")
    seen = np.ones(1, bool) if picture.alpha is None else picture.alpha > 0
    total, count = 0.0, 0
    for top in range(0, picture.height, 256):
        rows = slice(top, top + 256)
        error = (restored.pixels[rows].astype(np.float32) - picture.pixels[rows]) ** 2
        if picture.alpha is not None:
            error = error[seen[rows]]
        total += float(error.sum(dtype=np.float64))
        count += error.size
    return float(10 * np.log10(255**2 * count / total)) if total else float("inf")


def decompress(source: Path, target: Path, options: Options) -> Done:
    """An `.rdae` file to an image file. Raises an `RdaeError` that names the file."""
    check_target(target, options.force)
    set_limit(options)
    if target == STANDARD and sys.stdout.isatty():
        raise ImageError("image bytes are not written to a terminal: name a file with -o, or redirect the output")
    kind = options.format or ("png" if target == STANDARD else None)
    data = read_bytes(source)
    progress = Progress(source.name, "windows")
    try:
        stream = container.read(data)
        from codec import decoder
        from codec import image as images
        from codec import model as models

        # Before the work: a format that cannot be written.
        images.format_of(target) if kind is None else images.format_named(kind)
        given = options.model
        model = models.load_for(stream, options.precision) if given is None else models.load(given, options.precision)
        picture = decoder.decode(model, stream, region=options.region, jobs=options.jobs, progress=progress)
    except UnknownModelError as error:
        raise UnknownModelError(f"{_name(source)}: {error} (--model)") from error
    except RdaeError as error:
        # What is said of the target names it already.
        raise type(error)(str(error) if str(error).startswith(f"{target}:") else f"{_name(source)}: {error}") from error
    finally:
        progress.close()
    picture = picture.stripped() if options.strip else picture
    if target == STANDARD:
        buffer = io.BytesIO()
        lost = images.write_picture(picture, buffer, kind)
        write_bytes(buffer.getvalue(), target)
        after = buffer.tell()
    else:
        lost = images.write_picture(picture, target, kind)
        after = _size(target)
    for what in lost:
        warnings.warn(f"{target}: the format cannot hold {what}", RdaeWarning, stacklevel=2)
    line = f"{target}: {picture.width}×{picture.height}"
    return Done(source, target, picture.width, picture.height, len(data), after, line)


def guarded(command: str, source: Path, target: Path, options: Options) -> Done:
    """`compress` or `decompress`, with warnings in the result's notes and an error in its `error`: nothing is raised or printed."""
    with warnings.catch_warnings(record=True) as caught:
        # Pillow's own remarks on odd files are of no use to whoever runs a codec.
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", RdaeWarning)
        try:
            done = {"compress": compress, "decompress": decompress}[command](source, target, options)
        except RdaeError as error:
            done = Done(source, target, error=str(error))
        except MemoryError:
            done = Done(source, target, error=f"{_name(source)}: not enough memory")
    return replace(done, notes=tuple(str(warning.message) for warning in caught))


def _name(source: Path) -> str:
    return "standard input" if source == STANDARD else os.fspath(source)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error
