"""A page to look at: rate–distortion curves, BD-rates and before/after sliders, in one HTML file that needs nothing else.

    python -m tools.report IMAGES… -o report.html

The curves and the table are those of a `results.json` of `tools.rd_curve`. The pictures are made on the spot: rdae at each of its
qualities (or with each of the models named), and every rival at its smallest file that is not below rdae's, or at its largest when
none is; how far the sizes are apart stands beside each. Every picture on the page is what the decoder gave, as lossless WebP, which
takes a third less than PNG; count on 1.1 bytes of page for each pixel of each codec at each quality.

Of images with a side above --max-side the page shows the middle; bytes and metrics are those of the whole. An output that exists is
replaced, once the new one is complete. Exit status: 0; 1 when some rival failed on some image (the page says so); 2 when nothing was
written, after a line that says why.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tqdm import tqdm

import codec
from codec import image as image_files
from codec.errors import RdaeError
from tools.baselines import RIVALS, Codec, Setting, UnavailableError, rdae
from tools.bdrate import README_ANCHORS
from tools.rd_curve import UsageError, image_paths, say
from tools.report_data import Album, Json, Pixels, compared, model_of, published, rate_distortion
from tools.results import ResultsError, image_hash

ROOT: Final = Path(__file__).parent.parent
KODAK: Final = ROOT / "data" / "results" / "kodak" / "results.json"
PARTS: Final = Path(__file__).parent / "report_page"
SIZES: Final = 4
"""Qualities of a variable-rate model that are shown unless others are asked for."""
WEBP_SIDE: Final = 16383


def page(content: Json) -> str:
    """The HTML: style, scripts and data in one. No text of the data can end the element that it stands in."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    html = (PARTS / "page.html").read_text(encoding="utf-8")
    script = "\n".join((PARTS / name).read_text(encoding="utf-8") for name in ("elements.js", "curves.js", "compare.js", "page.js"))
    style = (PARTS / "style.css").read_text(encoding="utf-8")
    for mark, part in (("/* style */", style), ("/* script */", script), ("/* data */", text)):
        html = html.replace(mark, part, 1)
    return html


def chosen_rivals(keys: Sequence[str]) -> list[Codec]:
    """Codecs by the keys of their curves; those of the README when none is named. Raises `UsageError`."""
    known: dict[str, Codec] = {}
    for name, make in RIVALS.items():
        try:
            known |= {rival.key: rival for rival in make()}
        except UnavailableError as error:
            say(f"{name}: left out, {error}")
    unknown = [key for key in keys if key not in known]
    if unknown:
        raise UsageError(f"--codecs: no codec here is called {unknown[0]!r}; there are: {', '.join(known)}")
    return [known[key] for key in dict.fromkeys(keys or README_ANCHORS) if key in known]


def chosen_models(models: Sequence[str], qualities: Sequence[int]) -> list[tuple[Codec, Setting]]:
    """(codec, setting) of every size that is shown. Raises `UsageError`, `UnavailableError`, `RdaeError`."""
    curves_ = rdae(models or codec.models()[:1], sorted(set(qualities)))
    variable = [curve for curve in curves_ if curve.parameter == "quality"]
    if qualities and not variable:
        raise UsageError("--quality is for variable-rate models, and the model has one quality only")
    chosen: list[tuple[Codec, Setting]] = []
    for curve in curves_:
        ladder = curve.ladder
        if curve in variable and not qualities:
            count = int(curve.limits[1])
            ladder = tuple(dict.fromkeys(max(1, round(count * (i + 0.4) / SIZES)) for i in range(SIZES)))
        chosen += [(curve, setting) for setting in ladder]
    return chosen


def parser() -> argparse.ArgumentParser:
    """The command line."""
    new = argparse.ArgumentParser(
        prog="python -m tools.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    new.add_argument("images", nargs="+", type=Path, metavar="IMAGES", help="image files, or folders of them")
    new.add_argument("-o", "--out", type=Path, default=Path("report.html"), metavar="FILE", help="the page (default: %(default)s)")
    new.add_argument("--results", type=Path, metavar="FILE", help="results.json of tools.rd_curve (default: that of Kodak)")
    new.add_argument(
        "--reference",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="published curves in CompressAI's layout (default: those of Kodak)",
    )
    new.add_argument("--model", nargs="+", default=[], metavar="MODEL", help="names or files of rdae models (default: the default one)")
    new.add_argument("--quality", nargs="+", type=int, default=[], metavar="Q", help=f"of variable-rate models (default: {SIZES}, spread)")
    new.add_argument("--codecs", nargs="+", default=[], metavar="CODEC", help=f"rivals (default: {' '.join(README_ANCHORS)})")
    new.add_argument("--max-side", type=int, default=1024, metavar="N", help="pixels of a side that are shown (default: %(default)s)")
    return new


def run(arguments: argparse.Namespace) -> int:
    """Make the page. Raises `UsageError` and its kin."""
    if not 1 <= arguments.max_side <= WEBP_SIDE:
        raise UsageError(f"--max-side must lie in 1…{WEBP_SIDE}, not {arguments.max_side}")
    paths = image_paths(arguments.images)
    if arguments.out.is_dir():
        raise UsageError(f"{arguments.out}: is a folder")
    if arguments.out.exists() and any(path.samefile(arguments.out) for path in paths):
        raise UsageError(f"{arguments.out}: is one of the images, and would be overwritten")
    results = arguments.results or (KODAK if KODAK.exists() else None)
    if results is None:
        say("no results.json: the page has no curves")
    elif not results.exists():
        raise UsageError(f"{results}: no such file")
    references = arguments.reference or ([] if arguments.results else sorted((ROOT / "data" / "references").glob("*.json")))
    measured = rate_distortion(results, [published(path) for path in references]) if results else None
    ours, rivals = chosen_models(arguments.model, arguments.quality), chosen_rivals(arguments.codecs)
    images: dict[str, tuple[Path, Pixels]] = {}
    for path in paths:
        pixels = image_files.read(path)
        if images.setdefault(image_hash(pixels), (path, pixels))[0] != path:
            say(f"{path}: the same picture as {images[image_hash(pixels)][0]}, shown once")
    album = Album(arguments.max_side)
    shown: list[Json] = []
    # The temporary file is made first, so that an output that cannot be written is known before anything is measured.
    with image_files.Atomic(arguments.out) as temporary:
        with tqdm(total=len(images) * len(ours) * (1 + len(rivals)), unit="file", file=sys.stderr) as bar:
            for path, pixels in images.values():
                before = sum(map(len, album.urls.values()))
                shown.append(compared(path, pixels, ours, rivals, album, bar))
                added = (sum(map(len, album.urls.values())) - before) / 1e6
                tqdm.write(f"{path}: {pixels.shape[1]}×{pixels.shape[0]}, {added:.1f} MB of the page", file=sys.stderr)
        libraries = {rival.name: f"{rival.settings} ({rival.library})" for rival in [*rivals, *dict(ours)]}
        models = list(dict.fromkeys(model_of(*version) for version in ours))
        about = {"version": codec.__version__, "models": models, "libraries": libraries}
        content = {**about, "rd": measured, "images": shown, "pictures": album.urls}
        temporary.write_text(page(content), encoding="utf-8")
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB")
    failures = [f"{image['name']}: {failure}" for image in shown for failure in image["failures"]]
    for failure in failures:
        say(failure)
    return 1 if failures else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    try:
        return run(parser().parse_args(argv))
    except KeyboardInterrupt:
        say("report: interrupted, nothing was written")
        return 130
    except (UsageError, UnavailableError, ResultsError, RdaeError, OSError) as error:
        say(f"report: {error}")
        return 2


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
