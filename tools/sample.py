"""What the prior alone draws.

    python -m tools.sample [IMAGE] [--model M --quality N --seed S -o x.png]

Three pictures, decoded by the same synthesis: a photograph from its own latents; the same latents with the places of each channel shuffled,
which keeps every channel's histogram and nothing else; and latents drawn from the prior, as the integer tables hold it to the last
count. Under each stands its code length with those tables. The numbers go beside the picture, in a file that ends in .json.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import torch

from codec.coder import PRECISION, Symbols, Tables
from codec.errors import ImageError
from codec.transforms import STRIDE
from tools import rungs
from tools.rungs import Pixels, Rung

ESCAPE_BITS: Final = PRECISION
"""Escapes are drawn up to this bit length; longer ones have a probability of 2⁻²⁴ of what is already rare."""


def draw_symbols(tables: Tables, shape: tuple[int, int], generator: np.random.Generator) -> Symbols:
    """Symbols M×h×w, each drawn from its channel's table: an integer below 2²⁴, and where it falls among the cumulated counts.

    Escapes are drawn by the code that follows them (see `codec.coder`): a bit length b with probability 2⁻ᵇ, a fair sign, fair bits.
    """
    out = np.empty((len(tables.counts), *shape), np.int32)
    for channel, counts in enumerate(tables.counts):
        cumulated = np.cumsum(counts.astype(np.int64) + 1)
        index = np.searchsorted(cumulated, generator.integers(1 << PRECISION, size=shape), side="right")
        values = index + tables.lowest[channel]
        escaped = index == len(counts) - 1
        if escaped.any():
            number = int(escaped.sum())
            length = np.minimum(generator.geometric(0.5, number), ESCAPE_BITS)
            distance = (1 << (length - 1)) + generator.integers(1 << 62, size=number) % (1 << (length - 1))
            above = tables.lowest[channel] + len(counts) - 2 + distance
            values[escaped] = np.where(generator.integers(2, size=number) == 1, above, tables.lowest[channel] - distance)
        out[channel] = values
    return out


def shuffled(symbols: Symbols, generator: np.random.Generator) -> Symbols:
    """Each channel's symbols at other places, other ones in every channel."""
    flat = symbols.reshape(len(symbols), -1)
    return np.ascontiguousarray(generator.permuted(flat, axis=1).reshape(symbols.shape))


def entropy_of(tables: Tables) -> npt.NDArray[np.float64]:
    """Entropy of each channel's table in bits, the bits behind an escape left out."""
    p = [(np.asarray(counts) + 1) / (1 << PRECISION) for counts in tables.counts]
    return np.array([-(q * np.log2(q)).sum() for q in p])


def pictures(rung: Rung, image: Pixels, seed: int) -> dict[str, tuple[Pixels, float]]:
    """(picture, bits per pixel of its latents) by title."""
    height, width = image.shape[:2]
    generator = np.random.default_rng(seed)
    symbols = rung.model.quantise(rung.model.analyse(image), rung.quality)
    tables = rung.tables
    rows, columns = symbols.shape[1:]
    versions = {
        "a photograph, coded": symbols,
        "its latents, places shuffled": shuffled(symbols, generator),
        "latents drawn from the prior": draw_symbols(tables, (rows, columns), generator),
    }
    return {
        title: (rung.model.synthesise(latents, rung.quality, height, width), float(tables.bits(latents).sum()) / (height * width))
        for title, latents in versions.items()
    }


def neighbours(picture: Pixels) -> float:
    """Correlation of luma between blocks of 16×16 pixels that touch, from their means: what the latents' places have to say."""
    luma = picture.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    height, width = (n // STRIDE for n in luma.shape)
    means = luma[: height * STRIDE, : width * STRIDE].reshape(height, STRIDE, width, STRIDE).mean(axis=(1, 3))
    if min(means.shape) < 2 or means.std() == 0:
        return 0.0
    one = np.concatenate([means[:, 1:].ravel(), means[1:].ravel()])
    other = np.concatenate([means[:, :-1].ravel(), means[:-1].ravel()])
    return float(np.corrcoef(one, other)[0, 1])


def sheet(made: dict[str, tuple[Pixels, float]]) -> Any:
    """The pictures in a row, with their code lengths."""
    height, width = next(iter(made.values()))[0].shape[:2]
    fig, axes = plt.subplots(1, len(made), figsize=(5 * len(made), 5 * height / width + 0.4), dpi=80, layout="constrained")
    for ax, (title, (picture, bpp)) in zip(axes, made.items(), strict=True):
        ax.imshow(picture)
        ax.set_title(f"{title}: {bpp:.3f} bpp", fontsize=11)
        ax.set_axis_off()
    return fig


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    new = rungs.parser("sample", __doc__)
    new.add_argument("-o", "--output", type=Path, metavar="FILE", help="picture to write (default: sample.png in --out)")
    arguments = new.parse_args(argv)

    def work() -> None:
        out = arguments.output or arguments.out / "sample.png"
        if out.suffix != ".png":
            raise ImageError(f"{out}: the picture is a .png")
        rung = rungs.middle(rungs.ladder(arguments.model or rungs.default_models(), arguments.quality))
        name, image = next(iter(rungs.read_images(arguments.images).items()))
        made = pictures(rung, image, arguments.seed)
        rungs.save(sheet(made), out.parent, out.stem, photographs=True)
        entropy = float(entropy_of(rung.tables).sum()) * np.prod(rung.analyse(image).shape[1:]) / np.prod(image.shape[:2])
        result = {"model": rung.name, "lambda": rung.lambda_, "image": name, "seed": arguments.seed, "prior_entropy_bpp": float(entropy)}
        result["pictures"] = [{"title": t, "bpp": bpp, "block_correlation": neighbours(p)} for t, (p, bpp) in made.items()]
        rungs.write_json(result, out.parent, out.stem)

    torch.manual_seed(arguments.seed)
    return rungs.run("sample", work)


if __name__ == "__main__":
    sys.exit(main())
