"""The second entropy model: side information and channel slices, in integers (profile 2).

After Ballé et al. 2018 (side information) and Minnen and Singh 2020 (slices of channels, each coded knowing those before it).

    z       side information, one position to 4×4 latents, from y by a floating-point network that only the encoder has
    f       features, at the latents' resolution, from z and the quality
    slice   from f and the latents that are decoded, those of the slices before it, at its place and around it, and its own at the places
            of earlier turns: for each latent a mean μ and log2 σ
    symbol  n = round((y - μ) / Δ),  decoded latent ŷ = n Δ + μ
    P(n)    one shape for all, shifted and scaled: F((n + ½)Δ/σ) - F((n - ½)Δ/σ), from one of 80 integer tables, chosen by σ/Δ

From z to the choice of table, and for ŷ, everything is integer arithmetic (`codec/fixedpoint.py`), so no float decides how a bit is read.
Latents, means and steps are in units of 2⁻¹⁶, and latents at most 2¹⁵ in size. What enters the networks is shifted to the right, by
`side_shift` for each channel of z and `context_shift` for each of ŷ, and clamped to ±limit; rectified maps are clamped to a limit too.
The units of maps within the networks are nobody's business but the weights'. What leaves them is in units of 2⁻¹²: μ, to be multiplied by
2^spread, a power of two for each channel, and log2 σ, from which the spread is left out.

The shape is F at some knots, `shape.cdf`, from which each table's are made with its step Δ/σ. Where `shape.fitted` is there, a row for each
table takes the place of that one: what is coded is rounded thriftily, and not distributed as training supposes (`train/refit.py`).

In a model file, `limits` are those of z, of ŷ, and of rectified maps; `*.weight` and `*.bias` are integers, and `*.shift` has a number
for each output. `features_bias`, a row for each quality, adds to the bias of `hyper_synthesis.conv2`, each number to the four outputs that
become one channel. The profile's first files have none of `limits`, `side_shift` and `context_shift`: `codec/hyperfile.py` fills them in.

Turns, after the checkerboard of He et al. 2021: the places of a slice are coded in 1, 2, 4 or 7 of them, as `layout.SQUARES` deals them
out; within a turn, all places are computed at once. Nearly all that neighbours share is in the first slice, the coarsest channels: its
seven turns go from every fourth place of every fourth row to all, with kernels of 5×5 that reach across the gaps, and a linear path from
its neighbours to its means. That takes more than eight bits: in the first slices, `Sizes.fine` of them, networks see latents in units of
2⁻¹² of their spread, and are as fine within. Beside signed latents, networks are shown their sizes, which is what scales follow from.

A payload is one run of the coder (`codec/coder.py`, `Writer`): a section for z, channel by channel with the tables of `z_density`, then
one for each turn of each slice, its symbols sorted by table and, within a table, channel by channel in row-major order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional
from torch import Tensor

from codec import container, fixedpoint, hyperfile
from codec.coder import PRECISION, Reader, Symbols, Tables, Writer
from codec.errors import FormatError, ModelError
from codec.fixedpoint import LIMIT, Kind, Layer
from codec.frozen import STEP_BITS, FrozenDensity, Integers, integers
from codec.hyperfile import BITS
from codec.inference import PRECISIONS
from codec.layout import LOWEST_OCTAVE, PER_OCTAVE, TABLES, Sizes, analysis_shapes, shapes
from codec.planes import BAND, MARGIN, alike, bands, by_table, means_and_tables, where
from codec.rounding import LARGEST, Savings, nearest

Code = Callable[[slice, Integers, Integers, npt.NDArray[np.uint8]], Symbols]
"""Called with a slice's channels, the places of a turn (numbers of rows times the width plus columns), their means and tables S×N;
returns the symbols S×N."""


class Hyperprior:
    """Codes the latents of a tile."""

    profile: Final = container.HYPERPRIOR

    def __init__(self, tensors: Mapping[str, Tensor], steps: Integers, sizes: Sizes, thrift: npt.NDArray[np.float64] | None = None) -> None:
        """`steps` are the Q×M quantiser steps, `thrift` that of each quality (`codec/rounding.py`), None for none.

        Raises ValueError or KeyError when the tensors are not those of such a model.
        """
        qualities, self.latents = steps.shape
        self.thrift = np.zeros(qualities) if thrift is None else thrift
        self.sizes = sizes
        self.steps = steps
        if sum(sizes.slices) != self.latents:
            raise ValueError("the slices do not add up to the latents")
        numbers = hyperfile.numbers(tensors, shapes(self.latents, qualities, sizes))
        self.spread, self.log2_steps, self.z_steps = (numbers[name] for name in ("spread", "log2_steps", "z_steps"))
        self.side_shift, self.context_shift = numbers["side_shift"], numbers["context_shift"]
        self.limits = tuple(int(n) for n in numbers["limits"])
        """Of the side information and the latents that the networks see, and of what they rectify."""
        self.shape_steps = numbers["shape.steps"]
        self.z_density = FrozenDensity(*(integers(tensors[f"z_density.{part}"]) for part in ("grid", "scale", "cdf")))
        if len(self.z_density.scale) != sizes.side:
            raise ValueError("there must be one density for each channel of the side information")
        grid, cdf = integers(tensors["shape.grid"]), integers(tensors.get("shape.fitted", tensors["shape.cdf"]))
        self.shape = FrozenDensity(grid, np.full(TABLES, 1 << STEP_BITS, np.int64), np.broadcast_to(cdf, (TABLES, cdf.shape[-1])))

        side, context, inner = self.limits
        self._side, self._seen = fixedpoint.kind(-side, side), fixedpoint.kind(-context, context)
        rectified, plain = fixedpoint.kind(0, inner), fixedpoint.kind(-LIMIT, LIMIT)
        finely, self._finely_seen = fixedpoint.kind(0, LIMIT), plain
        # What fine slices see of the features: the same numbers, held as they are.
        held = Kind(0, inner, 0, torch.float32)

        def layer(name: str, given: Kind, out: Kind, bias: Integers | int = 0, more: Mapping[str, slice] | None = None) -> Layer:
            """A layer with what is added to its sum: convolutions of decoded latents, which `_look` shows it tap by tap."""
            weights, kinds, rows = [numbers[f"{name}.weight"]], [given], numbers[f"{name}.bias"] + np.atleast_2d(bias)
            shown: dict[int, list[Integers]] = {}
            for part, channels in (more or {}).items():
                weight = numbers[f"{part}.weight"]
                views = np.split(weight, weight.shape[1] // (channels.stop - channels.start), axis=1)
                for start, size in zip(sizes.starts, sizes.slices, strict=True):
                    if channels.start <= start < channels.stop:
                        first = start - channels.start
                        shown.setdefault(weight.shape[2], []).extend(view[:, first : first + size] for view in views)
                rows = rows + numbers.get(f"{part}.bias", 0)
            for together in shown.values():
                weights.append(np.concatenate(together, axis=1).transpose(0, 2, 3, 1).reshape(len(rows[0]), -1, 1, 1))
                kinds.append(plain if int(name.split(".")[1]) < sizes.fine else self._seen)
            return Layer(weights, kinds, rows, numbers[f"{name}.shift"], out)

        self._coarse = layer("hyper_synthesis.conv1", self._side, rectified)
        self.late_bias = numbers.get("late_bias")
        # A channel's bias at a quality goes to all four of its places.
        features_bias = numbers["features_bias"].repeat(4, axis=1)
        self._fine = layer("hyper_synthesis.conv2", rectified, rectified if self.late_bias is None else plain, features_bias)
        self._turns: list[list[tuple[Layer, Layer, Layer]]] = []
        """For each slice and each turn, its three layers."""
        for k in range(len(sizes.slices)):
            inside = finely if k < sizes.fine else rectified
            hidden = layer(f"slices.{k}.hidden", inside, inside)
            self._turns.append([])
            last = layer(f"slices.{k}.last", inside, plain)
            for turn in range(sizes.turns_of(k)):
                first = layer(
                    f"slices.{k}.features", held if k < sizes.fine else rectified, inside, more=sizes.added(f"slices.{k}.features", turn)
                )
                if more := sizes.added(f"slices.{k}.last", turn):
                    last = layer(f"slices.{k}.last", inside, plain, more=more)
                self._turns[k].append((first, hidden, last))
        self.file = {name: tensors[name] for name in numbers if name in tensors}
        self._analysis = {}
        for name, shape in analysis_shapes(self.latents, sizes).items():
            if not tensors[name].is_floating_point() or tuple(tensors[name].shape) != shape or not torch.isfinite(tensors[name]).all():
                raise ValueError(f"{name} is not what the sizes ask for")
            self._analysis[name.removeprefix("hyper_analysis.")] = tensors[name].float()
        self.silent = not self._analysis["conv3.weight"].any()
        """Whether the side information is zero for every image."""
        self._z_tables: dict[int, Tables] = {}
        self._columns: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    @cached_property
    def tables(self) -> Tables:
        """The tables for latents, from the narrowest to the widest; the same for all qualities."""
        return self.shape.tables(self.shape_steps)

    @cached_property
    def _savings(self) -> Savings:
        return Savings(self.tables)

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
        """Integers H2 × h·(w+2), as maps hold them, rows with two columns too many, from symbols Cz×⌈h/4⌉×⌈w/4⌉ of the side information."""
        if z.any() or max(z.shape[1:]) <= 2:
            return self._features(z, quality, height, width)
        # Of zeros, all features are alike but for those that see the margins: some of them stand for all.
        few = np.zeros((len(z), *(min(n, 2) for n in z.shape[1:])), z.dtype)
        high, wide = 4 * few.shape[1], 4 * few.shape[2]
        small = self._features(few, quality, high, wide).view(-1, high, wide + 2)
        out = torch.zeros(len(small), height, width + 2, dtype=small.dtype)
        out[:, :, :width] = small.index_select(1, alike(height)).index_select(2, alike(width))
        return out.flatten(1)

    def _features(self, z: Symbols, quality: int, height: int, width: int) -> Tensor:
        """The same for any side information."""
        exact = torch.from_numpy(z).long() * torch.from_numpy(self.z_steps[quality - 1][:, None, None])
        x = self._side.flat(fixedpoint.seen(exact, self.side_shift, self._side))
        middle = functional.pixel_shuffle(fixedpoint.rows(self._coarse([x], z.shape[2] + 2), z.shape[2]), 2)
        middle = self._coarse.out.flat(middle)
        pitch = 2 * z.shape[2] + 2
        out = torch.zeros(self.sizes.features, height, width + 2, dtype=self._coarse.out.dtype)
        for first, last in bands(-(-height // 2), pitch):
            part = self._fine([middle[:, first * pitch : (last + 2) * pitch + 2]], pitch, quality - 1)
            part = functional.pixel_shuffle(fixedpoint.rows(part, pitch - 2), 2)
            if self.late_bias is not None:
                part = (part + torch.from_numpy(self.late_bias[quality - 1])[:, None, None]).clamp_(0, LIMIT)
            out[:, 2 * first : 2 * last, :width] = part[:, : height - 2 * first, :width]
        return out.flatten(1)

    @torch.inference_mode()
    def run(self, z: Symbols, quality: int, height: int, width: int, code: Code) -> Symbols:
        """Decoded latents M×h×w in units of 2⁻¹⁶, from the side information; `code` is asked for the symbols of turn after turn."""
        pitch = width + 2 * MARGIN
        with torch.autocast("cpu", enabled=False):
            features = self.features(z, quality, height, width).t().contiguous()
            shown = features.float() + self._coarse.out.offset if self.sizes.fine else features
            # What the networks see of the slices so far: places in rows, of each slice signed latents beside their sizes. Fine slices
            # see each other finely.
            positions = (height + 2 * MARGIN) * pitch
            context, finely = torch.empty((positions, 0), dtype=self._seen.dtype), torch.empty((positions, 0), dtype=torch.float32)
            factors, offsets, steps = self._constants(quality)
            latents = torch.empty((self.latents, height * width), dtype=torch.int32)
            for k, (start, size) in enumerate(zip(self.sizes.starts, self.sizes.slices, strict=True)):
                own, fine, turns = slice(start, start + size), k < self.sizes.fine, self.sizes.turns_of(k)
                if k == self.sizes.fine:
                    shown = features
                for turn in range(turns):
                    at, here, there = where(turns, turn, height, width)
                    if not len(at):
                        continue
                    parts = [
                        self._look(k, turn, shown.index_select(0, there[band]), finely if fine else context, here[band], pitch)
                        for band in (slice(first, first + BAND) for first in range(0, len(at), BAND))
                    ]
                    given = torch.cat(parts) if len(parts) > 1 else parts[0]
                    means, tables = means_and_tables(given, factors[own], offsets[own])
                    symbols = torch.from_numpy(code(own, at.numpy(), means.numpy(), tables.numpy()))
                    exact = symbols.long().mul_(steps[own]).add_(means)
                    latents[own].index_copy_(1, at, exact.clamp(-LARGEST, LARGEST).int())
                    if turn == 0:
                        context = self._wider(context, size)
                        finely = self._wider(finely, size) if fine else finely
                    last = turn == turns - 1
                    if fine and not (last and k == self.sizes.fine - 1):
                        self._show(finely, here, fixedpoint.seen(exact.clone(), self.spread[own] + STEP_BITS - BITS, self._finely_seen))
                    if not (last and own.stop == self.latents):
                        self._show(context, here, fixedpoint.seen(exact, self.context_shift[own], self._seen))
        return latents.view(-1, height, width).numpy()

    def _wider(self, seen: Tensor, size: int) -> Tensor:
        """A map with room for a slice behind those before it."""
        return functional.pad(seen, (0, self.sizes.views * size))

    def _show(self, seen: Tensor, here: Tensor, latents: Tensor) -> None:
        """Enter latents S×N at places N of a map, the last of its slices."""
        signed = latents.t()
        own = torch.cat([signed, signed.abs()], dim=1) if self.sizes.views == 2 else signed
        seen[:, -own.shape[1] :].index_copy_(0, here, own)

    def _look(self, k: int, turn: int, features: Tensor, seen: Tensor, here: Tensor, pitch: int) -> Tensor:
        """What the last layer of a slice gives at places N of a turn, N×2S, with features N×H2."""
        first, hidden, last = self._turns[k][turn]
        side, own_side = self.sizes.kernel, self.sizes.own_kernel(k)
        width = self.sizes.views * self.sizes.slices[k]
        maps, direct = [features], []
        if not turn:
            maps += [fixedpoint.neighbours(seen, here, side, pitch)] if k else []
        elif k and side == own_side:
            maps.append(fixedpoint.neighbours(seen, here, side, pitch))
        else:
            maps += [fixedpoint.neighbours(seen[:, :-width], here, side, pitch)] if k else []
            own = fixedpoint.neighbours(seen[:, -width:], here, own_side, pitch)
            maps.append(own)
            if self.sizes.direct(k):
                direct = [own.view(len(own), -1, width)[:, :, : self.sizes.slices[k]].flatten(1)]
        return last.at([hidden.at([first.at(maps)]), *direct])

    def _constants(self, quality: int) -> tuple[Tensor, Tensor, Tensor]:
        """For each channel: what the mean is multiplied by, what is added to the choice of table, both as columns, and the step."""
        found = self._columns.get(quality)
        if found is None:
            # Of log2 σ/Δ, all that is known before.
            known = ((self.spread - LOWEST_OCTAVE) << BITS) - self.log2_steps[quality - 1]
            columns = (2.0 ** (self.spread + STEP_BITS - BITS)).astype(np.float32), PER_OCTAVE * known + (1 << (BITS - 1))
            factors, offsets, steps = (torch.from_numpy(column[:, None]) for column in (*columns, self.steps[quality - 1]))
            found = factors, offsets.int(), steps
            self._columns = {quality: found}  # of the last quality only
        return found

    # The encoder

    def in_precision(self, precision: str) -> Hyperprior:
        """The same model with a hyper-analysis that computes in fp32 or bf16; all else is integers."""
        other = copy.copy(self)
        other._analysis = {name: tensor.to(PRECISIONS[precision]) for name, tensor in self._analysis.items()}
        return other

    def with_shape(self, shape: FrozenDensity) -> Hyperprior:
        """The same networks with another density, of as many rows as there are tables."""
        other = copy.copy(self)
        other.shape = shape
        for cached in ("tables", "_savings"):
            other.__dict__.pop(cached, None)
        return other

    @torch.inference_mode()
    def real_side_information(self, y: npt.NDArray[np.float32]) -> Tensor:
        """The side information Cz×⌈h/4⌉×⌈w/4⌉ of latents M×h×w before it is quantised, float64."""
        if self.silent:
            return torch.zeros(self.sizes.side, *(-(-n // 4) for n in y.shape[1:]), dtype=torch.float64)
        a = self._analysis
        with torch.autocast("cpu", enabled=False):
            x = torch.from_numpy(y)[None].to(a["conv1.bias"].dtype).contiguous(memory_format=torch.channels_last)
            x = torch.relu_(functional.conv2d(x, a["conv1.weight"], a["conv1.bias"], padding=1))
            x = torch.relu_(functional.conv2d(x, a["conv2.weight"], a["conv2.bias"], stride=2, padding=2))
            return functional.conv2d(x, a["conv3.weight"], stride=2, padding=2)[0].double()

    @torch.inference_mode()
    def side_information(self, y: npt.NDArray[np.float32], quality: int) -> Symbols:
        """Symbols Cz×⌈h/4⌉×⌈w/4⌉ of latents M×h×w. Raises `ModelError` when they are out of range."""
        scale = (1 << STEP_BITS) / self.z_steps[quality - 1]
        return np.asarray(nearest(self.real_side_information(y).mul_(torch.from_numpy(scale[:, None, None]))).int().numpy(), np.int32)

    def coded(
        self,
        y: npt.NDArray[np.float32],
        quality: int,
        put: Callable[[Symbols, Integers, Tables], None],
        side: Symbols | None = None,
        thrifty: bool = True,
    ) -> Symbols:
        """Decoded latents of y; `put` gets each section's symbols in the order of the stream, their number for each table, the tables."""
        if not (y.min() > -(1 << 15) and y.max() < 1 << 15):  # nor for NaN
            raise ModelError("the model gives latents that are out of range")
        z = self.side_information(y, quality) if side is None else side
        put(z.ravel(), np.full(len(z), z[0].size, np.int64), self.z_tables(quality))
        exact = torch.from_numpy(y).flatten(1)
        thrift = float(self.thrift[quality - 1]) if thrifty else 0.0
        steps = torch.from_numpy(self.steps[quality - 1][:, None]).float()

        def code(own: slice, at: Integers, means: Integers, tables: npt.NDArray[np.uint8]) -> Symbols:
            # Single precision holds means exactly, and which way a tie is rounded is the encoder's choice.
            residual = exact[own, torch.from_numpy(at)].mul_(1 << STEP_BITS).sub_(torch.from_numpy(means).float())
            symbols = self._savings.rounded(residual.div_(steps[own]), torch.from_numpy(tables), thrift)
            order, counts = by_table(tables)
            put(symbols.reshape(-1)[order], counts, self.tables)
            return symbols

        return self.run(z, quality, y.shape[1], y.shape[2], code)

    def encode(self, y: npt.NDArray[np.float32], quality: int, side: Symbols | None = None, thrifty: bool = True) -> bytes:
        """The payload of latents M×h×w, with side information of one's own choice or, for None, that of `side_information`.

        Latents that were searched for are not to be rounded thriftily. Raises `ModelError` when they are out of range.
        """
        writer = Writer()
        self.coded(y, quality, writer.put, side, thrifty)
        return writer.close()

    def quantise(self, y: npt.NDArray[np.float32], quality: int) -> Symbols:
        """What `decode` will return for the payload of latents M×h×w."""
        return self.coded(y, quality, lambda symbols, counts, tables: None)

    def trial(
        self, y: npt.NDArray[np.float32], quality: int, side: Symbols | None = None, thrifty: bool = True
    ) -> tuple[tuple[float, float], Symbols]:
        """The code lengths -Σ log2 P of side information and latents, and what will be decoded; arguments are as for `encode`."""
        parts: list[float] = []

        def put(symbols: Symbols, counts: Integers, tables: Tables) -> None:
            stops = np.cumsum(counts)
            split = [symbols[stop - count : stop] for stop, count in zip(stops, counts, strict=True)]
            parts.append(float(tables.bits(split).sum()))

        latents = self.coded(y, quality, put, side, thrifty)
        return (parts[0], sum(parts[1:])), latents

    def bits(self, y: npt.NDArray[np.float32], quality: int) -> tuple[float, float]:
        """The code lengths of side information and latents alone."""
        return self.trial(y, quality)[0]

    # The decoder

    def check_length(self, data: bytes, quality: int, height: int, width: int) -> None:
        """Raises `FormatError` when a payload is too short for latents M×h×w."""
        least = self.latents * height * width * self.least_bits + -(-height // 4) * -(-width // 4) * self.z_tables(quality).least_bits
        if 8 * len(data) + 64 < 0.99 * least:
            raise FormatError(f"{len(data)} bytes are too few for the latents of the declared dimensions")

    def decode(self, data: bytes, quality: int, height: int, width: int) -> Symbols:
        """Decoded latents M×h×w in units of 2⁻¹⁶. Raises `FormatError` for a payload that `encode` does not write."""
        self.check_length(data, quality, height, width)
        reader = Reader(data)
        shape = (self.sizes.side, -(-height // 4), -(-width // 4))
        z = reader.get(np.full(shape[0], shape[1] * shape[2], np.int64), self.z_tables(quality)).reshape(shape)

        def code(own: slice, at: Integers, means: Integers, tables: npt.NDArray[np.uint8]) -> Symbols:
            order, counts = by_table(tables)
            symbols = np.empty(tables.size, np.int32)
            symbols[order] = reader.get(counts, self.tables)
            return symbols.reshape(tables.shape)

        latents = self.run(z, quality, height, width, code)
        reader.close()
        return latents

    def dequantise(self, latents: Symbols, quality: int) -> npt.NDArray[np.float32]:
        """What the synthesis takes."""
        return latents.astype(np.float32) * np.float32(2.0**-STEP_BITS)
