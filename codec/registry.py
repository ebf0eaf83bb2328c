"""The models that ship, found without reading them: `models/index.json` lists names and hashes. Needs no torch."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from codec.errors import UnknownModelError

FOLDER = Path(__file__).parent / "models"


@lru_cache(maxsize=1)
def index() -> dict[str, Any]:
    """`{"default": name, "models": {name: {"sha256": …, "about": …}}}`."""
    loaded: dict[str, Any] = json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))
    return loaded


def models() -> list[str]:
    """Names of the models that ship, the default one first."""
    names = index()["models"]
    return sorted(names, key=lambda name: (name != index()["default"], name))


def path_of(model: str | Path | None) -> Path:
    """The file of a shipped model (None: the default one), or the path that was given."""
    if model is None:
        model = str(index()["default"])
    if str(model) in index()["models"]:
        return FOLDER / f"{model}.safetensors"
    path = Path(model)
    if path.suffix == ".safetensors" or path.exists():
        return path
    raise UnknownModelError(f"no model is called {str(model)!r}; there are: {', '.join(models())}")


def name_of(model_hash: bytes) -> str | None:
    """The shipped model whose SHA-256 begins so, or None."""
    for name, entry in index()["models"].items():
        if bytes.fromhex(entry["sha256"]).startswith(model_hash):
            return str(name)
    return None
