from __future__ import annotations

from pathlib import Path

import torch
from conftest import SAMPLES
from lightning.fabric import Fabric
from test_train import curve, train

from train.config import Config
from train.loop import LAST, MODEL, Trainer
from train.objective import RateDistortion
from train.optim import soap


def test_adam_can_train_everything(tmp_path: Path) -> None:
    assert train(tmp_path, "--steps", "20", "--optimiser", "adam", "--adam-lr", "0.002", "--ema", "0") == 0
    state = torch.load(tmp_path / "lambda-0.013" / LAST, weights_only=True)
    torch.manual_seed(0)
    fresh = RateDistortion((0.013,), 8, 12).state_dict()
    assert len(state["optimisers"]) == 1 and state["mean"] == {}
    assert not torch.equal(state["model"]["synthesis.conv2.weight"], fresh["synthesis.conv2.weight"])


def test_soap_trains_the_convolutions_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    soap = ("--optimiser", "soap", "--lr", "0.001")
    assert train(tmp_path / "once", "--steps", "30", *soap) == 0
    assert train(tmp_path / "twice", "--steps", "10", *soap, "--decay", "0") == 0
    (tmp_path / "twice" / "lambda-0.013" / MODEL).unlink()
    assert train(tmp_path / "twice", "--steps", "30", *soap, "--resume") == 0
    once, twice = (torch.load(tmp_path / name / "lambda-0.013" / LAST, weights_only=True) for name in ("once", "twice"))
    # The schedule of the first ten steps differs only when it decays: it does not before the half.
    assert all(torch.equal(once["model"][k], twice["model"][k]) for k in once["model"])
    losses = [float(row["val_loss"]) for row in curve(tmp_path / "once" / "lambda-0.013")]
    assert losses[-1] < losses[0]


def test_soap_sees_phases_as_an_axis_and_moves_the_parameters_themselves() -> None:
    torch.manual_seed(0)
    model = RateDistortion((0.013,), 8, 12)
    optimiser, trained = soap(model, 1e-3)
    views = optimiser.param_groups[0]["params"]
    assert [tuple(v.shape) for v in views[3:]] == [(8, 4, 12, 9), (8, 4, 8, 9), (3, 16, 8, 9)]
    before = [p.detach().clone() for p in trained]
    x = torch.rand(1, 3, 32, 32)
    for _ in range(2):
        model.zero_grad()
        (model.synthesis(model.analysis(x)) - x).square().mean().backward()
        optimiser.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, trained, strict=True))


def test_soap_trains_the_slices_of_profile_2_too(tmp_path: Path) -> None:
    config = Config(
        data=str(SAMPLES), lambdas=(0.01, 0.03), filters=8, latents=12, entropy="hyperprior", slices=(4, 8), quantiser="mixed",
        optimiser="soap", lr=1e-3, held_out=1, steps=4, batch=2, crop=64, early_steps=0, warmup=0, allocate_every=0,
    )  # fmt: skip
    trainer = Trainer(config, tmp_path, Fabric(accelerator="cpu", devices=1))
    before = {name: p.detach().clone() for name, p in trainer.model.slices.named_parameters()}
    seen = {view.data_ptr() for view in trainer.optimisers[0].param_groups[0]["params"]}
    assert all((p.data_ptr() in seen) == (p.dim() == 4) for p in trainer.model.slices.parameters())
    assert all((p.data_ptr() in seen) == (p.dim() == 4) for p in trainer.model.synthesis.parameters())
    trainer.run()
    # The first slice sees side information alone, which starts at zero.
    moved = [name for name, p in trainer.model.slices.named_parameters() if not torch.equal(p, before[name])]
    assert {"1.last.weight", "1.context.weight"} <= set(moved)
