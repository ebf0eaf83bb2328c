"""The command line: rdae compress | decompress | info | models."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from codec import __version__, container, registry
from codec.errors import ImageError, RdaeError, UnknownModelError

SUFFIX = ".rdae"
PROFILES = {container.FACTORIZED: "factorized"}

COMPRESS = """\
Compress a photograph (PNG, JPEG, WebP, TIFF, BMP, PPM, …) to an .rdae file.

examples:
  rdae compress photo.png                     writes photo.rdae
  rdae compress photo.png -o small.rdae --verify
"""
DECOMPRESS = """\
Restore the image in an .rdae file. The format follows from the output's name; PNG and lossless WebP keep every pixel.

examples:
  rdae decompress photo.rdae                  writes photo.png
  rdae decompress photo.rdae -o photo.jpg
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="rdae", description="A learned image codec: photographs to small files and back.",
        epilog="`rdae COMMAND --help` says more of each. Errors end with status 2.", formatter_class=raw,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"rdae {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    compress = commands.add_parser("compress", help="image file to .rdae file", description=COMPRESS, formatter_class=raw)
    compress.add_argument("input", type=Path, metavar="IMAGE")
    compress.add_argument("--quality", type=int, metavar="N", help="1 (smallest) to what the model has; see `rdae models`")
    compress.add_argument("--verify", action="store_true", help="decode the file again and print its PSNR")

    decompress = commands.add_parser("decompress", help=".rdae file to image file", description=DECOMPRESS, formatter_class=raw)
    decompress.add_argument("input", type=Path, metavar="FILE.rdae")

    for command in (compress, decompress):
        command.add_argument("-o", "--output", type=Path, metavar="OUT", help="output file (default: the input's name, other ending)")
        command.add_argument("--model", metavar="NAME|FILE", help="a shipped model or a .safetensors file (default: the usual one)")
        command.add_argument("--force", action="store_true", help="overwrite the output")

    info = commands.add_parser("info", help="what an .rdae file holds", description="Header, model and sizes of an .rdae file.")
    info.add_argument("input", type=Path, metavar="FILE.rdae")
    info.add_argument("--json", action="store_true", help="machine-readable")

    commands.add_parser("models", help="the models that ship", description="The models that ship, the default one first.")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 2 with one line on standard error."""
    arguments = build_parser().parse_args(argv)
    try:
        {"compress": _compress, "decompress": _decompress, "info": _info, "models": _models}[arguments.command](arguments)
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
    except MemoryError:
        print(f"rdae: {arguments.input}: not enough memory", file=sys.stderr)
        return 2
    return 0


def _output(arguments: argparse.Namespace, suffix: str) -> Path:
    output: Path = arguments.output or arguments.input.with_suffix(suffix)
    if output.is_dir():
        raise ImageError(f"{output}: is a folder")
    if output.exists() and not arguments.force:
        raise ImageError(f"{output}: exists already; --force overwrites it")
    if not output.parent.is_dir():
        raise ImageError(f"{output.parent}: no such folder")
    return output


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error


def _bpp(size: int, width: int, height: int) -> float:
    """Bits per pixel of a whole file."""
    return 8 * size / (width * height)


def _compress(arguments: argparse.Namespace) -> None:
    output = _output(arguments, SUFFIX)
    from codec import image as images

    pixels = images.read(arguments.input)
    from codec import model as models

    model = models.load(arguments.model)
    data = model.encode(pixels, arguments.quality)
    images.write_bytes(data, output)
    height, width = pixels.shape[:2]
    line = f"{output}: {width}×{height}, {len(data)} bytes, {_bpp(len(data), width, height):.3f} bpp"
    if arguments.verify:
        line += f", {_psnr(pixels, model.decode(_read_bytes(output))):.2f} dB PSNR"
    print(line)


def _psnr(a: Any, b: Any) -> float:
    """Peak signal-to-noise ratio in dB over all channels of two uint8 images."""
    import numpy as np

    error = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2, dtype=np.float64))
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def _decompress(arguments: argparse.Namespace) -> None:
    output = _output(arguments, ".png")
    data = _read_bytes(arguments.input)
    try:
        stream = container.read(data)
        from codec import image as images
        from codec import model as models

        model = models.load_for(stream) if arguments.model is None else models.load(arguments.model)
        pixels = model.synthesise(model.decode_latents(stream), stream.quality, stream.height, stream.width)
    except UnknownModelError as error:
        raise UnknownModelError(f"{arguments.input}: {error} (--model)") from error
    except RdaeError as error:
        raise type(error)(f"{arguments.input}: {error}") from error
    images.write(pixels, output)
    print(f"{output}: {stream.width}×{stream.height}")


def _info(arguments: argparse.Namespace) -> None:
    data = _read_bytes(arguments.input)
    try:
        stream = container.read(data)
    except RdaeError as error:
        raise type(error)(f"{arguments.input}: {error}") from error
    name = registry.name_of(stream.model_hash)
    chunks = {f"chunk {tag}" if tag != container.LATENTS else "latents": len(body) for tag, body in stream.chunks}
    facts = {
        "file": str(arguments.input),
        "version": container.VERSION,
        "profile": PROFILES[stream.profile],
        "model": name,
        "model_hash": stream.model_hash.hex(),
        "quality": stream.quality,
        "width": stream.width,
        "height": stream.height,
        "mode": "RGB",
        "bytes": {"total": len(data), **chunks, "header": len(data) - sum(chunks.values())},
        "bpp": round(_bpp(len(data), stream.width, stream.height), 4),
    }
    if arguments.json:
        print(json.dumps(facts, ensure_ascii=False))
        return
    parts = ", ".join(f"{part} {size}" for part, size in {**chunks, "header": len(data) - sum(chunks.values())}.items())
    print(f"{arguments.input}: {stream.width}×{stream.height} RGB, {len(data)} bytes ({parts}), {facts['bpp']:.3f} bpp")
    print(f"model {name or 'not shipped'} ({stream.model_hash.hex()}), profile {facts['profile']}, quality {stream.quality}")


def _models(arguments: argparse.Namespace) -> None:
    index = registry.index()
    for name in registry.models():
        entry = index["models"][name]
        default = " (default)" if name == index["default"] else ""
        print(f"{name}{default}  {entry['sha256'][:16]}  {entry['about']}")


if __name__ == "__main__":
    sys.exit(main())
