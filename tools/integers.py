"""What integer arithmetic costs a model of profile 2: bits of its networks in integers against the same networks in floating point.

python -m tools.integers PHOTOS                        hyperprior-9, 16 crops of 512×512, writes data/results/integers.csv and .md
python -m tools.integers PHOTOS --model my.safetensors --qualities 1 50 100 --out results

The networks are thawed from the model file and frozen again, with ranges of their maps measured on other photographs than those that
are coded. Bits are -log2 P by the coding tables, side information included, with real rounding on both sides, and plain rounding, since
thrifty rounding would choose other symbols; in floating point, σ is not quantised either. The file's own integers are in the table too:
where it has sixteen bits, what their weights lost is in both columns.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file

import codec
from codec import image as image_files
from codec import registry
from codec.errors import RdaeError
from codec.hyperprior import Hyperprior
from codec.model import Model
from train import freeze, freeze_hyper
from train.hyper import HyperModel

Pixels = npt.NDArray[np.uint8]
ROOT: Final = Path(__file__).parent.parent
SEED: Final = 0
MEASURED_SIDE: Final = 256
"""Of the crops that show how far the maps reach."""


def thaw(model: Model, path: Path) -> HyperModel:
    """The model in floating point, as training would go on from it. Raises ValueError when it is not of profile 2."""
    if not isinstance(model.entropy, Hyperprior):
        raise ValueError(f"{path}: a model of profile 2 is needed")
    rungs = tuple(model.metadata["lambdas"])
    thawed = HyperModel(rungs, model.metadata["filters"], model.latents, model.entropy.sizes).requires_grad_(False)
    thawed.load_state_dict({**thawed.state_dict(), **freeze.weights_to_start_from(path, rungs, "hyperprior")})
    return thawed


def crops_of(folder: Path, count: int, side: int, skip: int = 0) -> list[tuple[str, Pixels]]:
    """Names and crops, side×side×3, of so many photographs in an order and at places that are drawn once for all."""
    rng = np.random.default_rng(SEED)
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    found: list[tuple[str, Pixels]] = []
    for number in rng.permutation(len(paths))[skip:]:
        if len(found) == count:
            break
        pixels = image_files.read(paths[number])
        if pixels.ndim == 3 and min(pixels.shape[:2]) >= side:
            top, left = (int(rng.integers(size - side + 1)) for size in pixels.shape[:2])
            found.append((paths[number].name, np.ascontiguousarray(pixels[top : top + side, left : left + side, :3])))
    if len(found) < count:
        raise ValueError(f"{folder}: has too few photographs of {side}×{side} pixels")
    return found


def measure(
    model: Model, path: Path, coded: list[tuple[str, Pixels]], shown: list[Pixels], qualities: list[int]
) -> list[dict[str, object]]:
    """A row for each quality and crop: bits in floating point, by the file's integers, and by those that it would be frozen to now."""
    thawed = thaw(model, path)
    # Tables that were fitted to thriftily rounded symbols would be compared with others.
    own = Hyperprior({name: tensor for name, tensor in load_file(path).items() if name != "shape.fitted"}, model.steps, thawed.sizes)
    integers = freeze_hyper.tensors(thawed, model.qualities, torch.from_numpy(np.stack(shown)))
    again = Hyperprior(integers, model.steps, thawed.sizes)
    rows: list[dict[str, object]] = []
    for name, pixels in coded:
        y = model.analyse(pixels)
        for quality in qualities:
            position = torch.tensor([(quality - 1) / max(model.qualities - 1, 1) * (len(thawed.log_gain) - 1)])
            floats = sum(float(bits) for bits in thawed.code(torch.from_numpy(y)[None], position)[:2])
            rows.append(
                {
                    "photograph": name,
                    "quality": quality,
                    "pixels": pixels.shape[0] * pixels.shape[1],
                    "floats": round(floats, 1),
                    "file": round(sum(own.trial(y, quality, thrifty=False)[0]), 1),
                    "frozen": round(sum(again.bits(y, quality)), 1),
                }
            )
    return rows


def table(rows: list[dict[str, object]], qualities: list[int], name: str) -> str:
    """Markdown: for each quality the rate of all crops, and what integers add to it."""
    lines = [
        f"Bits of {name} with its networks in integers against floating point: {len(rows) // len(qualities)} crops, in sum.",
        "",
        "| quality | bpp in floating point | the file's integers | frozen again | worst crop |",
        "|---|---|---|---|---|",
    ]
    for quality in qualities:
        own = [row for row in rows if row["quality"] == quality]
        pixels, floats, file, frozen = (np.array([float(str(row[key])) for row in own]) for key in ("pixels", "floats", "file", "frozen"))
        costs = (100 * (part.sum() / floats.sum() - 1) for part in (file, frozen))
        shown = " | ".join(f"{cost:+.3f} %".replace("-", "−") for cost in (*costs, 100 * (frozen / floats - 1).max()))
        lines.append(f"| {quality} | {floats.sum() / pixels.sum():.3f} | {shown} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="a folder of photographs, none of them from a test set")
    parser.add_argument("--model", default="hyperprior-9", help="a shipped model's name, or a file")
    parser.add_argument("--crops", type=int, default=16)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--shown", type=int, default=16, help="photographs that the maps' ranges are measured on")
    parser.add_argument("--qualities", type=int, nargs="+", default=[1, 20, 40, 60, 80, 100])
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "results")
    a = parser.parse_args(argv)
    try:
        path, model = registry.path_of(a.model), codec.load(a.model, "fp32")
        coded = crops_of(a.photographs, a.crops, a.side)
        shown = crops_of(a.photographs, a.shown, MEASURED_SIDE, skip=2 * a.crops)
        shown = [crop for crop in shown if crop[0] not in dict(coded)]
        rows = measure(model, path, coded, [pixels for _, pixels in shown], [model.check_quality(q) for q in a.qualities])
        text = table(rows, a.qualities, model.name)
        with (a.out / "integers.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        (a.out / "integers.md").write_text(text)
    except (RdaeError, OSError, ValueError) as error:
        print(f"integers: {error}", file=sys.stderr)
        return 2
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
