"""Trained models as their training sees them: latents, densities and reconstructions in floating point, at any λ of a ladder.

Rates are in bits, distortions are squared errors on 0…255, and latents are counted in quantiser steps: n = y / Δ, so that rounding
and the noise that stands for it, uniform in ±½, are the same in every channel and at every quality.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from torch import Tensor

from codec import image as image_files
from codec import model as codec_model
from codec import registry, tiles
from codec.coder import Tables
from codec.density import Density, start_log_mass
from codec.errors import ImageError, ModelError, RdaeError
from codec.factorized import Factorized
from codec.frozen import CDF_BITS, STEP_BITS
from codec.model import Model
from codec.tiles import Box
from codec.transforms import STRIDE

Pixels = npt.NDArray[np.uint8]
ROOT: Final = Path(__file__).parent.parent
SAMPLES: Final = ROOT / "data" / "samples"
RESULTS: Final = ROOT / "data" / "results" / "theory"
INFORMATIVE: Final = 0.01
"""Bits per latent below which a channel is said to carry no information."""


@dataclass(frozen=True)
class Rung:
    """One model at one quality, and the λ that it was trained for there."""

    model: Model
    quality: int
    lambda_: float

    @property
    def name(self) -> str:
        """Of the model, and the quality where there is a choice."""
        return self.model.name + (f", quality {self.quality}" if self.model.qualities > 1 else "")

    @property
    def synthesis(self) -> torch.nn.Sequential:
        """As it is at this quality."""
        return self.model.synthesis_at(self.quality)

    @property
    def step(self) -> Tensor:
        """Quantiser steps Δ, M×1×1, float64."""
        return torch.from_numpy(self.model.steps[self.quality - 1] / (1 << STEP_BITS))[:, None, None]

    @property
    def variance(self) -> float:
        """σ² in grey levels squared of the Gaussian likelihood that makes bits per pixel + λ·MSE an ELBO: see `tools.elbo`."""
        return 3 / (2 * math.log(2) * self.lambda_)

    @property
    def tables(self) -> Tables:
        """The integer coding tables."""
        return factorized(self.model).tables(self.quality)

    def analyse(self, image: Pixels) -> Tensor:
        """Latents n = y / Δ before quantisation, M×h×w float64, of an image H×W×3 uint8."""
        return _latents(self.model, image.tobytes(), image.shape) / self.step

    def bits(self, n: Tensor) -> Tensor:
        """-log₂ p̃(n), elementwise, of latents B×M×h×w: p̃ is the density of n + U(-½, ½) under the model."""
        return density_of(self.model).bits(n * self.step, self.step)

    @torch.inference_mode()
    def restore(self, n: Tensor, height: int, width: int) -> Tensor:
        """The image 3×height×width on 0…255, float64, not rounded and not clipped, of latents M×h×w."""
        whole = Box(0, 0, n.shape[1], n.shape[2])
        y = (n * self.step).float()
        out = torch.empty(3, STRIDE * whole.height, STRIDE * whole.width, dtype=torch.float64)
        for box in itertools.chain(*tiles.grid(whole.height, whole.width, tiles.WINDOW)):
            window = box.grown(self.model.halos[1], whole)
            seen, inner, place = window.slices, (box.seen_from(window) * STRIDE).slices, (box * STRIDE).slices
            x = self.synthesis(y[None, :, seen[0], seen[1]].contiguous(memory_format=torch.channels_last))[0]
            out[:, place[0], place[1]] = 255 * x[:, inner[0], inner[1]]
        return out[:, :height, :width]

    def mse(self, n: Tensor, image: Pixels) -> float:
        """Mean squared error on 0…255 of what latents M×h×w restore."""
        return float((self.restore(n, *image.shape[:2]) - to_tensor(image)).square().mean())


def to_tensor(image: Pixels) -> Tensor:
    """H×W×3 uint8 to 3×H×W float64 on 0…255."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1).double()


@lru_cache(maxsize=64)
def _latents(model: Model, pixels: bytes, shape: tuple[int, ...]) -> Tensor:
    """The analysis y of an image, once for all qualities of a model."""
    return torch.from_numpy(model.analyse(np.frombuffer(pixels, np.uint8).reshape(shape))).double()


@lru_cache(maxsize=16)
def density_of(model: Model) -> Density:
    """The frozen density as the differentiable one that it came from, in float64."""
    frozen = factorized(model).density
    density = Density(len(frozen.scale)).double().requires_grad_(False)
    cdf = torch.from_numpy(frozen.cdf / (1 << CDF_BITS))
    edges = torch.cat([torch.zeros(len(cdf), 1), cdf, torch.ones(len(cdf), 1)], dim=1).double()
    density.start.copy_(start_log_mass())
    density.logits.copy_(edges.diff(dim=1).clamp(min=2.0**-CDF_BITS).log() - density.start)
    density.log_scale.copy_(torch.from_numpy(frozen.scale / (1 << STEP_BITS)).log())
    density.grid.copy_(torch.from_numpy(frozen.grid / (1 << STEP_BITS)))
    return density


def factorized(model: Model) -> Factorized:
    """The entropy model, one density for each channel. Raises `ModelError` for another profile: the theory is about this one."""
    if not isinstance(model.entropy, Factorized):
        raise ModelError(f"model {model.name} has side information: the theory's tools are for models with one density for each channel")
    return model.entropy


def lambda_at(model: Model, quality: int) -> float:
    """The λ of a quality: its qualities divide the ladder that a model was trained on evenly in log λ.

    Raises `ModelError` when λ did not multiply a squared error, which all the theory here is about.
    """
    lambdas = model.metadata.get("lambdas")
    if model.metadata.get("distortion", "mse") != "mse" or not isinstance(lambdas, list) or not lambdas:
        raise ModelError(f"model {model.name} was not trained for squared error at a λ that it names")
    position = (quality - 1) / max(model.qualities - 1, 1) * (len(lambdas) - 1)
    return float(np.exp(np.interp(position, np.arange(len(lambdas)), np.log(lambdas))))


def default_models() -> list[str]:
    """Those that ship and those in data/models, if they have one density for each channel and were trained for squared error."""
    names = [*registry.models(), *map(str, sorted((ROOT / "data" / "models").glob("*.safetensors")))]
    models = {name: codec_model.load(name) for name in names}
    return [name for name, m in models.items() if isinstance(m.entropy, Factorized) and m.metadata.get("distortion", "mse") == "mse"]


def ladder(models: Sequence[str], qualities: Sequence[int] = ()) -> list[Rung]:
    """Rungs of models, in rising order of λ within each: of a variable-rate one at these qualities, or one for each λ of its training."""
    rungs = []
    for name in models:
        model = codec_model.load(name)
        count = max(len(model.metadata.get("lambdas", [0])), 1)
        chosen = qualities if qualities and model.qualities > 1 else np.rint(np.linspace(1, model.qualities, count)).astype(int).tolist()
        rungs += [Rung(model, model.check_quality(q), lambda_at(model, q)) for q in chosen]
    return rungs


def middle(rungs: Sequence[Rung]) -> Rung:
    """The rung nearest to λ = 0.013, the middle of the field's ladder."""
    return min(rungs, key=lambda rung: abs(math.log(rung.lambda_ / 0.013)))


# What the tools have in common on the command line, in files and in figures


def parser(tool: str, text: str | None, images: bool = True) -> argparse.ArgumentParser:
    """A command line with models, images, a seed and a folder for the results."""
    new = argparse.ArgumentParser(
        prog=f"python -m tools.{tool}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    if images:
        new.add_argument("images", type=Path, nargs="*", metavar="IMAGE", help="photographs (default: those of data/samples)")
    new.add_argument("--model", nargs="+", default=[], metavar="MODEL", help="names or files (default: all that ship, and data/models)")
    new.add_argument("--quality", type=int, nargs="+", default=[], metavar="N", help="of variable-rate models (default: one for each λ)")
    new.add_argument("--seed", type=int, default=0, help="of all random numbers (default: %(default)s)")
    new.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="folder for the results (default: data/results/theory)")
    return new


def read_images(paths: Sequence[Path]) -> dict[str, Pixels]:
    """Photographs by name. Raises `ImageError`."""
    return {path.stem: image_files.read(path) for path in paths or sorted(SAMPLES.glob("*.png"))}


def run(tool: str, work: Callable[[], None]) -> int:
    """Exit status: 0, or 2 after a line on stderr that says what is wrong."""
    try:
        work()
    except (RdaeError, OSError) as error:
        print(f"{tool}: {error}", file=sys.stderr)
        return 2
    return 0


def rounded(value: Any) -> Any:
    """Arrays and tensors as lists, every float to five significant digits."""
    if isinstance(value, dict):
        return {str(name): rounded(part) for name, part in value.items()}
    if isinstance(value, np.ndarray | Tensor):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    if isinstance(value, float | np.floating):
        if not math.isfinite(value):
            raise ImageError("a measurement is not finite")
        return float(f"{value:.5g}")
    return int(value) if isinstance(value, np.integer) else value


def write_json(values: dict[str, Any], folder: Path, name: str) -> None:
    """`NAME.json`, one line for each list and each innermost object."""
    folder.mkdir(parents=True, exist_ok=True)
    image_files.write_bytes((_text(rounded(values)) + "\n").encode(), folder / f"{name}.json")


def _text(value: Any, indent: str = "") -> str:
    deep = isinstance(value, dict | list) and any(
        isinstance(v, dict | list) for v in (value.values() if isinstance(value, dict) else value)
    )
    if not deep:
        return json.dumps(value, ensure_ascii=False)
    inner = indent + " "
    if isinstance(value, dict):
        parts = [f"{json.dumps(name, ensure_ascii=False)}: {_text(part, inner)}" for name, part in value.items()]
        return "{\n" + ",\n".join(inner + part for part in parts) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + _text(part, inner) for part in value) + f"\n{indent}]"


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """What `write_json` wrote."""
    values: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return values


def save(fig: Figure, folder: Path, name: str, photographs: bool = False) -> None:
    """`NAME.png` and, unless it shows photographs, `NAME.svg`; the same numbers give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "rdae"}):
        for kind, metadata in [("png", {"Software": None}), ("svg", {"Date": None})][: 1 if photographs else 2]:
            buffer = io.BytesIO()
            fig.savefig(buffer, format=kind, metadata=metadata)
            image_files.write_bytes(buffer.getvalue(), folder / f"{name}.{kind}")
    plt.close(fig)


def panels(rows: int, columns: int, width: float = 5.0, height: float = 4.2, dpi: int = 110) -> tuple[Figure, npt.NDArray[Any]]:
    """A figure of rows × columns axes in the style of all of these figures."""
    fig, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), dpi=dpi, layout="constrained", squeeze=False)
    for ax in axes.flat:
        ax.grid(color="#dddddd", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    return fig, axes


def plain_ticks(*axes: Any) -> None:
    """Ticks 1, 2, 5, 10 … on logarithmic axes, as plain numbers."""
    for axis in axes:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())


def colours(rungs: Sequence[Rung]) -> list[Any]:
    """A colour for each rung that follows its λ: dark for the smallest files."""
    order = np.log([rung.lambda_ for rung in rungs])
    span = order.max() - order.min()
    return [plt.get_cmap("viridis")(0.9 * (v - order.min()) / span if span else 0.3) for v in order]
