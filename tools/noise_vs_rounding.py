"""Noise against rounding: what the training minimises, and what a file costs.

    python -m tools.noise_vs_rounding [IMAGE …] [--model …]

With noise u, uniform in ±½ quantiser steps, the rate of a latent is -log₂ p̃(n + u), whose mean is the differential entropy of n + u under
the model; rounded, it is -log₂ P(round n), from the integer tables that a file is coded with. Both terms of the loss are measured both
ways on the same images, per image and per channel, and files are written and decoded beside them.

Why the two rates can agree: for every offset u, the values p̃(k + u) at the integers k are the probabilities of round(n - u), so

    h(n + U) = ∫ H(round(n - u)) du   over -½ … ½.

The differential entropy is the mean of the entropies that rounding has on all shifted grids; real rounding is the one at u = 0. This
holds for the empirical entropies too, and that is how the one of n + U is estimated here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from codec import container, decoder
from tools import rungs
from tools.rungs import Pixels, Rung

Floats = npt.NDArray[np.float64]
OFFSETS: Final = 16
"""Grids over which the entropy of n + U is averaged."""
CROP: Final = 192
"""Side in pixels of the middles of the images on which single channels are disturbed."""
FLOOR: Final = 1e-4
"""Bits per latent below which a channel is drawn at the edge."""


def terms(rung: Rung, image: Pixels, generator: torch.Generator, draws: int = 4) -> tuple[dict[str, float], dict[str, Tensor]]:
    """(rates in bits per pixel and squared errors of one image, bits of each channel and squared errors of its latents)."""
    pixels = image.shape[0] * image.shape[1]
    n = rung.analyse(image)
    noisy = [n + torch.rand(n.shape, generator=generator, dtype=n.dtype) - 0.5 for _ in range(draws)]
    symbols = rung.model.quantise(rung.model.analyse(image), rung.quality)
    rounded = torch.from_numpy(symbols).double()
    soft = torch.stack([rung.bits(z[None])[0].sum(dim=(1, 2)) for z in noisy]).mean(dim=0)
    hard = torch.from_numpy(rung.tables.bits(symbols))
    data = rung.model.encode(image, rung.quality)
    decoded = decoder.decode(rung.model, container.read(data)).pixels
    whole = {
        "bpp_noise": float(soft.sum()) / pixels,
        "bpp_rounding": float(hard.sum()) / pixels,
        "bpp_file": 8 * len(data) / pixels,
        "mse_noise": float(np.mean([rung.mse(z, image) for z in noisy])),
        "mse_rounding": rung.mse(rounded, image),
        "mse_file": float(np.mean((decoded.astype(np.float64) - image) ** 2)),
    }
    return whole, {"noise": soft, "rounding": hard, "error": (rounded - n).square().sum(dim=(1, 2)), "latents": n.flatten(1)}


def entropy(values: Floats, offset: float = 0.0) -> float:
    """Empirical entropy of round(values - offset) in bits, with Miller and Madow's correction for the number of samples."""
    counts = np.unique(np.rint(values - offset), return_counts=True)[1]
    p = counts / counts.sum()
    return float(-(p * np.log2(p)).sum() + (len(counts) - 1) / (2 * len(values) * np.log(2)))


def entropies(values: Floats) -> tuple[float, float]:
    """(differential entropy of values + U, entropy of round(values)), both empirical, in bits."""
    offsets = (np.arange(OFFSETS) + 0.5) / OFFSETS - 0.5
    return float(np.mean([entropy(values, offset) for offset in offsets])), entropy(values)


def one_at_a_time(rung: Rung, images: Sequence[Pixels], generator: torch.Generator) -> dict[str, Floats]:
    """What disturbing one channel alone, all others exact, does to the pixels of the images' middles: mean squared changes, M each."""
    out: dict[str, list[Floats]] = {"noise": [], "rounding": []}
    for image in images:
        top, left = (max(0, (side - CROP) // 2) for side in image.shape[:2])
        n = rung.analyse(np.ascontiguousarray(image[top : top + CROP, left : left + CROP]))
        noise = torch.rand(n.shape, generator=generator, dtype=n.dtype) - 0.5
        for kind, error in (("noise", noise), ("rounding", torch.round(n) - n)):
            disturbed = n + torch.diag_embed(error.permute(1, 2, 0)).permute(2, 3, 0, 1)  # M copies, each with one channel changed
            out[kind].append(_changes(rung, n, disturbed))
    return {kind: np.mean(values, axis=0) for kind, values in out.items()}


@torch.inference_mode()
def _changes(rung: Rung, n: Tensor, disturbed: Tensor, batch: int = 16) -> Floats:
    """Mean squared change of the pixels on 0…255 for each of B×M×h×w latents."""
    synthesis = rung.synthesis
    exact = synthesis((n * rung.step).float()[None])
    parts = [synthesis((some * rung.step).float()) - exact for some in disturbed.split(batch)]
    return np.asarray(255**2 * torch.cat([p.double().square().mean(dim=(1, 2, 3)) for p in parts]).numpy())


def measure(ladder: Sequence[Rung], images: dict[str, Pixels], seed: int) -> dict[str, Any]:
    """Everything that is written to `noise_vs_rounding.json`."""
    rows = []
    middle = rungs.middle(ladder)
    for rung in ladder:
        generator = torch.Generator().manual_seed(seed)
        measured = {name: terms(rung, image, generator) for name, image in images.items()}
        latents = torch.cat([channels["latents"] for _, channels in measured.values()], dim=1).numpy()
        count = latents.shape[1]
        sums = {kind: sum(c[kind] for _, c in measured.values()) / count for kind in ("noise", "rounding", "error")}
        empirical = np.array([entropies(values) for values in latents])
        row = {
            "model": rung.model.name,
            "quality": rung.quality,
            "lambda": rung.lambda_,
            "mean": {key: np.mean([whole[key] for whole, _ in measured.values()]) for key in next(iter(measured.values()))[0]},
            "images": {name: whole for name, (whole, _) in measured.items()},
            "bits_per_latent_noise": sums["noise"],
            "bits_per_latent_rounding": sums["rounding"],
            "empirical_entropy_noise": empirical[:, 0],
            "empirical_entropy_rounding": empirical[:, 1],
            "latent_error_rounding": sums["error"],
        }
        if rung is middle:
            changes = one_at_a_time(rung, list(images.values()), generator)
            row |= {f"pixel_error_{kind}": values for kind, values in changes.items()}
        rows.append(row)
    return {"images": list(images), "seed": seed, "rows": rows}


def draw(result: dict[str, Any], ladder: Sequence[Rung]) -> Any:
    """Loss terms over the ladder above, single channels of the middle rung below."""
    fig, axes = rungs.panels(2, 3, 4.7, 4.6)
    names = list(dict.fromkeys(row["model"] for row in result["rows"]))
    markers = dict(zip(names, "oD^sv<>pX*" * len(names), strict=False))
    for row, colour in zip(result["rows"], rungs.colours(ladder), strict=True):
        images = row["images"].values()
        style = {"color": colour, "linestyle": "none", "marker": markers[row["model"]], "markersize": 5, "alpha": 0.85}
        label = f"λ = {row['lambda']:.3g}" + (f", {row['model']}" if len(names) > 1 and row["model"] != names[-1] else "")
        pairs = (("mse_rounding", "mse_noise"), ("bpp_rounding", "bpp_noise"), ("bpp_rounding", "bpp_file"))
        for ax, (x, y) in zip(axes[0], pairs, strict=True):
            ax.plot([i[x] for i in images], [i[y] for i in images], label=label if ax is axes[0, 0] else None, **style)
    axes[0, 0].set(xlabel="squared error, rounding", ylabel="squared error, noise", title="Distortion of each image")
    axes[0, 1].set(xlabel="−log₂ P, rounding, bits per pixel", ylabel="−log₂ p̃, noise, bits per pixel", title="Rate of each image")
    axes[0, 2].set(xlabel="−log₂ P, rounding, bits per pixel", ylabel="file, bits per pixel", title="Whole file, header included")
    axes[0, 0].legend(fontsize=7)
    row = next(row for row in result["rows"] if "pixel_error_noise" in row)
    below = (
        ("bits_per_latent", FLOOR, "code length, bits per latent", "Rate of each channel under the model"),
        ("empirical_entropy", FLOOR, "entropy, bits per latent", "Empirical entropy of each channel"),
        ("pixel_error", 1e-6, "squared error in pixels", "Distortion by each channel alone"),
    )
    for ax, (key, floor, unit, title) in zip(axes[1], below, strict=True):
        x, y = (np.maximum(row[f"{key}_{kind}"], floor) for kind in ("rounding", "noise"))
        ax.plot(x, y, ".", color="#0a5a9c", markersize=5, alpha=0.7)
        ax.set(xlabel=f"{unit}, rounding", ylabel=f"{unit}, noise", title=f"{title} (λ = {row['lambda']:.3g})")
    for ax in axes.flat:
        identity(ax)
    rungs.plain_ticks(*(axis for ax in axes[0] for axis in (ax.xaxis, ax.yaxis)))
    return fig


def identity(ax: Any) -> None:
    """The line where both are equal, and equal logarithmic axes."""
    values = np.concatenate([np.concatenate([line.get_xdata(), line.get_ydata()]) for line in ax.lines])
    low, high = values.min() / 1.3, values.max() * 1.3
    ax.plot([low, high], [low, high], color="#888888", linewidth=0.9, zorder=1)
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    ax.set_aspect("equal")
    ax.title.set_fontsize(10)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    arguments = rungs.parser("noise_vs_rounding", __doc__).parse_args(argv)

    def work() -> None:
        ladder = rungs.ladder(arguments.model or rungs.default_models(), arguments.quality)
        result = rungs.rounded(measure(ladder, rungs.read_images(arguments.images), arguments.seed))
        rungs.write_json(result, arguments.out, "noise_vs_rounding")
        rungs.save(draw(result, ladder), arguments.out, "noise_vs_rounding")

    return rungs.run("noise_vs_rounding", work)


if __name__ == "__main__":
    sys.exit(main())
