"""Symbols to bytes and back: range coding with exact integer tables.

Each channel has a table over the symbols lowest…lowest + K - 2 and, last, an escape. The coder works with 24 bits of precision;
a table is handed to it as K counts f with Σf = 2²⁴ - K, and it then codes with the frequencies f + 1 exactly, so no rounding of a
floating-point number ever decides how a bit is read.

A stream holds, in one run of the coder: all symbols, channel by channel in row-major order, with the escape wherever a value lies
outside its table; then, for the escapes in the same order, the bit lengths of their distances from the table (1 for the nearest
value outside); then for each a sign bit (1 = above the table) and the bits of its distance below the leading one, the highest first.
This is the Elias gamma code with its unary part coded by a static table. Words are little-endian 32-bit.

The likeliest symbol of a table has a code length too, so a payload of n bytes cannot hold more than so many symbols. `check_length`
refuses one that is too short for its declared shape before anything is allocated: what a stream may ask for is bounded by its own size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import constriction
import numpy as np
import numpy.typing as npt

from codec.errors import FormatError

PRECISION: Final = 24
Symbols = npt.NDArray[np.int32]
_LENGTHS: Final = 33
"""Distances reach 2³², which has 33 bits."""
GROUP: Final = 1 << 16
"""Symbols that are prepared for the coder at a time: enough to make little of numpy's overhead, few enough for the cache."""


def _model(counts: npt.NDArray[np.float64]) -> Any:
    return constriction.stream.model.Categorical(counts, perfect=False)


def _length_counts() -> npt.NDArray[np.float64]:
    """Frequencies 2²³, 2²², … for bit lengths 1, 2, …, at least one each, as counts for the coder."""
    frequency = np.array([1 << max(0, PRECISION - b) for b in range(1, _LENGTHS + 1)], dtype=np.int64)
    frequency[0] += (1 << PRECISION) - int(frequency.sum())
    return (frequency - 1).astype(np.float64)


_LENGTH_MODEL = _model(_length_counts())
_BIT_MODEL = _model(np.full(2, float((1 << PRECISION - 1) - 1)))


@dataclass(frozen=True)
class Tables:
    """One coding table per channel."""

    lowest: npt.NDArray[np.int64]
    """C, the symbol that each table begins with."""
    counts: Sequence[npt.NDArray[np.float64]]
    """C arrays of K integers (as float64, which is what the coder takes) with sum 2²⁴ - K; the last entry is the escape's."""

    def __post_init__(self) -> None:
        for f in self.counts:
            if len(f) < 2 or f.min() < 0 or int(f.sum()) != (1 << PRECISION) - len(f) or not np.array_equal(f, np.floor(f)):
                raise ValueError("a table's counts must be integers that sum to 2**24 - K")

    @cached_property
    def models(self) -> list[Any]:
        """The coder's own form of the tables."""
        return [_model(f) for f in self.counts]

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """C, how many symbols each table holds, without the escape."""
        return np.array([len(f) - 1 for f in self.counts], dtype=np.int64)

    @cached_property
    def narrow(self) -> bool:
        """Whether all symbols of all tables, the escapes too, have 32 bits, as those of every trained model have."""
        return bool(self.lowest.min() >= -(1 << 31) and (self.lowest + self.sizes).max() < 1 << 31)

    @cached_property
    def least_bits(self) -> float:
        """Code length of the cheapest column of symbols, one from each channel."""
        return float(sum(-np.log2((f.max() + 1) / (1 << PRECISION)) for f in self.counts))

    def bits(self, symbols: Symbols | Sequence[Symbols]) -> npt.NDArray[np.float64]:
        """C, the code length -Σ log2 P of each channel of symbols C×…, or of C arrays of them, escapes and their suffixes included."""
        out = np.zeros(len(self.counts))
        suffix = -np.log2((_length_counts() + 1) / (1 << PRECISION))
        for c, f in enumerate(self.counts):
            index = symbols[c].astype(np.int64).ravel() - self.lowest[c]
            size = len(f) - 1
            inside = (index >= 0) & (index < size)
            cost = -np.log2((f + 1) / (1 << PRECISION))
            distance = np.where(index < 0, -index, index - size + 1)[~inside]
            lengths = _bit_lengths(distance)
            out[c] = cost[np.where(inside, index, size)].sum() + suffix[lengths - 1].sum() + lengths.sum()
        return out


def _bit_lengths(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Bit lengths of positive integers below 2⁵³."""
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


def encode(symbols: Symbols, tables: Tables) -> bytes:
    """Code symbols C×h×w (any int32 values, any shape behind the channels, empty too) with the channels' tables."""
    if symbols.dtype != np.int32 or len(symbols) != len(tables.counts):
        raise ValueError("symbols must be int32, one plane for each table")
    encoder = constriction.stream.queue.RangeEncoder()
    if symbols.size == 0:
        return b""
    distances = []
    above = []
    for first, last in groups(symbols.shape):
        size = tables.sizes[first:last, None]
        index = symbols[first:last].reshape(last - first, -1) - tables.lowest[first:last, None]
        outside = (index < 0) | (index >= size)
        if outside.any():
            far, beyond = index[outside], np.broadcast_to(size, index.shape)[outside]
            above.append(far >= 0)
            distances.append(np.where(far < 0, -far, far - beyond + 1))
            index = np.where(outside, size, index)
        for row, model in zip(index.astype(np.int32), tables.models[first:last], strict=True):
            encoder.encode(row, model)
    if distances:
        distance = np.concatenate(distances)
        lengths = _bit_lengths(distance)
        encoder.encode((lengths - 1).astype(np.int32), _LENGTH_MODEL)
        encoder.encode(_suffix_bits(distance, lengths, np.concatenate(above)), _BIT_MODEL)
    return np.asarray(encoder.get_compressed()).astype("<u4").tobytes()


def groups(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """First channels, and those behind the last, of groups of about `GROUP` symbols C×…."""
    count = max(1, GROUP // math.prod(shape[1:]))
    return [(first, min(first + count, shape[0])) for first in range(0, shape[0], count)]


def _suffix_bits(distance: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], above: npt.NDArray[np.bool_]) -> Symbols:
    """All sign bits and lower bits of the distances as one flat array of zeros and ones."""
    owner, shift = _suffix_layout(lengths)
    bits = distance[owner] >> shift & 1
    return np.where(shift == lengths[owner] - 1, above[owner], bits).astype(np.int32)


def _suffix_layout(lengths: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For each suffix bit, the escape that it belongs to and its place value; the leading one's place holds the sign."""
    owner = np.repeat(np.arange(len(lengths)), lengths)
    start = np.repeat(np.cumsum(lengths) - lengths, lengths)
    return owner, lengths[owner] - 1 - (np.arange(len(owner)) - start)


def check_length(data: bytes, tables: Tables, shape: tuple[int, ...]) -> None:
    """Raises `FormatError` when the data are too short to hold symbols of this shape."""
    least = math.prod(shape[1:]) * tables.least_bits
    # Rounding in the coder and in this sum is far below one part in a hundred.
    if 8 * len(data) + 64 < 0.99 * least:
        raise FormatError(f"{len(data)} bytes are too few for the latents of the declared dimensions")


def decode(data: bytes, tables: Tables, shape: tuple[int, ...]) -> Symbols:
    """The inverse of `encode`: int32 symbols of the given shape, whose first axis is the channel.

    Raises `FormatError` when the data cannot have come from `encode` with these tables and this shape. What is allocated is
    bounded by the shape and by the length of the data.
    """
    channels, plane = shape[0], math.prod(shape[1:])
    if len(data) % 4:
        raise FormatError("the coded latents are not a whole number of words")
    if plane == 0 or channels == 0:
        if data:
            raise FormatError("coded latents where none belong")
        return np.zeros(shape, np.int32)
    check_length(data, tables, shape)
    out = np.empty((channels, plane), np.int32)
    places: list[npt.NDArray[np.int64]] = []
    try:
        decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))
        for first, last in groups(out.shape):
            index, lowest = out[first:last], tables.lowest[first:last, None]
            for row, model in zip(index, tables.models[first:last], strict=True):
                row[:] = decoder.decode(model, plane)
            escaped = index == tables.sizes[first:last, None]
            places.append(np.flatnonzero(escaped) + first * plane)
            if tables.narrow:
                index += lowest.astype(np.int32)
            else:
                index[:] = _in_range(np.where(escaped, 0, index + lowest))
        place = np.concatenate(places)
        if len(place):
            # An escape takes as many bits as its length says and, to say so, as many again, though never more than the precision.
            _check_bits(2 * len(place), data)
            lengths = np.asarray(decoder.decode(_LENGTH_MODEL, len(place))).astype(np.int64) + 1
            _check_bits(int((lengths + np.minimum(lengths, PRECISION)).sum()), data)
            bits = np.asarray(decoder.decode(_BIT_MODEL, int(lengths.sum()))).astype(np.int64)
            channel = place // plane
            out.reshape(-1)[place] = _in_range(_from_suffix(bits, lengths, tables.lowest[channel], tables.sizes[channel]))
        exhausted = bool(decoder.maybe_exhausted())
    except AssertionError as error:  # what constriction raises on data that no encoder writes
        raise FormatError("the coded latents are damaged") from error
    if not exhausted:
        raise FormatError("the coded latents go on behind their end")
    return out.reshape(shape)


def _check_bits(least: int, data: bytes) -> None:
    if 0.99 * least > 8 * len(data) + 64:
        raise FormatError("the coded latents are damaged: more escapes than they have room for")


def _in_range(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    if values.min() < -(1 << 31) or values.max() >= 1 << 31:
        raise FormatError("a latent is out of range")
    return values


def _from_suffix(
    bits: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], lowest: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The escaped values from their flat suffix bits."""
    owner, shift = _suffix_layout(lengths)
    is_sign = shift == lengths[owner] - 1
    distance = np.zeros(len(lengths), np.int64)
    np.add.at(distance, owner, np.where(is_sign, 1, bits) << shift)
    return np.where(bits[is_sign] == 1, lowest + sizes - 1 + distance, lowest - distance)


class Writer:
    """Several sections in one run of the coder, each with its own tables.

    What `encode` writes is one section. A later one may depend on what the decoder knows by then, so each carries its own escapes.
    """

    def __init__(self) -> None:
        self._encoder = constriction.stream.queue.RangeEncoder()

    def put(self, values: Symbols, counts: npt.NDArray[np.int64], tables: Tables) -> None:
        """Append a section: flat values, of which the first counts[0] are coded with the first table, and so on."""
        # Differences modulo 2³²: below zero, they are as far outside the table as any.
        wide = np.uint32 if tables.narrow else np.uint64
        index = values.astype(np.int64).view(wide) if wide == np.uint64 else values.view(wide)
        index = index - np.repeat(tables.lowest.astype(wide), counts)
        place = np.flatnonzero(index >= np.repeat(tables.sizes.astype(wide), counts))
        stops = np.cumsum(counts)
        if len(place):
            table = np.searchsorted(stops, place, side="right")
            far, beyond = values[place] - tables.lowest[table], tables.sizes[table]
            index[place] = beyond
        coded = index.astype(np.uint32, copy=False).view(np.int32)
        for c in np.flatnonzero(counts):
            self._encoder.encode(coded[stops[c] - counts[c] : stops[c]], tables.models[c])
        if len(place):
            distance = np.where(far < 0, -far, far - beyond + 1)
            lengths = _bit_lengths(distance)
            self._encoder.encode((lengths - 1).astype(np.int32), _LENGTH_MODEL)
            self._encoder.encode(_suffix_bits(distance, lengths, far >= 0), _BIT_MODEL)

    def close(self) -> bytes:
        """All that was written."""
        return np.asarray(self._encoder.get_compressed()).astype("<u4").tobytes()


class Reader:
    """Reads what a `Writer` wrote, section by section. All methods raise `FormatError` for data that no writer writes."""

    def __init__(self, data: bytes) -> None:
        if len(data) % 4:
            raise FormatError("the coded latents are not a whole number of words")
        self._data = data
        self._decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))

    def get(self, counts: npt.NDArray[np.int64], tables: Tables) -> Symbols:
        """The values of the next section, flat. What is allocated is bounded by the counts and by the length of the data."""
        index = np.empty(int(counts.sum()), np.int32)
        stops = np.cumsum(counts)
        try:
            for c in np.flatnonzero(counts):
                index[stops[c] - counts[c] : stops[c]] = self._decoder.decode(tables.models[c], int(counts[c]))
            place = np.flatnonzero(index == np.repeat(tables.sizes.astype(np.int32), counts))
            if tables.narrow:
                index += np.repeat(tables.lowest.astype(np.int32), counts)
            else:
                exact = index + np.repeat(tables.lowest, counts)
                exact[place] = 0
                index = _in_range(exact).astype(np.int32)
            if len(place):
                _check_bits(2 * len(place), self._data)
                lengths = np.asarray(self._decoder.decode(_LENGTH_MODEL, len(place))).astype(np.int64) + 1
                _check_bits(int((lengths + np.minimum(lengths, PRECISION)).sum()), self._data)
                bits = np.asarray(self._decoder.decode(_BIT_MODEL, int(lengths.sum()))).astype(np.int64)
                table = np.searchsorted(stops, place, side="right")
                index[place] = _in_range(_from_suffix(bits, lengths, tables.lowest[table], tables.sizes[table]))
        except AssertionError as error:  # what constriction raises on data that no encoder writes
            raise FormatError("the coded latents are damaged") from error
        return index

    def close(self) -> None:
        """To be called behind the last section."""
        if not self._decoder.maybe_exhausted():
            raise FormatError("the coded latents go on behind their end")
