"""Rate–distortion curves of the codec and its rivals on any folder of images.

    python -m tools.rd_curve IMAGES… --out DIR

Every image is encoded by every codec at a ladder of settings to a real file and decoded again. DIR receives

    results.json   bytes, bpp, PSNR (RGB, luma, chroma), MS-SSIM and seconds of each file, with settings and library versions
    summary/*.json each codec's averages in the layout of CompressAI's results: python -m compressai.utils.plot -f DIR/summary/*.json
    rd.png rd.svg  PSNR and MS-SSIM against rate
    bd_rate.md     BD-rate of every codec against every other, averaged and image by image

What is in DIR/results.json already is not measured again, unless a codec's settings or library or a model changed: an
interrupted run goes on where it stopped, and a new model or image is added to what is there. Figures and tables show what this command
line names. Exit status: 0; 1 when some image or encoder failed (the rest is there); 2 when nothing could be done.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from PIL import Image

from codec import image as image_files
from codec.encoder import MOST_EFFORT, TUNES
from codec.errors import RdaeError
from tools import bdrate, plot, results
from tools.baselines import RIVALS, Codec, Setting, UnavailableError, rdae, with_effort, with_ladder
from tools.measure import BrokenProcessPool, measure
from tools.metrics import MS_SSIM_SIDE
from tools.results import ResultsError, Store


class UsageError(Exception):
    """Nothing can be done as asked; the message is one line that says why."""


def say(line: str) -> None:
    """Tell the person at the terminal something that is not a result."""
    print(line, file=sys.stderr)


def image_paths(arguments: Sequence[Path]) -> list[Path]:
    """Files as given, and the images in folders, at any depth, by name. Raises `UsageError`."""
    Image.init()
    paths: list[Path] = []
    for given in arguments:
        if given.is_dir():
            inside = sorted(p for p in given.rglob("*") if p.suffix.lower() in Image.EXTENSION and p.is_file())
            if not inside:
                raise UsageError(f"{given}: no images in this folder")
            paths += inside
        elif given.exists():
            paths.append(given)
        else:
            raise UsageError(f"{given}: no such file or folder")
    return paths


def read_images(paths: Sequence[Path], store: Store) -> tuple[dict[str, Path], list[str]]:
    """(hash of the pixels → file, failures); the store learns names and sizes. The same picture twice counts once."""
    found: dict[str, Path] = {}
    failures = []
    small = 0
    for path in paths:
        try:
            pixels = image_files.read(path)
        except RdaeError as error:
            failures.append(str(error))
            say(str(error))
            continue
        key = results.image_hash(pixels)
        if key in found:
            say(f"{path}: the same picture as {found[key]}, counted once")
            continue
        found[key] = path
        store.images[key] = {"name": path.name, "width": pixels.shape[1], "height": pixels.shape[0]}
        small += min(pixels.shape[:2]) < MS_SSIM_SIDE
    if small:
        say(f"{small} of {len(found)} images have a side under {MS_SSIM_SIDE} pixels: no MS-SSIM for these")
    return found, failures


def chosen_codecs(
    names: Sequence[str],
    models: Sequence[str],
    qualities: Sequence[int],
    ladders: dict[str, list[Setting]],
    efforts: Sequence[int] = (0,),
    searched: Sequence[Sequence[str]] = (),
) -> list[Codec]:
    """The codecs that can be measured here; those that cannot are skipped with a line. Raises `UsageError`."""
    found: list[Codec] = []
    for name in names:
        try:
            codecs = RIVALS[name]() if name in RIVALS else rdae(models, qualities)
            if name == "rdae":
                codecs = [with_effort(codec, effort) if effort else codec for codec in codecs for effort in efforts]
                codecs += [_searched(*words) for words in searched]
            found += [with_ladder(codec, ladders[name]) if name in ladders else codec for codec in codecs]
        except UnavailableError as error:
            say(f"{name}: skipped, {error}")
        except (RdaeError, ValueError) as error:
            raise UsageError(f"{name}: {error}") from error
    if not found:
        raise UsageError("none of the codecs can be measured here")
    return found


def _searched(model: str = "", effort: str = "", tune: str = "", *qualities: str) -> Codec:
    """What `--searched` asks for. Raises `UsageError`, and what `rdae` does."""
    if effort not in map(str, range(1, MOST_EFFORT + 1)) or tune not in TUNES or not all(q.isdecimal() for q in qualities):
        raise UsageError(f"--searched takes a model, an effort of 1 to {MOST_EFFORT}, {' or '.join(TUNES)}, then qualities")
    (plain,) = rdae([model], [int(q) for q in qualities])
    return with_effort(plain, int(effort), tune)


def versions() -> dict[str, str]:
    """What else the numbers depend on."""
    known = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for package in ("numpy", "torch", "pytorch-msssim", "bjontegaard"):
        try:
            known[package] = version(package)
        except PackageNotFoundError:  # installed without metadata
            known[package] = "unknown"
    return known


def write_report(store: Store, codecs: list[Codec], images: list[str], references: list[results.Curve], out: Path) -> list[str]:
    """Summaries, figures and tables of the store's measurements of these codecs and images; returns remarks."""
    curves, used, remarks = results.curves(store, {codec.key: [str(value) for value in codec.ladder] for codec in codecs}, images)
    (out / "summary").mkdir(exist_ok=True)
    for curve in curves:
        image_files.write_bytes(results.summary(curve, len(used)).encode(), out / "summary" / f"{curve.key}.json")
    for file in (out / "summary").glob("*.json"):
        if file.stem not in store.codecs:
            file.unlink()  # of a codec or model that was pruned
    names = {image: str(store.images[image]["name"]) for image in used}
    image_files.write_bytes(bdrate.report(curves, references, names, remarks).encode(), out / "bd_rate.md")
    if curves:
        plural = "" if len(used) == 1 else f", mean of {len(used)} images"
        plot.save(plot.figure(curves, references, f"Rate–distortion{plural}"), out)
        for metric in ("psnr", "ms_ssim_db"):
            usable = [curve for curve in curves if len(curve.points(metric)[0])]
            if usable:
                print(f"\n{bdrate.METRICS[metric]}\n{bdrate.markdown_table(usable, usable, metric)}")
    return remarks


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    new = argparse.ArgumentParser(
        prog="python -m tools.rd_curve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    names = ["rdae", *RIVALS]
    new.add_argument("images", nargs="+", type=Path, metavar="IMAGES", help="image files, or folders of them")
    new.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the results go, and are looked for")
    new.add_argument("--codecs", nargs="+", choices=names, default=names, metavar="CODEC", help=f"of {', '.join(names)} (default: all)")
    new.add_argument("--models", nargs="+", default=[], metavar="MODEL", help="names or files of rdae models (default: all that ship)")
    new.add_argument("--qualities", nargs="+", type=int, default=[], metavar="Q", help="ladder of variable-rate models (default: ten)")
    new.add_argument(
        "--efforts", nargs="+", type=int, choices=range(MOST_EFFORT + 1), default=[0], metavar="N", help="of rdae (default: 0)"
    )
    new.add_argument(
        "--searched",
        nargs="+",
        action="append",
        default=[],
        metavar=("MODEL EFFORT TUNE", "Q"),
        help="one more curve: a model, the encoder's effort, psnr or ms-ssim, and qualities, if not ten",
    )
    new.add_argument(
        "--ladder", nargs="+", action="append", default=[], metavar=("CODEC", "VALUE"), help="another ladder of settings for a rival"
    )
    new.add_argument("--reference", nargs="+", type=Path, default=[], metavar="FILE", help="published curves in CompressAI's layout")
    new.add_argument("--jobs", type=int, default=processors(), help="processes, of one thread each (default: processors)")
    new.add_argument(
        "--prune", action="store_true", help="forget what results.json holds beyond the codecs, settings and images named here"
    )
    return new


def parse_ladders(items: Sequence[Sequence[str]]) -> dict[str, list[Setting]]:
    """`--ladder jpeg 10 20` as {"jpeg": [10, 20]}. Raises `UsageError`."""
    ladders: dict[str, list[Setting]] = {}
    for name, *values in items:
        if name not in RIVALS or not values:
            raise UsageError(f"--ladder takes a codec of {', '.join(RIVALS)}, then its settings")
        try:
            ladders[name] = [int(value) if value.lstrip("-").isdecimal() else float(value) for value in values]
        except ValueError as error:
            raise UsageError(f"--ladder {name}: {error}") from error
    return ladders


def run(arguments: argparse.Namespace) -> int:
    """Measure what is missing, then write everything. Raises `UsageError` and its kin."""
    if arguments.jobs < 1:
        raise UsageError("--jobs must be at least 1")
    ladders = parse_ladders(arguments.ladder)
    references = [results.read_reference(path) for path in arguments.reference]
    paths = image_paths(arguments.images)
    codecs = chosen_codecs(arguments.codecs, arguments.models, arguments.qualities, ladders, arguments.efforts, arguments.searched)
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{arguments.out}: {error.strerror}") from error
    store = Store(arguments.out / "results.json")
    images, failures = read_images(paths, store)
    if not images:
        raise UsageError("none of the images can be read")
    for codec in codecs:
        if store.enter(codec):
            say(f"{codec.name}: settings or library changed, everything is measured anew")
    if arguments.prune:
        store.prune(codecs, list(images))
    store.versions = versions()
    failures += measure(store, codecs, images, arguments.jobs)
    remarks = write_report(store, codecs, list(images), references, arguments.out)
    for remark in remarks:
        say(remark)
    if failures:
        say(f"{len(failures)} failures; the first: {failures[0]}")
    return 1 if failures else 0


def status_of(tool: str, work: Callable[[], int]) -> int:
    """Do a tool's work; returns its exit status, with a line about whatever ended it early."""
    try:
        return work()
    except KeyboardInterrupt:
        say("interrupted; what was measured is kept, the same command goes on from here")
        return 130
    except BrokenProcessPool:
        say("a measuring process died, perhaps for want of memory; what was measured is kept, try again with fewer --jobs")
        return 2
    except (UsageError, ResultsError, RdaeError) as error:
        say(f"{tool}: {error}")
        return 2


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return status_of("rd_curve", lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    # Ended in whatever way, the run stops its workers and keeps what they measured.
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.default_int_handler)
    sys.exit(main())
