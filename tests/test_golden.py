"""Files that were written once and must decode to the same latents for ever, on every machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import codec
from codec import container
from codec.model import Model, from_bytes

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(p.stem for p in GOLDEN.glob("*.rdae"))


def model_of(name: str) -> Model:
    return from_bytes((GOLDEN / "tiny.safetensors").read_bytes(), "tiny") if name.startswith("tiny-") else codec.load(name)


@pytest.mark.parametrize("name", NAMES)
def test_golden_file(name: str) -> None:
    data, facts = (GOLDEN / f"{name}.rdae").read_bytes(), json.loads((GOLDEN / f"{name}.json").read_text())
    model = model_of(name)
    latents = model.decode_latents(container.read(data))
    assert list(latents.shape) == facts["latents_shape"]
    assert hashlib.sha256(latents.astype("<i4").tobytes()).hexdigest() == facts["latents_sha256"]
    assert float(model.decode(data).mean()) == pytest.approx(facts["pixels_mean"], abs=0.5)


def test_every_shipped_model_has_a_golden_file() -> None:
    assert set(codec.models()) <= set(NAMES) and {"tiny-photograph", "tiny-escapes", "tiny-one-pixel"} <= set(NAMES)


def test_the_index_names_the_shipped_files() -> None:
    from codec import registry

    index = registry.index()
    files = {p.stem for p in registry.FOLDER.glob("*.safetensors")}
    assert files == set(index["models"]) and index["default"] in files
    for name in files:
        assert hashlib.sha256((registry.FOLDER / f"{name}.safetensors").read_bytes()).hexdigest() == index["models"][name]["sha256"]
