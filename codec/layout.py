"""What a model of profile 2 is made of: the sizes of its networks, the tensors of its file, and in what order places are coded.

`codec/hyperprior.py` says what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

LOWEST_OCTAVE: Final = -4
"""log2 of the smallest σ/Δ that a latent is coded with."""
PER_OCTAVE: Final = 6
"""Tables to a factor of two in σ/Δ: the nearest one is at most 6 % off, which costs a thousandth of the rate."""
TABLES: Final = 80
"""Tables in all: σ/Δ from 1/16 to 588."""
SQUARES: Final = {
    1: ((0,),),
    2: ((0, 1), (1, 0)),
    4: ((0, 2), (3, 1)),
    7: ((0, 5, 2, 5), (6, 4, 6, 4), (3, 5, 1, 5), (6, 4, 6, 4)),
}
"""The turn of each place in a square that repeats, by the number of turns."""


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
    """Side of the kernels, in latents, through which a slice sees decoded ones; 1 or 3."""
    turns: tuple[int, ...] = ()
    """In how many turns each slice is coded. The first models of this profile have none: each slice is coded at once, and shown signed
    latents only."""

    fine: int = 0
    """How many slices, from the first one, are computed in fine integers."""

    def __post_init__(self) -> None:
        numbers = (self.side, self.analysis, self.synthesis, self.features, self.width, *self.slices)
        if not self.slices or not all(isinstance(n, int) and 0 < n <= 4096 for n in numbers) or self.kernel not in (1, 3):
            raise ValueError("absurd sizes of networks")
        if self.turns and (len(self.turns) != len(self.slices) or not set(self.turns) <= set(SQUARES)):
            raise ValueError("there are 1, 2, 4 or 7 turns to each slice")
        if not isinstance(self.fine, int) or not 0 <= self.fine <= len(self.slices):
            raise ValueError("there are not so many slices to be fine")

    @property
    def views(self) -> int:
        """How many maps show one decoded latent: signed, and its size."""
        return 2 if self.turns else 1

    def turns_of(self, k: int) -> int:
        """Turns of a slice."""
        return self.turns[k] if self.turns else 1

    def direct(self, k: int) -> bool:
        """Whether a slice has a linear path from its own latents of earlier turns to means."""
        return self.turns_of(k) == 7

    def own_kernel(self, k: int) -> int:
        """Side of the kernels through which a slice sees its own latents of earlier turns."""
        return 5 if self.direct(k) else self.kernel

    def added(self, layer: str, turn: int) -> dict[str, slice]:
        """What is added to a layer's sum at a turn, by its name in the model file: convolutions of the decoded latents of some channels."""
        k, kind = int(layer.split(".")[1]), layer.split(".")[2]
        start = self.starts[k]
        out = {f"slices.{k}.context": slice(0, start)} if kind == "features" and start else {}
        if turn and (kind == "features" or self.direct(k)):
            out[f"slices.{k}.{'own' if kind == 'features' else 'direct'}.{turn - 1}"] = slice(start, start + self.slices[k])
        return out

    def ever_added(self, layer: str) -> dict[str, slice]:
        """The same at any turn."""
        if not layer.startswith("slices.") or layer.endswith(".hidden"):
            return {}
        turns = range(self.turns_of(int(layer.split(".")[1])))
        return {name: channels for turn in turns for name, channels in self.added(layer, turn).items()}

    @property
    def starts(self) -> tuple[int, ...]:
        """The first channel of each slice."""
        return tuple(sum(self.slices[:k]) for k in range(len(self.slices)))


def shapes(latents: int, qualities: int, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """All integer tensors of the model file by name, apart from densities, with their shapes."""
    out: dict[str, tuple[int, ...]] = {
        "limits": (3,),
        "side_shift": (sizes.side,),
        "context_shift": (latents,),
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
            out[f"slices.{k}.context.weight"] = (sizes.width, sizes.views * start, sizes.kernel, sizes.kernel)
        side = sizes.own_kernel(k)
        for turn in range(1, sizes.turns_of(k)):
            out[f"slices.{k}.own.{turn - 1}.weight"] = (sizes.width, sizes.views * size, side, side)
            if sizes.direct(k):
                out[f"slices.{k}.direct.{turn - 1}.weight"] = (2 * size, size, side, side)
        out[f"slices.{k}.hidden.weight"] = (sizes.width, sizes.width, 1, 1)
        out[f"slices.{k}.last.weight"] = (2 * size, sizes.width, 1, 1)
    for name in [name for name in out if name.endswith(".weight") and ".context." not in name]:
        layer = name.removesuffix(".weight")
        out[f"{layer}.bias"] = out[name][:1]
        # What is added to another layer's sum has its units.
        if not layer.rpartition(".")[2].isdigit():
            out[f"{layer}.shift"] = out[name][:1]
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


def sizes_of(metadata: Mapping[str, Any]) -> Sizes:
    """The sizes that a model file's metadata name. Raises ValueError, KeyError or TypeError."""
    named = dict(metadata["sizes"])
    return Sizes(**{**named, "slices": tuple(named["slices"]), "turns": tuple(named.get("turns", ()))})


def places(count: int, turn: int, height: int, width: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows and columns of the places of a turn, of so many, in row-major order."""
    rows, columns = np.nonzero(mask(count, turn, height, width))
    return rows, columns


def mask(count: int, turn: int, height: int, width: int) -> npt.NDArray[np.bool_]:
    """True at the places h×w of a turn, of so many."""
    square = np.array(SQUARES[count])
    side = len(square)
    turns = np.tile(square, (-(-height // side), -(-width // side)))[:height, :width]
    return np.equal(turns, turn)
