"""How many bytes of a stream are side information. Reads the tables of a model's file, not its networks, and needs no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from codec.coder import Reader
from codec.container import HASH_BYTES, UNIT, Stream
from codec.errors import FormatError, ModelError, UnknownModelError
from codec.frozen import FrozenDensity


def size(stream: Stream, path: Path) -> int:
    """Bytes, rounded, since side information and latents share a run of the coder, of a stream of profile 2 and its model's file.

    Raises `FormatError` for damaged data, `ModelError` for a file that is not a model, `UnknownModelError` when it is another one.
    """
    try:
        data = path.read_bytes()
        tensors = safetensors.numpy.load(data)
        steps = tensors["z_steps"].astype(np.int64)
        density = FrozenDensity(*(tensors[f"z_density.{part}"].astype(np.int64) for part in ("grid", "scale", "cdf")))
        if hashlib.sha256(data).digest()[:HASH_BYTES] != stream.model_hash:
            raise UnknownModelError(f"{path}: the stream was made with another model, {stream.model_hash.hex()}")
        if stream.quality > len(steps):
            raise FormatError(f"the stream claims quality {stream.quality}, which its model does not have")
        tables = density.tables(steps[stream.quality - 1])
    except OSError as error:
        raise ModelError(f"{path}: cannot read the model: {error.strerror}") from error
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ModelError(f"{path}: not a model with side information") from error
    tile = stream.tile or max(stream.width, stream.height)
    bits = 0.0
    payloads = iter(stream.payloads())
    for top in range(0, stream.height, tile):
        for left in range(0, stream.width, tile):
            # One position to 4×4 latents, cut off where the image ends.
            rows, columns = (-(-min(tile, size - at) // (4 * UNIT)) for size, at in ((stream.height, top), (stream.width, left)))
            data = next(payloads)
            if 8 * len(data) + 64 < 0.99 * rows * columns * tables.least_bits:
                raise FormatError("the coded latents are too short for the declared dimensions")
            counts = np.full(len(tables.counts), rows * columns, np.int64)
            values = Reader(data).get(counts, tables)
            bits += float(tables.bits(values.reshape(len(counts), -1)).sum())
    return round(bits / 8)
