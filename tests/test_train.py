"""Training of a model small enough for seconds."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SAMPLES

import codec
from train import data
from train.__main__ import main
from train.checkpoint import save_atomically
from train.config import Config, ConfigError, difference
from train.freeze import weights_to_start_from
from train.loop import LAST, MODEL, Trainer
from train.objective import RateDistortion, to_image
from train.validation import centre_crops

ROOT = Path(__file__).parent.parent
TINY = [
    "--filters", "8", "--latents", "12", "--batch", "4", "--crop", "64", "--early-crop", "32", "--early-steps", "20",
    "--warmup", "5", "--held-out", "1", "--precision", "32-true", "--threads", "1", "--validate-every", "20", "--save-every", "10",
]  # fmt: skip


def train(out: Path, *more: str) -> int:
    return main(["--data", str(SAMPLES), "--out", str(out), *TINY, *more])


def curve(folder: Path) -> list[dict[str, str]]:
    with (folder / "curve.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("train")
    assert train(out, "--steps", "60") == 0
    return out / "lambda-0.013"


def test_the_loss_falls_and_the_model_works(finished: Path, photograph: np.ndarray) -> None:
    losses = [float(row["val_loss"]) for row in curve(finished)]
    assert len(losses) == 3 and losses[-1] < 0.9 * losses[0]
    model = codec.load(finished / MODEL)
    restored = model.decode(model.encode(photograph))
    assert np.mean((restored.astype(float) - photograph) ** 2) < 0.5 * np.var(photograph)
    assert model.metadata["training"]["steps"] == 60 and model.metadata["training"]["step"] == 60
    assert model.metadata["measured_on_held_out_crops"]["bits_over_ideal"] < 1.1
    assert "data" not in model.metadata["training"]  # paths of the machine are nobody's business


def test_resuming_gives_the_same_state_bit_for_bit(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped by a signal in the midst, resumed, the run ends with the very weights of the uninterrupted one."""
    original = Trainer._train_step

    def stop_at_34(self: Trainer, batch: data.Batch) -> tuple[float, float, float]:
        if self.step == 33:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch)

    monkeypatch.setattr(Trainer, "_train_step", stop_at_34)
    assert train(tmp_path, "--steps", "60") == 130
    monkeypatch.undo()
    assert torch.load(tmp_path / "lambda-0.013" / LAST, weights_only=True)["step"] == 34
    assert train(tmp_path, "--steps", "60", "--resume") == 0
    a, b = (torch.load(folder / LAST, weights_only=True) for folder in (finished, tmp_path / "lambda-0.013"))
    assert a["model"].keys() == b["model"].keys()
    for name in a["model"]:
        assert torch.equal(a["model"][name], b["model"][name]), name
    # The files differ in their metadata (hours), but not in a single tensor.
    first, second = (codec.load(folder / MODEL) for folder in (finished, tmp_path / "lambda-0.013"))
    assert np.array_equal(first.entropy.density.cdf, second.entropy.density.cdf) and np.array_equal(first.steps, second.steps)


def test_the_last_steps_match_the_analysis_to_the_synthesis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They change the analysis only, and what is not rounded comes back with less error; resumed in their midst, bit for bit."""
    assert train(tmp_path / "without", "--steps", "30") == 0
    assert train(tmp_path / "with", "--steps", "60", "--match-steps", "30") == 0
    original = Trainer._match_step

    def stop_at_44(self: Trainer, batch: data.Batch) -> tuple[float, float, float]:
        if self.step == 43:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch)

    monkeypatch.setattr(Trainer, "_match_step", stop_at_44)
    assert train(tmp_path / "resumed", "--steps", "60", "--match-steps", "30") == 130
    monkeypatch.undo()
    assert train(tmp_path / "resumed", "--steps", "60", "--match-steps", "30", "--resume") == 0
    folders = [tmp_path / name / "lambda-0.013" for name in ("without", "with", "resumed")]
    without, matched, resumed = (torch.load(folder / LAST, weights_only=True)["mean"] for folder in folders)
    for name in [name for name in matched if "reparam" not in name]:
        assert torch.equal(matched[name], resumed[name]), name
        assert name.startswith("analysis.") != torch.equal(without[name], matched[name]), name
    x = to_image(centre_crops(sorted(SAMPLES.glob("*.png"))))
    errors = []
    for weights in (without, matched):
        model = RateDistortion((0.013,), 8, 12)
        model.load_state_dict(weights)
        with torch.no_grad():
            errors.append(float((model.synthesis(model.analysis(x)) - x).square().mean()))
    assert errors[1] < 0.98 * errors[0]


def test_the_last_steps_roll_back_to_those_before_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is not finite right after the change of optimisers, with a checkpoint from before it."""
    original, calls = Trainer._match_step, iter(range(100))

    def fail_once(self: Trainer, batch: data.Batch) -> tuple[float, float, float]:
        if next(calls) == 3:
            raise FloatingPointError("the loss is not finite")
        return original(self, batch)

    monkeypatch.setattr(Trainer, "_match_step", fail_once)
    assert train(tmp_path, "--steps", "36", "--match-steps", "11", "--early-steps", "0") == 0
    state = torch.load(tmp_path / "lambda-0.013" / LAST, weights_only=True)
    assert state["matching"] and state["caution"] == 0.5 and state["step"] == 36


def test_a_run_is_not_overwritten_and_not_changed(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(finished.parent, "--steps", "60") == 2
    assert "--resume" in capsys.readouterr().err
    (finished / MODEL).rename(finished / "aside")
    assert train(finished.parent, "--steps", "60", "--resume", "--lr", "0.5") == 2
    assert "lr 0.01 → 0.5" in capsys.readouterr().err
    (finished / "aside").rename(finished / MODEL)


def test_variable_rate_from_a_fixed_one(finished: Path, tmp_path: Path, photograph: np.ndarray) -> None:
    arguments = ["--variable-rate", "--lambda", "0.0035", "0.013", "0.0483", "--start-from", str(finished / MODEL)]
    assert train(tmp_path, "--steps", "10", "--lr", "0.001", "--adam-lr", "0.0001", "--warmup", "0", *arguments) == 0
    model = codec.load(tmp_path / "variable-rate" / MODEL)
    assert model.qualities == 100
    sizes = [len(model.encode(photograph, quality)) for quality in (1, 50, 100)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    # It began where the fixed model had ended, not at the noise that an untrained model gives.
    assert float(curve(tmp_path / "variable-rate")[0]["val_loss"]) < 3 * float(curve(finished)[-1]["val_loss"])


def test_a_ladder_starts_each_model_from_its_neighbour(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(finished, tmp_path / finished.name)
    settings = ["--steps", "20", "--lr", "0.005", "--lambda", "0.013", "0.02", "--resume"]
    assert train(tmp_path, *settings) == 0
    assert "done already" in capsys.readouterr().err
    warm = float(curve(tmp_path / "lambda-0.02")[0]["loss"])
    shutil.rmtree(tmp_path / "lambda-0.02")
    assert train(tmp_path, *settings, "--no-warm-start") == 0
    assert warm < 0.95 * float(curve(tmp_path / "lambda-0.02")[0]["loss"])


def test_a_loss_that_is_not_finite_rolls_back_once_and_then_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, spoiled = Trainer._train_step, []

    def spoil(self: Trainer, batch: data.Batch) -> tuple[float, float, float]:
        if self.step == 15:
            spoiled.append(self.caution)
            with torch.no_grad():
                self.model.log_gain.fill_(float("nan"))
        return original(self, batch)

    monkeypatch.setattr(Trainer, "_train_step", spoil)
    assert train(tmp_path, "--steps", "20") == 2
    assert spoiled == [1.0, 0.5]
    error = capsys.readouterr().err
    assert "back to step 10 at half the learning rate" in error and "not finite at step 15" in error
    state = torch.load(tmp_path / "lambda-0.013" / LAST, weights_only=True)
    assert state["step"] == 10 and torch.isfinite(state["model"]["log_gain"]).all()


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    save_atomically({"step": 1}, path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(Exception, match="No space left"):
        save_atomically({"step": 2}, path)
    assert torch.load(path)["step"] == 1 and [p.name for p in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lambda", "0"], "positive"),
        (["--lambda", "-0.01"], "positive"),
        (["--lambda", "nan"], "positive"),
        (["--lambda", "0.02", "0.01"], "rise"),
        (["--lambda", "0.02", "0.02"], "rise"),
        (
            ["--entropy", "hyperprior", "--slices", "4", "4", "--quantiser", "mixed"],
            "--slices: 4 + 4 must be positive and add up to --latents 12",
        ),
        (["--entropy", "hyperprior", "--slices", "4", "8"], "--entropy hyperprior: needs --quantiser mixed"),
        (
            ["--entropy", "hyperprior", "--slices", "4", "8", "--quantiser", "mixed"],
            "--crop, --early-crop: --entropy hyperprior needs crops of at least 64 pixels, not 32",
        ),
        (["--crop", "100"], "--crop: 100 is not a positive multiple of 16"),
        (["--early-crop", "8"], "multiple of 16"),
        (["--steps", "0"], "--steps: must be at least 1"),
        (["--lr", "-1"], "--lr: must be a positive"),
        (["--variable-rate"], "at least two"),
        (["--keep-gains", "--objective", "vae", "--init", "orthogonal"], "--keep-gains: a variational autoencoder has none"),
        (["--distortion", "ms-ssim"], "176"),
        (["--config", "missing.toml"], "missing.toml"),
        (["--data", "missing-folder"], "missing-folder: no such folder"),
        (["--start-from", "missing.safetensors"], "cannot read"),
    ],
)
def test_bad_arguments_get_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert train(tmp_path / "run", *arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("train: ") and error.count("\n") == 1


def test_a_folder_without_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path), "--out", str(tmp_path / "run"), *TINY]) == 2
    assert "no images" in capsys.readouterr().err
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("not an image")
    assert main(["--data", str(tmp_path), "--out", str(tmp_path / "run"), *TINY]) == 2
    assert "no readable image is left" in capsys.readouterr().err


def test_configuration_file_and_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f'data = "{SAMPLES}"\nlambdas = [0.05]\nsteps = 3\nfilters = 4\n')
    assert main(["--config", str(file), "--out", str(tmp_path / "run"), *TINY[2:], "--steps", "2"]) == 0
    saved = json.loads((tmp_path / "run" / "lambda-0.05" / "config.json").read_text())
    assert (saved["steps"], saved["filters"], saved["lambdas"]) == (2, 4, [0.05])
    for text, words in (("stepps = 3", "unknown setting 'stepps'"), ("steps = 'x'", "'x' is not"), ("= broken", "c.toml")):
        file.write_text(text)
        assert main(["--config", str(file), "--out", str(tmp_path / "other")]) == 2
        assert words in capsys.readouterr().err


def test_schedule() -> None:
    config = Config(steps=100, warmup=10, decay=0.5, early_steps=20)
    rates = [config.rate_at(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[49] == 1 and rates[100] == pytest.approx(0)
    assert rates[75] == pytest.approx(0.5) and rates[50:] == sorted(rates[50:], reverse=True)
    assert (config.crop_at(19), config.crop_at(20)) == (128, 256)
    with pytest.raises(ConfigError):
        Config(decay=2).check()
    with pytest.raises(ConfigError, match="--lean: lies in"):
        Config(lean=0).check()
    longer = Config(steps=140, match_steps=40, warmup=10, decay=0.5)
    assert [longer.rate_at(step) for step in range(100)] == rates[:100]
    last = [longer.rate_at(step) for step in range(100, 140)]
    assert max(last) < 0.6 and last[19:] == sorted(last[19:], reverse=True) and last[-1] < 0.01
    assert difference(config.as_dict(), Config(steps=50, crop=128).as_dict()).startswith("crop 256 → 128")
    older = {name: value for name, value in config.as_dict().items() if name != "objective"}
    assert difference(older, config.as_dict()) == ""
    assert difference(older, Config(objective="vae").as_dict()).endswith("objective rd → vae")


def test_two_processes_train_as_one_with_the_same_batch(tmp_path: Path) -> None:
    """Over gloo, started by torchrun: the same crops, and the same weights up to the rounding of sums."""
    settings = ["--data", str(SAMPLES), *TINY, "--steps", "8", "--match-steps", "2", "--warmup", "0", "--lr", "0.005"]
    assert main([*settings, "--out", str(tmp_path / "one")]) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, *settings, "--out", str(tmp_path / "two")], check=True, cwd=ROOT, env=environment, capture_output=True)
    one, two = (torch.load(tmp_path / name / "lambda-0.013" / LAST, weights_only=True) for name in ("one", "two"))
    torch.manual_seed(0)
    fresh = RateDistortion((0.013,), 8, 12).state_dict()
    for name, weight in one["model"].items():
        # Muon works in bfloat16, which magnifies the rounding of sums; next to the way that training went, it is nothing.
        moved, apart = (weight - fresh[name]).norm(), (weight - two["model"][name]).norm()
        assert apart <= 0.02 * moved + 1e-6, name
    assert (one["model"]["synthesis.conv2.weight"] - fresh["synthesis.conv2.weight"]).norm() > 0.1
    errors = [float(curve(tmp_path / name / "lambda-0.013")[-1]["mse"]) for name in ("one", "two")]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)
    assert (tmp_path / "two" / "lambda-0.013" / MODEL).exists()


def test_processes_must_share_the_batch_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert train(tmp_path) == 2
    assert "4 crops cannot be shared evenly by 3 processes" in capsys.readouterr().err


def test_random_filters_can_be_the_start(tmp_path: Path) -> None:
    assert train(tmp_path, "--steps", "20", "--init", "orthogonal", "--lr", "0.02") == 0
    assert json.loads((tmp_path / "lambda-0.013" / "config.json").read_text())["init"] == "orthogonal"


def test_a_hyperprior_is_trained_resumed_and_frozen(tmp_path: Path, photograph: np.ndarray) -> None:
    settings = ["--entropy", "hyperprior", "--slices", "4", "8", "--quantiser", "mixed", "--variable-rate", "--lambda", "0.003", "0.03"]
    settings += ["--allocate-every", "10", "--crop", "64", "--early-steps", "0", "--lr", "0.002"]
    assert train(tmp_path / "once", *settings, "--steps", "40") == 0
    assert train(tmp_path / "twice", *settings, "--steps", "15", "--decay", "0") == 0
    (tmp_path / "twice" / "variable-rate" / MODEL).unlink()
    early = torch.load(tmp_path / "twice" / "variable-rate" / LAST, weights_only=True)["model"]
    assert train(tmp_path / "twice", *settings, "--steps", "40", "--resume") == 0
    once, twice = (torch.load(tmp_path / name / "variable-rate" / LAST, weights_only=True) for name in ("once", "twice"))
    assert all(torch.equal(once["model"][k], twice["model"][k]) for k in once["model"])
    # Where gains are searched for, units stay; else they would grow for ever.
    assert torch.equal(early["log_unit"], twice["model"]["log_unit"]) and not torch.equal(early["log_gain"], twice["model"]["log_gain"])
    model = codec.load(tmp_path / "once" / "variable-rate" / MODEL)
    assert model.metadata["profile"] == "hyperprior" and model.qualities == 100
    sizes = [len(model.encode(photograph, q)) for q in (1, 50, 100)]
    assert sizes == sorted(sizes)
    assert model.decode(model.encode(photograph)).shape == photograph.shape
    # On from there, with the gains as they are.
    start = tmp_path / "once" / "variable-rate" / MODEL
    assert train(tmp_path / "kept", *settings, "--steps", "3", "--keep-gains", "--start-from", str(start)) == 0
    kept = torch.load(tmp_path / "kept" / "variable-rate" / LAST, weights_only=True)
    given = weights_to_start_from(start, (0.003, 0.03), "hyperprior")
    assert all(torch.equal(kept["model"][name], given[name]) for name in ("log_gain", "log_unit"))
    assert not torch.equal(kept["model"]["analysis.conv1.weight"], given["analysis.conv1.weight"])


def test_gains_of_profile_2_stay_once_the_learning_rate_falls() -> None:
    config = Config(lambdas=(0.003, 0.03), quantiser="mixed", allocate_every=10, steps=100, decay=0.6)
    assert [step for step in range(100) if config.allocates_at(step)] == list(range(0, 100, 10))
    assert [step for step in range(100) if replace(config, entropy="hyperprior").allocates_at(step)] == [0, 10, 20, 30, 40]
    assert [step for step in range(100) if replace(config, match_steps=75).allocates_at(step)] == [0, 10, 20]
    for other in (replace(config, quantiser="noise"), replace(config, keep_gains=True)):
        assert not any(other.allocates_at(step) for step in range(100))


def test_a_narrower_model_starts_from_a_wider_one(finished: Path, tmp_path: Path, photograph: np.ndarray) -> None:
    settings = ["--quantiser", "mixed", "--allocate-every", "10", "--latents", "5", "--steps", "1", "--lambda", "0.02"]
    assert train(tmp_path, *settings, "--start-from", str(finished / MODEL)) == 0
    model = codec.load(tmp_path / "lambda-0.02" / MODEL)
    assert model.latents == 5 and model.decode(model.encode(photograph)).shape == photograph.shape


def test_scalars_pictures_and_real_files_are_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train(tmp_path, "--steps", "40", "--files-every", "1") == 0
    folder = tmp_path / "lambda-0.013"
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert {"loss", "val_loss", "files_bpp"} <= set(events.Tags()["scalars"]) and events.Tags()["images"] == ["held_out/0"]
    logged = {e.step: e.value for e in events.Scalars("val_loss")}
    assert logged == {int(r["step"]): pytest.approx(float(r["val_loss"]), rel=1e-4) for r in curve(folder)}
    # Real files agree with the estimate within half a per cent and the header.
    estimated = {int(r["step"]): float(r["val_bpp_0.013"]) for r in curve(folder)}
    for event in events.Scalars("files_bpp"):
        assert abs(event.value - estimated[event.step]) < 0.005 * estimated[event.step] + 8 * (32 + 8) / 256**2
    assert "real files" in capsys.readouterr().err


def test_the_mean_of_the_weights_is_what_is_validated_and_frozen(finished: Path) -> None:
    state = torch.load(finished / LAST, weights_only=True)
    weight, mean = (state[part]["synthesis.conv2.weight"] for part in ("model", "mean"))
    assert not torch.equal(weight, mean)
    torch.testing.assert_close(codec.load(finished / MODEL).synthesis.conv2.weight, mean.half().float())


def test_interrupt_from_the_keyboard_saves_and_leaves(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "train", "--data", str(SAMPLES), "--out", str(tmp_path / "run"), *TINY, "--steps", "100000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    checkpoint = tmp_path / "run" / "lambda-0.013" / LAST
    for _ in range(3000):
        if checkpoint.exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "--resume continues" in error and "Traceback" not in error
    assert torch.load(checkpoint, weights_only=True)["step"] > 0
