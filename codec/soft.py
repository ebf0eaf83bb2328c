"""The entropy models as functions with gradients, for the encoder's search.

What is coded, and how, is decided in integers (`codec/factorized.py`, `codec/hyperprior.py`). Here the same networks run in single
precision, and symbols cost what the coding tables say, on lines between them (`codec/costs.py`). No decoder sees these rates.

Both are called with latents and a function that stands in for rounding. The side information of profile 2 is in units of its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
import torch.nn.functional as functional
from torch import Tensor

from codec.costs import Costs
from codec.factorized import Factorized
from codec.frozen import STEP_BITS
from codec.hyperfile import BITS
from codec.hyperprior import Hyperprior
from codec.layout import LOWEST_OCTAVE, PER_OCTAVE, TABLES, mask

THAWED_BITS: Final = 5
"""Binary places that are given to maps whose unit is not written down."""
Relax = Callable[[Tensor], Tensor]


class SoftFactorized:
    """Profile 1: one table for each channel."""

    paces: Mapping[str, float] = {"psnr": 0.07, "ms-ssim": 0.09}
    """By what is searched for, the length of a gradient step of the first round, in units of the quantiser's, times the root of their
    number. Three rounds of four steps save 8.8 % with 0.06, 9.6 with 0.08, 8.9 with 0.09, and 4.2 with 0.3, which finds nothing where rates
    are low."""
    thriftless_pace: Final = 0.17
    """Where latents are not rounded thriftily, all of them have further to go: with `lambda-0.013`, on eleven crops, 13.5 % with 0.07, 16.0
    with 0.1, 16.9 with 0.15, 17.0 with 0.2."""

    def __init__(self, entropy: Factorized, quality: int) -> None:
        if not entropy.thrift[quality - 1]:
            self.paces = dict.fromkeys(self.paces, self.thriftless_pace)
        self.step = _column(entropy.steps[quality - 1] / (1 << STEP_BITS))
        """M×1×1."""
        self._costs = Costs(entropy.tables(quality))
        self._channels = torch.arange(len(self.step))[:, None, None]

    def __call__(self, y: Tensor, side: Tensor | None, relax: Relax) -> tuple[Tensor, Tensor]:
        """Bits of latents 1×M×h×w, and the decoded latents, of the same shape."""
        symbols = relax(y / self.step)
        return self._costs.between(symbols, self._channels.expand(symbols.shape)).sum(), symbols * self.step


class SoftHyperprior:
    """Profile 2: what `Hyperprior.run` computes."""

    paces: Mapping[str, float] = {"psnr": 0.09, "ms-ssim": 0.13}
    """As above. On six crops of held-out photographs at four qualities, for PSNR, one round of three steps saves 6.2 % with 0.06, 6.7 with
    0.075 and 6.5 with 0.09, and six rounds of seven 10.6 with 0.08 and 10.9 with 0.09. For MS-SSIM one round of three saves 20.4 % with
    0.087 and 19.1 with 0.15, three rounds of four about 29 with anything from 0.12 to 0.15."""

    def __init__(self, entropy: Hyperprior, quality: int) -> None:
        self.step = _column(entropy.steps[quality - 1] / (1 << STEP_BITS))
        """M×1×1."""
        self.side_step = _column(entropy.z_steps[quality - 1] / (1 << STEP_BITS))
        """Cz×1×1."""
        self._spread = _column(2.0**entropy.spread)
        self._known = _column(entropy.spread - LOWEST_OCTAVE - entropy.log2_steps[quality - 1] / (1 << BITS))
        self._weights = float_weights(entropy)
        self._features_bias = _column(self._weights["features_bias"][quality - 1])
        self._sizes = entropy.sizes
        self._costs, self._side_costs = Costs(entropy.tables), Costs(entropy.z_tables(quality))
        self._channels = torch.arange(len(self.side_step))[:, None, None]

    def __call__(self, y: Tensor, side: Tensor, relax: Relax) -> tuple[Tensor, Tensor]:
        """Bits of latents 1×M×h×w and side information 1×Cz×⌈h/4⌉×⌈w/4⌉, and the decoded latents 1×M×h×w."""
        symbols = relax(side)
        bits = self._side_costs.between(symbols, self._channels.expand(symbols.shape)).sum()
        middle = functional.pixel_shuffle(torch.relu(self._convolved("hyper_synthesis.conv1", symbols * self.side_step)), 2)
        features = functional.pixel_shuffle(self._convolved("hyper_synthesis.conv2", middle), 2)[:, :, : y.shape[2], : y.shape[3]]
        features = torch.relu(features + self._features_bias)
        decoded = y[:, :0]
        for k, (start, size) in enumerate(zip(self._sizes.starts, self._sizes.slices, strict=True)):
            own = slice(start, start + size)
            common = self._convolved(f"slices.{k}.features", features)
            if k:
                common = common + self._convolved(f"slices.{k}.context", self._shown(decoded / self._spread[:start]))
            count = self._sizes.turns_of(k)
            symbols, mean, table = (torch.zeros_like(y[:, own]) for _ in range(3))
            for turn in range(count):
                known = (symbols * self.step[own] + mean) / self._spread[own]
                here = torch.from_numpy(mask(count, turn, y.shape[2], y.shape[3]))
                m, t = self._means_and_tables(k, turn, common, known)
                m, t = m * self._spread[own], t + self._known[own]
                mean, table = torch.where(here, m, mean), torch.where(here, t, table)
                symbols = torch.where(here, relax((y[:, own] - m) / self.step[own]), symbols)
            # Where the exact model takes the nearest table, this one is between two.
            bits = bits + self._costs.between(symbols, (table * PER_OCTAVE).clamp(0, TABLES - 1)).sum()
            decoded = torch.cat([decoded, symbols * self.step[own] + mean], dim=1)
        return bits, decoded

    def _means_and_tables(self, k: int, turn: int, common: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log2 σ of a slice's latents, in units of their spread, of which the places of the turn are meant."""
        h = common + self._convolved(f"slices.{k}.own.{turn - 1}", self._shown(known)) if turn else common
        out = self._convolved(f"slices.{k}.last", torch.relu(self._convolved(f"slices.{k}.hidden", torch.relu(h))))
        if turn and self._sizes.direct(k):
            out = out + self._convolved(f"slices.{k}.direct.{turn - 1}", known)
        mean, octave = out.chunk(2, dim=1)
        return mean, octave

    def _shown(self, y: Tensor) -> Tensor:
        return torch.cat([y, y.abs()], dim=1) if self._sizes.views == 2 else y

    def _convolved(self, name: str, x: Tensor) -> Tensor:
        """A convolution with zeros beyond the edges."""
        weight = self._weights[f"{name}.weight"]
        return functional.conv2d(x, weight, self._weights.get(f"{name}.bias"), padding=weight.shape[2] // 2)


def float_weights(entropy: Hyperprior) -> dict[str, Tensor]:
    """The networks that the integers stand for, float32, by their names in the model file, and `features_bias` Q×H2.

    They take side information and latents as numbers, the latents divided by 2^spread, and give means divided by that and
    log2 σ - spread. Rounding and clamping within them are left out; what is left is differentiable.
    """
    # What a map's integers stand for is not written down, and any unit does, as long as all agree on it: this one makes them
    # numbers near one. In the first files of the profile it is 2⁻¹² throughout.
    late, file, sizes = entropy.late_bias is not None, entropy.file, entropy.sizes
    inner = float(BITS if late else THAWED_BITS)
    side = STEP_BITS - torch.from_numpy(entropy.side_shift).float()
    seen = STEP_BITS + torch.from_numpy(entropy.spread - entropy.context_shift).float()
    out: dict[str, Tensor] = {}
    for name in [name.removesuffix(".shift") for name in file if name.endswith(".shift")]:
        fine = name.startswith("slices.") and int(name.split(".")[1]) < sizes.fine
        result = BITS if fine or name.endswith(".last") else inner
        given = side if name == "hyper_synthesis.conv1" else torch.tensor(BITS if fine and not name.endswith(".features") else inner)
        own = torch.exp2(-file[f"{name}.shift"].float() - result).expand(len(file[f"{name}.bias"]))
        units = {name: given.float().expand(file[f"{name}.weight"].shape[1])}
        for part, channels in sizes.ever_added(name).items():
            views = file[f"{part}.weight"].shape[1] // (channels.stop - channels.start)
            units[part] = (torch.full_like(seen[channels], BITS) if fine else seen[channels]).repeat(views)
        for part, unit in units.items():
            out[f"{part}.weight"] = file[f"{part}.weight"].float() * own[:, None, None, None] * torch.exp2(unit)[:, None, None]
            if f"{part}.bias" in file:
                out[f"{part}.bias"] = file[f"{part}.bias"].float() * own
        if name == "hyper_synthesis.conv2":
            out["features_bias"] = file["features_bias"].float() * (2.0**-BITS if late else own[::4])
    return out


def _column(values: Any) -> Tensor:
    """C numbers as C×1×1."""
    return torch.as_tensor(values).float()[:, None, None]
