"""The loss is an ELBO.

    python -m tools.elbo [IMAGE …] [--model …]

Read the decoder as a generative model: latents z from the prior p̃, in quantiser steps, and an image x of N = 3·H·W grey levels from
N(g(z), σ² I), where g is the synthesis. Read the noisy latents as a posterior, q(z|x) = U(n - ½, n + ½) around the analysis n of x.
Then, in bits,

    -ELBO = E_q[log₂ q(z|x) - log₂ p̃(z) - log₂ p(x|z)]
          = 0 + rate + N·MSE / (2σ² ln 2) + (N / 2) log₂ 2πσ²,

as a box of width one has the density one wherever q puts any mass. Divided by the H·W pixels,

    -ELBO / pixel = bpp + λ·MSE + (3/2) log₂ 2πσ²      with      λ = 3 / (2σ² ln 2),   σ² = 3 / (2λ ln 2).

Here the left-hand side is estimated by sampling, from the densities of `torch.distributions` on the axis of y, where the box has
width Δ and none of its parts is zero; the right-hand side from the terms of the loss with other noise. The hard ELBO has rounded latents.

**Bits-back.** Let the latents lie on a lattice of m points to a step, and q be uniform on the m points within n ± ½. Then P(z) = p̃(z)/m
sums to one; sending z costs -log₂ p̃(z) + log₂ m bits; and as the choice among the m points is free, it can carry log₂ m bits of other
data, which come back. Their number is the entropy of q. The codec sits at m = 1: nothing is chosen, so nothing comes back.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal, Uniform

from tools import rungs
from tools.rungs import Pixels, Rung

DRAWS: Final = 8
"""Samples of the posterior for each image."""
LATTICES: Final = (1, 2, 4, 16)


def constant(rung: Rung) -> float:
    """(3/2) log₂ 2πσ², bits per pixel."""
    return 1.5 * math.log2(2 * math.pi * rung.variance)


def from_terms(rung: Rung, z: Tensor, image: Pixels) -> tuple[float, float]:
    """(bits per pixel, squared error) of latents M×h×w: the terms of the loss."""
    return float(rung.bits(z[None]).sum()) / (image.shape[0] * image.shape[1]), rung.mse(z, image)


def bound(rung: Rung, bpp: float, mse: float) -> float:
    """The loss as bits per pixel of the generative model: bpp + λ·MSE + constant."""
    return bpp + rung.lambda_ * mse + constant(rung)


def by_densities(rung: Rung, n: Tensor, z: Tensor, image: Pixels) -> float:
    """Log₂ q(z|x) - log₂ p(z) - log₂ p(x|z) per pixel of one sample, from normalised densities on the axis of y = nΔ."""
    posterior = Uniform((n - 0.5) * rung.step, (n + 0.5) * rung.step, validate_args=False)
    density = rungs.density_of(rung.model)
    log_prior = torch.log(density.likelihood((z * rung.step)[None], rung.step)[0] / rung.step)
    likelihood = Normal(rung.restore(z, *image.shape[:2]), math.sqrt(rung.variance))
    total = posterior.log_prob(z * rung.step).sum() - log_prior.sum() - likelihood.log_prob(rungs.to_tensor(image)).sum()
    return float(total) / (math.log(2) * image.shape[0] * image.shape[1])


def noisy(n: Tensor, generator: torch.Generator) -> Tensor:
    """A sample of q."""
    return n + torch.rand(n.shape, generator=generator, dtype=n.dtype) - 0.5


def on_lattice(n: Tensor, m: int, generator: torch.Generator) -> Tensor:
    """A sample of the uniform choice among the m points of the lattice ℤ/m within n ± ½; round(n) for m = 1."""
    first = torch.floor((n - 0.5) * m) + 1
    return (first + torch.randint(m, n.shape, generator=generator)) / m


def check(rung: Rung, images: dict[str, Pixels], seed: int) -> dict[str, Any]:
    """Both sides of the equation over images, and the hard ELBO."""
    left, right, hard, same = [], [], [], 0.0
    terms, hard_terms = [], []
    for number, image in enumerate(images.values()):
        # Streams of their own, so that neither the two sides nor two rungs share any noise.
        entropy = np.random.SeedSequence([seed, number, rung.quality, *rung.model.hash]).generate_state(2)
        one, other = (torch.Generator().manual_seed(int(state)) for state in entropy)
        n = rung.analyse(image)
        samples = [noisy(n, one) for _ in range(DRAWS)]
        left.append([by_densities(rung, n, z, image) for z in samples])
        pairs = [from_terms(rung, noisy(n, other), image) for _ in range(DRAWS)]
        right.append([bound(rung, *pair) for pair in pairs])
        same = max(same, abs(bound(rung, *from_terms(rung, samples[0], image)) / left[-1][0] - 1))
        terms.append(np.mean(pairs, axis=0))
        hard_terms.append(from_terms(rung, torch.round(n), image))
        hard.append(bound(rung, *hard_terms[-1]))
    estimates = np.array(left), np.array(right)
    error = math.sqrt(sum((e.var(axis=1, ddof=1) / DRAWS).sum() for e in estimates)) / len(images)
    bpp, mse = np.mean(terms, axis=0)
    hard_bpp, hard_mse = np.mean(hard_terms, axis=0)
    return {
        "model": rung.model.name,
        "quality": rung.quality,
        "lambda": rung.lambda_,
        "sigma": math.sqrt(rung.variance),
        "rate": bpp,
        "distortion_bits": rung.lambda_ * mse,
        "constant": constant(rung),
        "mse": mse,
        "sampled": estimates[0].mean(),
        "from_loss": estimates[1].mean(),
        "difference": estimates[0].mean() - estimates[1].mean(),
        "standard_error": error,
        "relative_difference_same_noise": same,
        "hard": float(np.mean(hard)),
        "hard_rate": hard_bpp,
        "hard_mse": hard_mse,
    }


def bits_back(rung: Rung, images: dict[str, Pixels], seed: int) -> list[dict[str, float]]:
    """For lattices of m points to a step: bits per pixel sent, given back and net, squared error, and the bound that results."""
    rows = []
    for m in LATTICES:
        generator = torch.Generator().manual_seed(seed)
        found = []
        for image in images.values():
            n = rung.analyse(image)
            bpp, mse = from_terms(rung, on_lattice(n, m, generator), image)
            found.append((bpp, mse, n.numel() / (image.shape[0] * image.shape[1]) * math.log2(m)))
        net, mse, back = np.mean(found, axis=0)
        rows.append({"m": m, "sent": net + back, "back": back, "net": net, "mse": mse, "negative_elbo": bound(rung, net, mse)})
    return rows


def draw(result: dict[str, Any], ladder: Sequence[Rung]) -> Any:
    """What the bound is made of; how well both sides agree; what comes back."""
    fig, axes = rungs.panels(1, 3)
    rows = sorted(result["rows"], key=lambda row: (row["lambda"], row["model"]))
    x = np.arange(len(rows))
    base = np.zeros(len(rows))
    for key, label, colour in (("rate", "rate, bpp", "#6baed6"), ("distortion_bits", "distortion, λ·MSE", "#fdae6b")):
        values = np.array([row[key] for row in rows])
        axes[0, 0].bar(x, values, 0.7, bottom=base, color=colour, label=label)
        base += values
    sampled, hard = (np.array([row[key] - row["constant"] for row in rows]) for key in ("sampled", "hard"))
    axes[0, 0].plot(x, sampled, "x", color="black", markersize=7, label="−ELBO, sampled, less the constant")
    axes[0, 0].plot(x, hard, "_", color="#b2182b", markersize=14, markeredgewidth=1.5, label="the same with rounded latents (hard)")
    names = list(dict.fromkeys(row["model"] for row in result["rows"]))
    labels = [f"{row['lambda']:.3g}" + ("*" if len(names) > 1 and row["model"] != names[-1] else "") for row in rows]
    axes[0, 0].set(ylabel="bits per pixel", title="Negative ELBO without its constant, and its parts", ylim=(0, 1.1 * base.max()))
    axes[0, 0].legend(fontsize=8, loc="upper left")
    for ax in axes[0, :2]:
        ax.set_xticks(x, labels, rotation=60, fontsize=8)
        ax.set_xlabel("λ" + (f"   (* {', '.join(names[:-1])}, the others {names[-1]})" if len(names) > 1 else ""), fontsize=8)
    difference = 1e3 * np.array([row["difference"] for row in rows])
    error = 1e3 * np.array([row["standard_error"] for row in rows])
    axes[0, 1].errorbar(x, difference, yerr=2 * error, fmt="o", color="#0a5a9c", capsize=4)
    axes[0, 1].axhline(0, color="#888888", linewidth=0.9)
    axes[0, 1].set(ylabel="thousandths of a bit per pixel", title="Sampled −ELBO minus loss + constant (± 2 standard errors)")
    back = result["bits_back"]
    y = np.arange(len(back))
    axes[0, 2].bar(y - 0.27, [row["sent"] for row in back], 0.27, color="#6baed6", label="sent")
    axes[0, 2].bar(y, [row["back"] for row in back], 0.27, color="#b2182b", label="given back")
    axes[0, 2].bar(y + 0.27, [row["net"] for row in back], 0.27, color="#08306b", label="net")
    for at, row in zip(y, back, strict=True):
        axes[0, 2].text(at + 0.27, row["net"], f"{row['net']:.3f}", ha="center", va="bottom", fontsize=7)
    axes[0, 2].set_xticks(y, [str(row["m"]) for row in back])
    axes[0, 2].set(
        xlabel="points of the lattice to a quantiser step, m",
        ylabel="bits per pixel",
        title=f"Bits-back (λ = {result['bits_back_lambda']:.3g})",
    )
    axes[0, 2].legend(fontsize=8)
    for ax in axes[0]:
        ax.title.set_fontsize(10)
    return fig


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    arguments = rungs.parser("elbo", __doc__).parse_args(argv)

    def work() -> None:
        ladder = rungs.ladder(arguments.model or rungs.default_models(), arguments.quality)
        images = rungs.read_images(arguments.images)
        middle = rungs.middle(ladder)
        rows = [check(rung, images, arguments.seed) for rung in ladder]
        result = {"images": list(images), "draws": DRAWS, "rows": rows, "bits_back_model": middle.name, "bits_back_lambda": middle.lambda_}
        result = rungs.rounded({**result, "bits_back": bits_back(middle, images, arguments.seed)})
        rungs.write_json(result, arguments.out, "elbo")
        rungs.save(draw(result, ladder), arguments.out, "elbo")

    return rungs.run("elbo", work)


if __name__ == "__main__":
    sys.exit(main())
