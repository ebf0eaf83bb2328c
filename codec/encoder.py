"""A picture to a stream: one analysis, then as many qualities as are asked for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from codec import alpha as alphas
from codec import container, decoder, tiles
from codec.coder import Symbols
from codec.errors import ImageError
from codec.picture import Picture
from codec.tiles import Box
from codec.transforms import STRIDE

if TYPE_CHECKING:
    from codec.model import Model

Progress = Callable[[int, int], None]
"""Called with how many windows are done, or with effort how many steps of the search, and how many there are."""
MOST_EFFORT: Final = 9
TUNED_EFFORT: Final = 2
"""The usual one where there must be some: on Kodak it brings 17.6 % in MS-SSIM, where effort 4 brings 21.0."""
TUNES: Final = ("psnr", "ms-ssim")
"""What to search for, the usual one first."""


class Encoder:
    """One picture, to be coded with one model at any of its qualities."""

    def __init__(
        self,
        model: Model,
        picture: Picture,
        *,
        tile: int = tiles.TILE,
        jobs: int = 1,
        keep: bool = False,
        progress: Progress | None = None,
        effort: int | None = None,
        tune: str = TUNES[0],
    ) -> None:
        """`tile` is the side of the tiles in pixels, 0 for none; an image that fits into one is not tiled.

        `keep` holds on to the latents (3 bytes for each pixel, with 192 channels), so that they are analysed only once. `jobs` is the
        number of threads. `effort`, 0…9, is how long to search for a better stream at each quality: not at all for 0, which is meant by
        None when `tune` is "psnr"; with "ms-ssim", None means 2.
        Raises `ImageError` for an impossible side, effort or tune, `DimensionsError` for too large a picture.
        """
        container.check_dimensions(picture.width, picture.height)
        if tile and (tiles.TILE % tile or tile < container.MIN_TILE):
            raise ImageError(f"tiles can be 128, 256, 512 or 1024 pixels wide, or 0 for none; not {tile}")
        if tune not in TUNES:
            raise ImageError(f"tune can be {' or '.join(TUNES)}; not {tune}")
        effort = effort_of(effort, tune)
        if not 0 <= effort <= MOST_EFFORT:
            raise ImageError(f"effort runs from 0 to {MOST_EFFORT}; not {effort}")
        if tune != TUNES[0] and not effort:
            raise ImageError(f"tune {tune} is up to the search, and effort 0 makes none; 1 to {MOST_EFFORT} do")
        self.model = model
        self.picture = picture
        self.jobs = jobs
        self.progress = progress
        self._keep = keep
        self._kept: list[npt.NDArray[np.float32]] = []
        self._tile = tile if tile and max(picture.height, picture.width) > tile else 0
        self._pixels = picture.pixels if picture.alpha is None else alphas.fill(picture.pixels, picture.alpha)
        self._size = tiles.latents_of(picture.height, picture.width)
        self._windows = list(itertools.chain(*tiles.grid(*self._size, tiles.WINDOW)))
        self._other_chunks = _other_chunks(picture)
        self._effort, self._tune = effort, tune
        self._found: dict[int, dict[Box, bytes]] = {}

    def _latents(self) -> Iterator[tuple[Box, npt.NDArray[np.float32]]]:
        """Windows and their latents M×h×w before quantisation."""
        if self._kept:
            yield from zip(self._windows, self._kept, strict=True)
            return
        results = tiles.ordered(lambda box: self.model.analyse_window(self._pixels, box), self._windows, self.jobs)
        kept = []
        for done, (box, y) in enumerate(zip(self._windows, results, strict=True), 1):
            if self.progress and not self._effort:
                self.progress(done, len(self._windows))
            if self._keep:
                kept.append(y)
            yield box, y
        self._kept = kept

    def _tiles(self) -> Iterator[tuple[Box, npt.NDArray[np.float32]]]:
        """What is coded on its own, in any order: boxes and their latents before quantisation."""
        if not self._tile:
            whole = np.empty((self.model.latents, *self._size), np.float32)
            for box, y in self._latents():
                whole[:, box.slices[0], box.slices[1]] = y
            yield Box(0, 0, *self._size), whole
            return
        for box, y in self._latents():
            for part in itertools.chain(*tiles.grid(box.height, box.width, self._tile // STRIDE)):
                place = Box(box.top + part.top, box.left + part.left, box.top + part.bottom, box.left + part.right)
                yield place, np.ascontiguousarray(y[:, part.slices[0], part.slices[1]])

    def _payloads(self, quality: int) -> dict[Box, bytes]:
        """The tiles as they are coded. What was searched for is kept, so that each quality is searched once."""
        entropy = self.model.entropy
        if not self._effort:
            return {box: entropy.encode(y, quality) for box, y in self._tiles()}
        if quality not in self._found:
            from codec.search import Search

            done, steps = itertools.count(1), 0

            def tick() -> None:
                if self.progress:
                    self.progress(next(done), steps)

            search = Search(self.model, self._pixels, self.picture.alpha, self._effort, tick, self._tune)
            steps = sum(search.steps(box) for row in tiles.grid(*self._size, self._tile // STRIDE or max(self._size)) for box in row)

            def found(tile: tuple[Box, npt.NDArray[np.float32]]) -> tuple[Box, bytes]:
                box, y = tile
                return box, entropy.encode(*search.tile(box, y, quality))

            self._found[quality] = dict(tiles.ordered(found, self._tiles(), self.jobs))
        return self._found[quality]

    def encode(self, quality: int) -> bytes:
        """The whole stream at a quality."""
        payloads = self._payloads(quality)
        # Tiles come window by window, and are stored row by row.
        ordered = [payloads[box] for box in sorted(payloads, key=lambda box: (box.top, box.left))]
        chunk = (container.TILES, container.pack_tiles(ordered, self._tile)) if self._tile else (container.LATENTS, ordered[0])
        mode = container.GREY if self.picture.grey else container.RGB
        model, width, height = self.model, self.picture.width, self.picture.height
        stream = container.Stream(model.hash, quality, width, height, (chunk, *self._other_chunks), model.entropy.profile, mode)
        return container.write(stream)

    def symbols(self, quality: int) -> Symbols:
        """The decoded latents M×h×w of the whole picture."""
        out = np.empty((self.model.latents, *self._size), np.int32)
        if self._effort:
            for box, payload in self._payloads(quality).items():
                out[:, box.slices[0], box.slices[1]] = self.model.entropy.decode(payload, quality, box.height, box.width)
            return out
        for box, y in self._tiles():
            out[:, box.slices[0], box.slices[1]] = self.model.entropy.quantise(y, quality)
        return out

    def psnr(self, quality: int) -> float:
        """PSNR in dB, over all channels of the pixels that are not fully transparent, of what a decoder will show."""
        symbols = self.symbols(quality)
        whole = Box(0, 0, self.picture.height, self.picture.width)
        restored = decoder.windows(
            self.model, lambda box: symbols[:, box.slices[0], box.slices[1]], quality, whole, whole, self.picture.grey, self.jobs
        )
        total, count = 0.0, 0
        for box, pixels in restored:
            error = (pixels.astype(np.float32) - self._pixels[box.slices]) ** 2
            if self.picture.alpha is not None:
                error = error[self.picture.alpha[box.slices] > 0]
            total += float(error.sum(dtype=np.float64))
            count += error.size
        return float(10 * np.log10(255**2 * count / total)) if total else float("inf")


def effort_of(effort: int | None, tune: str) -> int:
    """The effort that is meant by None."""
    return effort if effort is not None else 0 if tune == TUNES[0] else TUNED_EFFORT


def _other_chunks(picture: Picture) -> list[tuple[int, bytes]]:
    blocks = ((container.ICC, picture.icc), (container.EXIF, picture.exif), (container.XMP, picture.xmp))
    for tag, block in blocks:
        if block and len(block) > container.MAX_METADATA:
            name = container.NAMES[tag].upper()
            raise ImageError(f"the {name} block has {len(block)} bytes, more than a stream holds (--strip drops it)")
    chunks = [(tag, container.pack_metadata(block)) for tag, block in blocks if block]
    if picture.alpha is not None:
        chunks.append((container.ALPHA, alphas.encode(picture.alpha)))
    return chunks
