"""Writes the golden files. Run once for each new file: those that exist are never written again.

python tests/make_golden.py
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from conftest import SAMPLES, tiny_model_bytes

import codec
from codec import container
from codec import image as images
from codec.model import Model, from_bytes

GOLDEN = Path(__file__).parent / "golden"


def write(name: str, model: Model, image: np.ndarray, quality: int) -> None:
    """A stream, and what must come out of it for ever."""
    path = GOLDEN / f"{name}.rdae"
    if path.exists():
        return
    data = model.encode(image, quality)
    latents = model.decode_latents(container.read(data))
    facts = {
        "latents_sha256": hashlib.sha256(latents.astype("<i4").tobytes()).hexdigest(),
        "latents_shape": list(latents.shape),
        "pixels_mean": round(float(model.decode(data).mean()), 2),
    }
    path.write_bytes(data)
    (GOLDEN / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")


def main() -> None:
    """Write what is missing."""
    GOLDEN.mkdir(exist_ok=True)
    model_file = GOLDEN / "tiny.safetensors"
    if not model_file.exists():
        model_file.write_bytes(tiny_model_bytes())
    tiny = from_bytes(model_file.read_bytes(), "tiny")
    chelsea = images.read(SAMPLES / "chelsea.png")
    write("tiny-photograph", tiny, chelsea[:200, :301], 2)
    write("tiny-escapes", tiny, np.random.default_rng(0).integers(0, 2, (40, 50, 3)).astype(np.uint8) * 255, 3)
    write("tiny-one-pixel", tiny, chelsea[:1, :1], 1)
    for name in codec.models():
        write(name, codec.load(name), chelsea, codec.load(name).default_quality)


if __name__ == "__main__":
    main()
