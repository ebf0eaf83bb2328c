"""The transforms as they run: in one precision, with weights laid out once and as few passes over memory as torch allows.

They compute what `codec/transforms.py` defines; what differs is the order of the work.

- Everything is B×C×H×W in the memory order B×H×W×C ("channels last"), which is that of image arrays.
- Pixels enter as x - 127.5, which bfloat16 holds exactly; the factor 1/255 is in the first weights, and 255 in the last ones.
- The output channels of the up-sampling convolutions are sorted so that `PixelShuffle` moves runs of channels, not single numbers.
- As GDN looks at one place only, it runs before that. It works in place, the shuffle too, in bands of rows that stay in the cache.
  Besides, fresh memory costs a page fault for every 4096 bytes, which had been a fifth of the time.

In bf16, sums are accumulated in single precision and rounded where a layer ends; the last bias is added in single precision.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from codec.errors import ModelError

PRECISIONS: Final = {"fp32": torch.float32, "bf16": torch.bfloat16}
BAND: Final = 6144
"""Places that GDN treats at a time."""
LUMA: Final = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey picture."""


@lru_cache(maxsize=1)
def best_precision(processor: Path = Path("/proc/cpuinfo")) -> str:
    """bf16 where the processor multiplies it, which Linux tells in a file; else fp32."""
    try:
        with processor.open(encoding="ascii", errors="replace") as lines:
            flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    except OSError:
        return "fp32"
    return "bf16" if {"avx512_bf16", "amx_bf16", "bf16"} & set(flags.split()) else "fp32"


def check_precision(name: str) -> str:
    """The precision, fp32 or bf16, that is meant, also by "auto". Raises `ModelError` for anything else."""
    if name != "auto" and name not in PRECISIONS:
        raise ModelError(f"there is no precision {name!r}: it is fp32, bf16 or auto")
    return best_precision() if name == "auto" else name


class Transforms:
    """Analysis and synthesis of one model, in one precision."""

    def __init__(self, analysis: dict[str, Tensor], synthesis: dict[str, Tensor], precision: str, device: str = "cpu") -> None:
        """The tensors are named as in `transforms.analysis` and `transforms.synthesis`."""
        self.dtype = PRECISIONS[precision]
        self.device = torch.device(device)
        a, s = ({name: tensor.to(self.device) for name, tensor in part.items()} for part in (analysis, synthesis))
        first = self._typed(a["conv1.weight"] / 255)
        self._down = [(first, a["conv1.bias"].to(self.dtype)), (self._typed(a["conv2.weight"]), a["conv2.bias"].to(self.dtype))]
        self._gdn = [self._norm(a, name) for name in ("gdn1", "gdn2")]
        self._latents = self._typed(a["conv3.weight"])
        self._take(s)

    def with_synthesis(self, synthesis: dict[str, Tensor]) -> Transforms:
        """The same analysis with another synthesis."""
        other = copy.copy(self)
        other._take({name: tensor.to(self.device) for name, tensor in synthesis.items()})
        return other

    def _take(self, s: dict[str, Tensor]) -> None:
        """Lay out the weights of a synthesis."""
        self._up = [
            (self._typed(_sorted(s[f"{name}.weight"], 2)), _sorted(s[f"{name}.bias"], 2).to(self.dtype)) for name in ("conv1", "conv2")
        ]
        self._igdn = [self._norm(s, name) for name in ("igdn1", "igdn2")]
        self._pixels = self._typed(255 * _sorted(s["conv3.weight"], 4))
        self._offset = 255 * _sorted(s["conv3.bias"], 4) + 127.5

    def _typed(self, weight: Tensor) -> Tensor:
        return weight.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def _norm(self, tensors: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
        return self._typed(tensors[f"{name}.gamma"]), tensors[f"{name}.beta"].to(self.dtype)

    @torch.inference_mode()
    def analyse(self, pixels: Tensor, rows: slice = slice(None), columns: slice = slice(None)) -> Tensor:
        """Pixels H×W×3, or grey H×W, uint8, to some rows and columns of the latents M×H/16×W/16, float32."""
        x = pixels.to(self.device).to(self.dtype).sub_(127.5)
        x = (x if x.dim() == 3 else x[..., None].expand(-1, -1, 3).contiguous()).permute(2, 0, 1)[None]
        with torch.autocast(self.device.type, enabled=False):
            y = _gdn(F.conv2d(x, *self._down[0], stride=4, padding=4), *self._gdn[0])
            y = _gdn(F.conv2d(y, *self._down[1], stride=2, padding=2), *self._gdn[1])
            y = F.conv2d(y, self._latents, stride=2, padding=2)
        return y[0, :, rows, columns].float().contiguous().cpu()

    @torch.inference_mode()
    def synthesise(self, y: Tensor, rows: slice, columns: slice, grey: bool = False) -> Tensor:
        """Latents M×H×W, float32, to the pixels of some rows and columns of them: 16h×16w×3 uint8, grey 16h×16w."""
        x = y.to(self.device).permute(1, 2, 0).to(self.dtype, memory_format=torch.contiguous_format).permute(2, 0, 1)[None]
        with torch.autocast(self.device.type, enabled=False):
            for (weight, bias), norm in zip(self._up, self._igdn, strict=True):
                x = _shuffled_igdn(F.conv2d(x, weight, bias, padding=1), *norm)
            x = F.conv2d(x, self._pixels, padding=1)
            # At a quarter of the resolution: h×w×4·4·3.
            down, across = (slice(4 * part.start, 4 * part.stop) for part in (rows, columns))
            values = x.permute(0, 2, 3, 1)[0, down, across].float().add_(self._offset)
            height, width = values.shape[:2]
            if grey:
                values = values.view(height, width, 16, 3) @ torch.tensor(LUMA, dtype=torch.float32, device=self.device)
        # Absurd symbols, which only a forged stream holds, may overflow.
        pixels = values.round_().nan_to_num_(0).clamp_(0, 255).to(torch.uint8)
        pixels = pixels.view(height, width, 4, -1).transpose(1, 2)
        return pixels.reshape((4 * height, 4 * width) if grey else (4 * height, 4 * width, 3)).cpu()


def _sorted(tensor: Tensor, upscale: int) -> Tensor:
    """Weight or bias of a convolution before a `PixelShuffle`, its output channels sorted by row, column, channel."""
    return tensor[torch.arange(len(tensor)).view(-1, upscale, upscale).permute(1, 2, 0).flatten()]


def _bands(height: int, width: int) -> list[tuple[int, int]]:
    """First rows, and those behind the last, of bands of about `BAND` places."""
    rows = max(1, BAND // width)
    return [(top, min(top + rows, height)) for top in range(0, height, rows)]


def _gdn(y: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """GDN of 1×C×H×W, in place."""
    for top, bottom in _bands(*y.shape[2:]):
        part = y[:, :, top:bottom]
        # Not by rsqrt, which in bf16 rounds differently where a thread's share ends.
        part.div_(F.conv2d(part * part, gamma, beta).sqrt_())
    return y


def _shuffled_igdn(y: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Inverse GDN of 1×4C×H×W, whose channels are sorted as `_sorted` does, and its `PixelShuffle` to 1×C×2H×2W, in place.

    A row becomes two, in the same memory: W×2×2C turns to 2×W×2C.
    """
    height, width, channels = y.shape[2], y.shape[3], len(beta)
    places = y.permute(0, 2, 3, 1)[0].contiguous()
    for top, bottom in _bands(height, 4 * width):
        part = places[top:bottom].view(1, bottom - top, 4 * width, channels).permute(0, 3, 1, 2)
        norm = F.conv2d(part * part, gamma, beta).sqrt_()
        product = norm.mul_(part).permute(0, 2, 3, 1).view(-1, width, 2, 2 * channels)
        places[top:bottom].view(-1, 2, width, 2 * channels).copy_(product.transpose(1, 2))
    return places.view(2 * height, 2 * width, channels).permute(2, 0, 1)[None]
