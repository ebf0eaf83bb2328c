"""`python -m train`: train models on a folder of photographs and freeze them into model files."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from train.config import Config, ConfigError, add_arguments, resolve

if TYPE_CHECKING:
    from lightning.fabric import Fabric

EPILOG = """\
examples:
  one model:            python -m train --data photos --lambda 0.013 --out runs/a
  the whole ladder:     python -m train --data photos --lambda 0.0018 0.0035 0.0067 0.013 0.025 0.0483 0.0932 0.18 --out runs/b
  one model for all:    python -m train --data photos --lambda 0.0018 … 0.18 --variable-rate --out runs/c
  after an interruption: the same command with --resume
  several processes:    torchrun --nproc-per-node 2 -m train …   (one batch is shared by all; any number of nodes)

Each model has a folder of its own below --out, with model.safetensors (what rdae reads), curve.csv, config.json and checkpoints."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m train", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the run")
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file with settings; flags override it")
    parser.add_argument("--variable-rate", action="store_true", help="one model for all λ, with a gain per channel and rate")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoints below --out")
    parser.add_argument("--freeze-now", action="store_true", help="with --resume: freeze the last checkpoints as they are")
    parser.add_argument("--start-from", type=Path, metavar="FILE", help="a frozen model whose weights to begin with")
    parser.add_argument("--no-warm-start", action="store_true", help="train each λ from nothing, not from its neighbour's weights")
    add_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 done, 2 a bad argument or impossible state, 130 stopped by a signal with everything saved."""
    arguments = build_parser().parse_args(argv)
    try:
        config = resolve(arguments, arguments.config)
        if not config.data:
            raise ConfigError("--data: which photographs?")
        if not arguments.variable_rate:
            runs = [(f"lambda-{v:g}", replace(config, lambdas=(v,))) for v in config.lambdas]
        elif len(config.lambdas) < 2:
            raise ConfigError("--variable-rate: needs at least two λ")
        elif config.objective == "vae":
            raise ConfigError("--variable-rate: not with --objective vae, which has no quantiser")
        else:
            runs = [("variable-rate", config)]
        if config.behind and (arguments.start_from or not Path(config.behind).is_file()):
            raise ConfigError("--behind: is the start itself" if arguments.start_from else f"--behind: there is no file {config.behind}")
        if arguments.freeze_now and not arguments.resume:
            raise ConfigError("--freeze-now: needs --resume")
        for name, _ in runs:
            if (arguments.out / name).exists() and not arguments.resume:
                raise ConfigError(f"{arguments.out / name}: a run is there already; --resume continues it")
    except ConfigError as error:
        return _fail(error)
    return _train(arguments, runs)


def _fail(error: Exception) -> int:
    print(f"train: {error}", file=sys.stderr)
    return 2


def _fabric(config: Config) -> Fabric:
    """One process, or the share of one among those that torchrun or `fabric run` started."""
    from lightning.fabric import Fabric

    here, everywhere = (int(os.environ.get(name, 1)) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    if config.batch % everywhere:
        raise ConfigError(f"--batch: {config.batch} crops cannot be shared evenly by {everywhere} processes")
    fabric = Fabric(accelerator=config.device, devices=here, num_nodes=everywhere // here, strategy="ddp" if everywhere > 1 else "auto")
    fabric.launch()
    return fabric


def _train(arguments: argparse.Namespace, runs: list[tuple[str, Config]]) -> int:
    warnings.filterwarnings("ignore", category=FutureWarning)  # compressai scripts a module on import
    from codec.errors import RdaeError
    from train import freeze
    from train.checkpoint import Interrupted, TrainingError
    from train.data import DataError
    from train.loop import LAST, MODEL, Trainer

    behind = runs[0][1].behind
    start_file: Path | None = Path(behind) if behind else arguments.start_from
    try:
        for name, config in runs:
            out = arguments.out / name
            if (out / MODEL).exists():
                print(f"train: {out / MODEL}: done already", file=sys.stderr)
            else:
                fabric = _fabric(config)
                resumes = (out / LAST).exists()
                begins = start_file and not resumes
                start = freeze.weights_to_start_from(start_file, config.lambdas, config.entropy, config.tilted) if begins else None
                trainer = Trainer(config, out, fabric, start)
                if resumes:
                    trainer.restore()
                path = trainer.freeze() if arguments.freeze_now else trainer.run()
                print(f"train: {path}: frozen at step {trainer.step}", file=sys.stderr)
            if not arguments.no_warm_start and config.codes and not behind:
                start_file = out / MODEL
    except Interrupted as stop:
        print(f"train: {stop}", file=sys.stderr)
        return 130
    except (ConfigError, DataError, TrainingError, RdaeError) as error:
        return _fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
