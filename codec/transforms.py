"""Analysis and synthesis transforms: strided convolutions with generalised divisive normalisation.

Ballé, Laparra, Simoncelli, "End-to-end optimized image compression", ICLR 2017. The structure is written
once; the divisive normalisation is passed in, so that training can use a layer with reparametrised,
trainable β and γ, and the installed codec one whose β and γ are plain numbers.

Images are B×3×H×W with values in 0…1, latents B×M×H/16×W/16; H and W are multiples of `STRIDE`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 16
"""Pixels per latent sample along each side."""

GDNFactory = Callable[..., nn.Module]
"""Called as `gdn(channels)` or `gdn(channels, inverse=True)`."""


class Unfilled(nn.Conv2d):
    """A convolution whose weights come from a file: drawing random ones takes longer than reading them."""

    def reset_parameters(self) -> None:
        """Leave them as they are."""


class GDN(nn.Module):
    """Divisive normalisation for inference: y_c / sqrt(β_c + Σ_c' γ_cc' y_c'²), eq. (2) of the paper.

    With `inverse=True` it is the approximate inverse y_c · sqrt(β_c + Σ_c' γ_cc' y_c'²).
    Input and output are B×C×H×W. β (C) and γ (C×C, as a 1×1 convolution) are plain non-negative numbers.
    """

    beta: Tensor
    gamma: Tensor

    def __init__(self, channels: int, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.register_buffer("beta", torch.ones(channels))
        self.register_buffer("gamma", 0.1 * torch.eye(channels).reshape(channels, channels, 1, 1))

    def forward(self, y: Tensor) -> Tensor:
        """B×C×H×W to the same shape."""
        norm = F.conv2d(y * y, self.gamma, self.beta)
        return y * (torch.sqrt(norm) if self.inverse else torch.rsqrt(norm))


class Centre(nn.Module):
    """Adds a constant: the first convolution sees pixels around zero, and the last one need not learn the mean."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        return x + self.shift


def analysis(filters: int = 128, latents: int = 192, gdn: GDNFactory = GDN, conv: type[nn.Conv2d] = nn.Conv2d) -> nn.Sequential:
    """B×3×H×W in 0…1 to B×M×H/16×W/16: conv 9×9/4, GDN, conv 5×5/2, GDN, conv 5×5/2.

    As in the authors' own later code, no normalisation and no bias follow the last convolution.
    """
    return nn.Sequential(
        OrderedDict(
            centre=Centre(-0.5),
            conv1=conv(3, filters, 9, stride=4, padding=4),
            gdn1=gdn(filters),
            conv2=conv(filters, filters, 5, stride=2, padding=2),
            gdn2=gdn(filters),
            conv3=conv(filters, latents, 5, stride=2, padding=2, bias=False),
        )
    )


def synthesis(filters: int = 128, latents: int = 192, gdn: GDNFactory = GDN, conv: type[nn.Conv2d] = nn.Conv2d) -> nn.Sequential:
    """B×M×h×w to B×3×16h×16w: the mirror image of `analysis`, with inverse GDN; values may leave 0…1 a little.

    Each up-sampling by s is a stride-1 convolution with s² times the channels and a reshape (`PixelShuffle`).
    A 3×3 kernel at the low resolution spans 3s×3s output pixels, which covers the 5×5 (s = 2) and 9×9 (s = 4)
    transposed convolutions of the paper at the same cost per tap.
    """
    return nn.Sequential(
        OrderedDict(
            conv1=conv(latents, 4 * filters, 3, padding=1),
            up1=nn.PixelShuffle(2),
            igdn1=gdn(filters, inverse=True),
            conv2=conv(filters, 4 * filters, 3, padding=1),
            up2=nn.PixelShuffle(2),
            igdn2=gdn(filters, inverse=True),
            conv3=conv(filters, 16 * 3, 3, padding=1),
            up3=nn.PixelShuffle(4),
            centre=Centre(0.5),
        )
    )
