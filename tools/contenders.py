"""The codecs that `tools.benchmark` times, each in its own way, and what their stages are.

CompressAI's networks have N = 128 and M = 192, as ours. They are not trained, which their speed does not depend on, but an untrained
analysis gives latents that all round to zero: its last convolution is scaled so that they have a standard deviation of 2, as ours have.
"""

from __future__ import annotations

import copy
import io
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, features
from torch import Tensor, nn

from codec import coder, container, decoder, inference
from codec.encoder import Encoder
from codec.model import Model
from codec.picture import Picture

Pixels = npt.NDArray[np.uint8]
Call = tuple[object, str]
"""An object and the name of one of its functions."""


@dataclass(frozen=True)
class Contender:
    """One way to encode an image in memory and to decode it."""

    name: str
    precision: str
    encode: Callable[[Pixels], Any]
    """To a stream, in whatever form."""
    decode: Callable[[Any], Pixels]
    size: Callable[[Any], int]
    """Bytes of a stream."""
    stages: dict[str, tuple[Call, ...]]
    """The functions whose time is a stage's; they do not call each other."""
    macs: dict[str, float] | None = None
    """Multiply–accumulates per pixel of the two transforms; None for codecs without a network."""


@contextmanager
def stopwatch(stages: dict[str, tuple[Call, ...]]) -> Iterator[dict[str, float]]:
    """Seconds spent in each stage meanwhile."""
    spent: dict[str, float] = defaultdict(float)

    def timed(function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                spent[stage] += time.perf_counter() - began

        return wrapper

    replaced: list[tuple[object, str, bool, Any]] = []
    try:
        for stage, calls in stages.items():
            for owner, name in calls:
                # Functions of a module are put back, those of an object's class are uncovered again.
                replaced.append((owner, name, name in vars(owner), vars(owner).get(name)))
                setattr(owner, name, timed(getattr(owner, name), stage))
        yield spent
    finally:
        for owner, name, own, function in replaced:
            setattr(owner, name, function) if own else delattr(owner, name)


def macs_per_pixel(network: nn.Module, x: Tensor, pixels: int) -> float:
    """Multiply–accumulates of a network on an input that stands for so many pixels: convolutions, and the 1×1 ones of GDN."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.ConvTranspose2d):
            total += module.weight.numel() * inputs[0].shape[2] * inputs[0].shape[3]
        elif isinstance(module, nn.Conv2d):
            total += module.weight.numel() * output.shape[2] * output.shape[3]
        elif hasattr(module, "gamma") and isinstance(module.gamma, Tensor):
            total += module.gamma.numel() * output.shape[2] * output.shape[3]

    hooks = [module.register_forward_hook(count) for module in network.modules()]
    with torch.inference_mode():
        network(x)
    for hook in hooks:
        hook.remove()
    return total / pixels


def rdae(model: Model, precision: str, device: str) -> Contender:
    """Our own codec, with arrays in memory and no threads but torch's."""
    model = copy.copy(model.in_precision(precision))
    synthesis = model.synthesis_at(model.default_quality)
    network = inference.Transforms(model.analysis.state_dict(), synthesis.state_dict(), precision, device)
    model._networks = {None: network, model.default_quality: network}
    # The second profile quantises as it codes.
    entropy = model.entropy
    coding: dict[str, tuple[Call, ...]] = {"entropy coding": ((entropy, "encode"), (entropy, "decode"))}
    if entropy.profile == container.FACTORIZED:
        coding = {"quantise": ((entropy, "quantise"),), "entropy coding": ((coder, "encode"), (coder, "decode"))}
    side = 256
    return Contender(
        "rdae",
        precision,
        lambda image: Encoder(model, Picture(image)).encode(model.default_quality),
        lambda data: decoder.decode(model, container.read(data)).array,
        len,
        {
            "analysis": ((network, "analyse"),),
            **coding,
            "container": ((container, "write"), (container, "read")),
            "synthesis": ((network, "synthesise"),),
        },
        {
            "encode": macs_per_pixel(model.analysis, torch.zeros(1, 3, side, side), side * side),
            "decode": macs_per_pixel(model.synthesis, torch.zeros(1, model.latents, side // 16, side // 16), side * side),
        },
    )


def compressai(name: str, precision: str, device: str, like: Pixels) -> Contender:
    """CompressAI's network through its own `compress()` and `decompress()`. Raises ImportError without that library."""
    from compressai import zoo

    torch.manual_seed(0)
    # Qualities 1 to 5 have N = 128 and M = 192.
    net = getattr(zoo, name.replace("-", "_"))(quality=1, pretrained=False).eval().to(device)
    assert (net.N, net.M) == (128, 192)
    net.update()

    def tensor(image: Pixels) -> Tensor:
        height, width = image.shape[:2]
        padded = np.pad(image, ((0, -height % 64), (0, -width % 64), (0, 0)), mode="edge")
        return torch.from_numpy(padded).to(device).permute(2, 0, 1)[None].float().div_(255)

    mixed = {"device_type": torch.device(device).type, "dtype": torch.bfloat16, "enabled": precision == "bf16"}
    last = [module for module in net.g_a.modules() if isinstance(module, nn.Conv2d)][-1]
    with torch.no_grad():
        factor = 2 / net.g_a(tensor(like)).std()
        last.weight.mul_(factor)
        last.bias.mul_(factor)

    def encode(image: Pixels) -> Any:
        with torch.inference_mode(), torch.autocast(**mixed):
            return net.compress(tensor(image)), image.shape[:2]

    def decode(stream: Any) -> Pixels:
        coded, (height, width) = stream
        with torch.inference_mode(), torch.autocast(**mixed):
            x = net.decompress(coded["strings"], coded["shape"])["x_hat"][0, :, :height, :width]
        return np.asarray(x.float().mul(255).round_().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy())

    side = 256
    pixels = side * side
    parts = {"analysis": net.g_a, "synthesis": net.g_s, "hyper": getattr(net, "h_a", None), "hyper ": getattr(net, "h_s", None)}
    coders = [net.entropy_bottleneck] + ([net.gaussian_conditional] if hasattr(net, "gaussian_conditional") else [])
    with torch.inference_mode():
        y = net.g_a(torch.zeros(1, 3, side, side, device=device))
    return Contender(
        name,
        precision,
        encode,
        decode,
        lambda stream: sum(len(string) for strings in stream[0]["strings"] for string in strings),
        {
            **{stage: ((part, "forward"),) for stage, part in parts.items() if part is not None},
            "entropy coding": tuple((part, call) for part in coders for call in ("compress", "decompress")),
        },
        {
            "encode": macs_per_pixel(net.g_a, torch.zeros(1, 3, side, side, device=device), pixels),
            "decode": macs_per_pixel(net.g_s, y, pixels),
        },
    )


def pillow(threads: int) -> list[Contender]:
    """JPEG 2000, WebP and AVIF at settings of a photograph's usual quality, as in `tools.baselines`."""
    kinds: Sequence[tuple[str, str, str, dict[str, Any]]] = (
        ("JPEG 2000", "jpg_2000", "JPEG2000", {"irreversible": True, "mct": 1, "quality_mode": "rates", "quality_layers": [40]}),
        ("WebP", "webp", "WEBP", {"method": 6, "quality": 60}),
        ("AVIF", "avif", "AVIF", {"codec": "aom", "subsampling": "4:4:4", "speed": 4, "quality": 50, "max_threads": threads}),
    )  # fmt: skip

    def encoder(kind: str, options: dict[str, Any]) -> Callable[[Pixels], bytes]:
        def encode(image: Pixels) -> bytes:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, kind, **options)
            return buffer.getvalue()

        return encode

    def decode(data: bytes) -> Pixels:
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    return [
        Contender(name, "", encoder(kind, options), decode, len, {}) for name, feature, kind, options in kinds if features.check(feature)
    ]
