"""What divisive normalisation does to filter responses.

    python -m tools.gdn [IMAGE …] [--model …]

The responses of a convolution to photographs have heavy tails, and where one is large, so are its neighbours, in space and across channels,
even where they are uncorrelated. GDN divides each by what is around it:

    z_c = y_c / √(β_c + Σ_c' γ_cc' y_c'²).

Measured before and after each GDN of the analysis: the excess kurtosis of every channel (0 for a Gaussian), and the mutual
information between magnitudes |y| of neighbours, next to each other in one channel, or at one place in two channels. It is estimated from
ranks, so a change of the marginal distributions alone leaves it as it is; pairs that are shuffled show what the estimate makes of nothing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from codec.model import Model
from codec.transforms import GDN
from tools import rungs
from tools.rungs import Pixels

Floats = npt.NDArray[np.float64]
BINS: Final = 16
"""Ranks are divided into so many parts along each axis."""
PAIRS: Final = 256
"""Pairs of channels that are looked at."""
NAMES: Final = {"space": "neighbours in space", "channels": "two channels, one place", "shuffled": "shuffled pairs"}


@torch.inference_mode()
def responses(model: Model, image: Pixels) -> dict[str, tuple[Floats, Floats]]:
    """(before, after) each GDN of the analysis, C×h×w, away from the image's edges, where the convolutions see zeros."""
    x = (rungs.to_tensor(image)[None] / 255).float()
    out = {}
    for name, layer in model.analysis.named_children():
        y = layer(x)
        if isinstance(layer, GDN):
            out[name] = tuple(np.asarray(v[0, :, 4:-4, 4:-4].double().numpy()) for v in (x, y))
        x = y
    return out


def kurtosis(values: Floats) -> Floats:
    """Excess kurtosis of each row of C×N."""
    centred = values - values.mean(axis=1, keepdims=True)
    return np.asarray((centred**4).mean(axis=1) / (centred**2).mean(axis=1) ** 2 - 3)


def mutual_information(a: Floats, b: Floats) -> float:
    """Bits that two magnitudes say of each other, from the joint histogram of their ranks, less the bias of counting."""
    joint = np.bincount(_rank_bins(a) * BINS + _rank_bins(b), minlength=BINS**2).reshape(BINS, BINS) / len(a)
    expected = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    some = joint > 0
    return float((joint[some] * np.log2(joint[some] / expected[some])).sum() - (BINS - 1) ** 2 / (2 * len(a) * math.log(2)))


def _rank_bins(values: Floats) -> npt.NDArray[np.int64]:
    return np.argsort(np.argsort(values, kind="stable"), kind="stable") * BINS // len(values)


def channel_pairs(channels: int, seed: int) -> list[tuple[int, int]]:
    """Different channels, drawn at random."""
    generator = np.random.default_rng(seed)
    return [tuple(int(c) for c in generator.choice(channels, 2, replace=False)) for _ in range(PAIRS)]  # type: ignore[misc]


def statistics(planes: Sequence[Floats], pairs: Sequence[tuple[int, int]], seed: int) -> dict[str, Floats]:
    """Kurtosis and mutual informations over several images' responses C×h×w."""
    generator = np.random.default_rng(seed)
    flat = np.concatenate([p.reshape(len(p), -1) for p in planes], axis=1)
    left, right = (np.concatenate([p[:, :, s].reshape(len(p), -1) for p in planes], axis=1) for s in (slice(None, -1), slice(1, None)))
    size = np.abs(flat)
    return {
        "kurtosis": kurtosis(flat),
        "space": np.array([mutual_information(np.abs(a), np.abs(b)) for a, b in zip(left, right, strict=True)]),
        "channels": np.array([mutual_information(size[i], size[j]) for i, j in pairs]),
        "correlation": np.array([abs(np.corrcoef(flat[i], flat[j])[0, 1]) for i, j in pairs]),
        "shuffled": np.array([mutual_information(size[i], generator.permutation(size[j])) for i, j in pairs[:32]]),
    }


def measure(model: Model, images: dict[str, Pixels], seed: int) -> tuple[dict[str, Any], dict[str, tuple[list[Floats], list[Floats]]]]:
    """(what is written to `gdn.json`, the responses of each layer, before and after, a plane for each image)."""
    planes: dict[str, tuple[list[Floats], list[Floats]]] = {}
    for image in images.values():
        for name, (before, after) in responses(model, image).items():
            lists = planes.setdefault(name, ([], []))
            lists[0].append(before)
            lists[1].append(after)
    layers = {}
    for name, sides in planes.items():
        pairs = channel_pairs(len(sides[0][0]), seed)
        found = {side: statistics(some, pairs, seed) for side, some in zip(("before", "after"), sides, strict=True)}
        medians = {side: {key: float(np.median(values)) for key, values in stats.items()} for side, stats in found.items()}
        layers[name] = {"pairs": pairs, "median": medians, **found}
    return {"model": model.name, "images": list(images), "bins": BINS, "layers": layers}, planes


def strongest(layer: dict[str, Any]) -> tuple[int, int]:
    """The pair whose magnitudes depend on each other most before GDN, among those of little correlation and heavy tails.

    Filters with heavy tails are those that look for edges and texture; means of brightness and colour depend on each other otherwise.
    """
    information, correlation, tails = (np.asarray(layer["before"][key]) for key in ("channels", "correlation", "kurtosis"))
    heavy = (tails[np.asarray(layer["pairs"])] >= np.median(tails)).all(axis=1)
    pair = layer["pairs"][int(np.argmax(information + heavy * (correlation <= np.median(correlation)) * 100))]
    return pair[0], pair[1]


def bow_tie(ax: Any, a: Floats, b: Floats, label: str) -> None:
    """How the histogram of b changes with a: each column scaled to its own maximum, both axes in standard deviations.

    Columns of fewer than a hundred samples, which say nothing, stay grey.
    """
    reach = 3.0
    a, b = ((v - v.mean()) / v.std() for v in (a, b))
    counts = np.histogram2d(a, b, bins=41, range=((-reach, reach), (-reach, reach)))[0]
    shown = np.where(counts.sum(axis=1, keepdims=True) < 100, np.nan, counts / np.maximum(counts.max(axis=1, keepdims=True), 1))
    ax.set_facecolor("#b8c4d6")
    ax.imshow(shown.T, origin="lower", extent=(-reach, reach, -reach, reach), cmap="gray", aspect="equal", interpolation="nearest")
    ax.grid(False)
    ax.set(xlabel="one channel, standard deviations", ylabel="histogram of another", title=label)


def draw(result: dict[str, Any], planes: dict[str, tuple[list[Floats], list[Floats]]]) -> Any:
    """For each GDN: dependency of one pair before and after, kurtosis, mutual information."""
    fig, axes = rungs.panels(len(planes), 4, 4.4, 4.0)
    for row, (name, layer) in zip(axes, result["layers"].items(), strict=True):
        i, j = strongest(layer)
        for ax, side, some in zip(row, ("before", "after"), planes[name], strict=False):
            a, b = (np.concatenate([p[c].ravel() for p in some]) for c in (i, j))
            bow_tie(ax, a, b, f"channels {i} and {j} {side} {name}")
        ax = row[2]
        kurtoses = [np.maximum(np.asarray(layer[side]["kurtosis"]) + 3, 1) for side in ("before", "after")]
        ax.plot(*kurtoses, ".", color="#0a5a9c", markersize=5, alpha=0.7)
        low, high = 1.0, max(k.max() for k in kurtoses) * 1.2
        ax.plot([low, high], [low, high], color="#888888", linewidth=0.9)
        ax.axhline(3, color="#b2182b", linewidth=0.9, linestyle=":")
        ax.text(high, 3.1, "Gaussian", color="#b2182b", fontsize=8, ha="right", va="bottom")
        ax.set(
            xscale="log",
            yscale="log",
            xlim=(low, high),
            ylim=(low, high),
            xlabel="before",
            ylabel="after",
            title=f"Kurtosis of each channel, {name}",
        )
        ax = row[3]
        data = [layer[side][key] for key in NAMES for side in ("before", "after")]
        boxes = ax.boxplot(data, positions=[0, 0.8, 2.2, 3.0, 4.4, 5.2], widths=0.6, showfliers=False, patch_artist=True)
        for number, box in enumerate(boxes["boxes"]):
            box.set_facecolor("#9ecae1" if number % 2 == 0 else "#fdae6b")
        for line in boxes["medians"]:
            line.set_color("black")
        ax.set_xticks(
            [0.4, 2.6, 4.8],
            [label.replace(", ", ",\n").replace(" in ", "\nin ").replace("d p", "d\np") for label in NAMES.values()],
            fontsize=8,
        )
        ax.set(ylabel="bits", title=f"Mutual information of magnitudes, {name}", ylim=(-0.02, None))
        ax.legend(boxes["boxes"][:2], ("before", "after"), fontsize=8)
        for ax in row:
            ax.title.set_fontsize(10)
    return fig


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    arguments = rungs.parser("gdn", __doc__).parse_args(argv)

    def work() -> None:
        rung = rungs.middle(rungs.ladder(arguments.model or rungs.default_models(), arguments.quality))
        result, planes = measure(rung.model, rungs.read_images(arguments.images), arguments.seed)
        rungs.write_json(result, arguments.out, "gdn")
        rungs.save(draw(rungs.rounded(result), planes), arguments.out, "gdn")

    return rungs.run("gdn", work)


if __name__ == "__main__":
    sys.exit(main())
