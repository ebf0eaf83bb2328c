"""The second entropy model: side information and channel slices, in integers (profile 2).

After Ballé et al. 2018 (side information) and Minnen and Singh 2020 (slices of channels, each coded knowing those before it).

    z       side information, one position to 4×4 latents, from y by a floating-point network that only the encoder has
    f       features, at the latents' resolution, from z and the quality
    slice   from f and the decoded latents of the slices before it: for each latent a mean μ and log2 σ
    symbol  n = round((y - μ) / Δ),  decoded latent ŷ = n Δ + μ
    P(n)    one shape for all, shifted and scaled: F((n + ½)Δ/σ) - F((n - ½)Δ/σ), from one of 80 integer tables, chosen by σ/Δ

From z to the choice of table, and for ŷ, everything is integer arithmetic (`codec/fixedpoint.py`), so no float decides how a bit is read.
Latents, means and steps are in units of 2⁻¹⁶; networks see latents divided by 2^spread, a power of two for each channel, and give μ
and log2 σ in the same manner. Latents are at most 2¹⁵ in size.

A payload is one run of the coder (`codec/coder.py`, `Writer`): a section for z, channel by channel with the tables of `z_density`, then
one for each slice, its symbols sorted by table and, within a table, channel by channel in row-major order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional
from torch import Tensor

from codec import container, fixedpoint
from codec.coder import PRECISION, Reader, Symbols, Tables, Writer
from codec.errors import FormatError, ModelError
from codec.fixedpoint import BITS, LIMIT, Layer
from codec.frozen import STEP_BITS, FrozenDensity

LOWEST_OCTAVE: Final = -4
"""log2 of the smallest σ/Δ that a latent is coded with."""
PER_OCTAVE: Final = 6
"""Tables to a factor of two in σ/Δ: the nearest one is at most 6 % off, which costs a thousandth of the rate."""
TABLES: Final = 80
"""Tables in all: σ/Δ from 1/16 to 588."""
SPREADS: Final = (BITS - STEP_BITS, 10)
"""Range of the spreads, which are exponents of two."""
BAND: Final = 512
"""Positions that the slices' networks work on at a time: few enough for the cache, and for memory with the largest images."""
LATENT_LIMIT: Final = (1 << 31) - 1
Integers = npt.NDArray[np.int64]
Real = tuple[list[Tensor], Tensor]
Code = Callable[[int, Integers, npt.NDArray[np.uint8]], Symbols]
"""Called with the number of a slice, its means S×h×w and tables S×h×w; returns its symbols S×h×w."""


@dataclass(frozen=True)
class Sizes:
    """Widths of the networks."""

    side: int = 64
    """Channels of the side information z."""
    analysis: int = 128
    """Channels inside the hyper-analysis."""
    synthesis: int = 96
    """Channels of the hyper-synthesis at 1/32 of the image's resolution."""
    features: int = 128
    """Channels of what it hands to the slices, at 1/16."""
    slices: tuple[int, ...] = (32, 32, 64, 64)
    """Latent channels that are coded together; their sum is M."""
    width: int = 128
    """Channels inside a slice's network."""
    kernel: int = 3
    """Side of the kernels, in latents, through which a slice sees the ones before it; 1 or 3."""

    def __post_init__(self) -> None:
        numbers = (self.side, self.analysis, self.synthesis, self.features, self.width, *self.slices)
        if not self.slices or not all(isinstance(n, int) and 0 < n <= 4096 for n in numbers) or self.kernel not in (1, 3):
            raise ValueError("absurd sizes of networks")

    @property
    def starts(self) -> tuple[int, ...]:
        """The first channel of each slice."""
        return tuple(sum(self.slices[:k]) for k in range(len(self.slices)))


def shapes(latents: int, qualities: int, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """All integer tensors of the model file by name, apart from densities, with their shapes."""
    out: dict[str, tuple[int, ...]] = {
        "spread": (latents,),
        "log2_steps": (qualities, latents),
        "z_steps": (qualities, sizes.side),
        "features_bias": (qualities, sizes.features),
        "shape.steps": (TABLES,),
        "hyper_synthesis.conv1.weight": (4 * sizes.synthesis, sizes.side, 3, 3),
        "hyper_synthesis.conv2.weight": (4 * sizes.features, sizes.synthesis, 3, 3),
    }
    for k, (start, size) in enumerate(zip(sizes.starts, sizes.slices, strict=True)):
        out[f"slices.{k}.features.weight"] = (sizes.width, sizes.features, 1, 1)
        if start:
            out[f"slices.{k}.context.weight"] = (sizes.width, start, sizes.kernel, sizes.kernel)
        out[f"slices.{k}.hidden.weight"] = (sizes.width, sizes.width, 1, 1)
        out[f"slices.{k}.last.weight"] = (2 * size, sizes.width, 1, 1)
    for name in [name for name in out if name.endswith(".weight") and ".context." not in name]:
        layer = name.removesuffix(".weight")
        out[f"{layer}.bias"] = out[name][:1]
        out[f"{layer}.shift"] = ()
    return out


def analysis_shapes(latents: int, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """The floating-point tensors of the hyper-analysis."""
    return {
        "hyper_analysis.conv1.weight": (sizes.analysis, latents, 3, 3),
        "hyper_analysis.conv1.bias": (sizes.analysis,),
        "hyper_analysis.conv2.weight": (sizes.analysis, sizes.analysis, 5, 5),
        "hyper_analysis.conv2.bias": (sizes.analysis,),
        "hyper_analysis.conv3.weight": (sizes.side, sizes.analysis, 5, 5),
    }


class Hyperprior:
    """Codes the latents of a tile."""

    profile: Final = container.HYPERPRIOR

    def __init__(self, tensors: Mapping[str, Tensor], steps: Integers, sizes: Sizes) -> None:
        """`steps` are the Q×M quantiser steps. Raises ValueError or KeyError when the tensors are not those of such a model."""
        qualities, self.latents = steps.shape
        self.sizes = sizes
        self.steps = steps
        if sum(sizes.slices) != self.latents:
            raise ValueError("the slices do not add up to the latents")
        numbers = {}
        for name, shape in shapes(self.latents, qualities, sizes).items():
            if tensors[name].is_floating_point() or tuple(tensors[name].shape) != shape:
                raise ValueError(f"{name} is not what the sizes ask for")
            numbers[name] = np.asarray(tensors[name].numpy(), dtype=np.int64)
        self.spread = numbers["spread"]
        self.log2_steps = numbers["log2_steps"]
        self.z_steps = numbers["z_steps"]
        self.features_bias = numbers["features_bias"]
        if self.spread.min() < SPREADS[0] or self.spread.max() > SPREADS[1]:
            raise ValueError("a spread is out of range")
        if abs(self.log2_steps).max() > LIMIT or abs(self.features_bias).max() > LIMIT:
            raise ValueError("a bias is out of range")
        if min(self.z_steps.min(), numbers["shape.steps"].min()) < 1 or max(self.z_steps.max(), numbers["shape.steps"].max()) >= 1 << 31:
            raise ValueError("a step is out of range")
        self._shape_steps = numbers["shape.steps"]
        self.z_density = FrozenDensity(*(_integers(tensors[f"z_density.{part}"]) for part in ("grid", "scale", "cdf")))
        if len(self.z_density.scale) != sizes.side:
            raise ValueError("there must be one density for each channel of the side information")
        grid, cdf = _integers(tensors["shape.grid"]), _integers(tensors["shape.cdf"])
        self.shape = FrozenDensity(grid, np.full(TABLES, 1 << STEP_BITS, np.int64), np.broadcast_to(cdf, (TABLES, len(cdf))))

        def layer(name: str, rectify: bool, *more: str) -> Layer:
            weights = [numbers[f"{part}.weight"] for part in (name, *more)]
            return Layer(weights, numbers[f"{name}.bias"], int(numbers[f"{name}.shift"]), rectify=rectify)

        self._synthesis = layer("hyper_synthesis.conv1", True), layer("hyper_synthesis.conv2", False)
        self._slices = [
            (
                layer(f"slices.{k}.features", True, *([f"slices.{k}.context"] if start else [])),
                layer(f"slices.{k}.hidden", True),
                layer(f"slices.{k}.last", False),
            )
            for k, start in enumerate(sizes.starts)
        ]
        self._analysis = {}
        for name, shape in analysis_shapes(self.latents, sizes).items():
            if not tensors[name].is_floating_point() or tuple(tensors[name].shape) != shape or not torch.isfinite(tensors[name]).all():
                raise ValueError(f"{name} is not what the sizes ask for")
            self._analysis[name.removeprefix("hyper_analysis.")] = tensors[name].float()
        self._z_tables: dict[int, Tables] = {}

    @cached_property
    def tables(self) -> Tables:
        """The tables for latents, from the narrowest to the widest; the same for all qualities."""
        return self.shape.tables(self._shape_steps)

    @cached_property
    def least_bits(self) -> float:
        """Code length of the cheapest symbol of a latent."""
        return min(float(-np.log2((f.max() + 1) / (1 << PRECISION))) for f in self.tables.counts)

    def z_tables(self, quality: int) -> Tables:
        """The tables for the side information, one for each of its channels."""
        if quality not in self._z_tables:
            self._z_tables[quality] = self.z_density.tables(self.z_steps[quality - 1])
        return self._z_tables[quality]

    # What both sides do

    def features(self, z: Symbols, quality: int, height: int, width: int) -> Tensor:
        """Integers H2 × h·(w+2), float32, rows with two columns too many, from symbols Cz×⌈h/4⌉×⌈w/4⌉ of the side information."""
        coarse, fine = self._synthesis
        step = self.z_steps[quality - 1][:, None, None]
        x = fixedpoint.flat(torch.from_numpy(np.clip(_shifted(z * step, STEP_BITS - BITS), -LIMIT, LIMIT)))
        middle = fixedpoint.flat(functional.pixel_shuffle(fixedpoint.rows(coarse([x], z.shape[2] + 2), z.shape[2]), 2))
        pitch = 2 * z.shape[2] + 2
        bias = torch.from_numpy(self.features_bias[quality - 1].astype(np.float64))[:, None, None]
        out = torch.zeros(self.sizes.features, height, width + 2)
        for first, last in _bands(-(-height // 2), pitch):
            part = fixedpoint.rows(fine([middle[:, first * pitch : (last + 2) * pitch + 2]], pitch), pitch - 2)
            part = functional.pixel_shuffle(part, 2)[:, : height - 2 * first, :width]
            out[:, 2 * first : 2 * last, :width] = (part + bias).clamp_(0, LIMIT)
        return out.flatten(1)

    @torch.inference_mode()
    def run(self, z: Symbols, quality: int, height: int, width: int, code: Code) -> Symbols:
        """Decoded latents M×h×w in units of 2⁻¹⁶, from the side information; `code` is asked for the symbols of slice after slice."""
        pitch = width + 2
        with torch.autocast("cpu", enabled=False):
            features = self.features(z, quality, height, width)
            seen = fixedpoint.empty_flat(self.latents, height, width, torch.float32)
            latents = np.empty((self.latents, height, width), np.int32)
            for k, (start, size) in enumerate(zip(self.sizes.starts, self.sizes.slices, strict=True)):
                own = slice(start, start + size)
                spread = self.spread[own, None, None]
                # Of (log2 σ/Δ - lowest) · 6, all that is known before.
                known = ((spread - LOWEST_OCTAVE) << BITS) - self.log2_steps[quality - 1, own, None, None]
                offset = torch.from_numpy((PER_OCTAVE * known + (1 << (BITS - 1))).astype(np.float64))
                unit = torch.from_numpy(2.0 ** (spread + STEP_BITS - BITS))
                means = np.empty((size, height, width), np.int64)
                tables = np.empty((size, height, width), np.uint8)
                for first, last in _bands(height, pitch):
                    maps = [features[:, first * pitch : last * pitch].double()]
                    if start:
                        # The margin lies around a 3×3 kernel, and outside of a 1×1.
                        margin = 0 if self.sizes.kernel == 3 else pitch + 1
                        maps.append(seen[:start, first * pitch + margin : (last + 2) * pitch + 2 - margin].double())
                    out = maps
                    for layer in self._slices[k]:
                        out = [layer(out, pitch)]
                    mean, octave = fixedpoint.rows(out[0], width).chunk(2)
                    means[:, first:last] = (mean * unit).numpy()
                    index = (octave * PER_OCTAVE).add_(offset).mul_(2.0**-BITS).floor_().clamp_(0, TABLES - 1)
                    tables[:, first:last] = index.numpy()
                exact = code(k, means, tables) * self.steps[quality - 1, own, None, None] + means
                latents[own] = np.clip(exact, -LATENT_LIMIT, LATENT_LIMIT)
                if start + size < self.latents:
                    shown = np.clip(_shifted(exact, spread + STEP_BITS - BITS), -LIMIT, LIMIT)
                    fixedpoint.inside(seen, height, width)[own] = torch.from_numpy(shown)
        return latents

    # The encoder

    def real_layers(self) -> tuple[list[Real], list[list[Real]]]:
        """Weights and biases, as real numbers, of the two layers behind z and of the three of each slice."""
        return [layer.real() for layer in self._synthesis], [[layer.real() for layer in layers] for layers in self._slices]

    @torch.inference_mode()
    def real_side_information(self, y: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """The side information Cz×⌈h/4⌉×⌈w/4⌉ of latents M×h×w before it is quantised."""
        a = self._analysis
        with torch.autocast("cpu", enabled=False):
            x = torch.from_numpy(y)[None].float().contiguous(memory_format=torch.channels_last)
            x = torch.relu_(functional.conv2d(x, a["conv1.weight"], a["conv1.bias"], padding=1))
            x = torch.relu_(functional.conv2d(x, a["conv2.weight"], a["conv2.bias"], stride=2, padding=2))
            z = functional.conv2d(x, a["conv3.weight"], stride=2, padding=2)[0].double().numpy()
        return np.asarray(z)

    def side_information(self, y: npt.NDArray[np.float32], quality: int) -> Symbols:
        """Symbols Cz×⌈h/4⌉×⌈w/4⌉ of latents M×h×w. Raises `ModelError` when they are out of range."""
        return _rounded(self.real_side_information(y) * ((1 << STEP_BITS) / self.z_steps[quality - 1])[:, None, None])

    def _coded(
        self, y: npt.NDArray[np.float32], quality: int, side: Symbols | None, put: Callable[[Symbols, Integers, Tables], None]
    ) -> Symbols:
        """Decoded latents of y; `put` gets each section's symbols in the order of the stream, their number for each table, the tables."""
        if not np.isfinite(y).all() or abs(y).max() >= 1 << 15:
            raise ModelError("the model gives latents that are out of range")
        z = self.side_information(y, quality) if side is None else side
        put(z.ravel(), np.full(len(z), z[0].size, np.int64), self.z_tables(quality))
        exact = y.astype(np.float64) * (1 << STEP_BITS)

        def code(k: int, means: Integers, tables: npt.NDArray[np.uint8]) -> Symbols:
            own = slice(self.sizes.starts[k], self.sizes.starts[k] + self.sizes.slices[k])
            symbols = _rounded((exact[own] - means) / self.steps[quality - 1, own, None, None])
            order, counts = _by_table(tables)
            put(symbols.reshape(-1)[order], counts, self.tables)
            return symbols

        return self.run(z, quality, y.shape[1], y.shape[2], code)

    def encode(self, y: npt.NDArray[np.float32], quality: int, side: Symbols | None = None) -> bytes:
        """The payload of latents M×h×w, with side information of one's own choice or, for None, that of `side_information`.

        Raises `ModelError` when they are out of range.
        """
        writer = Writer()
        self._coded(y, quality, side, writer.put)
        return writer.close()

    def quantise(self, y: npt.NDArray[np.float32], quality: int) -> Symbols:
        """What `decode` will return for the payload of latents M×h×w."""
        return self._coded(y, quality, None, lambda symbols, counts, tables: None)

    def trial(self, y: npt.NDArray[np.float32], quality: int, side: Symbols | None = None) -> tuple[tuple[float, float], Symbols]:
        """The code lengths -Σ log2 P of side information and latents, and what `quantise` returns."""
        parts: list[float] = []

        def put(symbols: Symbols, counts: Integers, tables: Tables) -> None:
            stops = np.cumsum(counts)
            split = [symbols[stop - count : stop] for stop, count in zip(stops, counts, strict=True)]
            parts.append(float(tables.bits(split).sum()))

        latents = self._coded(y, quality, side, put)
        return (parts[0], sum(parts[1:])), latents

    def bits(self, y: npt.NDArray[np.float32], quality: int) -> tuple[float, float]:
        """The code lengths -Σ log2 P of side information and latents."""
        return self.trial(y, quality)[0]

    # The decoder

    def check_length(self, data: bytes, quality: int, height: int, width: int) -> None:
        """Raises `FormatError` when a payload is too short for latents M×h×w."""
        least = self.latents * height * width * self.least_bits + -(-height // 4) * -(-width // 4) * self.z_tables(quality).least_bits
        if 8 * len(data) + 64 < 0.99 * least:
            raise FormatError(f"{len(data)} bytes are too few for the latents of the declared dimensions")

    def _read_side(self, reader: Reader, quality: int, height: int, width: int) -> Symbols:
        shape = (self.sizes.side, -(-height // 4), -(-width // 4))
        return reader.get(np.full(shape[0], shape[1] * shape[2], np.int64), self.z_tables(quality)).reshape(shape)

    def decode(self, data: bytes, quality: int, height: int, width: int) -> Symbols:
        """Decoded latents M×h×w in units of 2⁻¹⁶. Raises `FormatError` for a payload that `encode` does not write."""
        self.check_length(data, quality, height, width)
        reader = Reader(data)
        z = self._read_side(reader, quality, height, width)

        def code(k: int, means: Integers, tables: npt.NDArray[np.uint8]) -> Symbols:
            order, counts = _by_table(tables)
            symbols = np.empty(tables.size, np.int32)
            symbols[order] = reader.get(counts, self.tables)
            return symbols.reshape(tables.shape)

        latents = self.run(z, quality, height, width, code)
        reader.close()
        return latents

    def dequantise(self, latents: Symbols, quality: int) -> npt.NDArray[np.float32]:
        """What the synthesis takes."""
        return latents.astype(np.float32) * np.float32(2.0**-STEP_BITS)


def sizes_of(metadata: Mapping[str, Any]) -> Sizes:
    """The sizes that a model file's metadata name. Raises ValueError, KeyError or TypeError."""
    named = dict(metadata["sizes"])
    return Sizes(**{**named, "slices": tuple(named["slices"])})


def _integers(tensor: Tensor) -> Integers:
    if tensor.is_floating_point():
        raise ValueError("tables must be integers")
    return np.asarray(tensor.numpy(), dtype=np.int64)


def _bands(height: int, pitch: int) -> list[tuple[int, int]]:
    """First rows, and those behind the last, of bands of about `BAND` positions."""
    count = max(1, BAND // pitch)
    return [(first, min(first + count, height)) for first in range(0, height, count)]


def _shifted(x: Integers, bits: Integers | int) -> Integers:
    """The integers nearest to x / 2^bits, halves rounded up."""
    shifted: Integers = (x + ((1 << np.asarray(bits)) >> 1)) >> bits
    return shifted


def _rounded(x: npt.NDArray[np.float64]) -> Symbols:
    if not np.isfinite(x).all() or abs(x).max() > LATENT_LIMIT:
        raise ModelError("the model gives latents that are out of range")
    symbols: Symbols = np.rint(x).astype(np.int32)
    return symbols


def _by_table(tables: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.intp], Integers]:
    """The order in which a slice's symbols are coded, and how many of them with each table."""
    flat = tables.reshape(-1)
    return np.argsort(flat, kind="stable"), np.bincount(flat, minlength=TABLES).astype(np.int64)
