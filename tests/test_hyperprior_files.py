"""What others send: damaged and forged payloads and model files, metadata, and what `rdae info` tells of whole ones."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_SIZES, hyper_metadata, tiny_hyper_bytes, tiny_hyper_tensors
from safetensors.torch import load
from test_hyperprior import FIRST_SIZES, latents_like

from codec import cli, container
from codec import model as models
from codec import picture as pictures
from codec.coder import Writer
from codec.encoder import Encoder
from codec.errors import FormatError, ModelError
from codec.layout import sizes_of
from codec.model import Model


def test_a_stream_says_which_profile_it_is_of(tiny_hyper: Model, tiny_model: Model) -> None:
    for model in (tiny_hyper, tiny_model):
        stream = container.read(model.encode(np.zeros((20, 20, 3), np.uint8)))
        other = dataclasses.replace(stream, profile=3 - stream.profile)
        with pytest.raises(FormatError, match=f"claims profile {3 - stream.profile}"):
            model.decode(container.write(other))


def test_damaged_payloads(tiny_hyper: Model) -> None:
    """They are an error or other latents, and nothing else; what is cut off or goes on is always an error."""
    entropy = tiny_hyper.entropy
    y = latents_like(tiny_hyper, (9, 7))
    data = entropy.encode(y, 2)
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(data)
        damaged[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        with contextlib.suppress(FormatError):
            assert entropy.decode(bytes(damaged), 2, 9, 7).shape == (12, 9, 7)
        with contextlib.suppress(FormatError):
            assert entropy.decode(rng.bytes(4 * int(rng.integers(0, 60))), 2, 9, 7).shape == (12, 9, 7)
    with pytest.raises(FormatError, match="whole number of words"):
        entropy.decode(data + b"x", 2, 9, 7)
    with pytest.raises(FormatError, match="go on behind"):
        entropy.decode(data + bytes(40) + b"abcd", 2, 9, 7)


def test_absurd_symbols_of_a_forged_stream_are_shown_somehow(tiny_hyper: Model) -> None:
    """Well-formed, and no encoder's work: every symbol, of the side information too, as far from its table as 32 bits reach."""
    entropy = tiny_hyper.entropy
    for value in (-(1 << 31), (1 << 31) - 1):
        writer = Writer()
        writer.put(np.full(4 * 2, value, np.int32), np.full(4, 2), entropy.z_tables(1))
        z = np.full((4, 2, 1), value, np.int32)

        def code(
            own: slice, at: np.ndarray, means: np.ndarray, tables: np.ndarray, writer: Writer = writer, value: int = value
        ) -> np.ndarray:
            counts = np.bincount(tables.ravel(), minlength=80)
            writer.put(np.full(tables.size, value, np.int32), counts, entropy.tables)
            return np.full(tables.shape, value, np.int32)

        latents = entropy.run(z, 1, 5, 4, code)
        stream = container.Stream(tiny_hyper.hash, 1, 64, 80, ((container.LATENTS, writer.close()),), container.HYPERPRIOR)
        np.testing.assert_array_equal(tiny_hyper.decode_latents(stream), latents)
        assert tiny_hyper.decode(container.write(stream)).shape == (80, 64, 3)


def test_a_tiny_file_cannot_declare_a_huge_image(tiny_hyper: Model) -> None:
    for chunk in ((container.LATENTS, bytes(400)), (container.TILES, container.pack_tiles([b""] * 16, 4096))):
        data = container.write(container.Stream(tiny_hyper.hash, 1, 13_000, 13_000, (chunk,), container.HYPERPRIOR))
        with pytest.raises(FormatError, match="too few for the latents of the declared dimensions"):
            tiny_hyper.decode(data)


def changed_tensors(change: str) -> dict[str, torch.Tensor]:
    tensors = tiny_hyper_tensors()
    last = "slices.1.last"
    if change == "missing":
        del tensors["slices.2.context.weight"]
    elif change == "shape":
        tensors[f"{last}.weight"] = tensors[f"{last}.weight"][:, :3].contiguous()
    elif change == "floats":
        tensors[f"{last}.weight"] = tensors[f"{last}.weight"].float()
    elif change == "sums":
        tensors["slices.2.context.weight"] = torch.full_like(tensors["slices.2.context.weight"], 1 << 24, dtype=torch.int32)
        tensors["limits"][1] = 1 << 24
    elif change == "64 bits":
        tensors[f"{last}.bias"] = torch.full_like(tensors[f"{last}.bias"], -(1 << 63), dtype=torch.int64)
    elif change == "shift":
        tensors[f"{last}.shift"][3] = 31
    elif change == "one shift for all":
        tensors[f"{last}.shift"] = tensors[f"{last}.shift"][0].clone()
    elif change == "limits":
        tensors["limits"][2] = 0
    elif change == "no limits":
        del tensors["limits"]
    elif change == "context_shift":
        tensors["context_shift"][5] = 31
    elif change == "side_shift":
        tensors["side_shift"][0] = -1
    elif change == "spread":
        tensors["spread"][3] = 11
    elif change == "z_steps":
        tensors["z_steps"][0, 0] = 0
    elif change == "shape.steps":
        tensors["shape.steps"][79] = -5
    elif change == "log2_steps":
        tensors["log2_steps"][0, 0] = (1 << 24) + 1
    elif change == "features_bias":
        tensors["features_bias"] = tensors["features_bias"].long() - (1 << 53)
    elif change == "shape.cdf":
        tensors["shape.cdf"][5] = 1 << 29
    elif change == "shape.fitted":
        tensors["shape.fitted"] = tensors["shape.cdf"].repeat(79, 1)
    elif change == "shape.fitted falls":
        tensors["shape.fitted"] = tensors["shape.cdf"].repeat(80, 1)
        tensors["shape.fitted"][40, tensors["shape.cdf"].shape[0] // 2] = 0
    elif change == "shape.grid":
        tensors["shape.grid"] = tensors["shape.grid"][:50].contiguous()
    elif change == "z_density":
        tensors["z_density.scale"] = tensors["z_density.scale"][:3].contiguous()
        tensors["z_density.cdf"] = tensors["z_density.cdf"][:3].contiguous()
    elif change == "analysis":
        tensors["hyper_analysis.conv2.weight"][0, 0, 0, 0] = float("inf")
    return tensors


@pytest.mark.parametrize(
    "change",
    [
        "missing", "shape", "floats", "sums", "64 bits", "shift", "one shift for all", "limits", "no limits", "context_shift", "side_shift",
        "spread", "z_steps", "shape.steps", "log2_steps", "features_bias", "shape.cdf", "shape.fitted", "shape.fitted falls", "shape.grid",
        "z_density", "analysis",
    ],
)  # fmt: skip
def test_damaged_model_files(change: str) -> None:
    data = models.to_bytes(changed_tensors(change), hyper_metadata())
    with pytest.raises(ModelError, match="bad: not a usable model") as error:
        models.from_bytes(data, "bad")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "claim",
    [
        {"profile": "psychic"},
        {"sizes": None},
        {"sizes": {"side": 4}},
        {"sizes": {**dataclasses.asdict(TINY_SIZES), "slices": [4, 3]}},
        {"sizes": {**dataclasses.asdict(TINY_SIZES), "slices": [12, 0]}},
        {"sizes": {**dataclasses.asdict(TINY_SIZES), "slices": []}},
        {"sizes": {**dataclasses.asdict(TINY_SIZES), "slices": 12}},
        {"sizes": {**dataclasses.asdict(TINY_SIZES), "slices": [20, -8]}},
        {"sizes": {**dataclasses.asdict(TINY_SIZES), "width": 10**9}},
        {"sizes": {**dataclasses.asdict(TINY_SIZES), "width": 4096}},
        {"sizes": {**dataclasses.asdict(TINY_SIZES), "width": 9.0}},
        {"sizes": {**dataclasses.asdict(TINY_SIZES), "kernel": 5}},
        {"sizes": {**dataclasses.asdict(TINY_SIZES), "depth": 3}},
        {"sizes": {**dataclasses.asdict(TINY_SIZES), "turns": [7, 4, 2]}},
        {"sizes": {**dataclasses.asdict(TINY_SIZES), "turns": [7, 4, 2, 3]}},
        {"sizes": {**dataclasses.asdict(TINY_SIZES), "turns": []}},
        {"sizes": {**dataclasses.asdict(TINY_SIZES), "turns": 4}},
        {"sizes": {**dataclasses.asdict(TINY_SIZES), "fine": 5}},
        {"sizes": {**dataclasses.asdict(TINY_SIZES), "fine": None}},
    ],
)
def test_metadata_that_do_not_fit(claim: dict[str, object]) -> None:
    data = models.to_bytes(tiny_hyper_tensors(), json.loads(json.dumps({**hyper_metadata(), **claim})))
    with pytest.raises(ModelError, match="bad: not a usable model"):
        models.from_bytes(data, "bad")


def test_the_file_says_what_its_sizes_are(tiny_hyper: Model) -> None:
    assert sizes_of(tiny_hyper.metadata) == TINY_SIZES
    assert tiny_hyper.entropy.sizes == TINY_SIZES
    old = {name: value for name, value in dataclasses.asdict(FIRST_SIZES).items() if name not in ("turns", "fine")}
    assert sizes_of({"sizes": {**old, "slices": list(FIRST_SIZES.slices)}}) == FIRST_SIZES
    assert load(tiny_hyper_bytes())["slices.0.features.weight"].dtype == torch.int8


def test_info_tells_side_information_from_latents(
    tiny_hyper: Model, photograph: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, file = tmp_path / "m.safetensors", tmp_path / "x.rdae"
    model.write_bytes(tiny_hyper_bytes())
    sizes = []
    for tile in (0, 128):
        encoder = Encoder(tiny_hyper, pictures.from_array(photograph), tile=tile)
        data = encoder.encode(2)
        file.write_bytes(data)
        assert cli.main(["info", str(file), "--model", str(model), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["profile"] == "hyperprior" and facts["model"] is None
        parts = facts["bytes"]
        assert parts["side information"] + parts["latents"] + parts["header"] == parts["total"] == len(data)
        ideal = sum(tiny_hyper.entropy.bits(y, 2)[0] for _, y in encoder._tiles()) / 8
        assert abs(parts["side information"] - ideal) < 1
        sizes.append(parts["side information"])
    assert sizes[0] != sizes[1] and min(sizes) > 50
    assert cli.main(["info", str(file)]) == 0
    line = capsys.readouterr().out
    assert "profile hyperprior" in line and "side information" not in line  # nobody knows, without the model
    model.write_bytes(tiny_hyper_bytes(seed=1))
    assert cli.main(["info", str(file), "--model", str(model)]) == 2
    assert "another model" in capsys.readouterr().err


def test_info_needs_no_torch(tiny_hyper: Model, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(tiny_hyper_bytes())
    (tmp_path / "x.rdae").write_bytes(tiny_hyper.encode(np.zeros((20, 20, 3), np.uint8)))
    program = "import sys\nfrom codec import cli\ncli.main(sys.argv[1:])\nprint('torch' in sys.modules)"
    command = [sys.executable, "-c", program, "info", str(tmp_path / "x.rdae"), "--model", str(tmp_path / "m.safetensors")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "side information" in lines[0] and lines[-1] == "False"
