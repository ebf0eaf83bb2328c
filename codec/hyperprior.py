"""The second entropy model: side information and channel slices, after Ballé et al. 2018 and Minnen and Singh 2020."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from torch import nn

LOWEST_OCTAVE: Final = -4
"""log2 of the smallest σ/Δ that a latent is coded with."""
PER_OCTAVE: Final = 6
"""Tables to a factor of two in σ/Δ: the nearest one is at most 6 % off, which costs a thousandth of the rate."""
TABLES: Final = 80
"""Tables in all: σ/Δ from 1/16 to 588."""


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


def hyper_analysis(latents: int, sizes: Sizes) -> nn.Sequential:
    """Latents B×M×h×w to side information B×Cz×⌈h/4⌉×⌈w/4⌉."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(latents, sizes.analysis, 3, padding=1),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(sizes.analysis, sizes.analysis, 5, stride=2, padding=2),
            relu2=nn.ReLU(),
            conv3=nn.Conv2d(sizes.analysis, sizes.side, 5, stride=2, padding=2, bias=False),
        )
    )
