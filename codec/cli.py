"""The command line: rdae compress | decompress | info | models."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from pathlib import Path

from codec import __version__, container, registry
from codec.errors import FormatError, ImageError, RdaeError
from codec.work import STANDARD, SUFFIX, Options, bits_per_pixel, guarded, read_bytes

COMPRESS = """\
Compress photographs (PNG, JPEG, WebP, TIFF, BMP, PPM, … of any mode) to .rdae files. Colour profile, EXIF and XMP are kept, and so is
transparency, exactly; the EXIF orientation is applied.

examples:
  rdae compress photo.png                     writes photo.rdae
  rdae compress photo.png -o small.rdae --verify
  rdae compress photo.png --size 50k          the best quality in 50,000 bytes
  rdae compress photo.png --effort 4          a better file for its size, in more time
  rdae compress photo.png --tune ms-ssim      a better looking one, in more time too
  rdae compress PHOTOS -r -o OUT --jobs 4     a folder and what is below it; what is done already is skipped
  cat photo.png | rdae compress - > photo.rdae
"""
DECOMPRESS = """\
Restore the images in .rdae files. The format follows from the output's name; PNG and lossless WebP keep every pixel.

examples:
  rdae decompress photo.rdae                  writes photo.png
  rdae decompress photo.rdae -o photo.jpg
  rdae decompress photo.rdae --region 512,256,640,480
  rdae decompress OUT -r -o BACK --format webp --jobs 4
  rdae decompress - --format ppm < photo.rdae | display
"""


def _bytes(text: str) -> int:
    factor = {"k": 1000, "M": 1_000_000}.get(text[-1:], 1)
    return int(float(text[:-1]) * factor) if factor > 1 else int(text)


def _region(text: str) -> tuple[int, int, int, int]:
    left, top, width, height = (int(word) for word in text.split(","))
    return left, top, width, height


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


# What argparse says of a value that does not fit.
_bytes.__name__, _region.__name__, _count.__name__ = "number of bytes", "X,Y,W,H", "positive number"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="rdae", description="A learned image codec: photographs to small files and back.",
        epilog="`rdae COMMAND --help` says more of each. Errors end with status 2; with 1 when some of many files failed.",
        formatter_class=raw,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"rdae {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    compress = commands.add_parser("compress", help="image files to .rdae files", description=COMPRESS, formatter_class=raw)
    compress.add_argument("inputs", nargs="+", metavar="IMAGE", help="files, folders (with -r), or - for standard input")
    rate = compress.add_mutually_exclusive_group()
    rate.add_argument("--quality", type=int, metavar="N", help="1 (smallest) to what the model has; see `rdae models`")
    rate.add_argument("--bpp", type=float, metavar="TARGET", help="the quality nearest to so many bits per pixel, the whole file counted")
    rate.add_argument("--size", type=_bytes, metavar="BYTES", help="the best quality in at most so many bytes (also 50k, 2M)")
    rate.add_argument("--psnr", type=float, metavar="TARGET", help="the smallest file with at least so many dB")
    compress.add_argument(
        "--effort",
        type=int,
        metavar="N",
        help="search for a better file, 0 (not at all, the default) to 9; 1…9 take about 12, 19, 23, 34, 44, 54, 64, 77, 102 times "
        "as long as 0, for each quality that is tried (--bpp, --size and --psnr try about seven). Decoding takes no longer",
    )
    compress.add_argument(
        "--tune",
        choices=("psnr", "ms-ssim"),
        default="psnr",
        help="what to search for: the best PSNR, the default, or MS-SSIM, nearer to what is seen (--effort 2 if none is given)",
    )
    compress.add_argument("--verify", action="store_true", help="decode the file again and print its PSNR")
    compress.add_argument("--tile", type=int, metavar="N", help="tiles of 128, 256, 512 or 1024 (the default) pixels, 0 for none")
    compress.add_argument("--frame", type=int, metavar="N", help="which one to take of several frames or pages, from 0")
    compress.add_argument("--strict", action="store_true", help="refuse what would lose more than the codec must: 16 bits, further images")

    decompress = commands.add_parser("decompress", help=".rdae files to image files", description=DECOMPRESS, formatter_class=raw)
    decompress.add_argument("inputs", nargs="+", metavar="FILE.rdae", help="files, folders (with -r), or - for standard input")
    decompress.add_argument("--region", type=_region, metavar="X,Y,W,H", help="only this part: left, top, width and height in pixels")
    decompress.add_argument("--format", metavar="NAME", help="png, webp, jpeg, tiff, …, when no name says it (default: png)")

    for command in (compress, decompress):
        command.add_argument("-o", "--output", type=Path, metavar="OUT", help="file, folder, or - (default: beside the input)")
        command.add_argument("-r", "--recursive", action="store_true", help="take all that is in a folder and below")
        command.add_argument("--jobs", type=_count, default=1, metavar="N", help="processes for many files, threads for one (default: 1)")
        command.add_argument("--model", metavar="NAME|FILE", help="a shipped model or a .safetensors file (default: the usual one)")
        command.add_argument(
            "--precision",
            choices=("fp32", "bf16", "auto"),
            default="fp32",
            help="of the transforms, not of the latents: fp32 (the default), bf16 (faster, a little worse), auto (bf16 where it is fast)",
        )
        command.add_argument("--strip", action="store_true", help="leave out colour profile, EXIF and XMP")
        command.add_argument("--force", action="store_true", help="overwrite outputs")
        command.add_argument("--max-pixels", type=int, metavar="N", help=f"largest image (default: {container.MAX_PIXELS}; 0: any)")

    info = commands.add_parser("info", help="what an .rdae file holds", description="Header, model and sizes of an .rdae file.")
    info.add_argument("input", type=Path, metavar="FILE.rdae")
    info.add_argument("--model", type=Path, metavar="FILE", help="the model's file, where it is not a shipped one: it tells what is what")
    info.add_argument("--json", action="store_true", help="machine-readable")

    commands.add_parser("models", help="the models that ship", description="The models that ship, the default one first.")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 2 with one line on standard error, 1 when some of many files failed."""
    arguments = build_parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files can hold what standard output cannot.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = {"compress": _convert, "decompress": _convert, "info": _info, "models": _models}[arguments.command](arguments)
        sys.stdout.flush()
    except RdaeError as error:
        print(f"rdae: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output left, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("rdae: interrupted", file=sys.stderr)
        return 130
    return status


def _convert(arguments: argparse.Namespace) -> int:
    """Compress or decompress, one file or many."""
    from codec import batch

    given = vars(arguments)
    options = Options(**{name: given[name] for name in Options.__dataclass_fields__ if name in given and name != "jobs"})
    ending = SUFFIX if arguments.command == "compress" else _ending(arguments.format)
    inputs, output, jobs = batch.expand(arguments.inputs), arguments.output, arguments.jobs
    if len(inputs) > 1 or inputs[0].is_dir():
        return batch.run(arguments.command, batch.plan(inputs, output, arguments.recursive, arguments.command, ending), options, jobs)
    source = inputs[0]
    if output is None:
        output = STANDARD if source == STANDARD else source.with_suffix(ending)
    elif output.is_dir() and source != STANDARD:
        output = output / source.with_suffix(ending).name
    if jobs > 1:
        import torch

        torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    done = guarded(arguments.command, source, output, Options(**{**vars(options), "jobs": jobs}))
    for note in done.notes:
        print(f"rdae: warning: {note}", file=sys.stderr)
    if done.error:
        raise ImageError(done.error)
    # Standard output holds the image and nothing else.
    print(done.line, file=sys.stderr if output == STANDARD else sys.stdout)
    return 0


def _ending(name: str | None) -> str:
    return f".{(name or 'png').lower().lstrip('.')}"


def _info(arguments: argparse.Namespace) -> int:
    data = read_bytes(arguments.input)
    try:
        stream = container.read(data)
        tiles = len(stream.payloads()) if stream.tile else 0
    except RdaeError as error:
        raise type(error)(f"{arguments.input}: {error}") from error
    name = registry.name_of(stream.model_hash)
    chunks: dict[str, int] = {}
    for tag, body in stream.chunks:
        part = container.NAMES.get(tag, f"chunk {tag}")
        chunks[part] = chunks.get(part, 0) + len(body)
    if stream.profile == container.HYPERPRIOR and (name or arguments.model):
        from codec import side

        try:
            chunks = {"side information": side.size(stream, arguments.model or registry.path_of(name)), **chunks}
        except FormatError as error:
            raise FormatError(f"{arguments.input}: {error}") from error
        chunks["latents"] -= chunks["side information"]
    parts = {**chunks, "header": len(data) - sum(chunks.values())}
    bpp = bits_per_pixel(len(data), stream.width, stream.height)
    mode = container.MODES[stream.mode] + (" with alpha" if stream.chunk(container.ALPHA) is not None else "")
    facts = {
        "file": str(arguments.input),
        "version": container.VERSION,
        "profile": container.PROFILES[stream.profile],
        "model": name,
        "model_hash": stream.model_hash.hex(),
        "quality": stream.quality,
        "width": stream.width,
        "height": stream.height,
        "mode": mode,
        "tile": stream.tile,
        "tiles": tiles,
        "bytes": {"total": len(data), **parts},
        "bpp": round(bpp, 4),
    }
    if arguments.json:
        print(json.dumps(facts, ensure_ascii=False))
        return 0
    listed = ", ".join(f"{part} {size}" for part, size in parts.items())
    print(f"{arguments.input}: {stream.width}×{stream.height} {mode}, {len(data)} bytes ({listed}), {bpp:.3f} bpp")
    tiled = f", {tiles} tiles of {stream.tile} pixels" if tiles else ""
    print(f"model {name or 'not shipped'} ({stream.model_hash.hex()}), profile {facts['profile']}, quality {stream.quality}{tiled}")
    return 0


def _models(arguments: argparse.Namespace) -> int:
    index = registry.index()
    for name in registry.models():
        entry = index["models"][name]
        default = " (default)" if name == index["default"] else ""
        print(f"{name}{default}  {entry['sha256'][:16]}  {entry['about']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
