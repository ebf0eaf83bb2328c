"""Convolutions in exact integer arithmetic: the same integers from any machine, number of threads, or order of addition.

A layer computes, for integers w and b, of maps of integers x with |x| ≤ X,

    out = clamp(⌊(Σ w·x + b) / 2^s + ½⌋)

and is accepted only if the largest sum that there can be, T = Σ|w| X + |b| + ⌊2^(s-1)⌋, is below 2⁵³ for each of its outputs. It is
computed in the fastest of three ways that is exact for it; which one is nobody's business, as all give the same integers:

- In bytes, where processors add products of them in 32 bits: weights and maps have eight bits, and sums, with what is said below of
  numbers from 0 to 255, are below 2³¹.
- In float32, where T < 2²⁴ and no operand exceeds 2⁸. Then every partial sum, of any of the products in any order, with fused
  multiply-adds or without, is an integer that is held exactly; dividing by a power of two is exact, and so is the floor. Operands of up
  to 2⁸ are exact in bfloat16 and TF32 as well, to which some settings and processors round what they multiply in single precision.
- In float64, which holds every integer below 2⁵³.

Products are matrix products: never by an algorithm (Winograd's, Fourier's) that computes with other numbers than the weights themselves.

Maps are flat: C×h×w with a margin of one zero lies in C × (h+2)(w+2) + 2 numbers, row after row, so that each tap of a 3×3 kernel is
a contiguous stretch of it. What a layer returns has rows w + 2 long, whose last two columns mean nothing. In bytes, numbers from 0 to 255
are held less 128.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
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
BYTE: Final = 127
"""The largest weight in bytes."""
MIN_SHIFT: Final = -12
"""Below zero, a multiplication by a power of two."""
MAX_SHIFT: Final = 30
Integers = npt.NDArray[np.int64]


@lru_cache(maxsize=1)
def byte_products() -> bool:
    """Whether torch multiplies matrices of bytes fast here, and exactly.

    Without the instructions that are made for it (VNNI), sums of two products may saturate in 16 bits, or weights lose a bit before.
    """
    if not (hasattr(torch, "_int_mm") and getattr(torch.cpu, "_is_vnni_supported", bool)()):
        return False
    rng = np.random.default_rng(0)
    a = rng.choice((-128, -127, 126, 127), (64, 160)).astype(np.int8)
    b = rng.choice((-128, -127, 126, 127), (160, 96)).astype(np.int8)
    a[::2], b[:, ::2] = abs(a[::2].astype(int)).clip(0, 127), 127
    try:
        product = torch._int_mm(torch.from_numpy(a), torch.from_numpy(b))
    except RuntimeError:
        return False
    return product.dtype == torch.int32 and np.array_equal(product.numpy(), a.astype(np.int64) @ b.astype(np.int64))


@dataclass(frozen=True)
class Kind:
    """What numbers a map may hold, and how they are held: those of bytes less `offset`, others as they are."""

    lowest: int
    highest: int
    offset: int
    dtype: torch.dtype

    def held(self, numbers: Tensor) -> Tensor:
        """Integers within the range as maps hold them."""
        return (numbers - self.offset if self.offset else numbers).to(self.dtype)

    def empty(self, channels: int, height: int, width: int) -> Tensor:
        """A flat map of zeros."""
        return torch.full((channels, (height + 2) * (width + 2) + 2), -self.offset, dtype=self.dtype)

    def flat(self, held: Tensor) -> Tensor:
        """A map C×h×w, held so, with its margin of zeros, flat."""
        out = self.empty(*held.shape)
        inside(out, held.shape[1], held.shape[2]).copy_(held)
        return out


def kind(lowest: int, highest: int) -> Kind:
    """How maps of numbers from lowest to highest are held here. Raises ValueError for numbers beyond ±2²⁴, or none."""
    if not (-LIMIT <= lowest <= 0 < highest <= LIMIT):
        raise ValueError("a limit is out of range")
    for offset in (0, 128) if byte_products() else ():
        if lowest - offset >= -128 and highest - offset <= 127:
            return Kind(lowest, highest, offset, torch.int8)
    return Kind(lowest, highest, 0, torch.float32)


class Layer:
    """A convolution of one or several maps, added up, then requantised. Stride 1, zeros beyond the edges."""

    def __init__(self, weights: Sequence[Integers], maps: Sequence[Kind], bias: Integers, shift: Integers, out: Kind) -> None:
        """`weights` holds O×I×k×k for each of the `maps`, k 1 or 3; `bias` is R×O, to choose a row of, and `shift` O.

        What comes `out` is clamped to its range. Raises ValueError when an accumulator could leave the range in which float64 is exact,
        or shapes do not fit.
        """
        outputs = len(shift)
        if any(w.ndim != 4 or w.shape[2:] not in ((1, 1), (3, 3)) or len(w) != outputs for w in weights) or bias.shape[1:] != (outputs,):
            raise ValueError("the shapes of a layer do not fit")
        if shift.min() < MIN_SHIFT or shift.max() > MAX_SHIFT:
            raise ValueError("a layer's shift is out of range")
        if any(abs(extreme) >= 1 << 31 for a in weights for extreme in (int(a.min()), int(a.max()))):
            raise ValueError("a weight has more than 32 bits")
        if abs(int(bias.min())) >= EXACT or abs(int(bias.max())) >= EXACT:
            raise ValueError("a bias has more than 53 bits")
        half = (1 << np.maximum(shift, 0)) >> 1
        # Python's integers do not overflow.
        sizes = [np.abs(w).reshape(outputs, -1).sum(axis=1).astype(object) for w in weights]
        reach = [max(-x.lowest, x.highest) for x in maps]
        largest = max(sum(size * x for size, x in zip(sizes, reach, strict=True)) + np.abs(bias).max(axis=0) + half)
        if largest >= EXACT:
            raise ValueError("the sums of a layer may leave the range of exact arithmetic")
        weight = max(int(np.abs(w).max()) for w in weights)
        self.out = out
        self._maps = tuple(maps)
        self._weights = [torch.from_numpy(w) for w in weights]
        self._bias, self._shift = torch.from_numpy(bias + half), torch.from_numpy(shift)
        # All terms of the sums of bytes, were they of one sign: maps less 128 or not, what that adds, and the output's 128.
        each = 512 * sum(sizes) + np.abs(bias).max(axis=0) + half + (128 << np.maximum(shift, 0))
        bytewise, shifted = max(each), max(each << np.maximum(-shift, 0))
        if all(x.dtype == torch.int8 for x in maps) and weight <= BYTE and bytewise < 1 << 31:
            self.dtype = torch.int8
            self._set_up_bytes(shifted < 1 << 31)
        else:
            self.dtype = torch.float32 if largest < LIMIT and max(*reach, weight) <= SMALL else torch.float64
        self._tail = torch.float32 if largest < LIMIT else torch.float64

    def _set_up_bytes(self, shifts_left: bool) -> None:
        self._matrix = torch.cat([w.permute(0, 2, 3, 1).flatten(1) for w in self._weights], dim=1).to(torch.int8)
        bias = self._bias + sum(x.offset * w.sum(dim=(1, 2, 3)) for x, w in zip(self._maps, self._weights, strict=True))
        left, right = (-self._shift).clamp_(min=0), self._shift.clamp(min=0)
        # What is added to the output may be taken off before the shift if it is a whole number there.
        self._shifts_bytes = self.out.dtype == torch.int8 and not (self.out.offset & ((1 << left) - 1)).any() and shifts_left
        if self._shifts_bytes:
            bias = bias - (self.out.offset << right >> left)
        self._byte_bias, self._byte_shift = bias.int()[:, :, None], right.int()[:, None]
        self._byte_factor = (1 << left).int()[:, None] if left.any() else None

    @cached_property
    def _scale(self) -> Tensor:
        return torch.exp2(-self._shift.to(self._tail))[:, None]

    @cached_property
    def _real_bias(self) -> Tensor:
        """R×O, as the weights are held that are not bytes."""
        return self._bias.to(self._taps[0][0].dtype)

    @cached_property
    def _taps(self) -> list[list[Tensor]]:
        """The weights for each map, tap by tap, O×I."""
        dtype = self._tail if self.dtype == torch.int8 else self.dtype
        return [[tap.to(dtype).contiguous() for tap in w.flatten(2).unbind(2)] for w in self._weights]

    def __call__(self, maps: Sequence[Tensor], pitch: int = 0, row: int = 0) -> Tensor:
        """O×N from a map for each weight: I×N for a 1×1 kernel, flat I × N + 2·pitch + 2 for 3×3, rows `pitch` long."""
        if self.dtype == torch.int8 and maps[0].device.type == "cpu":
            total = torch._int_mm(self._matrix, self._columns(maps, pitch)).add_(self._byte_bias[row])
            return self._requantised_bytes(total)
        return self._requantised(self._sums(maps, pitch, row), self._scale)

    def at(self, maps: Sequence[Tensor], row: int = 0) -> Tensor:
        """N×O from N×I for each weight, all of them 1×1: places in rows, as lie best in memory what is looked up place by place."""
        if self.dtype == torch.int8 and maps[0].device.type == "cpu":
            seen = torch.cat(list(maps), dim=1) if len(maps) > 1 else maps[0]
            total = torch._int_mm(seen, self._matrix.t()).add_(self._byte_bias[row].t())
            return self._requantised_bytes(total.t()).t()
        out: Tensor | None = None
        for kind, (tap,), held in zip(self._maps, self._taps, maps, strict=True):
            weight, x = tap.t().to(held.device), held.to(tap.dtype)
            x = x + kind.offset if kind.offset else x
            out = torch.addmm(self._real_bias[row].to(weight.device), x, weight) if out is None else out.addmm_(x, weight)
        assert out is not None
        return self._requantised(out, self._scale.t())

    def _requantised_bytes(self, total: Tensor) -> Tensor:
        """What comes of sums O×N, int32, which are overwritten."""
        if self._shifts_bytes:
            if self._byte_factor is not None:
                total.mul_(self._byte_factor)
            total.bitwise_right_shift_(self._byte_shift)
            return total.clamp_(self.out.lowest - self.out.offset, self.out.highest - self.out.offset).to(torch.int8)
        return self._requantised(total.to(self._tail), self._scale)

    def _requantised(self, total: Tensor, scale: Tensor) -> Tensor:
        """The same of sums in floating point."""
        out = total.mul_(scale.to(total.device)).floor_().clamp_(self.out.lowest, self.out.highest)
        return self.out.held(out) if self.out.dtype == torch.int8 else out

    def _columns(self, maps: Sequence[Tensor], pitch: int) -> Tensor:
        """What each output is a sum of, below each other: bytes K×N. The taps of a 3×3 kernel see their map moved."""
        if len(maps) == 1 and self._weights[0].shape[2] == 1:
            return maps[0]
        count = min(x.shape[1] - (2 * pitch + 2 if w.shape[2] == 3 else 0) for x, w in zip(maps, self._weights, strict=True))
        out = torch.empty(self._matrix.shape[1], count, dtype=torch.int8)
        first = 0
        for x, w in zip(maps, self._weights, strict=True):
            taps = w.shape[2] * w.shape[3]
            part = out[first : first + taps * len(x)]
            if taps == 1:
                part.copy_(x)
            else:
                moved = x.as_strided((3, 3, len(x), count), (pitch * x.stride(1), x.stride(1), *x.stride()))
                part.view(moved.shape).copy_(moved)
            first += len(part)
        return out

    def _sums(self, maps: Sequence[Tensor], pitch: int, row: int) -> Tensor:
        """The sums before they are shifted, in floating point, tap by tap."""
        out: Tensor | None = None
        for kind, taps, held in zip(self._maps, self._taps, maps, strict=True):
            x = held.to(taps[0].dtype)
            x = x + kind.offset if kind.offset else x
            count = x.shape[1] - (0 if len(taps) == 1 else 2 * pitch + 2)
            for number, tap in enumerate(taps):
                first = number // 3 * pitch + number % 3
                stretch, weight = x[:, first : first + count], tap.to(x.device)
                if out is None:
                    out = torch.addmm(self._real_bias[row].to(weight.device)[:, None], weight, stretch)
                else:
                    out.addmm_(weight, stretch)
        assert out is not None
        return out


def inside(x: Tensor, height: int, width: int) -> Tensor:
    """The C×h×w numbers within the margin of a flat map, to read or to write."""
    return x[:, : (height + 2) * (width + 2)].view(-1, height + 2, width + 2)[:, 1:-1, 1:-1]


def rows(x: Tensor, width: int) -> Tensor:
    """What a layer returned as C×h×w, without the columns that mean nothing."""
    return x.view(len(x), -1, width + 2)[:, :, :width]


def neighbours(x: Tensor, here: Tensor, side: int, pitch: int) -> Tensor:
    """Numbers of a map L×C around places N of it, with kernels of a side: N × side²·C, tap by tap."""
    return x.index_select(0, (here[:, None] + _around(side, pitch)).flatten()).view(len(here), -1)


@lru_cache(maxsize=64)
def _around(side: int, pitch: int) -> Tensor:
    """Where the taps of a kernel are, seen from its middle."""
    taps = torch.arange(side) - side // 2
    return (taps[:, None] * pitch + taps).flatten()


def seen(exact: Tensor, shift: Integers, kind: Kind) -> Tensor:
    """What the networks see of integers C×…, which are overwritten: exact / 2^shift, rounded half up, within the map's range."""
    half, shift_by = (torch.from_numpy(a).view(-1, *[1] * (exact.dim() - 1)) for a in ((1 << shift) >> 1, shift))
    return kind.held(exact.add_(half).bitwise_right_shift_(shift_by).clamp_(kind.lowest, kind.highest))
