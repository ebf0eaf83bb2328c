"""Convolutions in exact integer arithmetic: the same integers from any machine, number of threads, or order of addition.

A layer computes, for integers w and b, of maps of integers x with |x| ≤ X,

    out = clamp(⌊(Σ w·x + b) / 2^s + ½⌋)

and is accepted only if the largest sum that there can be, T = Σ|w| X + |b| + ⌊2^(s-1)⌋, is below 2⁵³ for each of its outputs. Numbers
are held in floating point, which gives matrix products their speed: float64, which holds every integer below 2⁵³, or, where T < 2²⁴ and
no operand exceeds 2⁸, float32. Then every partial sum, of any of the products in any order, with fused multiply-adds or
without, is an integer that is held exactly; dividing by a power of two is exact, and so is the floor. Operands of up to 2⁸ are
exact in bfloat16 and TF32 as well, to which some settings and processors round what they multiply in single precision.

Products are taken tap by tap as matrix products: never by an algorithm (Winograd's, Fourier's) that computes with other numbers
than the weights themselves.

Maps are flat: C×h×w with a margin of one zero lies in C × (h+2)(w+2) + 2 numbers, row after row, so that each tap of a 3×3 kernel is
a contiguous stretch of it, and needs no copy. What a layer returns has rows w + 2 long, whose last two columns mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

LIMIT: Final = 1 << 24
"""No map holds larger numbers; single precision can hold them."""
EXACT: Final = 1 << 53
"""Below it, float64 holds every integer."""
SMALL: Final = 1 << 8
"""Operands up to this are exact in every format that single precision may be multiplied in."""
MIN_SHIFT: Final = -12
"""Below zero, a multiplication by a power of two."""
MAX_SHIFT: Final = 30
Integers = npt.NDArray[np.int64]


class Layer:
    """A convolution of one or several maps, added up, then requantised. Stride 1, zeros beyond the edges."""

    def __init__(self, weights: Sequence[Integers], reach: Sequence[int], bias: Integers, shift: Integers, limit: int | None) -> None:
        """`weights` holds O×I×k×k for each map, k 1 or 3, and `reach` the largest size of its numbers; `bias` is R×O, to choose a row of,
        and `shift` O. The output is clamped to 0…limit or, without a limit, to ±2²⁴.

        Raises ValueError when an accumulator could leave the range in which float64 is exact, or shapes do not fit.
        """
        outputs = len(shift)
        if any(w.ndim != 4 or w.shape[2:] not in ((1, 1), (3, 3)) or len(w) != outputs for w in weights) or bias.shape[1:] != (outputs,):
            raise ValueError("the shapes of a layer do not fit")
        if shift.min() < MIN_SHIFT or shift.max() > MAX_SHIFT or not all(1 <= x <= LIMIT for x in (*reach, limit or LIMIT)):
            raise ValueError("a layer's shift or limit is out of range")
        if any(abs(extreme) >= 1 << 31 for a in weights for extreme in (int(a.min()), int(a.max()))):
            raise ValueError("a weight has more than 32 bits")
        if abs(int(bias.min())) >= EXACT or abs(int(bias.max())) >= EXACT:
            raise ValueError("a bias has more than 53 bits")
        half = (1 << np.maximum(shift, 0)) >> 1
        # Python's integers do not overflow.
        sums = [np.abs(w).reshape(outputs, -1).sum(axis=1).astype(object) * x for w, x in zip(weights, reach, strict=True)]
        largest = max(sum(sums) + np.abs(bias).max(axis=0) + half)
        if largest >= EXACT:
            raise ValueError("the sums of a layer may leave the range of exact arithmetic")
        small = largest < LIMIT and max(*reach, *(int(np.abs(w).max()) for w in weights)) <= SMALL
        self.dtype = torch.float32 if small else torch.float64
        self._taps = [
            [torch.from_numpy(np.ascontiguousarray(w[:, :, i, j])).to(self.dtype) for i in range(w.shape[2]) for j in range(w.shape[3])]
            for w in weights
        ]
        self._bias = torch.from_numpy(bias + half).to(self.dtype)[:, :, None]
        self._scale = torch.from_numpy(2.0**-shift).to(self.dtype)[:, None]
        self._range = (-LIMIT, LIMIT) if limit is None else (0, limit)

    def __call__(self, maps: Sequence[Tensor], pitch: int = 0, row: int = 0) -> Tensor:
        """O×N from a map for each weight: I×N for a 1×1 kernel, flat I × N + 2·pitch + 2 for 3×3, rows `pitch` long."""
        out: Tensor | None = None
        for taps, given in zip(self._taps, maps, strict=True):
            x = given.to(self.dtype)
            count = x.shape[1] - (0 if len(taps) == 1 else 2 * pitch + 2)
            for number, tap in enumerate(taps):
                first = number // 3 * pitch + number % 3
                stretch, weight = x[:, first : first + count], tap.to(x.device)
                out = torch.addmm(self._bias[row].to(x.device), weight, stretch) if out is None else out.addmm_(weight, stretch)
        assert out is not None
        return out.mul_(self._scale.to(out.device)).floor_().clamp_(*self._range)


def flat(x: Tensor) -> Tensor:
    """A map C×h×w with its margin of zeros, flat."""
    out = empty_flat(x.shape[0], x.shape[1], x.shape[2])
    inside(out, x.shape[1], x.shape[2]).copy_(x)
    return out


def empty_flat(channels: int, height: int, width: int) -> Tensor:
    """A flat map of zeros, in single precision."""
    return torch.zeros(channels, (height + 2) * (width + 2) + 2, dtype=torch.float32)


def inside(x: Tensor, height: int, width: int) -> Tensor:
    """The C×h×w numbers within the margin of a flat map, to read or to write."""
    return x[:, : (height + 2) * (width + 2)].view(-1, height + 2, width + 2)[:, 1:-1, 1:-1]


def rows(x: Tensor, width: int) -> Tensor:
    """What a layer returned as C×h×w, without the columns that mean nothing."""
    return x.view(len(x), -1, width + 2)[:, :, :width]
