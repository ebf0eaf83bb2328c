"""Weights of eight bits whose errors make up for each other, in the networks of a hyperprior's slices.

A layer is fitted to what it is there for: on photographs, to give with the integers that it sees what the networks as trained give with
real numbers. First the real weights that come nearest in mean square are found, which makes up for what was rounded and clamped before
it; then they are rounded column by column, each with the error of those before spread over those after, as in GPTQ (Frantar et al. 2023)
after the optimal brain surgeon (Hassibi and Stork 1993). Rounded each for itself, weights cost about 1 % of the rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from codec.fixedpoint import BYTE, LIMIT, MAX_SHIFT, kind
from codec.frozen import STEP_BITS
from codec.hyperfile import BITS
from codec.hyperprior import Hyperprior
from codec.layout import Sizes, mask
from train.hyper import HyperModel

CROPS: Final = 16
"""Photographs' crops that the layers are fitted on, at most, each at all rungs."""
DAMPING: Final = 0.01
"""Added to the diagonal of the Gram matrix, as a share of its mean: weights stay where photographs say nothing of them."""
HEADROOM: Final = 1.25
"""Maps have room for so much more than the largest number that was seen,"""
QUIET: Final = 1 / 16
"""and a quiet channel for this share of what the largest has."""
COLUMNS: Final = 256
"""Columns that are rounded before their errors go to all that follow."""
AT_ONCE: Final = 8
"""Maps whose sums are taken in one product."""


def factor(gram: Tensor) -> Tensor:
    """The upper triangular U with UᵀU the inverse of a positive definite matrix D×D."""
    lower = torch.linalg.cholesky(gram.flip(0, 1))
    return torch.linalg.solve_triangular(lower, torch.eye(len(gram), dtype=gram.dtype), upper=False).flip(0, 1)


def rounded(weights: Tensor, inverse: Tensor, free: int) -> Tensor:
    """Integers of eight bits near weights O×D, float64, such that (weights - integers) x is small for inputs x.

    `inverse` is the `factor` of Σ x xᵀ, D×D: its row i says how columns behind i best make up for an error in i. The last `free`
    columns, biases, are chosen with the others, but not rounded.
    """
    w, core = weights.clone(), weights.shape[1] - free
    for first in range(0, core, COLUMNS):
        last = min(first + COLUMNS, core)
        lost = torch.empty(len(w), last - first, dtype=w.dtype)
        for i in range(first, last):
            whole = w[:, i].round().clamp(-BYTE, BYTE)
            lost[:, i - first] = (w[:, i] - whole) / inverse[i, i]
            w[:, i + 1 : last] -= lost[:, i - first, None] * inverse[i, i + 1 : last]
            w[:, i] = whole
        w[:, last:] -= lost @ inverse[first:last, last:]
    return w


def _sums(given: list[Tensor], wanted: list[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
    """Σ x xᵀ and Σ (t - W x) xᵀ over places N×D and N×O of several maps, float64."""
    size = given[0].shape[1]
    gram, missing = torch.zeros(size, size, dtype=torch.float64), torch.zeros(len(weights), size, dtype=torch.float64)
    for first in range(0, len(given), AT_ONCE):
        x, t = torch.cat(given[first : first + AT_ONCE]).float(), torch.cat(wanted[first : first + AT_ONCE])
        gram += x.t() @ x
        missing += (t - x @ weights.float().t()).t() @ x
    return gram, missing


def fitted(weights: Tensor, given: list[Tensor], wanted: list[Tensor], free: int, unit: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Integer weights O×D and shifts O of a layer that gives `wanted`, N×O of each map, in `unit`, O, for the integers `given`, N×D.

    `weights` are those to begin with, for these integers; the last `free` columns are biases. `reach`, D, is how large the integers
    may be; sums stay small enough for single precision.
    """
    gram, missing = _sums(given, wanted, weights)
    gram.diagonal().add_(DAMPING * gram.diagonal()[:-free].mean() + 1e-3)
    # Columns with the largest inputs come first, for the most to be left that make up for them.
    core = len(gram) - free
    order = torch.cat([gram.diagonal()[:core].argsort(descending=True), torch.arange(core, len(gram))])
    inverse, back = factor(gram[order][:, order]), order.argsort()
    best = weights + (missing[:, order] @ inverse.t() @ inverse)[:, back]
    largest = best[:, :-free].abs().amax(dim=1).clamp(min=1e-12)
    total = (best.abs() * reach).sum(dim=1).clamp(min=1e-12)
    # Rounding adds about a half to each weight. Where it adds more, there is another round.
    room = torch.minimum(BYTE / largest, (LIMIT - 2 - 0.5 * float(reach.sum())) / total)
    while True:
        shift = torch.floor(torch.log2(room / unit)).clamp(max=MAX_SHIFT)
        whole = rounded((best * (unit * torch.exp2(shift))[:, None])[:, order], inverse, free)[:, back].round()
        over = (whole.abs() * reach).sum(dim=1) + torch.exp2(shift - 1) > LIMIT - 1
        if not over.any():
            return whole, shift
        room[over] /= 2


def _layer(given: list[Tensor], weights: Tensor, shift: Tensor, limit: int) -> list[Tensor]:
    """What a layer of integers gives, N×O, rectified, for N×D, with a last column of ones."""
    outs = [torch.floor((x.double() @ weights.t()) * torch.exp2(-shift) + 0.5).clamp(0, limit) for x in given]
    return [functional.pad(out, (0, 1), value=1).to(torch.int16) for out in outs]


def _unit(maps: list[Tensor], limit: int) -> Tensor:
    """Of what size one is in rectified maps N×C, for the largest number in them to have a place."""
    largest = torch.stack([x.double().amax(dim=0) for x in maps]).amax(dim=0)
    return limit / (HEADROOM * torch.maximum(largest, QUIET * largest.max()).clamp(min=2.0**-8))


def _places(features: Tensor, latents: Tensor, k: int, sizes: Sizes) -> Tensor:
    """What the first layer of slice k sees at each place of maps H2×h×w and M×h×w, h·w × D, the columns as `_columns` has the weights."""
    height, width = latents.shape[1:]

    def around(x: Tensor, side: int) -> Tensor:
        x = torch.cat([x, x.abs()]) if sizes.views == 2 else x
        return functional.unfold(x[None], side, padding=side // 2)[0].t()

    start, size, count = sizes.starts[k], sizes.slices[k], sizes.turns_of(k)
    own, turns = latents[start : start + size], [torch.from_numpy(mask(count, turn, height, width)) for turn in range(count)]
    parts = [features.flatten(1).t(), *([around(latents[:start], sizes.kernel)] if start else [])]
    for turn in range(1, count):
        known = torch.stack(turns[:turn]).any(dim=0)
        parts.append(around(own * known, sizes.own_kernel(k)) * turns[turn].flatten()[:, None])
    ones = [torch.ones(height * width, 1), *(turn.flatten()[:, None].float() for turn in turns[1:])]
    return torch.cat([*parts, *ones], dim=1)


def _columns(layers: list[nn.Conv2d]) -> Tensor:
    """Weights O×D, the layers' inputs and taps side by side, then those that have one their biases, float64."""
    biases = [layer.bias[:, None] for layer in layers if layer.bias is not None]
    return torch.cat([*(layer.weight.flatten(1) for layer in layers), *biases], dim=1).detach().cpu().double()


def _entered(weights: Tensor, shift: Tensor, names: list[str], layers: list[nn.Conv2d]) -> dict[str, Tensor]:
    """The model file's tensors of columns; the first layer's outputs are requantised."""
    sizes = [layer.weight[0].numel() for layer in layers] + [1 for layer in layers if layer.bias is not None]
    columns = iter(weights.split(sizes, dim=1))
    out = {f"{name}.weight": next(columns).reshape(layer.weight.shape).to(torch.int8) for name, layer in zip(names, layers, strict=True)}
    out |= {
        f"{name}.bias": next(columns)[:, 0].to(torch.int32) for name, layer in zip(names, layers, strict=True) if layer.bias is not None
    }
    return {**out, f"{names[0]}.shift": shift.to(torch.int32)}


@torch.no_grad()
def slices(
    model: HyperModel,
    tensors: Mapping[str, Tensor],
    steps: npt.NDArray[np.int64],
    features_unit: Tensor,
    crops: Tensor,
) -> dict[str, Tensor]:
    """The integers of all slices that have eight bits, fitted to the networks on photographs' crops N×H×W×3 uint8.

    `tensors` are those of the entropy model otherwise, `steps` the quantiser's, Q×M, and `features_unit` what one is in the integer
    features, for each of them.
    """
    sizes, rungs = model.sizes, len(model.log_gain)
    entropy = Hyperprior(tensors, steps, sizes)
    context, highest = (int(n) for n in tensors["limits"][1:])
    seen = torch.exp2(STEP_BITS + tensors["spread"] - tensors["context_shift"].double())
    features: list[tuple[Tensor, Tensor]] = []
    latents: list[tuple[Tensor, Tensor]] = []
    """Of each crop and rung, what the networks have as real numbers and as integers."""
    for crop in crops[:: max(1, -(-len(crops) // CROPS))]:
        y = model.latents(crop[None].permute(0, 3, 1, 2).to(model.log_spread.device).float() / 255)
        for rung in range(rungs):
            position, quality = torch.tensor([float(rung)], device=y.device), 1 + round(rung * (len(steps) - 1) / max(rungs - 1, 1))
            known = (model.code(y, position)[2][0] * torch.exp2(-model.log_spread)[:, None, None]).cpu()
            latents.append((known, torch.floor(known.double() * seen[:, None, None] + 0.5).clamp(-context, context).float()))
            features.append((model.side(y, position, None)[1][0].cpu(), _whole_features(entropy, y[0].cpu().numpy(), quality, highest)))
    out: dict[str, Tensor] = {}
    for k in range(sizes.fine, len(model.slices)):
        if sizes.direct(k):  # its last layer has more to add
            continue
        part, name = model.slices[k], f"slices.{k}"
        before = {} if part.context is None else {f"{name}.context": part.context}
        layers = {f"{name}.features": part.features, **before, **{f"{name}.own.{i}": layer for i, layer in enumerate(part.own)}}
        named, free = list(layers.values()), 1 + len(part.own)
        views = [seen[: sizes.starts[k]].repeat(sizes.views).repeat_interleave(sizes.kernel**2)] if before else []
        own = seen[sizes.starts[k] :][: sizes.slices[k]].repeat(sizes.views).repeat_interleave(sizes.own_kernel(k) ** 2)
        unit = torch.cat([features_unit.double(), *views, *[own] * len(part.own), torch.ones(free, dtype=torch.float64)])
        reach = torch.full_like(unit, context)
        reach[: len(features_unit)], reach[-free:] = highest, 1
        first = _columns(named)
        given = [_places(f, y, k, sizes).to(torch.int16) for (_, f), (_, y) in zip(features, latents, strict=True)]
        wanted = [_places(f, y, k, sizes) @ first.float().t() for (f, _), (y, _) in zip(features, latents, strict=True)]
        whole, shift = first / unit, torch.zeros(0)
        middle = [("hidden", part.hidden), ("last", part.last)]
        for names, convolutions, after in (
            (list(layers), named, middle[0]),
            ([f"{name}.hidden"], [part.hidden], middle[1]),
            ([f"{name}.last"], [part.last], None),
        ):
            rectified = [torch.relu(t) for t in wanted]
            units = torch.full((len(whole),), 2.0**BITS, dtype=torch.float64) if after is None else _unit(rectified, highest)
            whole, shift = fitted(whole, given, wanted, free, units, reach)
            out |= _entered(whole, shift, names, convolutions)
            if after is None:
                break
            given, following = _layer(given, whole, shift, highest), _columns([after[1]])
            wanted = [x @ following[:, :-1].float().t() + following[:, -1].float() for x in rectified]
            whole = following / functional.pad(units, (0, 1), value=1)
            free, reach = 1, functional.pad(torch.full_like(units, highest), (0, 1), value=1)
    return out


def _whole_features(entropy: Hyperprior, y: npt.NDArray[np.float32], quality: int, highest: int) -> Tensor:
    """The integer features H2×h×w of latents M×h×w."""
    height, width = y.shape[1:]
    held = entropy.features(entropy.side_information(y, quality), quality, height, width)
    return held.view(len(held), height, width + 2)[:, :, :width].float() + kind(0, highest).offset
