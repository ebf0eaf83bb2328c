"""Short trainings side by side: a Gaussian VAE against the rate–distortion autoencoder, and ReLU against GDN.

    python -m tools.short_runs --data PHOTOS --runs runs/short

Every network is trained from nothing with the same seed, so the same crops in the same order. What the folder of runs holds already is not
trained again, and an interrupted run is continued. Then both comparisons are measured: `vae.json` and `relu.json`, with their figures.

**VAE.** One network per λ and objective, all measured on the same whole photographs, with the noise of their training. Both losses
are negative ELBOs up to the constant of their likelihoods, (3/2) log₂ 2πσ² bits per pixel, which is the same at the same λ.

**ReLU.** One variable-rate network each, measured at every λ of its ladder with real rounding on the held-out photographs. ReLU gets the
best of several learning rates, and then as many steps as fit into the processor time that GDN's took.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import bjontegaard
import numpy as np
import torch
from torch import Tensor

from codec.errors import ModelError
from codec.transforms import STRIDE
from tools import rungs
from tools.bdrate import bd_rate, front
from tools.rungs import INFORMATIVE, RESULTS, Pixels, Rung
from tools.sample import draw_symbols
from train import vae
from train.__main__ import main as train
from train.loop import CURVE, MODEL

LAMBDAS: Final = (0.0067, 0.013, 0.025)
LADDER: Final = (0.0035, 0.0067, 0.013, 0.025)
COMMON: Final = ["--filters", "64", "--latents", "96", "--batch", "8", "--crop", "64", "--early-steps", "0", "--decay", "1"]
COMMON += ["--init", "orthogonal", "--optimiser", "muon", "--adam-lr", "0.003", "--density-lr", "0.02", "--ema", "0.99"]
COMMON += ["--threads", "1", "--files-every", "1000"]
STEPS: Final = 1500
RATE: Final = 0.02
"""Peak learning rate of Muon."""
RELU_RATES: Final = (0.0025, 0.005, 0.01, 0.02)
"""Those that ReLU is tried with."""


def train_missing(folder: Path, data: Path, settings: list[str]) -> None:
    """Train, or go on, or find it done. Raises `ModelError` when it failed, `KeyboardInterrupt` when a signal stopped it."""
    status = train(["--data", str(data), "--out", str(folder), *COMMON, *settings, "--no-warm-start", "--resume"])
    if status == 130:
        raise KeyboardInterrupt
    if status:
        raise ModelError(f"{folder}: the training failed")


def every(steps: int) -> list[str]:
    """How long, and how often to look."""
    return ["--steps", str(steps), "--validate-every", str(max(steps // 3, 1)), "--save-every", str(max(steps // 6, 1))]


def ladder(lambdas: tuple[float, ...]) -> list[str]:
    """As arguments."""
    return ["--lambda", *map(str, lambdas)]


KINDS: Final = {"rd": "codec, with noise", "rounded": "codec, rounded", "vae": "Gaussian VAE"}


# A Gaussian VAE against the rate–distortion autoencoder


def whole(image: Pixels) -> Pixels:
    """As much of an image as is a multiple of 16 pixels along each side."""
    height, width = (n // STRIDE * STRIDE for n in image.shape[:2])
    return image[:height, :width]


def of_codec(rung: Rung, images: dict[str, Pixels], seed: int, rounded: bool) -> dict[str, Any]:
    """Terms of the loss over images, with noise or rounded, and how many channels say something."""
    generator = torch.Generator().manual_seed(seed)
    rates, errors, channels = [], [], []
    for image in images.values():
        n = rung.analyse(image)
        z = torch.round(n) if rounded else n + torch.rand(n.shape, generator=generator, dtype=n.dtype) - 0.5
        bits = rung.bits(z[None])[0]
        rates.append(float(bits.sum()) / (image.shape[0] * image.shape[1]))
        errors.append(rung.mse(z, image))
        channels.append(bits.mean(dim=(1, 2)))
    return _summary(rates, errors, torch.stack(channels).mean(dim=0))


def of_vae(model: vae.GaussianVAE, images: dict[str, Pixels], seed: int) -> dict[str, Any]:
    """The same of a VAE, and by what factor its posteriors' widths differ within a channel."""
    generator = torch.Generator().manual_seed(seed)
    rates, errors, channels, widths = [], [], [], []
    for image in images.values():
        x = rungs.to_tensor(image)[None].float() / 255
        with torch.inference_mode():
            mean, log_variance = model.posterior(x)
            bits = model.density.kl(mean, log_variance)[0].double()
            epsilon = torch.randn(mean.shape, generator=generator)
            restored = model.synthesis(mean + torch.exp(log_variance / 2) * epsilon)
        rates.append(float(bits.sum()) / (x.shape[2] * x.shape[3]))
        errors.append(255**2 * float((restored - x).double().square().mean()))
        channels.append(bits.mean(dim=(1, 2)))
        widths.append((log_variance[0] / 2).flatten(1))
    code = torch.stack(channels).mean(dim=0)
    quantiles = torch.cat(widths, dim=1)[code > INFORMATIVE].double().quantile(torch.tensor([0.1, 0.9], dtype=torch.float64), dim=1)
    spread = float((quantiles[1] - quantiles[0]).exp().median()) if quantiles.numel() else 1.0
    return {**_summary(rates, errors, code), "width_spread": spread}


def _summary(rates: list[float], errors: list[float], code: Tensor) -> dict[str, Any]:
    mse = float(np.mean(errors))
    return {
        "bpp": float(np.mean(rates)),
        "mse": mse,
        "psnr": float(np.mean([10 * math.log10(255**2 / e) for e in errors])),
        "informative": int((code > INFORMATIVE).sum()),
        "channels": len(code),
    }


def constant(variance: float) -> float:
    """(3/2) log₂ 2πσ²: bits per pixel that the normaliser of the Gaussian likelihood costs, for grey levels."""
    return 1.5 * math.log2(2 * math.pi * variance)


def compare_vae(runs: Path, images: dict[str, Pixels], seed: int) -> dict[str, Any]:
    """Both objectives at every λ, the codec also with rounded latents, and the VAE's rate against the codec's at equal distortion."""
    rows = []
    for lambda_ in LAMBDAS:
        name = f"lambda-{lambda_:g}"
        rung = rungs.ladder([str(runs / "rd" / name / MODEL)])[0]
        measured = {kind: of_codec(rung, images, seed, kind == "rounded") for kind in ("rd", "rounded")}
        measured["vae"] = of_vae(vae.load(runs / "vae" / name / MODEL), images, seed)
        for terms in measured.values():
            terms["negative_elbo"] = terms["bpp"] + lambda_ * terms["mse"] + constant(rung.variance)
        rows.append({"lambda": lambda_, "sigma": math.sqrt(rung.variance), **measured})
    curves = {kind: (np.array([row[kind]["bpp"] for row in rows]), np.array([row[kind]["psnr"] for row in rows])) for kind in KINDS}
    at_equal = bd_rate(curves["rd"], curves["vae"])
    return {
        "images": list(images),
        "steps": STEPS,
        "rows": rows,
        "rate_at_equal_distortion_percent": at_equal.percent,
        "rate_against_rounded_percent": bd_rate(curves["rounded"], curves["vae"]).percent,
        "common_psnr": None if at_equal.percent is None else [at_equal.low, at_equal.high],
    }


def draw_vae(result: dict[str, Any], runs: Path, image: Pixels, seed: int, out: Path) -> None:
    """Rate against distortion, the bounds, and what both draw and restore at the middle λ."""
    fig, axes = rungs.panels(2, 3, 4.6, 4.0, dpi=75)
    rows = result["rows"]
    for (kind, label), style, colour in zip(KINDS.items(), ("o-", "^:", "s--"), ("#0a5a9c", "#00805a", "#b2182b"), strict=True):
        axes[0, 0].plot([r[kind]["bpp"] for r in rows], [r[kind]["psnr"] for r in rows], style, color=colour, label=label)
        axes[0, 1].plot([r["lambda"] for r in rows], [r[kind]["negative_elbo"] for r in rows], style, color=colour)
    axes[0, 0].set(xlabel="rate or KL(q‖p), bits per pixel", ylabel="PSNR, dB", title="Rate against distortion")
    axes[0, 0].legend(fontsize=8, loc="lower right")
    axes[0, 1].set(xlabel="λ", ylabel="bits per pixel", title="Negative ELBO at σ² = 3 / (2 λ ln 2)")
    axes[0, 1].set_xscale("log")
    axes[0, 1].set_xticks([r["lambda"] for r in rows], [f"{r['lambda']:g}" for r in rows])
    axes[0, 1].minorticks_off()
    name = f"lambda-{LAMBDAS[1]:g}"
    rung, model = rungs.ladder([str(runs / "rd" / name / MODEL)])[0], vae.load(runs / "vae" / name / MODEL)
    height, width = rung.analyse(image).shape[1:]
    drawn = draw_symbols(rung.tables, (height, width), np.random.default_rng(seed))
    with torch.inference_mode():
        mean, _ = model.posterior(rungs.to_tensor(image)[None].float() / 255)
        pictures = [
            rung.restore(torch.from_numpy(drawn).double(), *image.shape[:2]),
            rung.restore(torch.round(rung.analyse(image)), *image.shape[:2]),
            255 * model.synthesis(mean)[0],
            255 * model.sample(*mean.shape[2:], torch.Generator().manual_seed(seed)),
        ]
    titles = ("codec: latents drawn from the prior", "codec: a photograph, rounded latents", "VAE: the same, posterior means")
    titles += ("VAE: latents drawn from the prior",)
    for ax, picture, title in zip([axes[0, 2], *axes[1]], pictures, titles, strict=True):
        ax.imshow(picture.permute(1, 2, 0).round().clamp(0, 255).byte().numpy())
        ax.set_title(title, fontsize=10)
        ax.set_axis_off()
    rungs.save(fig, out, "vae", photographs=True)


# ReLU against GDN


def step_costs(steps: int = 40) -> dict[str, float]:
    """Processor seconds of a training step with either, on the sample photographs, taken in turn."""
    from lightning.fabric import Fabric

    from train import data
    from train.__main__ import build_parser
    from train.config import resolve
    from train.loop import Trainer

    spent = {"gdn": 0.0, "relu": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--data", str(rungs.SAMPLES), "--out", folder, "--held-out", "1", *COMMON, *ladder(LADDER)]
        trainers = {
            k: Trainer(resolve(build_parser().parse_args([*arguments, "--normalisation", k]), None), Path(folder), Fabric()) for k in spent
        }
        config = trainers["gdn"].config
        sizes = {"size": config.batch, "crop": config.crop, "latents": config.latents, "rates": len(LADDER)}
        batches = list(data.batches(trainers["gdn"].photographs, seed=0, first=0, last=4, **sizes))
        for turn in range(steps + 4):
            for kind, trainer in trainers.items():
                began = time.process_time()
                trainer._train_step(batches[turn % 4])
                spent[kind] += (time.process_time() - began) * (turn >= 4)  # the first steps warm up
    return {kind: seconds / steps for kind, seconds in spent.items()}


def curve_of(run: Path) -> tuple[list[float], list[float], int]:
    """(bits per pixel, PSNR) at each λ of a variable-rate run's last validation, and its step."""
    with (run / CURVE).open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    return [float(last[f"val_bpp_{v:g}"]) for v in LADDER], [float(last[f"val_psnr_{v:g}"]) for v in LADDER], int(last["step"])


def train_relu(runs: Path, data: Path) -> dict[str, float]:
    """All the runs of the comparison. Returns the processor seconds of a step."""
    shared = ["--variable-rate", *ladder(LADDER)]
    train_missing(runs / "gdn", data, [*shared, *every(STEPS), "--lr", str(RATE)])
    for lr in RELU_RATES:
        train_missing(runs / f"relu-{lr:g}", data, [*shared, *every(STEPS), "--lr", str(lr), "--normalisation", "relu"])
    if (runs / "costs.json").exists():
        costs = rungs.read_json(runs, "costs")
    else:
        rungs.write_json(costs := step_costs(), runs, "costs")
    lr = best_rate(runs)
    longer = round(STEPS * costs["gdn"] / costs["relu"])
    train_missing(runs / "relu-equal-time", data, [*shared, *every(longer), "--lr", str(lr), "--normalisation", "relu"])
    return costs


def _points(run: Path) -> tuple[Any, Any]:
    bpp, psnr, _ = curve_of(run / "variable-rate")
    return np.array(bpp), np.array(psnr)


def bd_psnr(anchor: tuple[Any, Any], test: tuple[Any, Any]) -> float | None:
    """Mean difference in PSNR at equal rate, dB, over the rates that both curves cover; None where they cover none together."""
    anchor, test = front(*anchor), front(*test)
    if min(len(anchor[0]), len(test[0])) < 2 or max(anchor[0][0], test[0][0]) >= min(anchor[0][-1], test[0][-1]):
        return None
    return float(bjontegaard.bd_psnr(*anchor, *test, method="pchip", require_matching_points=False, min_overlap=0))


def best_rate(runs: Path) -> float:
    """The learning rate with which ReLU reaches the highest PSNR at equal rate."""
    gains = {lr: bd_psnr(_points(runs / "gdn"), _points(runs / f"relu-{lr:g}")) for lr in RELU_RATES}
    return max(RELU_RATES, key=lambda lr: -math.inf if gains[lr] is None else gains[lr])


def compare_relu(runs: Path, costs: dict[str, float]) -> dict[str, Any]:
    """Bits of ReLU against GDN's at equal PSNR: at equal steps with each learning rate, and at equal time."""
    rows = []
    for name in ("gdn", *(f"relu-{lr:g}" for lr in RELU_RATES), "relu-equal-time"):
        bpp, psnr, steps = curve_of(runs / name / "variable-rate")
        anchor, test = _points(runs / "gdn"), (np.array(bpp), np.array(psnr))
        versus = {"rate_at_equal_psnr_percent": bd_rate(anchor, test).percent, "psnr_at_equal_rate_db": bd_psnr(anchor, test)}
        rows.append({"run": name, "steps": steps, "bpp": bpp, "psnr": psnr, **versus})
    return {"lambdas": list(LADDER), "seconds_per_step": costs, "best_learning_rate": best_rate(runs), "rows": rows}


def draw_relu(result: dict[str, Any], out: Path) -> None:
    """The curves."""
    fig, axes = rungs.panels(1, 1, 6.4, 4.6)
    best = f"relu-{result['best_learning_rate']:g}"
    names = {"gdn": "GDN", best: "ReLU, equal steps", "relu-equal-time": "ReLU, equal processor time"}
    styles = {"gdn": ("#0a5a9c", "o-"), best: ("#b2182b", "s--"), "relu-equal-time": ("#d1730d", "^:")}
    for row in result["rows"]:
        if row["run"] in names:
            colour, style = styles[row["run"]]
            label = f"{names[row['run']]} ({row['steps']} steps)"
            axes[0, 0].plot(row["bpp"], row["psnr"], style, color=colour, label=label)
    axes[0, 0].set(xlabel="bits per pixel", ylabel="PSNR, dB", title="Short runs, held-out photographs, real rounding")
    axes[0, 0].legend(loc="lower right")
    rungs.save(fig, out, "relu")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    new = argparse.ArgumentParser(
        prog="python -m tools.short_runs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    new.add_argument("images", type=Path, nargs="*", metavar="IMAGE", help="photographs to measure on (default: those of data/samples)")
    new.add_argument("--data", type=Path, required=True, metavar="PHOTOS", help="folder of photographs to train on")
    new.add_argument("--runs", type=Path, default=Path("runs/short"), metavar="DIR", help="folder for the trainings (default: %(default)s)")
    new.add_argument("--seed", type=int, default=0, help="of the noise in measurements (default: %(default)s)")
    new.add_argument("--only", choices=("vae", "relu"), help="one of the two comparisons")
    new.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="folder for the results (default: data/results/theory)")
    return new


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status: 2 after a line on stderr that says what is wrong, 130 when a signal stopped a training."""
    arguments = parser().parse_args(argv)
    runs = arguments.runs

    def work() -> None:
        images = {name: whole(image) for name, image in rungs.read_images(arguments.images).items()}
        if arguments.only != "relu":
            for objective in ("rd", "vae"):
                train_missing(
                    runs / objective, arguments.data, [*ladder(LAMBDAS), *every(STEPS), "--lr", str(RATE), "--objective", objective]
                )
            result = compare_vae(runs, images, arguments.seed)
            rungs.write_json(result, arguments.out, "vae")
            draw_vae(result, runs, next(iter(images.values())), arguments.seed, arguments.out)
        if arguments.only != "vae":
            result = compare_relu(runs, train_relu(runs, arguments.data))
            rungs.write_json(result, arguments.out, "relu")
            draw_relu(result, arguments.out)

    try:
        return rungs.run("short_runs", work)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
