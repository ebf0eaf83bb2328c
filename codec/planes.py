"""Where places lie in the maps that `codec/hyperprior.py` works on, what its last layers mean, and the order of symbols in a stream."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from codec.frozen import Integers
from codec.hyperfile import BITS
from codec.layout import PER_OCTAVE, TABLES, places

BAND: Final = 2048
"""Positions that the slices' networks work on at a time: few enough for the cache, and for memory with the largest images."""
MARGIN: Final = 2
"""Zeros around the decoded latents: a kernel of 5×5 reaches so far."""


def means_and_tables(given: Tensor, factors: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """μ in units of 2⁻¹⁶, int64, and choices of table, both S×N, from what the last layer gave, N×2S."""
    mean, octave = given.t().contiguous().chunk(2)
    index = torch.add(offsets, octave.int(), alpha=PER_OCTAVE).bitwise_right_shift_(BITS)
    return (mean * factors).long(), index.clamp_(0, TABLES - 1).to(torch.uint8)


@lru_cache(maxsize=64)
def where(count: int, turn: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where the places N of a turn are, in a plane h×w, in a map with a margin, and in one with two columns too many."""
    rows, columns = (torch.from_numpy(index) for index in places(count, turn, height, width))
    return rows * width + columns, (rows + MARGIN) * (width + 2 * MARGIN) + columns + MARGIN, rows * (width + 2) + columns


def bands(height: int, pitch: int) -> list[tuple[int, int]]:
    """First rows, and those behind the last, of bands of about `BAND` positions."""
    count = max(1, BAND // pitch)
    return [(first, min(first + count, height)) for first in range(0, height, count)]


def alike(count: int) -> Tensor:
    """For each of so many rows of features of zeros, or columns, one that is the same where there are at most eight.

    Pairs of rows alternate; the first pair and the last one see margins.
    """
    row = torch.arange(count)
    pair, last = row // 2, 2 * -(-count // 4) - 1
    inner = torch.where(pair == 0, 0, 2 - pair % 2)
    return 2 * torch.where(pair == last, min(last, 3), inner) + row % 2


def by_table(tables: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.intp], Integers]:
    """The order in which a slice's symbols are coded, and how many of them with each table."""
    flat = tables.reshape(-1)
    return np.argsort(flat, kind="stable"), np.bincount(flat, minlength=TABLES).astype(np.int64)
