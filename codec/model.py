"""A frozen model: one immutable `.safetensors` file, and what it does to images.

The file holds the weights in half precision (used as stored), the integer density, and the quantiser steps of every quality
as integers; its metadata say what it is and how it was trained. Its identity is the SHA-256 of its bytes, and streams carry the
first eight bytes of that.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from codec import coder, container, registry, transforms
from codec.coder import Symbols, Tables
from codec.density import STEP_BITS, FrozenDensity
from codec.errors import FormatError, ImageError, ModelError, UnknownModelError

Pixels = npt.NDArray[np.uint8]
FORMAT: Final = "rdae-model-1"


class Model:
    """Weights, integer tables and configuration of one trained model. Get one from `load`."""

    def __init__(self, tensors: dict[str, Tensor], metadata: dict[str, Any], sha256: str, name: str) -> None:
        """Raises `ModelError` when the tensors are not those of a model."""
        self.name = name
        self.sha256 = sha256
        self.metadata = metadata
        """What the file says of itself: `lambdas`, `training`, `measured`, …"""
        try:
            filters, latents = int(metadata["filters"]), int(metadata["latents"])
            if not (0 < filters <= 4096 and 0 < latents <= 4096):
                raise ValueError("absurd width")
            self.latents = latents
            self.analysis = _filled(transforms.analysis(filters, latents), tensors, "analysis.")
            self.synthesis = _filled(transforms.synthesis(filters, latents), tensors, "synthesis.")
            self.density = FrozenDensity(*(_integers(tensors[f"density.{part}"]) for part in ("grid", "scale", "cdf")))
            self.steps = _integers(tensors["steps"])
            """Q×M quantiser steps in units of 2⁻¹⁶, a row for each quality: the reciprocals of the gains."""
            if self.steps.ndim != 2 or not 1 <= len(self.steps) <= 100 or self.steps.shape[1] != latents:
                raise ValueError("one step is needed for each quality and channel")
            if len(self.density.scale) != latents or self.steps.min() < 1 or self.steps.max() >= 1 << 31:
                raise ValueError("steps and density do not fit each other")
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise ModelError(f"{name}: not a usable model: {str(error).splitlines()[0]}") from error
        self._tables: dict[int, Tables] = {}

    @property
    def qualities(self) -> int:
        """How many qualities there are: they are numbered from 1, the smallest file, to this."""
        return len(self.steps)

    @property
    def default_quality(self) -> int:
        """The quality used when none is named."""
        return min(int(self.metadata.get("default_quality", self.qualities)), self.qualities)

    @property
    def hash(self) -> bytes:
        """What streams carry to name this model."""
        return bytes.fromhex(self.sha256)[: container.HASH_BYTES]

    def tables(self, quality: int) -> Tables:
        """The integer coding tables of a quality; made once."""
        if quality not in self._tables:
            self._tables[quality] = self.density.tables(self.steps[quality - 1])
        return self._tables[quality]

    def _quality(self, quality: int | None) -> int:
        quality = self.default_quality if quality is None else quality
        if not 1 <= quality <= self.qualities:
            one = "it has one quality only, 1" if self.qualities == 1 else f"it has 1…{self.qualities}"
            raise ModelError(f"model {self.name} has no quality {quality}: {one}")
        return quality

    @torch.inference_mode()
    def analyse(self, image: Pixels) -> npt.NDArray[np.float32]:
        """Latents M×h×w before quantisation, of an image H×W×3 uint8, mirrored at its right and lower edge to multiples of 16."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ImageError(f"an image must be H×W×3 uint8 and not empty, not {image.dtype} {'×'.join(map(str, image.shape))}")
        height, width = image.shape[:2]
        missing = ((0, -height % transforms.STRIDE), (0, -width % transforms.STRIDE), (0, 0))
        padded = np.pad(image, missing, mode="reflect") if any(after for _, after in missing) else image
        x = torch.from_numpy(np.array(padded)).permute(2, 0, 1)[None].float().div_(255)
        y: Tensor = self.analysis(x.contiguous(memory_format=torch.channels_last))
        return np.asarray(y[0].contiguous().numpy())

    def quantise(self, y: npt.NDArray[np.float32], quality: int) -> Symbols:
        """Symbols round(y / Δ), int32, of latents M×h×w."""
        scaled = y.astype(np.float64) * ((1 << STEP_BITS) / self.steps[quality - 1])[:, None, None]
        limit = (1 << 31) - 1
        if not np.isfinite(scaled).all() or abs(scaled).max() > limit:
            raise ModelError(f"model {self.name} gives latents that are out of range")
        symbols: Symbols = np.rint(scaled).astype(np.int32)
        return symbols

    @torch.inference_mode()
    def synthesise(self, symbols: Symbols, quality: int, height: int, width: int) -> Pixels:
        """The image height×width×3 uint8 of symbols M×h×w."""
        step = (self.steps[quality - 1] / (1 << STEP_BITS)).astype(np.float32)
        y = torch.from_numpy(symbols.astype(np.float32) * step[:, None, None])[None]
        x = self.synthesis(y.contiguous(memory_format=torch.channels_last))[0]
        pixels = x.mul_(255).round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0)
        return np.ascontiguousarray(pixels.numpy()[:height, :width])

    def encode(self, image: Pixels, quality: int | None = None) -> bytes:
        """A whole `.rdae` stream of an image H×W×3 uint8.

        Raises `ImageError` for an array of another kind, `DimensionsError` for too large a one, `ModelError` for a quality that
        the model does not have.
        """
        quality = self._quality(quality)
        if image.ndim == 3:
            container.check_dimensions(image.shape[1], image.shape[0])
        symbols = self.quantise(self.analyse(image), quality)
        payload = coder.encode(symbols, self.tables(quality))
        chunks = ((container.LATENTS, payload),)
        return container.write(container.Stream(self.hash, quality, image.shape[1], image.shape[0], chunks))

    def decode_latents(self, stream: container.Stream) -> Symbols:
        """The symbols M×h×w of a parsed stream: exactly those that the encoder rounded to, on any machine.

        Raises `UnknownModelError` when the stream was made with another model, `FormatError` when its latents are damaged.
        """
        if stream.model_hash != self.hash:
            raise UnknownModelError(f"the stream was made with model {stream.model_hash.hex()}, not with {self.name} ({self.hash.hex()})")
        if stream.quality > self.qualities:
            raise FormatError(f"the stream claims quality {stream.quality}, which model {self.name} does not have")
        shape = (self.latents, math.ceil(stream.height / transforms.STRIDE), math.ceil(stream.width / transforms.STRIDE))
        return coder.decode(stream.latents, self.tables(stream.quality), shape)

    def decode(self, data: bytes) -> Pixels:
        """The image H×W×3 uint8 of a stream. Raises an `RdaeError` that names what is wrong with it."""
        stream = container.read(data)
        return self.synthesise(self.decode_latents(stream), stream.quality, stream.height, stream.width)


def _filled(module: torch.nn.Sequential, tensors: dict[str, Tensor], prefix: str) -> torch.nn.Sequential:
    """The module with the tensors of this prefix as its weights, in single precision, ready for inference."""
    state = {name.removeprefix(prefix): t.float() for name, t in tensors.items() if name.startswith(prefix)}
    if not all(torch.isfinite(t).all() for t in state.values()):
        raise ValueError("a weight is not finite")
    module.load_state_dict(state)
    return module.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _integers(tensor: Tensor) -> npt.NDArray[np.int64]:
    if tensor.is_floating_point():
        raise ValueError("tables must be integers")
    return np.asarray(tensor.numpy(), dtype=np.int64)


def from_bytes(data: bytes, name: str) -> Model:
    """A model from the bytes of its file. Raises `ModelError` when they are not a model."""
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = json.loads(header["__metadata__"]["rdae"])
        known = metadata["format"] == FORMAT
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{name}: not an rdae model file") from error
    if not known:
        raise ModelError(f"{name}: a model of format {metadata['format']!r}, which this release does not read")
    return Model(tensors, metadata, hashlib.sha256(data).hexdigest(), name)


def to_bytes(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> bytes:
    """The file of a model; the same tensors and metadata always give the same bytes."""
    text = json.dumps({**metadata, "format": FORMAT}, sort_keys=True, ensure_ascii=False)
    return safetensors.torch.save({k: tensors[k].contiguous() for k in sorted(tensors)}, {"rdae": text})


@lru_cache(maxsize=4)
def _load_file(path: Path, modified: int) -> Model:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot read the model: {error.strerror}") from error
    return from_bytes(data, path.stem)


def load(model: str | Path | None = None) -> Model:
    """A shipped model by name (None: the default one), or any model file by path. Models are kept once loaded.

    Raises `UnknownModelError` for a name that is not shipped, `ModelError` for a file that is not a model.
    """
    path = registry.path_of(model)
    try:
        modified = path.stat().st_mtime_ns
    except OSError as error:
        raise ModelError(f"{path}: cannot read the model: {error.strerror}") from error
    return _load_file(path, modified)


def load_for(stream: container.Stream) -> Model:
    """The shipped model that a stream was made with. Raises `UnknownModelError`, naming it, when there is none."""
    name = registry.name_of(stream.model_hash)
    if name is None:
        raise UnknownModelError(f"the stream needs model {stream.model_hash.hex()}, which is not shipped: name its file")
    return load(name)
