from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SAMPLES, tiny_model_bytes
from safetensors.torch import load_file

import codec
from codec import image, registry
from codec.hyperprior import Hyperprior
from codec.soft import float_weights
from tools import integers

QUALITIES = [20, 90]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("integers")
    options = ["--crops", "1", "--shown", "1", "--side", "128", "--qualities", *map(str, QUALITIES), "--out", str(folder)]
    assert integers.main([str(SAMPLES), *options]) == 0
    return folder


def test_the_rows_are_the_bits_of_the_tables(out: Path) -> None:
    with (out / "integers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["quality"]) for row in rows] == QUALITIES
    ((name, pixels),) = integers.crops_of(SAMPLES, 1, 128)
    model = codec.load("hyperprior-9", "fp32")
    assert isinstance(model.entropy, Hyperprior)
    y, tensors = model.analyse(pixels), load_file(registry.path_of("hyperprior-9"))
    # With the shape as it was trained, as the floats have it.
    del tensors["shape.fitted"]
    entropy = Hyperprior(tensors, model.steps, model.entropy.sizes)
    for row in rows:
        quality = int(row["quality"])
        assert row["photograph"] == name and int(row["pixels"]) == 128 * 128
        assert float(row["file"]) == pytest.approx(sum(entropy.trial(y, quality, thrifty=False)[0]), abs=0.1)
        # A real payload ends on a whole word.
        assert float(row["file"]) <= 8 * len(entropy.encode(y, quality, thrifty=False)) <= 1.001 * float(row["file"]) + 64
        # On so few latents, one that is rounded to the other side shows, with those around it that it sets off.
        assert float(row["file"]) == pytest.approx(float(row["floats"]), rel=0.12) and row["file"] != row["floats"]
        # One photograph shows too little of how far maps reach.
        assert float(row["frozen"]) == pytest.approx(float(row["floats"]), rel=0.1) and row["frozen"] != row["file"]


def test_the_table_says_what_the_rows_do(out: Path) -> None:
    with (out / "integers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines = (out / "integers.md").read_text().splitlines()[4:]
    for row, line in zip(rows, lines, strict=True):
        cost = 100 * (float(row["frozen"]) / float(row["floats"]) - 1)
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[0] == row["quality"] and float(cells[3].removesuffix(" %").replace("−", "-")) == pytest.approx(cost, abs=6e-4)


def test_the_default_model_loses_little() -> None:
    """The integers of the file itself, against what is thawed from it, on photographs that nothing was measured on."""
    model, path = codec.load(None, "fp32"), registry.path_of(None)
    pictures = [(name, image.read(SAMPLES / f"{name}.png")[:288, :448]) for name in ("astronaut", "chelsea")]
    rows = integers.measure(model, path, pictures, [picture[:64, :64] for _, picture in pictures], [34, 100])
    floats, file = (sum(float(str(row[key])) for row in rows) for key in ("floats", "file"))
    assert 0.99 < file / floats < 1.005


def test_float_weights_are_those_of_training() -> None:
    model = codec.load("hyperprior-9", "fp32")
    thawed = integers.thaw(model, registry.path_of("hyperprior-9"))
    weights = float_weights(model.entropy)
    state = thawed.state_dict()
    for name, tensor in weights.items():
        if name != "features_bias":
            assert torch.equal(tensor, state[name]), name
    assert weights["features_bias"].shape == (model.qualities, 128)
    np.testing.assert_allclose(weights["features_bias"][[0, -1]], state["features_bias"][[0, -1]], atol=1e-6)


def test_what_cannot_be_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert integers.main([str(SAMPLES), "--crops", "9", "--out", str(tmp_path)]) == 2
    assert "too few photographs" in capsys.readouterr().err
    factorized = tmp_path / "tiny.safetensors"
    factorized.write_bytes(tiny_model_bytes())
    options = ["--crops", "1", "--shown", "1", "--side", "64", "--qualities", "1"]
    assert integers.main([str(SAMPLES), "--model", str(factorized), *options, "--out", str(tmp_path)]) == 2
    assert "profile 2" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.safetensors"]
