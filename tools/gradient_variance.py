"""Two estimators of one gradient.

    python -m tools.gradient_variance [IMAGE] [--model …]

One block of 16×16 pixels, its M latents μ, and the expected loss L(μ) = E f(μ + sε) with f = bits per pixel + λ·MSE of that block. Its
gradient by μ, from which those of all weights of the analysis follow by the chain rule, is estimated from samples of ε in two ways:

    reparametrised    ∂f(μ + sε) / ∂μ,               which needs the derivative of f,
    score function    f(μ + sε) · ε / s,             which needs only values of f, as E f(z) ∂ log q(z) / ∂μ,

and, so that the second is at its best, with the mean of the other samples' f subtracted from f, which changes no expectation.

Why the noise is Gaussian here, with the variance 1/12 of the box that the codec trains with: for uniform noise the score is zero
wherever it is defined, since log q is flat inside the box, and what depends on μ is where the box ends. The score-function estimator then
returns zero, always. The true derivative by one latent is the difference E f(at its right end) - E f(at its left end), which the
reparametrised estimator does find; that is checked too.
"""

from __future__ import annotations

import math
import sys
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from codec.errors import ImageError
from codec.transforms import STRIDE
from tools import rungs
from tools.rungs import Pixels, Rung

Floats = npt.NDArray[np.float64]
SPREAD: Final = 1 / math.sqrt(12)
"""Standard deviation s of the noise, in quantiser steps."""
SAMPLES: Final = 1 << 16
BATCH: Final = 1 << 10
ENDS: Final = 8
"""Latents whose derivative under uniform noise is compared with the difference between the ends of the box."""


class Loss:
    """The loss f(z), bits per pixel + λ·MSE, of one block, and its derivative."""

    def __init__(self, rung: Rung, block: Pixels) -> None:
        self.mean = rung.analyse(block)[:, 0, 0]
        self._x = rungs.to_tensor(block).float() / 255
        self._density = rungs.density_of(rung.model)
        self._step, self._rung = rung.step[None], rung
        self._synthesis = rung.synthesis

    def __call__(self, z: Tensor) -> Tensor:
        """B values of f for latents B×M, in quantiser steps; differentiable."""
        y = z[:, :, None, None] * self._step
        bits = self._density.bits(y, self._step).sum(dim=(1, 2, 3))
        mse = 255**2 * (self._synthesis(y.float()) - self._x).square().mean(dim=(1, 2, 3))
        return bits / STRIDE**2 + self._rung.lambda_ * mse

    def with_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(B values, B×M derivatives)."""
        z = z.detach().requires_grad_()
        values = self(z)
        return values.detach(), torch.autograd.grad(values.sum(), z)[0]


def block_of(image: Pixels) -> Pixels:
    """The 16×16 block with the largest variance among those on the grid, so that there is something to code."""
    height, width = (n // STRIDE for n in image.shape[:2])
    if not height or not width:
        raise ImageError("the image must hold 16×16 pixels")
    tiles = (
        image[: height * STRIDE, : width * STRIDE].reshape(height, STRIDE, width, STRIDE, 3).swapaxes(1, 2).reshape(-1, STRIDE, STRIDE, 3)
    )
    return np.ascontiguousarray(tiles[np.argmax(tiles.astype(np.float64).var(axis=(1, 2, 3)))])


def draw_samples(loss: Loss, count: int, seed: int, noisy: Tensor | None = None) -> dict[str, Floats]:
    """`count` samples of each estimator of the gradient, count×M; both have noise of their own. `noisy` marks the latents that get any."""
    generator = torch.Generator().manual_seed(seed)
    size = len(loss.mean)
    which = torch.ones(size, dtype=torch.float64) if noisy is None else noisy.double()
    out: dict[str, list[Tensor]] = {"reparametrised": [], "value": [], "epsilon": []}
    for start in range(0, count, BATCH):
        batch = min(BATCH, count - start)
        epsilon = torch.randn(batch, size, generator=generator, dtype=torch.float64) * which
        out["reparametrised"].append(loss.with_gradient(loss.mean + SPREAD * epsilon)[1] * which)
        epsilon = torch.randn(batch, size, generator=generator, dtype=torch.float64) * which
        with torch.inference_mode():
            out["value"].append(loss(loss.mean + SPREAD * epsilon))
        out["epsilon"].append(epsilon)
    path, value, epsilon = (torch.cat(out[name]).numpy() for name in out)
    return {"reparametrised": path, "value": value, "epsilon": epsilon}


def score(value: Floats, epsilon: Floats, baseline: bool) -> Floats:
    """Samples of the score-function estimator, …×N×M, of values …×N; with a baseline, each has the mean of the N - 1 others subtracted."""
    if baseline:
        count = value.shape[-1]
        value = (value - value.mean(axis=-1, keepdims=True)) * (count / (count - 1))
    return np.asarray(value[..., None] * epsilon / SPREAD)


def errors(samples: dict[str, Floats], sizes: list[int]) -> dict[str, list[float]]:
    """Root mean square distance of a mean over N samples from the mean over all of them, relative to the gradient's length."""
    truth = samples["reparametrised"].mean(axis=0)
    length = float(np.linalg.norm(truth))
    out: dict[str, list[float]] = {"reparametrised": [], "score": [], "score with baseline": []}
    for n in sizes:
        groups = len(samples["value"]) // n
        value = samples["value"][: groups * n].reshape(groups, n)
        epsilon = samples["epsilon"][: groups * n].reshape(groups, n, -1)
        means = {
            "reparametrised": samples["reparametrised"][: groups * n].reshape(groups, n, -1).mean(axis=1),
            "score": score(value, epsilon, baseline=False).mean(axis=1),
        }
        if n > 1:
            means["score with baseline"] = score(value, epsilon, baseline=True).mean(axis=1)
        for name in out:
            distance = math.sqrt(np.square(means[name] - truth).sum(axis=1).mean()) / length if name in means else math.nan
            out[name].append(distance)
    return out


def variances(samples: dict[str, Floats]) -> dict[str, float]:
    """Variance of one sample, summed over the latents."""
    value, epsilon = samples["value"], samples["epsilon"]
    estimators = {
        "reparametrised": samples["reparametrised"],
        "score": score(value, epsilon, baseline=False),
        "score with baseline": score(value, epsilon, baseline=True),
    }
    return {name: float(some.var(axis=0, ddof=1).sum()) for name, some in estimators.items()}


def agreement(samples: dict[str, Floats]) -> tuple[dict[str, float], dict[str, Floats]]:
    """(how far both means lie apart in standard errors, the means and standard errors themselves)."""
    one, other = samples["reparametrised"], score(samples["value"], samples["epsilon"], baseline=True)
    error = np.sqrt((one.var(axis=0, ddof=1) + other.var(axis=0, ddof=1)) / len(one))
    z = (other.mean(axis=0) - one.mean(axis=0)) / error
    length = np.linalg.norm(one.mean(axis=0))
    summary = {
        "mean_square_z": float(np.mean(z**2)),
        "largest_z": float(np.abs(z).max()),
        "distance": float(np.linalg.norm(other.mean(axis=0) - one.mean(axis=0)) / length),
        "expected_distance": float(np.sqrt((error**2).sum()) / length),
    }
    return summary, {"reparametrised": one.mean(axis=0), "score": other.mean(axis=0), "error": error}


def uniform_ends(loss: Loss, channels: list[int], count: int, seed: int) -> list[dict[str, float]]:
    """For single latents under uniform noise: the reparametrised mean, the difference between the ends of the box, their standard error."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(count, len(loss.mean), generator=generator, dtype=torch.float64) - 0.5
    path = torch.cat([loss.with_gradient(loss.mean + some)[1] for some in noise.split(BATCH)])
    rows = []
    for channel in channels:
        ends = []
        for end in (0.5, -0.5):
            moved = noise.clone()
            moved[:, channel] = end
            with torch.inference_mode():
                ends.append(torch.cat([loss(loss.mean + some) for some in moved.split(BATCH)]))
        difference = ends[0] - ends[1]
        error = math.sqrt(float((path[:, channel] - difference).var()) / count)
        row = {"reparametrised": float(path[:, channel].mean()), "ends": float(difference.mean()), "standard_error": error, "score": 0.0}
        rows.append({"channel": channel, **row})
    return rows


def measure(rung: Rung, image: Pixels, seed: int, count: int = SAMPLES) -> tuple[dict[str, Any], dict[str, Floats]]:
    """(what is written to `gradient_variance.json`, both means)."""
    loss = Loss(rung, block_of(image))
    samples = draw_samples(loss, count, seed)
    sizes = [4**i for i in range(20) if 4**i <= count // 16]
    summary, means = agreement(samples)
    order = np.argsort(-np.abs(means["reparametrised"]))
    subsets: list[dict[str, float]] = []
    for dimensions in [d for d in (1, 4, 16, 64, 256, 1024) if d < len(order)] + [len(order)]:
        mask = torch.zeros(len(order))
        mask[order[:dimensions].tolist()] = 1
        found = variances(draw_samples(loss, max(count // 8, 2), seed + dimensions, mask))
        ratios = {name: found[name] / found["reparametrised"] for name in ("score", "score with baseline")}
        subsets.append({"latents": dimensions, **ratios})
    result = {
        "model": rung.name,
        "lambda": rung.lambda_,
        "samples": count,
        "latents": len(loss.mean),
        "variance": variances(samples),
        "agreement": summary,
        "sizes": sizes,
        "error": errors(samples, sizes),
        "by_number_of_noisy_latents": subsets,
        "uniform_noise": uniform_ends(loss, [int(c) for c in order[:ENDS]], max(count // 8, 2), seed),
    }
    return result, means


def draw(result: dict[str, Any], means: dict[str, Floats]) -> Any:
    """Agreement of the means, error against the number of samples, variance against the number of latents."""
    fig, axes = rungs.panels(1, 3)
    ax = axes[0, 0]
    ax.errorbar(
        means["reparametrised"], means["score"], yerr=2 * means["error"], fmt=".", color="#0a5a9c", ecolor="#9ecae1", elinewidth=0.9
    )
    low, high = (f(means["reparametrised"]) * 1.15 for f in (np.min, np.max))
    ax.plot([low, high], [low, high], color="#888888", linewidth=0.9)
    ax.set(
        xlabel="reparametrised",
        ylabel="score function, with baseline",
        title=f"Mean of {result['samples']:,} samples (± 2 standard errors)",
    )
    styles: dict[str, tuple[str, str]] = {
        "reparametrised": ("#0a5a9c", "o-"),
        "score": ("#b2182b", "s-"),
        "score with baseline": ("#d1730d", "^-"),
    }
    for name, (colour, style) in styles.items():
        known = [(n, e) for n, e in zip(result["sizes"], result["error"][name], strict=True) if e is not None]
        axes[0, 1].plot(*zip(*known, strict=True), style, color=colour, label=name)
    axes[0, 1].axhline(1, color="#888888", linewidth=0.9)
    axes[0, 1].set(
        xscale="log", yscale="log", xlabel="samples in the mean", ylabel="error / length of the gradient", title="Error of the estimate"
    )
    subsets = result["by_number_of_noisy_latents"]
    for name in ("score", "score with baseline"):
        axes[0, 2].plot(
            [row["latents"] for row in subsets], [row[name] for row in subsets], styles[name][1], color=styles[name][0], label=name
        )
    axes[0, 2].set(
        xscale="log", yscale="log", xlabel="latents with noise", ylabel="variance / reparametrised variance", title="Ratio of the variances"
    )
    for ax in axes[0]:
        ax.title.set_fontsize(10)
    for ax in axes[0, 1:]:
        ax.legend(fontsize=8)
    return fig


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    new = rungs.parser("gradient_variance", __doc__)
    new.add_argument("--samples", type=int, default=SAMPLES, metavar="N", help="of each estimator, at least 64 (default: %(default)s)")
    arguments = new.parse_args(argv)
    if arguments.samples < 64:
        new.error("--samples must be at least 64")

    def work() -> None:
        rung = rungs.middle(rungs.ladder(arguments.model or rungs.default_models(), arguments.quality))
        image = next(iter(rungs.read_images(arguments.images).values()))
        result, means = measure(rung, image, arguments.seed, arguments.samples)
        # There is no mean of the others where there is one sample.
        result["error"] = {name: [None if math.isnan(e) else e for e in values] for name, values in result["error"].items()}
        result = rungs.rounded(result)
        rungs.write_json(result, arguments.out, "gradient_variance")
        rungs.save(draw(result, means), arguments.out, "gradient_variance")

    return rungs.run("gradient_variance", work)


if __name__ == "__main__":
    sys.exit(main())
