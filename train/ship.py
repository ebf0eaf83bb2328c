"""`python -m train.ship MODEL.safetensors NAME`: put a frozen model among those that ship with the package."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from codec import model as models
from codec import registry
from codec.errors import RdaeError


def ship(source: Path, name: str, about: str, default: bool) -> str:
    """Copy the file and list it in the index. Returns its SHA-256. Raises `ModelError`."""
    model = models.load(source)
    target = registry.FOLDER / f"{name}.safetensors"
    if source.resolve() != target.resolve():
        shutil.copyfile(source, target)
    index = json.loads((registry.FOLDER / "index.json").read_text(encoding="utf-8"))
    index["models"][name] = {"sha256": model.sha256, "about": about}
    if default:
        index["default"] = name
    text = json.dumps(index, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    (registry.FOLDER / "index.json").write_text(text, encoding="utf-8")
    return model.sha256


def main(argv: list[str] | None = None) -> int:
    """Exit status 0, or 2 with one line on standard error."""
    parser = argparse.ArgumentParser(prog="python -m train.ship", description=__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL.safetensors")
    parser.add_argument("name")
    parser.add_argument("--about", required=True, help="one line for `rdae models`")
    parser.add_argument("--default", action="store_true", help="make it the model that is used when none is named")
    arguments = parser.parse_args(argv)
    try:
        print(ship(arguments.model, arguments.name, arguments.about, arguments.default))
    except (RdaeError, OSError) as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
