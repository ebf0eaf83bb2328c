"""A stream to a picture, whole or a region of it, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from codec import alpha as alphas
from codec import container, tiles
from codec.coder import Symbols
from codec.errors import FormatError, ImageError, UnknownModelError
from codec.picture import Picture
from codec.tiles import Box
from codec.transforms import STRIDE

if TYPE_CHECKING:
    from codec.model import Model

Pixels = npt.NDArray[np.uint8]
Source = Callable[[Box], Symbols]
"""Gives the decoded latents M×h×w of a box."""
Progress = Callable[[int, int], None]


class Latents:
    """The latents of a stream, as the integers that its entropy model decodes to, tile by tile as they are asked for."""

    def __init__(self, model: Model, stream: container.Stream) -> None:
        """Raises `UnknownModelError` when the stream was made with another model, `FormatError` when it cannot hold its latents."""
        if stream.model_hash != model.hash:
            raise UnknownModelError(f"the stream was made with model {stream.model_hash.hex()}, not with {model.name} ({model.hash.hex()})")
        if stream.quality > model.qualities:
            raise FormatError(f"the stream claims quality {stream.quality}, which model {model.name} does not have")
        if stream.profile != model.entropy.profile:
            raise FormatError(f"the stream claims profile {stream.profile}, which is not that of its model")
        self.size = tiles.latents_of(stream.height, stream.width)
        self._channels = model.latents
        self._entropy = model.entropy
        self._quality = stream.quality
        self._payloads = stream.payloads()
        self._grid = tiles.grid(*self.size, stream.tile // STRIDE or max(self.size))
        self._decoded: dict[tuple[int, int], Symbols] = {}
        for row, boxes in enumerate(self._grid):
            for column, box in enumerate(boxes):
                self._entropy.check_length(self._payload(row, column), self._quality, box.height, box.width)

    def _payload(self, row: int, column: int) -> bytes:
        return self._payloads[row * len(self._grid[0]) + column]

    def _tile(self, row: int, column: int) -> Symbols:
        if (row, column) not in self._decoded:
            box = self._grid[row][column]
            self._decoded[row, column] = self._entropy.decode(self._payload(row, column), self._quality, box.height, box.width)
        return self._decoded[row, column]

    def box(self, box: Box) -> Symbols:
        """The latents of a box. Raises `FormatError` when they are damaged."""
        out = np.empty((self._channels, box.height, box.width), np.int32)
        side = self._grid[0][0]
        for row in range(box.top // side.height, -(-box.bottom // side.height)):
            for column in range(box.left // side.width, -(-box.right // side.width)):
                tile = self._grid[row][column]
                common = tile & box
                to, of = common.seen_from(box).slices, common.seen_from(tile).slices
                out[:, to[0], to[1]] = self._tile(row, column)[:, of[0], of[1]]
        return out

    def all(self) -> Symbols:
        """All latents M×h×w."""
        return self.box(Box(0, 0, *self.size))

    def forget_above(self, row: int) -> None:
        """Drop the decoded tiles that lie wholly above a row of latents."""
        self._decoded = {key: symbols for key, symbols in self._decoded.items() if self._grid[key[0]][key[1]].bottom > row}

    @property
    def tiles_decoded(self) -> int:
        """How many decoded tiles are held."""
        return len(self._decoded)


def windows(
    model: Model, source: Source, quality: int, whole: Box, region: Box, grey: bool, jobs: int = 1, progress: Progress | None = None
) -> Iterator[tuple[Box, Pixels]]:
    """The pixels of a region, in windows from top to bottom: boxes (of pixels of the whole image) and their pixels."""
    extent = Box(0, 0, *tiles.latents_of(whole.height, whole.width))
    wanted = region.around(STRIDE)
    rows = [
        [box & wanted for box in row if (box & wanted).width > 0 and (box & wanted).height > 0]
        for row in tiles.grid(extent.height, extent.width, tiles.WINDOW)
    ]
    count, done = sum(map(len, rows)), 0

    def restored(task: tuple[Box, Box, Symbols]) -> Pixels:
        box, window, symbols = task
        return model.synthesise_window(symbols, quality, box.seen_from(window), grey)

    for row in rows:
        # The entropy decoder runs here, in one thread; only the synthesis is spread over several.
        halos = [box.grown(model.halos[1], extent) for box in row]
        tasks = ((box, window, source(window)) for box, window in zip(row, halos, strict=True))
        for box, pixels in zip(row, tiles.ordered(restored, tasks, jobs), strict=True):
            done += 1
            if progress:
                progress(done, count)
            place = box * STRIDE
            visible = place & region
            yield visible, pixels[visible.seen_from(place).slices]


def render(
    model: Model,
    source: Source,
    quality: int,
    whole: Box,
    region: Box,
    grey: bool = False,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Pixels:
    """The pixels of a region of an image, h×w×3 uint8 or, grey, h×w."""
    out = np.empty((region.height, region.width) if grey else (region.height, region.width, 3), np.uint8)
    for box, pixels in windows(model, source, quality, whole, region, grey, jobs, progress):
        out[box.seen_from(region).slices] = pixels
    return out


def decode(
    model: Model,
    stream: container.Stream,
    *,
    region: tuple[int, int, int, int] | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Picture:
    """The picture of a parsed stream, or the region (left, top, width, height) of it, for which only the tiles around it are decoded.

    Raises an `RdaeError` that names what is wrong with the stream, `ImageError` for a region that does not lie in the image.
    """
    whole = Box(0, 0, stream.height, stream.width)
    part = whole if region is None else _region(region, whole)
    latents = Latents(model, stream)

    def source(box: Box) -> Symbols:
        # Windows come from top to bottom, so what lies above is not needed again.
        latents.forget_above(box.top)
        return latents.box(box)

    grey = stream.mode == container.GREY
    blocks = [stream.metadata(tag) for tag in (container.ICC, container.EXIF, container.XMP)]
    packed = stream.chunk(container.ALPHA)
    alpha = None if packed is None else alphas.decode(packed, stream.height, stream.width)[part.slices]
    pixels = render(model, source, stream.quality, whole, part, grey, jobs, progress)
    return Picture(pixels, alpha, *blocks)


def _region(region: tuple[int, int, int, int], whole: Box) -> Box:
    left, top, width, height = region
    box = Box(top, left, top + height, left + width)
    if width < 1 or height < 1 or (box & whole) != box:
        raise ImageError(f"region {left},{top},{width},{height} does not lie in the image of {whole.width}×{whole.height} pixels")
    return box
