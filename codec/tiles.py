"""Large images in pieces: boxes, receptive fields, and what is read and coded at a time.

The transforms are local: a latent depends on the pixels within a halo around its own 16×16, a pixel on the latents within another.
So analysis and synthesis run in *windows* of `WINDOW` latents a side, each with its halo, cut off where the image ends, so that the
convolutions pad with zeros just where they do for the whole image. The windows lie on one grid whatever the tiles of the stream are.

What is the same, and why. Every latent that is coded comes back exactly. The latents do not depend on the tiles, as the windows
do not. Against a transform of the whole image at once, a window computes the same sums of the same numbers, but a
convolution may add them up in another order when shapes differ; the latents then agree to the last few bits of single precision,
and the rounded ones unless a latent falls that near to the middle between two integers (about one in a million). In bf16, such a
difference may grow by the rounding after each layer, to about 0.005. With oneDNN on x86 there is none, in either precision.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
from torch import nn

from codec.transforms import STRIDE

WINDOW: Final = 64
"""Latents along each side of a window: 1024 pixels."""
TILE: Final = WINDOW * STRIDE
"""Pixels along each side of the tiles that are written unless another side is asked for."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Box:
    """A rectangle of rows top…bottom-1 and columns left…right-1, in latents or in pixels."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        """Rows."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Columns."""
        return self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        """For indexing an array."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def grown(self, margin: int, within: Box) -> Box:
        """With a margin on each side, cut off at the edges of another box."""
        return Box(self.top - margin, self.left - margin, self.bottom + margin, self.right + margin) & within

    def __and__(self, other: Box) -> Box:
        """What both have in common."""
        return Box(max(self.top, other.top), max(self.left, other.left), min(self.bottom, other.bottom), min(self.right, other.right))

    def __mul__(self, factor: int) -> Box:
        """The same place on a grid that is finer by a factor."""
        return Box(self.top * factor, self.left * factor, self.bottom * factor, self.right * factor)

    def seen_from(self, other: Box) -> Box:
        """With the other box's upper left corner as the origin."""
        return Box(self.top - other.top, self.left - other.left, self.bottom - other.top, self.right - other.left)

    def around(self, stride: int) -> Box:
        """The smallest box on a grid that is coarser by a stride which covers this one."""
        return Box(self.top // stride, self.left // stride, -(-self.bottom // stride), -(-self.right // stride))


def grid(height: int, width: int, side: int) -> list[list[Box]]:
    """Rows of squares that cover height×width, cut off at the lower and right edge."""
    whole = Box(0, 0, height, width)
    return [[Box(y, x, y + side, x + side) & whole for x in range(0, width, side)] for y in range(0, height, side)]


def latents_of(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of latents of an image of so many pixels."""
    return math.ceil(height / STRIDE), math.ceil(width / STRIDE)


def halo(module: nn.Module, spacing: float = 1.0) -> int:
    """How far the receptive field of a chain of convolutions reaches beyond a sample, in samples of the latents, rounded up.

    `spacing` is the distance of the chain's input samples, in any unit; a strided convolution widens it, a `PixelShuffle` narrows
    it. The result is in units of the input's spacing for a synthesis; for an analysis, whose input is 1/16 of a latent, pass that.
    """
    reach = 0.0
    for layer in module.children():
        if isinstance(layer, nn.Conv2d):
            reach += (int(layer.kernel_size[0]) // 2) * int(layer.dilation[0]) * spacing
            spacing *= int(layer.stride[0])
        elif isinstance(layer, nn.PixelShuffle):
            spacing /= layer.upscale_factor
    return math.ceil(reach)


def mirrored(image: npt.NDArray[np.uint8], box: Box) -> npt.NDArray[np.uint8]:
    """The box of an image that goes on, mirrored, beyond its right and lower edge, as numpy's pad with mode "reflect" continues it."""
    height, width = image.shape[:2]
    rows, columns = box.slices
    # Slices are many times faster than lists of places, so only the axes that need these get them.
    across = image[:, columns] if box.right <= width else image[:, _reflect(np.arange(box.left, box.right), width)]
    return across[rows] if box.bottom <= height else across[_reflect(np.arange(box.top, box.bottom), height)]


def _reflect(index: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    if size == 1:
        return np.zeros_like(index)
    index = index % (2 * size - 2)
    reflected: npt.NDArray[np.int64] = np.minimum(index, 2 * size - 2 - index)
    return reflected


def ordered(function: Callable[[Item], Result], items: Iterable[Item], jobs: int) -> Iterator[Result]:
    """The function's results in order, from so many threads, which are never further ahead than their number."""
    if jobs <= 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(jobs) as pool:
        waiting: deque[Future[Result]] = deque()
        remaining = iter(items)
        try:
            for item in itertools.islice(remaining, jobs):
                waiting.append(pool.submit(function, item))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in itertools.islice(remaining, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()
