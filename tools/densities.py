"""The learned densities over the latents that they model, and what becomes of them along λ.

    python -m tools.densities [IMAGE …] [--model …]

`densities` shows six channels of the middle rung: above, the latents before rounding under the piecewise-constant density p of n; below,
the rounded ones under P(k) = p̃(k), samples of the piecewise-linear p̃ = p ∗ box. `channels` shows every channel of every rung: its code
length, how many channels carry any information, and how wide the latents lie in quantiser steps.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from codec.coder import PRECISION
from tools import rungs
from tools.rungs import INFORMATIVE, Pixels, Rung

Floats = npt.NDArray[np.float64]
SHOWN: Final = (1.0, 0.9, 0.7, 0.4, 0.0)
"""Which channels are drawn, beside one that carries nothing: quantiles of the code length among those that carry something."""


def density_at(rung: Rung, channel: int, n: Floats) -> Floats:
    """p(n), the piecewise-constant density of a channel's latents in quantiser steps: the slope of F, times Δ."""
    density = rungs.density_of(rung.model)
    grid = (density.grid * density.log_scale[channel].exp() / rung.step[channel, 0, 0]).numpy()
    heights = density.masses()[channel, 1:-1].numpy() / np.diff(grid)
    k = np.searchsorted(grid, n, side="right") - 1
    inside = (k >= 0) & (k < len(heights))
    return np.where(inside, heights[np.clip(k, 0, len(heights) - 1)], 0.0)


def smoothed_at(rung: Rung, channel: int, n: Floats) -> Floats:
    """p̃(n) = F(n + ½) - F(n - ½), the piecewise-linear density of a channel's latents with noise."""
    z = torch.zeros(1, rung.model.latents, len(n), dtype=torch.float64)
    z[0, channel] = torch.from_numpy(n)
    density, step = rungs.density_of(rung.model), rung.step[:, :, 0]
    return np.asarray(density.likelihood(z * step, step)[0, channel].numpy())


def table_at(rung: Rung, channel: int, k: npt.NDArray[np.int64]) -> Floats:
    """P(k) in the integer tables that files are coded with; zero for symbols that are escaped."""
    tables = rung.tables
    counts = (np.asarray(tables.counts[channel])[:-1] + 1) / (1 << PRECISION)
    index = k - tables.lowest[channel]
    inside = (index >= 0) & (index < len(counts))
    return np.where(inside, counts[np.clip(index, 0, len(counts) - 1)], 0.0)


def mass_error(rung: Rung, offsets: Sequence[float] = (0.0, 0.25, 0.5, 0.9)) -> float:
    """The largest |Σ_k p̃(k + u) - 1| over channels and offsets u: on any grid of unit steps, the smoothed density sums to one."""
    density, step = rungs.density_of(rung.model), rung.step[:, :, 0]
    worst = 0.0
    for offset in offsets:
        edges = torch.arange(-300, 301, dtype=torch.float64).expand(1, rung.model.latents, -1)
        total = density.likelihood((edges + offset) * step, step).sum(dim=2)
        # What lies beyond the sum, in the exponential tails.
        beyond = density.cdf((edges[..., :1] + offset - 0.5) * step) + 1 - density.cdf((edges[..., -1:] + offset + 0.5) * step)
        worst = max(worst, float((total + beyond[..., 0] - 1).abs().max()))
    return worst


def latents(rung: Rung, images: dict[str, Pixels]) -> Floats:
    """Latents n of all images together, M×N."""
    return np.concatenate([rung.analyse(image).flatten(1).numpy() for image in images.values()], axis=1)


def row_of(rung: Rung, images: dict[str, Pixels]) -> tuple[dict[str, Any], Floats]:
    """(what is written of a rung, its latents)."""
    n = latents(rung, images)
    pixels = sum(image.shape[0] * image.shape[1] for image in images.values())
    bits = rung.tables.bits(np.rint(n).astype(np.int32)[:, None])
    code = bits / n.shape[1]
    deviation, zero = n.std(axis=1), (np.rint(n) == 0).mean(axis=1)
    informative = code > INFORMATIVE
    row = {
        "model": rung.model.name,
        "quality": rung.quality,
        "lambda": rung.lambda_,
        "bpp": bits.sum() / pixels,
        "informative": int(informative.sum()),
        "channels": len(code),
        "deviation_median": float(np.median(deviation[informative])) if informative.any() else 0.0,
        "deviation_quartiles": np.quantile(deviation[informative], [0.25, 0.75]) if informative.any() else [0.0, 0.0],
        "zeros": float(zero.mean()),
        "mass_error": mass_error(rung),
        "bits_per_latent": code,
        "deviation": deviation,
        "step": rung.step[:, 0, 0],
    }
    return row, n


def chosen(code: Floats) -> list[int]:
    """Channels at the quantiles `SHOWN` of the code length, and the one of the shortest code if that carries no information."""
    order = np.argsort(code)
    telling = order[code[order] > INFORMATIVE]
    telling = telling if len(telling) else order
    found = [int(telling[round(q * (len(telling) - 1))]) for q in SHOWN]
    return [*found, int(order[0])] if code.min() <= INFORMATIVE else found


def draw_densities(rung: Rung, n: Floats, code: Floats) -> Any:
    """Six channels before and after rounding."""
    channels = chosen(code)
    fig, axes = rungs.panels(2, len(channels), 3.3, 3.0)
    for column, channel in enumerate(channels):
        values = n[channel]
        reach = max(2.5, float(np.quantile(np.abs(values - np.median(values)), 0.995)) * 1.15)
        centre = float(np.median(values))
        x = np.linspace(centre - reach, centre + reach, 1201)
        above, below = axes[0, column], axes[1, column]
        above.hist(values, bins=61, range=(x[0], x[-1]), density=True, color="#9ecae1", label="latents n")
        above.plot(x, density_at(rung, channel, x), color="#08306b", linewidth=1.1, label="density p")
        above.set_title(
            f"channel {channel}: {code[channel]:.3g} bits" if code[channel] >= 1e-3 else f"channel {channel}: < 0.001 bits", fontsize=10
        )
        above.set_ylim(0, 1.35 * np.histogram(values, bins=61, range=(x[0], x[-1]), density=True)[0].max())
        k = np.arange(int(np.floor(x[0])), int(np.ceil(x[-1])) + 1)
        observed = np.array([(np.rint(values) == i).mean() for i in k])
        below.bar(k, observed, width=0.8, color="#fdae6b", label="rounded n")
        below.plot(x, smoothed_at(rung, channel, x), color="#7f2704", linewidth=1.1, label="p̃ = p ∗ box")
        below.plot(k, table_at(rung, channel, k), "o", color="black", markersize=3.5, label="table P(k)")
        below.set_xlabel("quantiser steps")
        for ax in (above, below):
            ax.set_xlim(x[0], x[-1])
    axes[0, 0].legend(fontsize=7)
    axes[1, 0].legend(fontsize=7)
    fig.suptitle(f"{rung.name}, λ = {rung.lambda_:.3g}: from the channel that takes most bits to the one that takes fewest", fontsize=11)
    return fig


def draw_channels(result: dict[str, Any], ladder: Sequence[Rung]) -> Any:
    """All channels of all rungs."""
    fig, axes = rungs.panels(1, 3)
    rows = result["rows"]
    names = list(dict.fromkeys(row["model"] for row in rows))
    for row, colour in zip(rows, rungs.colours(ladder), strict=True):
        code = np.maximum(np.sort(row["bits_per_latent"])[::-1], 1e-3)
        single = sum(other["model"] == row["model"] for other in rows) == 1
        axes[0, 0].plot(
            np.arange(1, len(code) + 1), code, color=colour, linestyle="--" if single else "-", label=f"λ = {row['lambda']:.3g}"
        )
    axes[0, 0].axhline(INFORMATIVE, color="#b2182b", linewidth=1, linestyle=":")
    axes[0, 0].text(
        0.98, INFORMATIVE * 1.15, f"{INFORMATIVE} bit", color="#b2182b", fontsize=8, ha="right", transform=axes[0, 0].get_yaxis_transform()
    )
    axes[0, 0].set(
        yscale="log",
        xlabel="channels, in order of code length",
        ylabel="bits per latent (0.001 or less at the edge)",
        title="Code length of each channel",
    )
    axes[0, 0].legend(fontsize=7, loc="lower left")
    for name, marker in zip(names, "osD^v<>pX*" * len(names), strict=False):
        mine = [row for row in rows if row["model"] == name]
        x = [row["lambda"] for row in mine]
        style = {"color": "#0a5a9c" if name == names[-1] else "#b2182b", "marker": marker, "linewidth": 1.4, "label": name}
        axes[0, 1].plot(x, [row["informative"] for row in mine], **style)
        middle = [row["deviation_median"] for row in mine]
        spread = np.array([row["deviation_quartiles"] for row in mine]).T
        axes[0, 2].errorbar(x, middle, yerr=np.abs(spread - middle), capsize=3, **style)
    axes[0, 1].axhline(rows[0]["channels"], color="#888888", linewidth=0.9)
    axes[0, 1].set(
        xscale="log",
        xlabel="λ",
        ylabel="channels",
        title=f"Channels above {INFORMATIVE} bit per latent",
        ylim=(0, 1.08 * rows[0]["channels"]),
    )
    axes[0, 2].set(
        xscale="log",
        yscale="log",
        xlabel="λ",
        ylabel="standard deviation, quantiser steps",
        title="Width of their latents (median, quartiles)",
    )
    axes[0, 1].legend(fontsize=8, loc="lower right")
    rungs.plain_ticks(axes[0, 2].yaxis, axes[0, 1].xaxis, axes[0, 2].xaxis)
    return fig


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    arguments = rungs.parser("densities", __doc__).parse_args(argv)

    def work() -> None:
        ladder = rungs.ladder(arguments.model or rungs.default_models(), arguments.quality)
        images = rungs.read_images(arguments.images)
        measured = [row_of(rung, images) for rung in ladder]
        result = rungs.rounded({"images": list(images), "threshold": INFORMATIVE, "rows": [row for row, _ in measured]})
        rungs.write_json(result, arguments.out, "densities")
        at = ladder.index(rungs.middle(ladder))
        rungs.save(draw_densities(ladder[at], measured[at][1], np.array(measured[at][0]["bits_per_latent"])), arguments.out, "densities")
        rungs.save(draw_channels(result, ladder), arguments.out, "channels")

    return rungs.run("densities", work)


if __name__ == "__main__":
    sys.exit(main())
