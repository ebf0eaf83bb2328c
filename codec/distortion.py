"""What the encoder's search (`codec/search.py`) keeps small beside the bits, with gradients: squared errors, or what MS-SSIM finds wrong.

A measure is made for the pixels that are wanted, 1×C×H×W on 0…255, and those of them that count, 1×1×H×W of ones and zeros; it is called
with the pixels that are shown, and gives a number which is summed over windows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import torch
import torch.nn.functional as functional
from torch import Tensor

from codec.errors import ModelError

if TYPE_CHECKING:
    from codec.model import Model

Measure = Callable[[Tensor], Tensor]
EXPONENTS: Final = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the scales, the finest first (Wang, Simoncelli, Bovik 2003, section 4)."""
SIMILARITY_FACTOR: Final = 700.0
SIMILARITY_POWER: Final = 0.8
"""What 1 - MS-SSIM is worth where λ is what squared errors are: μ = factor · λ^power. On six crops of held-out photographs, at
effort 4, files become 9 % larger at low rates and 2 % smaller at the highest. With one round of twelve steps, 447 and 0.7, or 1300 and 1,
bring 0.4 and 0.8 % less."""
_SIDE: Final = 11
_SIGMA: Final = 1.5
_LEAST: Final = 1e-6
"""Of a scale's similarity, below which there is no gradient."""


def squared_error(wanted: Tensor, counted: Tensor) -> Measure:
    """The squared error, a mean over colours and a sum over the pixels that count."""
    return lambda shown: ((shown - wanted).square() * counted).sum() / wanted.shape[1]


def dissimilarity(wanted: Tensor, counted: Tensor) -> Measure:
    """1 - MS-SSIM, times the number of pixels that count."""
    similarity, pixels = Similarity(wanted, counted), counted.sum()
    return lambda shown: pixels * (1 - similarity(shown))


class Similarity:
    """Multi-scale SSIM (Wang, Simoncelli, Bovik 2003), the mean over colours, for a peak of 255.

    With all pixels counted it is what everyone computes: five scales, each half as large as the one before it, and 11×11 Gaussian windows
    of σ = 1.5 that lie within the picture. In smaller pictures, where not all of the scales hold a window, the exponents of those that
    do are scaled to the same sum. Where not all pixels count, windows do as far as their middles. pytorch-msssim, which measures everything
    in `tools`, has neither, and computes what is wanted anew at each step.
    """

    def __init__(self, wanted: Tensor, counted: Tensor) -> None:
        """Pixels 1×C×H×W, at least 11 a side, and ones where they count, 1×1×H×W. Raises ValueError for smaller ones."""
        if min(wanted.shape[2:]) < _SIDE:
            raise ValueError(f"no window of {_SIDE}×{_SIDE} fits into {wanted.shape[3]}×{wanted.shape[2]} pixels")
        offsets = torch.arange(_SIDE, dtype=wanted.dtype) - _SIDE // 2
        window = torch.exp(-offsets.square() / (2 * _SIGMA**2))
        window /= window.sum()
        self._windows = window.view(1, 1, _SIDE, 1), window.view(1, 1, 1, _SIDE)
        self._scales: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        """Of each scale: what is wanted, its mean and its variance in each window, and how much the window counts."""
        while len(self._scales) < len(EXPONENTS) and min(wanted.shape[2:]) >= _SIDE:
            mean, square = self._means(wanted, wanted * wanted)
            middles = counted[..., _SIDE // 2 : -(_SIDE // 2), _SIDE // 2 : -(_SIDE // 2)]
            # Of a picture that is smaller than half a window, what is mirrored beyond its edge counts.
            weight = middles if middles.any() else torch.ones_like(middles)
            self._scales.append((wanted, mean, square - mean.square(), weight / weight.sum()))
            wanted, counted = _halved(wanted), _halved(counted)
        used = torch.tensor(EXPONENTS[: len(self._scales)], dtype=wanted.dtype)
        self._exponents = (used * (sum(EXPONENTS) / used.sum()))[:, None]

    def __call__(self, shown: Tensor) -> Tensor:
        """The similarity of pixels 1×C×H×W, at most one; a scalar."""
        parts = []
        for number, (wanted, mean, variance, weight) in enumerate(self._scales):
            if number:
                shown = _halved(shown)
            own, square, product = self._means(shown, shown * shown, shown * wanted)
            # Their equations 2 and 3 with C3 = C2 / 2, and 1 at the coarsest scale only.
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            here = (2 * (product - own * mean) + c2) / (square - own.square() + variance + c2)
            if number == len(self._scales) - 1:
                here = here * (2 * own * mean + c1) / (own.square() + mean.square() + c1)
            parts.append((here * weight).sum(dim=(2, 3))[0])
        return (torch.stack(parts).clamp(min=_LEAST) ** self._exponents).prod(dim=0).mean()

    def _means(self, *maps: Tensor) -> list[Tensor]:
        """Of each map, the means in all windows."""
        # With channels last, convolutions channel by channel are several times as fast.
        x = torch.cat(maps, dim=1).contiguous(memory_format=torch.channels_last)
        for window in self._windows:
            x = functional.conv2d(x, window.expand(x.shape[1], -1, -1, -1), groups=x.shape[1])
        return list(x.chunk(len(maps), dim=1))


def _halved(x: Tensor) -> Tensor:
    """Means of 2×2 pixels; odd sides get a zero before their first one, as is customary."""
    return functional.avg_pool2d(x, 2, padding=[side % 2 for side in x.shape[2:]])


def measure(tune: str) -> Callable[[Tensor, Tensor], Measure]:
    """What `--tune` names."""
    return squared_error if tune == "psnr" else dissimilarity


def weight(model: Model, tune: str, quality: int) -> float:
    """Bits that one unit of a measure is worth at a quality of the model. Raises `ModelError` when that cannot be said."""
    trained = model.metadata.get("distortion", "mse")
    own = {"mse": "psnr"}.get(trained, trained)
    if own != tune and (own, tune) != ("psnr", "ms-ssim"):
        hint = "; --tune ms-ssim does that" if own == "ms-ssim" else ""
        raise ModelError(f"model {model.name} was trained for {trained}, but --effort searches for the best {tune.upper()}{hint}")
    value = model.lambda_at(quality)
    if not value:
        raise ModelError(f"model {model.name} does not say its λ, without which there is nothing to search for (--effort)")
    return value if own == tune else SIMILARITY_FACTOR * value**SIMILARITY_POWER
