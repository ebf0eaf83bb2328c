"""Rate–distortion figures: curves labelled where they are, told apart by marker and dash as well as by colour."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")  # no window is ever opened, so no display is needed

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator, NullFormatter, ScalarFormatter

from codec import image as image_files
from tools.bdrate import front
from tools.results import Curve, Floats

PANELS: Final = (("psnr", "PSNR (RGB), dB"), ("ms_ssim_db", "MS-SSIM, dB"))
_DPI: Final = 110
RATES: Final = (0.085, 2.2)
"""Bits per pixel that are shown."""
# Okabe and Ito's colours, darkened until they read on white; the lightness differs between neighbours.
_COLOURS: Final = ("#b2182b", "#0a5a9c", "#5a5a5a", "#d1730d", "#00805a", "#8a3d8f", "#1f9bc9", "#7a5c00", "#303030", "#c04f8b")
_MARKERS: Final = ("s", "^", "v", "D", "p", "X", "<", ">", "h", "*")
_RDAE: Final = (("#000000", "o"), ("#000000", "D"), ("#444444", "s"), ("#444444", "^"), ("#222222", "v"), ("#222222", "P"))

_RATE_TICKS: Final = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2)


def _style(curve: Curve, number: int) -> dict[str, Any]:
    if curve.key.startswith("rdae"):
        colour, marker = _RDAE[number % len(_RDAE)]
        filled = number % 2 == 0
        face = colour if filled else "white"
        return {"color": colour, "marker": marker, "markersize": 4.5, "markerfacecolor": face, "linewidth": 2.2, "zorder": 4}
    colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
    return {"color": colour, "marker": marker, "markersize": 3.8, "linewidth": 1.1, "zorder": 3}


def figure(curves: Sequence[Curve], references: Sequence[Curve], title: str) -> Figure:
    """PSNR and MS-SSIM against rate, side by side; published curves dashed."""
    # The layout is fixed before labels are placed, since they are placed in pixels.
    fig, panels = plt.subplots(1, 2, figsize=(16, 8.5), dpi=_DPI)
    fig.subplots_adjust(left=0.04, right=0.995, bottom=0.065, top=0.94, wspace=0.1)
    ours = [curve for curve in curves if curve.key.startswith("rdae")]
    rivals = [curve for curve in curves if not curve.key.startswith("rdae")]
    for ax, (metric, label) in zip(panels, PANELS, strict=True):
        lines: list[tuple[str, Any, Floats]] = []
        drawn = [(curve, _style(curve, number)) for group in (ours, rivals) for number, curve in enumerate(group)]
        dashes = ((5, 2), (2, 1.5), (7, 2, 1.5, 2), (4, 1.5, 1, 1.5, 1, 1.5), (9, 3))
        for number, reference in enumerate(references):
            style = {"color": "#777777", "linewidth": 1.0, "dashes": dashes[number % len(dashes)], "zorder": 2}
            drawn.append((reference, style))
        for curve, style in drawn:
            rate, quality = front(*curve.points(metric))
            if len(rate):
                ax.plot(rate, quality, **style)
                lines.append((curve.name, style["color"], _resample(rate, quality)))
        _frame(ax, lines, label)
        fig.canvas.draw()
        _label(ax, lines)
    fig.suptitle(title, fontsize=12)
    return fig


def _frame(ax: Axes, lines: Sequence[tuple[str, Any, Floats]], label: str) -> None:
    ax.set_xscale("log")
    ax.set_xlim(*RATES)
    ax.set_xticks(_RATE_TICKS)
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.minorticks_off()
    shown = [line[(line[:, 0] >= RATES[0]) & (line[:, 0] <= RATES[1]), 1] for _, _, line in lines]
    values = np.concatenate(shown) if lines else np.array([])
    if len(values):
        margin = 0.04 * (values.max() - values.min()) + 0.1
        ax.set_ylim(values.min() - margin, values.max() + margin)
        ax.yaxis.set_major_locator(MultipleLocator(2))
    else:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center")
    ax.set_xlabel("rate, bits per pixel (whole file, logarithmic)")
    ax.set_ylabel(label)
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)


def _resample(rate: Floats, quality: Floats) -> Floats:
    """Many points (N×2) along the straight pieces that are drawn."""
    at = np.linspace(0, len(rate) - 1, 16 * len(rate))
    index = np.arange(len(rate))
    return np.stack([np.exp(np.interp(at, index, np.log(rate))), np.interp(at, index, quality)], axis=1)


def _label(ax: Axes, lines: Sequence[tuple[str, Any, Floats]]) -> None:
    """Put each name near its curve, joined to it by a thin line where it cannot touch it.

    Greedy: from a grid of places over the panel, each curve takes the one that covers least of other curves and labels, is near to
    its own curve and whose joining line crosses few others. What is drawn first chooses first.
    """
    renderer = ax.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = ax.get_window_extent(renderer)
    dots = ax.figure.dpi / 72
    pixels = [ax.transData.transform(line) for _, _, line in lines]
    edge = 10 * dots  # a label joined to a curve where it leaves the panel would be hard to follow
    joinable = [line[(line[:, 0] > frame.x0 + edge) & (line[:, 0] < frame.x1 - edge)] for line in pixels]
    taken = np.zeros((0, 4))
    joins = np.zeros((0, 2))
    inside = [number for number, line in enumerate(joinable) if len(line)]
    for number in inside:
        name, colour, _ = lines[number]
        text = ax.text(1, 0, name, color=colour, fontsize=10, ha="left", va="bottom", zorder=6)
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5})
        box = text.get_window_extent(renderer)
        others = np.concatenate([joinable[number][:0], *(line for n, line in enumerate(pixels) if n != number)])
        place, anchor = _place(box.width, box.height, frame, joinable[number], others, taken, joins, dots)
        corner = place + np.array([box.width, box.height])
        text.set_position(tuple(ax.transData.inverted().transform(place)))
        near = np.clip(anchor, place, corner)
        if np.hypot(*(near - anchor)) > 5 * dots:
            ends = ax.transData.inverted().transform([near, anchor])
            ax.plot(ends[:, 0], ends[:, 1], color=colour, linewidth=0.6, zorder=5)
            ax.plot(*ends[1], marker=".", color=colour, markersize=4, zorder=5)
        taken = np.vstack([taken, [*place, *corner]])
        joins = np.vstack([joins, near + np.linspace(0, 1, 12)[:, None] * (anchor - near)])


def _place(
    width: float, height: float, frame: Any, own: Floats, others: Floats, taken: Floats, joins: Floats, dots: float
) -> tuple[Floats, Floats]:
    """(lower left corner, point of the own curve it belongs to), in pixels."""
    gap = 3 * dots
    best, found = np.inf, (own[0], own[0])
    obstacles = np.concatenate([own, others, joins])
    for x in np.arange(frame.x0 + gap, frame.x1 - width, 12 * dots):
        for y in np.arange(frame.y0 + gap, frame.y1 - height, 6 * dots):
            low, high = np.array([x, y]), np.array([x + width, y + height])
            clash = (np.minimum(high, taken[:, 2:]) - np.maximum(low, taken[:, :2]) > -gap).all(axis=1).sum() if len(taken) else 0
            covered = ((obstacles > low - gap) & (obstacles < high + gap)).all(axis=1).sum()
            cost = 1000.0 * clash + 20.0 * covered
            if cost >= best:
                continue
            nearest = np.clip(own, low, high)
            distance = np.hypot(*(own - nearest).T)
            at = int(distance.argmin())
            cost += distance[at] / dots
            if cost >= best:
                continue
            path = nearest[at] + np.linspace(0, 0.9, 20)[:, None] * (own[at] - nearest[at])
            crossed = np.hypot(*(path[:, None] - others[None, ::2]).transpose(2, 0, 1)).min(initial=np.inf, axis=1) < gap
            over = ((path[:, None] > taken[None, :, :2]) & (path[:, None] < taken[None, :, 2:])).all(axis=2).any() if len(taken) else False
            cost += 25.0 * crossed.sum() + 500.0 * over
            if cost < best:
                best, found = cost, (low, own[at])
    return found


def save(fig: Figure, folder: Path) -> None:
    """`rd.png` and `rd.svg`, the same bytes from the same numbers."""
    with mpl.rc_context({"svg.hashsalt": "rdae"}):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            buffer = io.BytesIO()
            fig.savefig(buffer, format=kind, metadata=metadata)
            image_files.write_bytes(buffer.getvalue(), folder / f"rd.{kind}")
    plt.close(fig)
