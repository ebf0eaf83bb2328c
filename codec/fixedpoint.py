"""Convolutions in exact integer arithmetic: the same integers from any machine, number of threads, or order of addition.

A number v is held as the integer round(v · 2¹²) in a float64 tensor, which gives matrix products the speed of floating point. A layer
computes, for integers w and b,

    out = clamp(⌊(Σ w·x + b + 2^(s-1)) / 2^s⌋)      with |x| ≤ 2²⁴ and out in ±2²⁴ or, rectified, 0…2²⁴,

and is accepted only if Σ|w| · 2²⁴ + |b| + 2^(s-1) < 2⁵³ for each of its outputs. Then every partial sum, of any of the products in
any order, with fused multiply-adds or without, is an integer below 2⁵³, which float64 holds exactly; dividing by a power of
two is exact, and so is the floor. Products are taken tap by tap as matrix products: never by an algorithm (Winograd's, Fourier's)
that computes with other numbers than the weights themselves.

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

BITS: Final = 12
"""Activations are in units of 2⁻¹²."""
LIMIT: Final = 1 << 24
"""No activation is larger, in these units. (So single precision can hold one too.)"""
EXACT: Final = 1 << 53
"""Below it, float64 holds every integer."""
MAX_SHIFT: Final = 30
Integers = npt.NDArray[np.int64]


class Layer:
    """A convolution of one or several maps, added up, then requantised. Stride 1, zeros beyond the edges."""

    def __init__(self, weights: Sequence[Integers], bias: Integers, shift: int, *, rectify: bool) -> None:
        """`weights` holds O×I×k×k for each map, k 1 or 3; `bias` O, in units of 2^-(12+shift).

        Raises ValueError when an accumulator could leave the range in which float64 is exact, or shapes do not fit.
        """
        if not 1 <= shift <= MAX_SHIFT:
            raise ValueError(f"a layer shifts by {shift} bits")
        if any(w.ndim != 4 or w.shape[2:] not in ((1, 1), (3, 3)) or len(w) != len(bias) for w in weights) or bias.ndim != 1:
            raise ValueError("the shapes of a layer do not fit")
        if any(abs(limit) >= 1 << 31 for a in (*weights, bias) for limit in (int(a.min()), int(a.max()))):
            raise ValueError("a weight has more than 32 bits")
        half = 1 << (shift - 1)
        total = sum(np.abs(w).reshape(len(w), -1).sum(axis=1) for w in weights)
        if (total > (EXACT - 1 - half - np.abs(bias)) // LIMIT).any():
            raise ValueError("the sums of a layer may leave the range of exact arithmetic")
        self._taps = [
            [torch.from_numpy(np.ascontiguousarray(w[:, :, i, j], dtype=np.float64)) for i in range(w.shape[2]) for j in range(w.shape[3])]
            for w in weights
        ]
        self._bias = torch.from_numpy((bias + half).astype(np.float64))[:, None]
        self._scale = 2.0**-shift
        self._lowest = 0 if rectify else -LIMIT

    def real(self) -> tuple[list[Tensor], Tensor]:
        """The weights O×I×k×k for each map and the bias O as the real numbers that they stand for, single precision."""
        weights = []
        for taps in self._taps:
            side = 1 if len(taps) == 1 else 3
            weights.append((torch.stack(taps, dim=-1).reshape(*taps[0].shape, side, side) * self._scale).float())
        return weights, ((self._bias[:, 0] * self._scale - 0.5) / (1 << BITS)).float()

    def __call__(self, maps: Sequence[Tensor], pitch: int = 0) -> Tensor:
        """O×N from a float64 map for each weight: I×N for a 1×1 kernel, flat I × N + 2·pitch + 2 for 3×3, rows `pitch` long."""
        out: Tensor | None = None
        for taps, x in zip(self._taps, maps, strict=True):
            count = x.shape[1] - (0 if len(taps) == 1 else 2 * pitch + 2)
            for number, tap in enumerate(taps):
                first = number // 3 * pitch + number % 3
                stretch = x[:, first : first + count]
                weight = tap.to(x.device)
                out = torch.addmm(self._bias.to(x.device), weight, stretch) if out is None else out.addmm_(weight, stretch)
        assert out is not None
        return out.mul_(self._scale).floor_().clamp_(self._lowest, LIMIT)


def flat(x: Tensor) -> Tensor:
    """A map C×h×w with its margin of zeros, flat."""
    out = empty_flat(x.shape[0], x.shape[1], x.shape[2])
    inside(out, x.shape[1], x.shape[2]).copy_(x)
    return out


def empty_flat(channels: int, height: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A flat map of zeros."""
    return torch.zeros(channels, (height + 2) * (width + 2) + 2, dtype=dtype)


def inside(x: Tensor, height: int, width: int) -> Tensor:
    """The C×h×w numbers within the margin of a flat map, to read or to write."""
    return x[:, : (height + 2) * (width + 2)].view(-1, height + 2, width + 2)[:, 1:-1, 1:-1]


def rows(x: Tensor, width: int) -> Tensor:
    """What a layer returned as C×h×w, without the columns that mean nothing."""
    return x.view(len(x), -1, width + 2)[:, :, :width]
