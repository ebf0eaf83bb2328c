"""Files that were written once and must decode to the same latents for ever, on every machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import judge
import numpy as np
import pytest
import torch
from make_golden import GOLDEN, facts_of
from safetensors.numpy import load_file

import codec
from codec import container, fixedpoint
from codec.coder import Reader
from codec.model import Model, from_bytes

FORMER = Path(__file__).parent.parent / "data" / "models"
"""Models that shipped once."""
NAMES = sorted(p.stem for p in GOLDEN.glob("*.rdae"))


def model_of(name: str) -> Model:
    untrained = name.partition("-")[0]
    if untrained in ("tiny", "hyper", "bytes", "tilted"):
        return from_bytes((GOLDEN / f"{untrained}.safetensors").read_bytes(), name)
    return codec.load(name if name in codec.models() else FORMER / f"{name}.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_golden_file(name: str) -> None:
    expected = json.loads((GOLDEN / f"{name}.json").read_text())
    facts = facts_of(model_of(name), (GOLDEN / f"{name}.rdae").read_bytes())
    assert facts.pop("pixels_mean") == pytest.approx(expected.pop("pixels_mean"), abs=0.5)
    assert facts == expected


def test_a_tile_of_its_own_changes_no_latent() -> None:
    plain, tiled = (json.loads((GOLDEN / f"tiny-{name}.json").read_text()) for name in ("photograph", "tiled"))
    assert plain["latents_sha256"] == tiled["latents_sha256"] and (plain["tile"], tiled["tile"]) == (0, 128)


def test_every_shipped_model_has_a_golden_file() -> None:
    assert set(codec.models()) <= set(NAMES)


def test_every_kind_of_stream_has_a_golden_file() -> None:
    kinds = ("photograph", "escapes", "one-pixel", "tiled", "grey", "grey-alpha-tiled", "alpha", "opaque", "metadata")
    assert {f"tiny-{kind}" for kind in kinds} | {"tilted-photograph"} <= set(NAMES)


def test_every_kind_of_stream_of_the_second_profile_has_a_golden_file() -> None:
    assert {f"hyper-{kind}" for kind in ("photograph", "one-pixel", "tiled", "grey-alpha-tiled", "escapes")} <= set(NAMES)
    assert {"bytes-photograph", "bytes-escapes"} <= set(NAMES)


def test_processors_without_products_of_bytes_read_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixedpoint, "byte_products", lambda: False)
    for name in ("bytes-photograph", "bytes-escapes"):
        assert model_of(name).entropy._fine.dtype == torch.float32
        test_golden_file(name)


@pytest.mark.parametrize("name", ["hyper-photograph", "hyper-escapes", "bytes-photograph", "bytes-escapes"])
def test_the_judge_reads_golden_files_too(name: str) -> None:
    """Plain NumPy turns the symbols of a golden stream into the latents that its facts name."""
    model, stream = model_of(name), container.read((GOLDEN / f"{name}.rdae").read_bytes())
    tensors = load_file(GOLDEN / f"{name.partition('-')[0]}.safetensors")
    height, width = -(-stream.height // 16), -(-stream.width // 16)
    reader, sizes = Reader(stream.latents), model.entropy.sizes
    shape = (sizes.side, -(-height // 4), -(-width // 4))
    z = reader.get(np.full(shape[0], shape[1] * shape[2]), model.entropy.z_tables(stream.quality)).reshape(shape)

    def symbols_of(first: int, where: list[tuple[int, int]], means: np.ndarray, tables: np.ndarray) -> np.ndarray:
        out = np.empty(tables.size, np.int32)
        out[np.argsort(tables.ravel(), kind="stable")] = reader.get(np.bincount(tables.ravel(), minlength=80), model.entropy.tables)
        return out.reshape(tables.shape)

    latents, _, _ = judge.decode(tensors, list(sizes.slices), list(sizes.turns), sizes.fine, stream.quality, z, (height, width), symbols_of)
    facts = json.loads((GOLDEN / f"{name}.json").read_text())
    assert hashlib.sha256(latents.astype("<i4").tobytes()).hexdigest() == facts["latents_sha256"]


def test_the_index_names_the_shipped_files() -> None:
    from codec import registry

    index = registry.index()
    files = {p.stem for p in registry.FOLDER.glob("*.safetensors")}
    assert files == set(index["models"]) and index["default"] in files
    for name in files:
        assert hashlib.sha256((registry.FOLDER / f"{name}.safetensors").read_bytes()).hexdigest() == index["models"][name]["sha256"]
