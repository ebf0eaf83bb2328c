from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from tools import plot
from tools.results import Curve


def curve(key: str, shift: float, points: int = 9) -> Curve:
    rate = np.geomspace(0.1, 2, points)
    psnr = 33 + 4 * np.log(rate) + np.log(rate) ** 2 + shift
    means = {"bpp": list(rate), "psnr": list(psnr), "ms_ssim_db": list(psnr / 2)}
    return Curve(key, f"{key} {shift:+.1f}", "", "", tuple(map(str, range(points))), {}, means)


CURVES = [curve(key, shift) for key, shift in (("rdae", 0.0), ("rdae-two", -0.3), ("jpeg", -3), ("jpeg2000", -0.5), ("avif", 0.6))]
REFERENCES = [curve("published", 1.5, 6), curve("another", 1.8, 7)]


@lru_cache
def drawn() -> Figure:
    figure = plot.figure(CURVES, REFERENCES, "title")
    figure.canvas.draw()
    return figure


def test_every_curve_is_named_in_both_panels_and_no_names_collide() -> None:
    figure = drawn()
    for ax in figure.axes:
        assert sorted(text.get_text() for text in ax.texts) == sorted(c.name for c in [*CURVES, *REFERENCES])
        boxes = [text.get_window_extent() for text in ax.texts]
        frame = ax.get_window_extent()
        for i, box in enumerate(boxes):
            assert frame.containsx(box.x0)
            assert frame.containsx(box.x1)
            assert frame.containsy(box.y0)
            assert frame.containsy(box.y1)
            assert not any(Bbox.intersection(box, other) for other in boxes[i + 1 :])
            curves = [line for line in ax.lines if len(line.get_xdata()) > 2]  # the others join a name to its curve
            covered = sum(box.contains(*point) for line in curves for point in ax.transData.transform(line.get_xydata()))
            assert covered == 0  # no marker is hidden behind a name


def test_it_can_be_read_without_colour() -> None:
    lines = [line for line in drawn().axes[0].lines if len(line.get_xdata()) > 2]
    marks = [(line.get_marker(), line.get_markerfacecolor(), line.get_linewidth()) for line in lines[: len(CURVES)]]
    assert len(set(marks)) == len(CURVES)
    assert all(line.get_linestyle() == "-" for line in lines[: len(CURVES)])
    dashes = [tuple(line._unscaled_dash_pattern[1]) for line in lines[len(CURVES) :]]
    assert len(set(dashes)) == len(REFERENCES)


def test_a_figure_without_points_can_be_saved_twice_to_the_same_bytes(tmp_path: Path) -> None:
    empty = Curve("x", "x", "", "", (), {}, {"bpp": [], "psnr": [], "ms_ssim_db": []})
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        plot.save(plot.figure([CURVES[0], empty], [], "title"), tmp_path / name)
    for kind in ("png", "svg"):
        assert (tmp_path / "a" / f"rd.{kind}").read_bytes() == (tmp_path / "b" / f"rd.{kind}").read_bytes()
