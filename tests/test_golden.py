"""Files that were written once and must decode to the same latents for ever, on every machine."""

from __future__ import annotations

import hashlib
import json

import pytest
from make_golden import GOLDEN, facts_of

import codec
from codec.model import Model, from_bytes

NAMES = sorted(p.stem for p in GOLDEN.glob("*.rdae"))


def model_of(name: str) -> Model:
    return from_bytes((GOLDEN / "tiny.safetensors").read_bytes(), "tiny") if name.startswith("tiny-") else codec.load(name)


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
    assert {f"tiny-{kind}" for kind in kinds} <= set(NAMES)


def test_the_index_names_the_shipped_files() -> None:
    from codec import registry

    index = registry.index()
    files = {p.stem for p in registry.FOLDER.glob("*.safetensors")}
    assert files == set(index["models"]) and index["default"] in files
    for name in files:
        assert hashlib.sha256((registry.FOLDER / f"{name}.safetensors").read_bytes()).hexdigest() == index["models"][name]["sha256"]
