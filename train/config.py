"""What a training run is made of: one frozen dataclass, read from flags or a TOML file."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from codec.layout import SQUARES

LADDER = (0.0018, 0.0035, 0.0067, 0.0130, 0.0250, 0.0483, 0.0932, 0.1800)
"""The field's λ for mean squared error on 0…255."""


MATCH_RATE = 0.6
"""Where the last steps, of the analysis alone, begin, against the learning rates of the others."""
MATCH_WARMUP = 20


class ConfigError(Exception):
    """A setting is impossible; the message is one line for the person who chose it."""


def _option(default: Any, text: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, **more})


@dataclass(frozen=True)
class Config:
    """Settings of one model's training. `lambdas` holds one λ, or the ladder of a variable-rate model."""

    data: str = _option("", "folder of photographs (any depth), or a text file that lists them")
    lambdas: tuple[float, ...] = _option((0.013,), "Lagrange multipliers, in rising order")
    filters: int = _option(128, "N, channels of the hidden layers")
    latents: int = _option(192, "M, channels of the latents")
    entropy: str = _option("factorized", "entropy model: profile 1, or profile 2", choices=("factorized", "hyperprior"))
    slices: tuple[int, ...] = _option((32, 32, 64, 64), "with --entropy hyperprior: latents that are coded together; their sum is M")
    turns: tuple[int, ...] = _option((), "with --entropy hyperprior: in how many turns (1, 2, 4 or 7) the places of each slice are coded")
    steps: int = _option(20_000, "optimiser steps")
    batch: int = _option(8, "crops in a step, over all processes")
    crop: int = _option(256, "side of a crop in pixels, a multiple of 16")
    early_crop: int = _option(128, "side of a crop during the early steps")
    match_steps: int = _option(0, "how many of the steps, the last ones, train the analysis alone, towards the inverse of the synthesis")
    early_steps: int = _option(4_000, "how many steps use the early crop")
    init: str = _option("klt", "where the convolutions start: a block transform, or random", choices=("klt", "orthogonal"))
    lr: float = _option(0.01, "learning rate of Muon or SOAP, on the convolutions (SOAP wants a tenth)")
    adam_lr: float = _option(1e-3, "learning rate of Adam, on everything else; on everything with --optimiser adam")
    density_lr: float = _option(1e-2, "learning rate of Adam on the density and the gains, which are logarithms")
    optimiser: str = _option("muon", "what trains the convolutions", choices=("muon", "soap", "adam"))
    warmup: int = _option(200, "steps over which the learning rate rises from zero")
    decay: float = _option(0.5, "last fraction of the steps, over which it falls to zero along a cosine")
    ema: float = _option(0.998, "decay of the running mean of the weights that is validated and frozen; 0 takes the weights as they are")
    quantiser: str = _option("noise", "what stands for rounding: noise, or noise in the rate only", choices=("noise", "mixed"))
    allocate_every: int = _option(
        500, "steps between searches for the best gains, with --quantiser mixed; 0 learns those of a ladder by gradients"
    )
    keep_gains: bool = _option(False, "neither search for gains nor learn them: those of a start stay as they are")
    thrift: float = _option(
        0.05, "with --quantiser mixed: how much squared error, in squared steps, a saved bit is worth when a latent is rounded; 0: none"
    )
    tilted: bool = _option(False, "let the synthesis change with the rate: its convolutions go evenly from one set of weights to another")
    behind: str = _option(
        "", "a frozen model: train the synthesis alone, behind its analysis and entropy model, which stay as they are to the bit"
    )
    balance: float = _option(
        0.0, "how far images of small loss count as much as busy ones: each loss is divided by its own size to this power, at most 1"
    )
    lean: float = _option(
        1.0, "how much more often high rates are drawn: crops lie on the ladder at u to the power of 1 / lean, u even in 0…1"
    )
    distortion: str = _option(
        "mse", "what λ multiplies: mean square or mean size of errors on 0…255, or 1 - MS-SSIM", choices=("mse", "l1", "ms-ssim")
    )
    objective: str = _option("rd", "rate and distortion, or a Gaussian variational autoencoder's bound", choices=("rd", "vae"))
    prior: str = _option("learned", "with --objective vae: a learned diagonal Gaussian, or N(0, I)", choices=("learned", "standard"))
    normalisation: str = _option("gdn", "what stands between the convolutions", choices=("gdn", "relu"))
    seed: int = _option(0, "seed of weights, crops and noise")
    held_out: int = _option(16, "photographs kept for validation, chosen by their names")
    validate_every: int = _option(500, "steps between validations")
    save_every: int = _option(500, "steps between checkpoints")
    files_every: int = _option(5, "validations between those that code real files and log reconstructions")
    device: str = _option("cpu", "cpu or cuda")
    precision: str = _option("bf16-mixed", "arithmetic of the transforms", choices=("bf16-mixed", "32-true"))
    threads: int = _option(0, "threads of the processor to use; 0 leaves it to PyTorch")
    compile: bool = _option(False, "compile the model with torch.compile")

    def check(self) -> None:
        """Raises `ConfigError` for the first setting that cannot be."""
        if not self.lambdas or not all(math.isfinite(v) and v > 0 for v in self.lambdas):
            raise ConfigError("--lambda: every λ must be a positive number")
        if any(a >= b for a, b in zip(self.lambdas, self.lambdas[1:], strict=False)):
            raise ConfigError("--lambda: the values must rise, without repetition")
        for name in ("crop", "early_crop"):
            value = getattr(self, name)
            if value < 16 or value % 16:
                raise ConfigError(f"--{name.replace('_', '-')}: {value} is not a positive multiple of 16")
            if self.distortion == "ms-ssim" and value < 176 and (name == "crop" or self.early_steps):
                raise ConfigError(f"--{name.replace('_', '-')}: MS-SSIM needs crops of at least 176 pixels, not {value}")
        for name in ("filters", "latents", "steps", "batch", "validate_every", "save_every", "files_every", "held_out"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')}: must be at least 1")
        if self.entropy == "hyperprior":
            if min(self.slices) < 1 or sum(self.slices) != self.latents:
                raise ConfigError(f"--slices: {' + '.join(map(str, self.slices))} must be positive and add up to --latents {self.latents}")
            if self.turns and (len(self.turns) != len(self.slices) or not set(self.turns) <= set(SQUARES)):
                raise ConfigError(
                    f"--turns: {' '.join(map(str, self.turns))} must be 1, 2, 4 or 7 for each of the {len(self.slices)} slices"
                )
            if self.objective != "rd" or self.normalisation != "gdn" or self.quantiser != "mixed":
                raise ConfigError("--entropy hyperprior: needs --quantiser mixed, --normalisation gdn and --objective rd")
            # In bfloat16, oneDNN's gradient of a 5×5 kernel on a map of one pixel is NaN at times; 32 pixels are one such at 1/32.
            least = min(self.crop, self.early_crop) if self.early_steps else self.crop
            if least < 64:
                raise ConfigError(f"--crop, --early-crop: --entropy hyperprior needs crops of at least 64 pixels, not {least}")
        if self.match_steps and (self.objective != "rd" or self.distortion == "ms-ssim"):
            raise ConfigError("--match-steps: lower the squared error; they suit neither --objective vae nor --distortion ms-ssim")
        if self.match_steps >= self.steps:
            raise ConfigError(f"--match-steps: {self.match_steps} of {self.steps} leave none for the rest")
        for name in ("lr", "adam_lr", "density_lr"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"--{name.replace('_', '-')}: must be a positive number")
        if self.init == "klt" and not self.codes:
            raise ConfigError("--init: klt suits neither ReLU nor a variational autoencoder; orthogonal does")
        if self.tilted and (self.objective != "rd" or len(self.lambdas) < 2):
            raise ConfigError("--tilted: needs --objective rd and more than one λ (--variable-rate)")
        if self.behind and (self.objective != "rd" or self.quantiser != "mixed" or self.match_steps):
            raise ConfigError("--behind: needs --objective rd and --quantiser mixed, and has no --match-steps")
        if self.keep_gains and self.objective != "rd":
            raise ConfigError("--keep-gains: a variational autoencoder has none")
        if not 0 <= self.thrift < 1:
            raise ConfigError("--thrift: lies in 0…1, without 1")
        if not 0 <= self.balance <= 1:
            raise ConfigError("--balance: lies in 0…1")
        if not 0.25 <= self.lean <= 4:
            raise ConfigError("--lean: lies in 0.25…4")
        if not 0 <= self.ema < 1:
            raise ConfigError("--ema: lies in 0…1, without 1")
        if (
            not 0 <= self.decay <= 1
            or self.warmup < 0
            or self.early_steps < 0
            or min(self.threads, self.allocate_every, self.match_steps) < 0
        ):
            raise ConfigError(
                "--decay lies in 0…1; --warmup, --early-steps, --allocate-every, --match-steps and --threads are not negative"
            )

    @property
    def allocates(self) -> bool:
        """Whether gains are searched for instead of learned."""
        return self.quantiser == "mixed" and self.allocate_every > 0 and not self.keep_gains and not self.behind

    @property
    def learns_gains(self) -> bool:
        """Whether gains, and the units of the latents with them, are learned by gradients."""
        return not (self.allocates or self.keep_gains or self.behind)

    def allocates_at(self, step: int) -> bool:
        """Whether a step begins with a search for gains.

        The gradient of rounding, straight through, lets latents grow against their steps, and a search makes up for it. Profile 2 keeps
        its gains once the learning rate falls: its networks then settle about the steps that they know, and where searches go on steps
        grow with each of them.
        """
        due = self.allocates and step % self.allocate_every == 0 and step <= self.joint_steps
        return due and (self.entropy == "factorized" or step <= self.joint_steps * (1 - self.decay))

    @property
    def joint_steps(self) -> int:
        """The steps that train everything."""
        return self.steps - self.match_steps

    def rate_at(self, step: int) -> float:
        """Factor on the learning rates at a step: a linear rise, a plateau, a half cosine to zero; for the last steps, once more."""
        peak, warmup, fall, left = 1.0, self.warmup, self.joint_steps * self.decay, self.joint_steps - step
        if self.match_steps and step >= self.joint_steps:
            peak, warmup, fall, left, step = MATCH_RATE, MATCH_WARMUP, self.match_steps, self.steps - step, step - self.joint_steps
        rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
        return peak * rise * (0.5 - 0.5 * math.cos(math.pi * min(1.0, left / fall if fall else 1.0)))

    def crop_at(self, step: int) -> int:
        """Side of the crops at a step."""
        return self.early_crop if step < self.early_steps else self.crop

    @property
    def codes(self) -> bool:
        """Whether what is trained becomes a codec's model: the variational autoencoder and networks without GDN are for comparison."""
        return self.objective == "rd" and self.normalisation == "gdn"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**dataclasses.asdict(self), "lambdas": list(self.lambdas), "slices": list(self.slices), "turns": list(self.turns)}


FREE_TO_CHANGE = {"steps", "decay", "match_steps", "validate_every", "save_every", "files_every", "data"}
FREE_TO_CHANGE |= {"threads", "device", "precision", "compile"}
"""Settings that a resumed run may change: they do not alter what was trained so far."""


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What changed between two configurations, apart from what may: 'crop 256 → 128, …', or nothing."""
    old = {**Config().as_dict(), **old}  # a setting that is younger than the run stood at its default
    changed = [name for name in new if name not in FREE_TO_CHANGE and old[name] != new[name]]
    return ", ".join(f"{name} {old[name]} → {new[name]}" for name in changed)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for each setting."""
    for f in dataclasses.fields(Config):
        text = f.metadata["help"]
        if f.name == "lambdas":
            parser.add_argument("--lambda", dest="lambdas", type=float, nargs="+", metavar="λ", help=f"{text} (default: 0.013)")
        elif f.name in ("slices", "turns"):
            shown = " ".join(map(str, f.default)) or "one each"
            parser.add_argument(f"--{f.name}", type=int, nargs="+", metavar="X", help=f"{text} (default: {shown})")
        elif f.type == "bool":
            parser.add_argument(f"--{f.name.replace('_', '-')}", action="store_const", const=True, help=text)
        else:
            kind = {"int": int, "float": float}.get(str(f.type), str)
            default = f" (default: {f.default})" if f.default != "" else ""
            flag, choices = f"--{f.name.replace('_', '-')}", f.metadata.get("choices")
            parser.add_argument(flag, type=kind, choices=choices, metavar=None if choices else "X", help=text + default)


def resolve(arguments: argparse.Namespace, file: Path | None) -> Config:
    """Defaults, overridden by the TOML file, overridden by flags. Raises `ConfigError`."""
    names = {f.name for f in dataclasses.fields(Config)}
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file}: {error}") from error
        unknown = sorted(set(values) - names)
        if unknown:
            raise ConfigError(f"{file}: unknown setting {unknown[0]!r}")
    values.update({name: value for name, value in vars(arguments).items() if name in names and value is not None})
    for f in dataclasses.fields(Config):
        if f.name in values and f.name not in ("lambdas", "slices", "turns"):
            kind = {"int": int, "float": (int, float), "bool": bool}.get(str(f.type), str)
            if not isinstance(values[f.name], kind) or (isinstance(values[f.name], bool) and f.type != "bool"):
                raise ConfigError(f"{f.name}: {values[f.name]!r} is not {'a number' if f.type in ('int', 'float') else f'a {f.type}'}")
    try:
        values["lambdas"] = tuple(float(v) for v in values.get("lambdas", Config.lambdas))
    except (TypeError, ValueError) as error:
        raise ConfigError("--lambda: every λ must be a positive number") from error
    try:
        values["slices"], values["turns"] = (tuple(int(v) for v in values.get(name, getattr(Config, name))) for name in ("slices", "turns"))
    except (TypeError, ValueError) as error:
        raise ConfigError("--slices, --turns: whole numbers, one for each slice") from error
    config = Config(**values)
    config.check()
    return config
