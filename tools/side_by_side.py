"""JPEG, JPEG 2000 and rdae at one rate, in one picture: the comparison that the paper's figures make.

    python -m tools.side_by_side IMAGE --bpp 0.12

rdae is taken at the reachable rate that is nearest to the one asked for, and the others at their lowest rates that are not below it: none
gets fewer bits than rdae. Under each stand its settings, file size, rate, luma and chroma PSNR and MS-SSIM of that very file.
"""

from __future__ import annotations

import argparse
import bisect
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from codec import image as image_files
from codec.errors import RdaeError
from tools.baselines import Codec, Setting, UnavailableError, jpeg, jpeg2000, rdae
from tools.measure import roundtrip
from tools.results import Row

Pixels = npt.NDArray[np.uint8]
RATIOS: Final = tuple(np.geomspace(4000, 1.2, 1000).round(3).tolist())
"""JPEG 2000's compression ratios, less than one per cent apart, the smallest file first."""
COLUMN: Final = (400, 768)
"""Bounds of a column's width in pixels."""
MARGIN: Final = 16
ZOOM: Final = 4


@dataclass(frozen=True)
class Version:
    """One rendering of the image, and what is written under it."""

    title: str
    image: Pixels
    lines: tuple[str, ...]


def size(codec: Codec, image: Pixels, setting: Setting) -> int:
    """Bytes of the file."""
    return len(codec.encode(image, setting))


def nearest(codecs: Sequence[Codec], image: Pixels, target: float) -> tuple[Codec, Setting]:
    """The codec and setting whose file is nearest to so many bytes, by ratio. More than one quality is searched by bisection."""
    candidates: list[tuple[Codec, Setting]] = []
    for codec in codecs:
        if codec.parameter != "quality":
            candidates += [(codec, setting) for setting in codec.ladder]
            continue
        qualities = range(int(codec.limits[0]), int(codec.limits[1]) + 1)
        at = bisect.bisect_left(qualities, target, key=partial(size, codec, image))
        candidates += [(codec, qualities[i]) for i in (at - 1, at) if 0 <= i < len(qualities)]
    return min(candidates, key=lambda choice: abs(math.log(size(choice[0], image, choice[1]) / target)))


def not_below(codec: Codec, image: Pixels, settings: Sequence[Setting], least: int) -> Setting:
    """The setting with the smallest file of at least so many bytes; settings are in rising order of file size."""
    at = bisect.bisect_left(settings, least, key=partial(size, codec, image))
    return settings[min(at, len(settings) - 1)]


def _number(value: float | None, digits: int) -> str:
    return "∞" if value is None else f"{value:.{digits}f}"


def version(codec: Codec, setting: Setting, image: Pixels) -> Version:
    """A file made, opened, measured and described."""
    row: Row
    _, decoded, row = roundtrip(codec, setting, image)
    small = "(image too small)" if min(image.shape[:2]) < 161 else f"{_number(row['ms_ssim'], 4)} ({_number(row['ms_ssim_db'], 2)} dB)"
    return Version(
        codec.name,
        decoded,
        (
            f"{codec.parameter} {setting}: {row['bytes']:,} bytes, {row['bpp']:.4f} bpp",
            f"PSNR: luma {_number(row['psnr_luma'], 2)} dB, chroma {_number(row['psnr_chroma'], 2)} dB",
            f"MS-SSIM: {small}",
        ),
    )


def compare(image: Pixels, bpp: float, ours: Sequence[Codec]) -> list[Version]:
    """The original, JPEG, JPEG 2000 and rdae."""
    height, width = image.shape[:2]
    codec, setting = nearest(ours, image, bpp * height * width / 8)
    least = size(codec, image, setting)
    progressive, wavelet = jpeg()[0], jpeg2000()[0]
    original = Version("Original", image, (f"{width}×{height} pixels", f"{image.nbytes:,} bytes, 24 bpp"))
    return [
        original,
        version(progressive, not_below(progressive, image, range(101), least), image),
        version(wavelet, not_below(wavelet, image, RATIOS, least), image),
        version(codec, setting, image),
    ]


def _font(points: int, weight: str = "") -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / f"DejaVuSans{weight}.ttf", points)


def picture(versions: Sequence[Version], corner: tuple[int, int] | None = None) -> Pixels:
    """All versions next to each other, a magnified part of each below, then the captions.

    `corner` is the (left, top) of the magnified part, by default such that it lies in the middle.
    """
    height, width = versions[0].image.shape[:2]
    column = min(max(width, COLUMN[0]), COLUMN[1])
    scale = min(1.0, column / width)
    shown = max(round(width * scale), 1), max(round(height * scale), 1)
    part = min(column // ZOOM, width), min(column // ZOOM * 2 // 3, height)
    left, top = corner or ((width - part[0]) // 2, (height - part[1]) // 2)
    left, top = (min(max(at, 0), limit) for at, limit in ((left, width - part[0]), (top, height - part[1])))
    line = 25
    caption = (1 + max(len(v.lines) for v in versions)) * line
    sheet_size = (
        len(versions) * (column + MARGIN) + MARGIN,
        shown[1] + part[1] * ZOOM + caption + 4 * MARGIN,
    )
    sheet = Image.new("RGB", sheet_size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, item in enumerate(versions):
        x, y = MARGIN + number * (column + MARGIN), MARGIN
        whole = Image.fromarray(item.image)
        sheet.paste(whole if scale == 1 else whole.resize(shown, Image.Resampling.LANCZOS), (x, y))
        corners = [(x + left * scale, y + top * scale), (x + (left + part[0]) * scale - 1, y + (top + part[1]) * scale - 1)]
        draw.rectangle([corners[0], corners[1]], outline="white", width=1)
        y += shown[1] + MARGIN
        detail = whole.crop((left, top, left + part[0], top + part[1]))
        sheet.paste(detail.resize((part[0] * ZOOM, part[1] * ZOOM), Image.Resampling.NEAREST), (x, y))
        y += part[1] * ZOOM + MARGIN
        draw.text((x, y), item.title, fill="black", font=_font(18, "-Bold"))
        for i, text in enumerate(item.lines):
            draw.text((x, y + (i + 1) * line), text, fill="black", font=_fitting(text, column))
    return np.asarray(sheet)


def _fitting(text: str, width: int) -> ImageFont.FreeTypeFont:
    return next((font for font in map(_font, range(17, 8, -1)) if font.getlength(text) <= width), _font(8))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    new = argparse.ArgumentParser(
        prog="python -m tools.side_by_side", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    new.add_argument("image", type=Path, metavar="IMAGE")
    new.add_argument("--bpp", type=float, default=0.12, help="rate to come near to, bits per pixel (default: %(default)s)")
    new.add_argument("--models", nargs="+", default=[], metavar="MODEL", help="names or files of rdae models (default: all that ship)")
    new.add_argument("--crop", nargs=2, type=int, metavar=("LEFT", "TOP"), help="corner of the magnified part (default: the middle)")
    new.add_argument("--out", type=Path, metavar="FILE", help="picture to write (default: IMAGE's name with the rate, .png, here)")
    return new


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 2 after a line on stderr that says what is wrong."""
    arguments = parser().parse_args(argv)
    try:
        if not (math.isfinite(arguments.bpp) and 0 < arguments.bpp <= 24):
            raise UnavailableError(f"--bpp must lie in 0…24, not {arguments.bpp:g}")
        image = image_files.read(arguments.image)
        versions = compare(image, arguments.bpp, rdae(arguments.models))
        out = arguments.out or Path(f"{arguments.image.stem}-{arguments.bpp:g}bpp.png")
        image_files.write(picture(versions, tuple(arguments.crop) if arguments.crop else None), out)
    except (UnavailableError, RdaeError) as error:
        print(f"side_by_side: {error}", file=sys.stderr)
        return 2
    for item in versions:
        print(f"{item.title}: {'; '.join(item.lines)}")
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
