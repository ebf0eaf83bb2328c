"""Writes the golden files. Run once for each new file: those that exist are never written again.

python tests/make_golden.py           all that is missing
python tests/make_golden.py --tiny    of these, the files of the untrained models: every colour mode, tiles, metadata
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from conftest import SAMPLES, tiny_hyper_bytes, tiny_model_bytes, tiny_tilted_bytes

import codec
from codec import coder, container, decoder
from codec import image as images
from codec.encoder import Encoder
from codec.model import Model, from_bytes
from codec.picture import Picture

GOLDEN = Path(__file__).parent / "golden"


def sha256(data: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def facts_of(model: Model, data: bytes) -> dict[str, object]:
    """What must come out of a stream for ever: to the bit what is coded without loss, the pixels nearly."""
    stream = container.read(data)
    latents = model.decode_latents(stream)
    picture = decoder.decode(model, stream)
    blocks = {name: value for name, value in (("icc", picture.icc), ("exif", picture.exif), ("xmp", picture.xmp)) if value}
    if picture.alpha is not None:
        blocks["alpha"] = picture.alpha.tobytes()
    return {
        "mode": picture.mode,
        "size": [picture.width, picture.height],
        "tile": stream.tile,
        "latents_sha256": sha256(latents.astype("<i4").tobytes()),
        "latents_shape": list(latents.shape),
        **{f"{name}_sha256": sha256(value) for name, value in blocks.items()},
        "pixels_mean": round(float(picture.pixels.mean()), 2),
    }


def write(name: str, model: Model, picture: Picture, quality: int, tile: int = 0) -> None:
    """A stream and its facts."""
    if not (GOLDEN / f"{name}.rdae").exists():
        keep(name, model, Encoder(model, picture, tile=tile).encode(quality))


def keep(name: str, model: Model, data: bytes) -> None:
    """Write a stream, and its facts beside it."""
    (GOLDEN / f"{name}.rdae").write_bytes(data)
    (GOLDEN / f"{name}.json").write_text(json.dumps(facts_of(model, data), indent=1) + "\n")


def escapes(model: Model) -> bytes:
    """A stream with values outside their tables: few, many, just outside, and as far as they go."""
    rng = np.random.default_rng(0)
    symbols = rng.integers(-3, 4, (model.latents, 3, 4)).astype(np.int32)
    symbols[0] = rng.integers(-100_000, 100_000, (3, 4))
    tables = model.entropy.tables(1)
    symbols[1, 0] = tables.lowest[1] + np.array([-1, 0, tables.sizes[1] - 1, tables.sizes[1]])
    symbols[2, 1] = -(1 << 31), (1 << 31) - 1, 0, 5000
    payload = coder.encode(symbols, tables)
    return container.write(container.Stream(model.hash, 1, 64, 48, ((container.LATENTS, payload),)))


def hyper_escapes(model: Model) -> bytes:
    """A stream of the second profile with values outside their tables, in the side information too, as far as they go."""
    rng = np.random.default_rng(0)
    entropy, writer = model.entropy, coder.Writer()
    z = rng.integers(-3, 4, (entropy.sizes.side, 2, 3)).astype(np.int32)
    z[0, 0] = -(1 << 31), 77_777, (1 << 31) - 1
    writer.put(z.ravel(), np.full(len(z), 6), entropy.z_tables(2))

    def code(own: slice, at: np.ndarray, means: np.ndarray, tables: np.ndarray) -> np.ndarray:
        symbols = rng.integers(-2, 3, tables.shape).astype(np.int32)
        symbols[0, :4] = rng.integers(-100_000, 100_000, len(symbols[0, :4]))
        symbols[-1, -3:] = np.array([-(1 << 31), (1 << 31) - 1, 5000])[: len(at)]
        order = np.argsort(tables.ravel(), kind="stable")
        writer.put(symbols.ravel()[order], np.bincount(tables.ravel(), minlength=80), entropy.tables)
        return symbols

    entropy.run(z, 2, 6, 11, code)
    return container.write(container.Stream(model.hash, 2, 171, 90, ((container.LATENTS, writer.close()),), container.HYPERPRIOR))


def main() -> None:
    """Write what is missing."""
    GOLDEN.mkdir(exist_ok=True)
    model_file = GOLDEN / "tiny.safetensors"
    if not model_file.exists():
        model_file.write_bytes(tiny_model_bytes())
    tiny = from_bytes(model_file.read_bytes(), "tiny")
    chelsea = images.read(SAMPLES / "chelsea.png")
    small = chelsea[:200, :301]
    mask = np.hypot(*np.mgrid[-100:100, -150:151]).clip(20, 105).astype(np.uint8) * 3 - 60
    write("tiny-photograph", tiny, Picture(small), 2)
    if not (GOLDEN / "tiny-escapes.rdae").exists():
        keep("tiny-escapes", tiny, escapes(tiny))
    write("tiny-one-pixel", tiny, Picture(chelsea[:1, :1]), 1)
    write("tiny-tiled", tiny, Picture(small), 2, tile=128)
    write("tiny-grey", tiny, Picture(small[..., 1]), 3)
    write("tiny-grey-alpha-tiled", tiny, Picture(small[..., 1], mask), 2, tile=128)
    write("tiny-alpha", tiny, Picture(small, mask), 2)
    write("tiny-opaque", tiny, Picture(small[:33, :47], np.full((33, 47), 255, np.uint8)), 1)
    blocks = {"icc": bytes(range(256)) * 2, "exif": b"II*\0\x08\0\0\0\0\0\0\0\0\0", "xmp": b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"}
    write("tiny-metadata", tiny, Picture(small[:33, :47], **blocks), 1)
    # Its file has the first layout of the profile, which is not written any more.
    hyper = from_bytes((GOLDEN / "hyper.safetensors").read_bytes(), "hyper")
    write("hyper-photograph", hyper, Picture(small), 2)
    write("hyper-one-pixel", hyper, Picture(chelsea[:1, :1]), 1)
    write("hyper-tiled", hyper, Picture(small), 3, tile=128)
    write("hyper-grey-alpha-tiled", hyper, Picture(small[..., 1], mask), 1, tile=128)
    if not (GOLDEN / "hyper-escapes.rdae").exists():
        keep("hyper-escapes", hyper, hyper_escapes(hyper))
    # Networks in eight bits, and turns.
    bytes_file = GOLDEN / "bytes.safetensors"
    if not bytes_file.exists():
        bytes_file.write_bytes(tiny_hyper_bytes())
    eight = from_bytes(bytes_file.read_bytes(), "bytes")
    write("bytes-photograph", eight, Picture(small), 2)
    if not (GOLDEN / "bytes-escapes.rdae").exists():
        keep("bytes-escapes", eight, hyper_escapes(eight))
    # A synthesis that changes with the quality.
    tilted_file = GOLDEN / "tilted.safetensors"
    if not tilted_file.exists():
        tilted_file.write_bytes(tiny_tilted_bytes())
    write("tilted-photograph", from_bytes(tilted_file.read_bytes(), "tilted"), Picture(small), 3)
    for name in () if "--tiny" in sys.argv[1:] else codec.models():
        write(name, codec.load(name), Picture(chelsea), codec.load(name).default_quality)


if __name__ == "__main__":
    main()
