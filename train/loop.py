"""The training loop of one model, from the first step to the frozen file. It reads from top to bottom."""

from __future__ import annotations

import copy
import csv
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from train import allocation, data, freeze, initialise
from train.checkpoint import Interrupted, TrainingError, save_atomically, until_signalled
from train.config import Config, difference
from train.hyper import HyperModel
from train.network import network
from train.objective import PEAK, RateDistortion, balanced, to_image, weights_of
from train.optim import Muon, adam, soap
from train.vae import GaussianVAE
from train.validation import centre_crops, validate

LAST, BEST, MODEL, CURVE, CONFIG = "last.pt", "best.pt", "model.safetensors", "curve.csv", "config.json"
ALIKE = 4
"""Crops of a batch that go through a tilted synthesis at the same place on the ladder, so that it is not made for each of them."""
FITTED = 128
"""Of so many photographs, the symbols are what a frozen hyperprior's tables are fitted to."""


class Trainer:
    """A model, its optimisers and where they stand."""

    def __init__(self, config: Config, out: Path, fabric: Fabric, start: dict[str, Tensor] | None = None) -> None:
        """`start` holds weights to begin from. Raises `DataError`, or `TrainingError` when they have another shape."""
        self.config, self.out, self.fabric = config, out, fabric
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        paths = data.find_photographs(Path(config.data))
        training, held_out = data.split(paths, config.held_out)
        self.photographs = data.Photographs(training or paths)
        self.manifest = data.manifest(paths)
        model = network(config)
        if not (out / LAST).exists():  # else `restore` brings all of it
            self._begin(model, start)
        if not config.learns_gains:
            # With steps that are given, finer units would only promise the same as finer steps, and grow without end.
            model.log_gain.requires_grad_(False)
            model.log_unit.requires_grad_(False)
        if config.behind:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name.startswith("synthesis."))
        wrapped = fabric.setup_module(model)
        self.model = model
        self.forward = torch.compile(wrapped, dynamic=False) if config.compile else wrapped
        self.matching = False
        """Whether the last steps, of the analysis alone, have begun."""
        self._optimise()
        self.step, self.best, self.seconds, self.caution = 0, math.inf, 0.0, 1.0
        # What is validated and frozen: a running mean of the weights, or the weights themselves.
        self.mean = copy.deepcopy(model).requires_grad_(False) if config.ema else model
        self.stop: Callable[[], bool] = lambda: False
        self.stopping = False
        self.validations = 0
        self.log_lambda = torch.tensor(config.lambdas, dtype=torch.float32).log().to(fabric.device)
        self.validation = centre_crops(held_out or paths).to(fabric.device)

    def _begin(self, model: RateDistortion | GaussianVAE, start: dict[str, Tensor] | None) -> None:
        """Give a model its first weights. Raises `TrainingError` when those to begin from have another shape."""
        config = self.config
        if start is not None:
            known = len(start.get("log_unit", ()))
            if known > config.latents and config.entropy == "factorized" and config.objective == "rd":
                start = initialise.narrowed(start, network(replace(config, latents=known)), self._some_crops(), config.latents)
            try:
                model.load_state_dict({**model.state_dict(), **start})
            except RuntimeError as error:
                raise TrainingError(f"the weights to start from are of another shape: {str(error).splitlines()[1].strip()}") from error
        elif config.init == "klt":
            initialise.karhunen_loeve(model, self._some_crops())
        if isinstance(model, HyperModel) and "log_spread" not in (start or {}):
            with torch.no_grad():
                model.calibrate(torch.cat([model.latents(x) for x in self._some_crops().split(4)]))
        elif isinstance(model, RateDistortion) and start is not None and "density.logits" not in start:
            initialise.fit_density(model, self._some_crops(), config.seed)

    def _some_crops(self) -> Tensor:
        """The same 32 training crops at every call, 32×3×256×256 in 0…1, in the processor's memory, where models begin."""
        rng = np.random.default_rng(self.config.seed)
        return to_image(torch.from_numpy(np.stack([self.photographs.crop(256, rng) for _ in range(32)])))

    def _one_crop_each(self) -> Tensor:
        """A crop, 256×256×3 uint8, from each of up to `FITTED` training photographs."""
        rng = np.random.default_rng(self.config.seed)
        chosen = rng.permutation(len(self.photographs.paths))[:FITTED]
        return torch.from_numpy(np.stack([self.photographs.crop(256, rng, int(index)) for index in chosen]))

    def _optimise(self) -> None:
        """New optimisers, for everything, or for the analysis alone."""
        config, model = self.config, self.model.analysis if self.matching else self.model
        parts: list[torch.nn.Module] = [self.model.synthesis] if config.behind else [self.model.analysis, self.model.synthesis]
        # Muon has not been tried on the slices' networks.
        if isinstance(self.model, HyperModel) and config.optimiser == "soap" and not config.behind:
            parts.append(self.model.slices)
        transforms = model if self.matching else torch.nn.ModuleList(parts)
        if config.optimiser == "muon":
            muon = Muon(transforms, config.lr)
            rest = adam(model, [p for p, _ in muon.sources], config.adam_lr, config.density_lr)
            self.optimisers: list[torch.optim.Optimizer] = [muon, rest]
        elif config.optimiser == "soap":
            first, trained = soap(transforms, config.lr)
            self.optimisers = [first, adam(model, trained, config.adam_lr, config.density_lr)]
        else:
            self.optimisers = [adam(model, [], config.adam_lr, config.density_lr)]
        self.peak_rates = [[g["lr"] for g in o.param_groups] for o in self.optimisers]

    # Checkpoints

    def state(self) -> dict[str, Any]:
        """All that resuming needs, and what the run is."""
        return {
            "model": self.model.state_dict(),
            "mean": self.mean.state_dict() if self.config.ema else {},
            "optimisers": [o.state_dict() for o in self.optimisers],
            "step": self.step,
            "best": self.best,
            "seconds": self.seconds,
            "caution": self.caution,
            "matching": self.matching,
            "config": self.config.as_dict(),
        }

    def save(self, name: str = LAST) -> None:
        """Checkpoint, from the first process only."""
        if self.fabric.is_global_zero:
            save_atomically(self.state(), self.out / name)
        self.fabric.barrier()

    def restore(self, check: bool = True) -> None:
        """Continue from the last checkpoint. Raises `TrainingError` when the configuration has changed or the file is damaged."""
        path = self.out / LAST
        try:
            state = torch.load(path, map_location=self.fabric.device, weights_only=True)
            changed = difference(state["config"], self.config.as_dict()) if check else ""
        except Exception as error:
            raise TrainingError(f"{path}: cannot resume from it: {str(error).splitlines()[0]}") from error
        if changed:
            raise TrainingError(f"{path}: the run was configured otherwise: {changed}")
        self.model.load_state_dict(state["model"])
        if self.config.ema:
            self.mean.load_state_dict(state["mean"])
        if self.matching != state.get("matching", False):
            self.matching = not self.matching
            self._optimise()
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.best, self.seconds, self.caution = state["step"], state["best"], state["seconds"], state["caution"]

    # Training

    def run(self) -> Path:
        """Train to the end and freeze. Returns the model file. Raises `Interrupted`, `TrainingError`, `DataError`."""
        config, fabric = self.config, self.fabric
        if fabric.is_global_zero:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / CONFIG).write_text(json.dumps({**config.as_dict(), **self.provenance()}, indent=1) + "\n")
        with (
            until_signalled() as stop,
            tqdm(
                total=config.steps, initial=self.step, unit="step", dynamic_ncols=True, disable=not fabric.is_global_zero, file=sys.stderr
            ) as bar,
        ):
            self.stop = stop
            if not self.step:
                self.save()  # something to fall back to
            while self.step < config.steps:
                try:
                    self._stretch(bar)
                except FloatingPointError as error:
                    if self.caution < 1:
                        raise TrainingError(f"{error}; lower the learning rate") from error
                    self.restore()
                    self.caution, bar.n = 0.5, self.step
                    bar.write(f"train: {error}: back to step {self.step} at half the learning rate", file=sys.stderr)
        self.save()
        return self.freeze()

    def freeze(self) -> Path:
        """Freeze the weights as they stand. Returns the model file."""
        path = self.out / MODEL
        if self.fabric.is_global_zero:
            if self.config.behind:
                freeze.behind_to_file(self.mean, self.config, self.provenance(), self.validation, path)
            elif self.config.codes:
                freeze.freeze_to_file(self.mean, self.config, self.provenance(), self._one_crop_each(), self.validation, path)
            else:
                freeze.weights_to_file(self.mean, self.config, self.provenance(), path)
        self.fabric.barrier()
        return path

    def _stretch(self, bar: tqdm[Any]) -> None:
        """Steps with one size of crop, until it changes or all are done."""
        config, fabric = self.config, self.fabric
        crop = config.crop_at(self.step)
        last = config.early_steps if self.step < config.early_steps else config.steps
        stream = data.batches(
            self.photographs, seed=config.seed, first=self.step, last=min(last, config.steps), size=config.batch, crop=crop,
            latents=config.latents, rates=len(config.lambdas), alike=ALIKE if config.tilted else 1, lean=config.lean,
            rank=fabric.global_rank, world=fabric.world_size,
        )  # fmt: skip
        recent: list[tuple[float, float, float]] = []
        for batch in stream:
            began = time.monotonic()
            if config.allocates_at(self.step):
                self._allocate()
            if self.step >= config.joint_steps and not self.matching:
                self._begin_matching()
            loss, rate, error = self._match_step(batch) if self.matching else self._train_step(batch)
            recent.append((loss, rate, error))
            self.step += 1
            self.seconds += time.monotonic() - began
            psnr = -10 * math.log10(error) if error > 0 else math.inf
            bar.set_postfix_str(f"{rate:.3f} bpp, {psnr:.2f} dB, loss {loss:.3f}", refresh=False)
            bar.update()
            if self.step % config.validate_every == 0 or self.step == config.steps:
                mean = np.mean(recent[-config.validate_every :], axis=0)
                self._validate(mean, bar)
            if self.step % config.save_every == 0:
                self.save()
            if self.stopping:
                self.save()
                raise Interrupted(f"stopped at step {self.step}; --resume continues")

    def _train_step(self, batch: data.Batch) -> tuple[float, float, float]:
        """One step on one batch. Returns loss, bits per pixel and mean squared error. Raises `FloatingPointError`."""
        config, fabric = self.config, self.fabric
        x = to_image(torch.from_numpy(batch.crops).to(fabric.device))
        position = torch.from_numpy(batch.position).to(fabric.device)
        lambdas = self._lambda_at(position)
        noise = torch.from_numpy(batch.noise).to(fabric.device)
        # Not Fabric's own mixed precision, which rounds the inputs too: pixels and noise must stay exact.
        with torch.autocast(x.device.type, torch.bfloat16, enabled=config.precision == "bf16-mixed"):
            bits, mse, restored = self.forward(x, position, noise)
        rate = bits / (x.shape[2] * x.shape[3])
        cost = (rate + lambdas * self._distortion(mse, restored, x)) * weights_of(lambdas)
        loss = balanced(cost, config.balance).mean()
        seen = self._seen(loss, rate, mse)
        self.model.zero_grad(set_to_none=True)
        fabric.backward(loss)
        self._descend()
        if config.ema:
            # Short at first, so that the mean forgets where training began.
            decay = min(config.ema, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.mean.parameters()), list(self.model.parameters()), 1 - decay)
        return seen

    def _seen(self, loss: Tensor, rate: Tensor, error: Tensor) -> tuple[float, float, float]:
        """Means over all processes, which must see the same loss, and a signal that any of them got. Raises `FloatingPointError`."""
        asked = torch.tensor(float(self.stop()), device=loss.device)
        means = self.fabric.all_reduce(torch.stack([loss.detach(), rate.detach().mean(), error.detach().mean(), asked]), reduce_op="mean")
        values = [float(v) for v in means]  # type: ignore[union-attr]
        if not math.isfinite(values[0]):
            raise FloatingPointError(f"the loss is not finite at step {self.step}")
        self.stopping = values[3] > 0
        return values[0], values[1], values[2]

    def _descend(self) -> None:
        """A step of the optimisers, at the rates that are due."""
        for optimiser, peaks in zip(self.optimisers, self.peak_rates, strict=True):
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * self.config.rate_at(self.step) * self.caution
            optimiser.step()

    def _begin_matching(self) -> None:
        """From here on the analysis is trained alone, starting from the mean of the weights."""
        self.model.load_state_dict(self.mean.state_dict())
        self.matching = True
        self._optimise()

    def _match_step(self, batch: data.Batch) -> tuple[float, float, float]:
        """One step of the analysis towards latents from which the synthesis makes the least error without rounding.

        At high rates much of the error is what the synthesis could show and the analysis does not ask for. The loss' gradients say
        little of it: in the directions of small latents they are noise of rounding. Here is none. Returns as `_train_step`, no rate.
        """
        x = to_image(torch.from_numpy(batch.crops).to(self.fabric.device))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.config.precision == "bf16-mixed"):
            restored = self.model.show(self.model.latents(x), torch.from_numpy(batch.position).to(x.device))
        error = (restored - x).square().mean(dim=(1, 2, 3))
        # Every image counts alike; what is better than 47 dB, less.
        loss = torch.log(error + 2e-5).mean()
        seen = self._seen(loss, torch.zeros_like(error), error)
        parameters = list(self.model.analysis.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = self.fabric.all_reduce(gradient, reduce_op="mean")  # type: ignore[assignment]
        self._descend()
        if self.config.ema:
            with torch.no_grad():
                torch._foreach_copy_(list(self.mean.analysis.parameters()), parameters)
        return seen

    def _allocate(self) -> None:
        """Set the gains to what measuring finds best for the mean of the weights."""
        knows_where = isinstance(self.mean, HyperModel)
        search = allocation.high_resolution_log_gains if knows_where else allocation.log_gains
        crops = self._some_crops().to(self.fabric.device)
        found = self.fabric.broadcast(search(self.mean, crops, self.config.lambdas, self.config.seed))
        for model in (self.model, self.mean):
            model.log_gain.copy_(found)

    def _lambda_at(self, position: Tensor) -> Tensor:
        """λ at real positions on the ladder, geometric between the rungs."""
        low = position.floor().clamp(0, max(len(self.log_lambda) - 2, 0)).long()
        high = (low + 1).clamp(max=len(self.log_lambda) - 1)
        return torch.lerp(self.log_lambda[low], self.log_lambda[high], position - low).exp()

    def _distortion(self, mse: Tensor, restored: Tensor, x: Tensor) -> Tensor:
        """What λ multiplies, per image: the mean squared error on 0…255, the mean absolute one, or 1 - MS-SSIM."""
        if self.config.distortion == "mse":
            return PEAK * mse
        if self.config.distortion == "l1":
            return 255 * (restored - x).abs().mean(dim=(1, 2, 3))
        from pytorch_msssim import ms_ssim

        return 1 - ms_ssim(restored, x, data_range=1.0, size_average=False)

    def _validate(self, mean: Any, bar: tqdm[Any]) -> None:
        """Real rounding on held-out photographs, at every rung; a line in the curve, and the best checkpoint kept."""
        if not self.fabric.is_global_zero:
            return
        rows = validate(self.mean, self.validation, self.config.lambdas, self._distortion)
        weights = weights_of(torch.tensor(self.config.lambdas))
        score = float(np.mean([w * (r["bpp"] + v * r["distortion"]) for w, v, r in zip(weights, self.config.lambdas, rows, strict=True)]))
        record: dict[str, float] = {"step": self.step, "seconds": round(self.seconds)}
        record |= {"lr": self.config.rate_at(self.step - 1) * self.caution, "loss": mean[0], "bpp": mean[1], "mse": mean[2]}
        record |= {"val_loss": score}
        for v, row in zip(self.config.lambdas, rows, strict=True):
            record |= {f"val_bpp_{v:g}": row["bpp"], f"val_psnr_{v:g}": row["psnr"]}
        self._log(record)
        middle = rows[len(rows) // 2]
        bar.write(f"step {self.step}: held out {middle['bpp']:.3f} bpp, {middle['psnr']:.2f} dB, loss {score:.4f}", file=sys.stderr)
        self.validations += 1
        if self.validations % self.config.files_every == 0 and self.config.codes:
            bar.write(self._measure_files(middle["bpp"]), file=sys.stderr)
        if score < self.best:
            self.best = score
            save_atomically(self.state(), self.out / BEST)

    def _log(self, record: dict[str, float]) -> None:
        """A line in curve.csv and the same numbers for TensorBoard."""
        path = self.out / CURVE
        fresh = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(record))
            if fresh:
                writer.writeheader()
            writer.writerow({k: v if isinstance(v, int) else f"{v:.6g}" for k, v in record.items()})
        for name, value in record.items():
            if name != "step":
                self.board.add_scalar(name, value, self.step)

    def _measure_files(self, estimate: float) -> str:
        """Real files of the held-out crops at the middle rung against the estimated rate, and the first reconstructions."""
        frozen = freeze.in_memory(self.mean, self.config, self.validation)
        quality = (frozen.qualities + 1) // 2
        measured = freeze.measure(frozen, self.validation, quality)
        self.board.add_scalar("files_bpp", measured["bpp"], self.step)
        for i, crop in enumerate(self.validation[:4].cpu().numpy()):
            self.board.add_image(f"held_out/{i}", frozen.decode(frozen.encode(crop, quality)), self.step, dataformats="HWC")
        return f"step {self.step}: real files {measured['bpp']:.3f} bpp, {measured['bits_over_ideal']:.4f} of -log2 P, header included"

    @cached_property
    def board(self) -> SummaryWriter:
        """TensorBoard's event file, in the run's folder; appended to when a run is resumed."""
        return SummaryWriter(str(self.out / "tensorboard"), purge_step=self.step)

    def provenance(self) -> dict[str, Any]:
        """Where a model comes from."""
        return {
            "step": self.step,
            "hours": round(self.seconds / 3600, 3),
            "data_manifest": self.manifest,
            "photographs": len(self.photographs.paths),
            "versions": {"torch": torch.__version__, "python": platform.python_version(), "processes": self.fabric.world_size},
        }
