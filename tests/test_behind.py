"""A synthesis that is trained alone, behind a frozen model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SAMPLES, tiny_model_bytes
from safetensors.torch import load_file

from codec import container
from codec import image as images
from codec import model as models
from train import freeze
from train.__main__ import main
from train.config import Config
from train.hyper import HyperModel
from train.loop import MODEL
from train.network import network

LADDER = (0.013, 0.03, 0.09)
SETTINGS = {
    "--filters": "8", "--latents": "12", "--optimiser": "adam", "--steps": "60", "--batch": "4", "--crop": "64", "--early-steps": "0",
    "--warmup": "0", "--adam-lr": "0.003", "--held-out": "1", "--threads": "1", "--quantiser": "mixed", "--validate-every": "30",
}  # fmt: skip


def run(out: Path, behind: Path, *more: str) -> int:
    """A short run, of whichever profile."""
    settings = [text for pair in SETTINGS.items() for text in pair]
    rates = ["--variable-rate", "--tilted", "--lambda", *map(str, LADDER)]
    return main([*settings, *rates, "--data", str(SAMPLES), "--behind", str(behind), "--out", str(out), *more])


def hyper(folder: Path) -> tuple[Path, list[str]]:
    config = Config(lambdas=LADDER, filters=8, latents=12, entropy="hyperprior", slices=(2, 4, 6), turns=(7, 4, 2), quantiser="mixed")
    model = network(config)
    assert isinstance(model, HyperModel)
    crops = torch.from_numpy(images.read(SAMPLES / "coffee.png")[None, :256, :256].copy())
    with torch.no_grad():
        model.calibrate(model.latents(crops.permute(0, 3, 1, 2) / 255))
    file = folder / "hyper.safetensors"
    file.write_bytes(models.to_bytes(freeze.tensors_of(model, crops), freeze._metadata(model, config)))
    return file, ["--entropy", "hyperprior", "--slices", "2", "4", "6", "--turns", "7", "4", "2"]


def factorized(folder: Path) -> tuple[Path, list[str]]:
    file = folder / "tiny.safetensors"
    file.write_bytes(tiny_model_bytes())
    return file, []


@pytest.mark.parametrize("make", [factorized, hyper])
def test_all_but_the_synthesis_stays_to_the_bit(make, tmp_path: Path, photograph: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    file, flags = make(tmp_path)
    assert run(tmp_path / "run", file, *flags) == 0
    path = tmp_path / "run" / "variable-rate" / MODEL
    before, after = load_file(file), load_file(path)
    assert {name for name in after if not name.startswith("synthesis.")} == {name for name in before if not name.startswith("synthesis.")}
    for name, tensor in before.items():
        assert name.startswith("synthesis.") or torch.equal(tensor, after[name]), name
    old, new = models.load(file, "fp32"), models.load(path, "fp32")
    assert new.tilted and new.metadata["training"]["former"]["sha256"] == old.sha256 and str(tmp_path) not in str(new.metadata)
    image = photograph[:128, :192]
    for quality in (1, 2, 3):
        files = [model.encode(image, quality) for model in (old, new)]
        assert [container.read(data).latents for data in files[:1]] == [container.read(data).latents for data in files[1:]]
        errors = [np.square(model.decode(data).astype(float) - image).mean() for model, data in zip((old, new), files, strict=True)]
        assert errors[1] < 0.9 * errors[0]


def test_it_resumes(tmp_path: Path) -> None:
    file, flags = factorized(tmp_path)
    assert run(tmp_path / "whole", file, *flags) == 0
    assert run(tmp_path / "parts", file, "--steps", "30", "--decay", "0", "--save-every", "10") == 0
    (tmp_path / "parts" / "variable-rate" / MODEL).unlink()
    assert run(tmp_path / "parts", file, "--resume", "--decay", "0.5") == 0
    whole, parts = (load_file(tmp_path / name / "variable-rate" / MODEL) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(t, parts[name]) for name, t in whole.items())


def test_bad_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, _ = factorized(tmp_path)
    for more, complaint in (
        (["--start-from", str(file)], "--behind: is the start itself"),
        (["--quantiser", "noise"], "--behind: needs --objective rd and --quantiser mixed"),
        (["--match-steps", "3"], "has no --match-steps"),
        (["--latents", "13"], "of another shape"),
    ):
        assert run(tmp_path / "bad", file, *more) == 2
        assert complaint in capsys.readouterr().err.splitlines()[-1]
    assert run(tmp_path / "bad", tmp_path / "none.safetensors") == 2
    assert "--behind: there is no file" in capsys.readouterr().err.splitlines()[-1]
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    assert run(tmp_path / "bad", tmp_path / "junk.safetensors") == 2
    assert "junk: not an rdae model file" in capsys.readouterr().err.splitlines()[-1]
