"""A frozen model: one immutable `.safetensors` file, and what it does to images.

The file holds the weights in half precision (used as stored), the integer density, and the quantiser steps of every quality
as integers; its metadata say what it is and how it was trained. Its identity is the SHA-256 of its bytes, and streams carry the
first eight bytes of that.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from codec import container, decoder, encoder, inference, registry, tiles, transforms
from codec import picture as pictures
from codec.coder import Symbols
from codec.errors import ImageError, ModelError, UnknownModelError
from codec.factorized import Factorized
from codec.frozen import FrozenDensity, integers
from codec.hyperprior import Hyperprior
from codec.layout import sizes_of
from codec.tiles import Box

Pixels = npt.NDArray[np.uint8]
FORMAT: Final = "rdae-model-1"
TILT: Final = "_tilt"
"""Ends the names of tensors by which the synthesis' weights change from the middle of the ladder to its end."""
KEPT: Final = 4
"""Qualities whose synthesis is kept once it was made."""
FINE_LAMBDA: Final = 0.03
"""Beyond this λ, precision "auto" computes the synthesis in single precision: bf16 costs the more the finer the steps are."""


class Model:
    """Weights, integer tables and configuration of one trained model. Get one from `load`."""

    def __init__(self, tensors: dict[str, Tensor], metadata: dict[str, Any], sha256: str, name: str, precision: str = "fp32") -> None:
        """Raises `ModelError` when the tensors are not those of a model."""
        self.name = name
        self.choice = precision
        self.precision = inference.check_precision(precision)
        """What the transforms compute in, fp32 or bf16; see `synthesise_window` for the one exception."""
        self.sha256 = sha256
        self.metadata = metadata
        """What the file says of itself: `lambdas`, `training`, `measured`, …"""
        try:
            filters, latents = int(metadata["filters"]), int(metadata["latents"])
            if not (0 < filters <= 4096 and 0 < latents <= 4096):
                raise ValueError("absurd width")
            self.latents = latents
            # These are most of the weights: a file that declares more of them than it holds gets no memory for them.
            shapes = [tuple(tensors[f"analysis.{layer}.weight"].shape) for layer in ("conv2", "conv3")]
            if shapes != [(filters, filters, 5, 5), (latents, filters, 5, 5)]:
                raise ValueError("the weights are not of the declared width")
            self.analysis = _filled(transforms.analysis(filters, latents, conv=transforms.Unfilled), tensors, "analysis.")
            plain = {name: t for name, t in tensors.items() if not name.endswith(TILT)}
            self.synthesis = _filled(transforms.synthesis(filters, latents, conv=transforms.Unfilled), plain, "synthesis.")
            """In the middle of the ladder; see `synthesis_at`."""
            self._tilt = _tilt(self.synthesis, tensors)
            self.steps = integers(tensors["steps"])
            """Q×M quantiser steps in units of 2⁻¹⁶, a row for each quality: the reciprocals of the gains."""
            if self.steps.ndim != 2 or not 1 <= len(self.steps) <= 100 or self.steps.shape[1] != latents:
                raise ValueError("one step is needed for each quality and channel")
            if self.steps.min() < 1 or self.steps.max() >= 1 << 31:
                raise ValueError("a step is out of range")
            self.entropy = self._entropy_model(tensors).in_precision(self.precision)
            self._default = int(metadata.get("default_quality", len(self.steps)))
        except (KeyError, ValueError, RuntimeError, TypeError, OverflowError) as error:
            raise ModelError(f"{name}: not a usable model: {(str(error) or repr(error)).splitlines()[0]}") from error
        self._others: dict[str, Model] = {self.choice: self}
        self._networks: dict[int | None, inference.Transforms] = {}

    def _entropy_model(self, tensors: dict[str, Tensor]) -> Factorized | Hyperprior:
        """How latents become bytes: by the profile that the metadata name."""
        profile = self.metadata.get("profile", "factorized")
        if profile == container.PROFILES[container.HYPERPRIOR]:
            return Hyperprior(tensors, self.steps, sizes_of(self.metadata), self._thrift())
        if profile != container.PROFILES[container.FACTORIZED]:
            raise ValueError(f"its profile is {profile!r}")
        density = FrozenDensity(*(integers(tensors[f"density.{part}"]) for part in ("grid", "scale", "cdf")))
        return Factorized(density, self.steps, self._thrift())

    def _thrift(self) -> npt.NDArray[np.float64]:
        """How thriftily each quality is rounded, between the rungs that the metadata name; not at all where they name none."""
        rungs = np.array(self.metadata.get("thrift", [0.0]), np.float64)
        if rungs.ndim != 1 or not len(rungs) or not ((rungs >= 0) & (rungs < 1)).all():
            raise ValueError("thrift is out of range")
        return np.interp(np.linspace(0, 1, self.qualities), np.linspace(0, 1, len(rungs)), rungs)

    @property
    def tilted(self) -> bool:
        """Whether the synthesis changes with the quality: see `synthesis_at`."""
        return bool(self._tilt)

    @property
    def qualities(self) -> int:
        """How many qualities there are: they are numbered from 1, the smallest file, to this."""
        return len(self.steps)

    @property
    def default_quality(self) -> int:
        """The quality used when none is named."""
        return min(self._default, self.qualities)

    @property
    def hash(self) -> bytes:
        """What streams carry to name this model."""
        return bytes.fromhex(self.sha256)[: container.HASH_BYTES]

    def check_quality(self, quality: int | None) -> int:
        """The quality, or the default one for None. Raises `ModelError` when the model does not have it."""
        quality = self.default_quality if quality is None else quality
        if not 1 <= quality <= self.qualities:
            one = "it has one quality only, 1" if self.qualities == 1 else f"it has 1…{self.qualities}"
            raise ModelError(f"model {self.name} has no quality {quality}: {one}")
        return quality

    @cached_property
    def halos(self) -> tuple[int, int]:
        """How far analysis and synthesis look beyond a latent's own place, in latents."""
        return tiles.halo(self.analysis, 1 / transforms.STRIDE), tiles.halo(self.synthesis)

    def synthesis_at(self, quality: int) -> torch.nn.Sequential:
        """The synthesis, latents B×M×h×w to B×3×16h×16w on about 0…1, as it is at a quality.

        Of a model that says so, each weight is W + t·T, where t rises evenly from -1 at the first quality to 1 at the last one.
        """
        if not self._tilt:
            return self.synthesis
        place = 2 * (quality - 1) / max(self.qualities - 1, 1) - 1
        network = copy.deepcopy(self.synthesis)
        network.load_state_dict({name: t + place * self._tilt.get(name, 0.0) for name, t in self.synthesis.state_dict().items()})
        return network

    def _network(self, quality: int | None = None) -> inference.Transforms:
        """The transforms as they run, with the synthesis of a quality; the analysis is the same at all of them."""
        key = quality if self._tilt else None
        kept = self._networks
        if key not in kept:
            plain = kept.get(None) or inference.Transforms(self.analysis.state_dict(), self.synthesis.state_dict(), self.precision)
            network = plain if key is None else plain.with_synthesis(self.synthesis_at(key).state_dict())
            # A new dictionary, as other threads may be reading the old one.
            few = kept if len(kept) <= KEPT else {}
            kept = self._networks = {**few, None: plain, key: network}
        return kept[key]

    def in_precision(self, precision: str) -> Model:
        """The same model with transforms that compute in another precision ("auto": what the processor is best at); all else is shared.

        Raises `ModelError` for a precision that does not exist.
        """
        if precision == self.choice:
            return self
        if precision not in self._others:
            other = copy.copy(self)
            other._networks = {}
            other.choice, other.precision = precision, inference.check_precision(precision)
            other.entropy = self.entropy.in_precision(other.precision)
            self._others[precision] = other
        return self._others[precision]

    def lambda_at(self, quality: int) -> float:
        """The λ that a quality was trained for; 0 where the model does not say."""
        lambdas = self.metadata.get("lambdas")
        if not isinstance(lambdas, list) or not lambdas or not all(isinstance(v, float) and v > 0 for v in lambdas):
            return 0.0
        position = (quality - 1) / max(self.qualities - 1, 1) * (len(lambdas) - 1)
        return float(np.exp(np.interp(position, np.arange(len(lambdas)), np.log(lambdas))))

    def analyse_window(self, image: Pixels, box: Box) -> npt.NDArray[np.float32]:
        """Latents M×h×w before quantisation, of the box (in latents) of an image H×W×3 or, grey, H×W, uint8.

        The image is mirrored at its right and lower edge to multiples of 16.
        """
        whole = Box(0, 0, *tiles.latents_of(*image.shape[:2]))
        window = box.grown(self.halos[0], whole)
        pixels = np.array(tiles.mirrored(image, window * transforms.STRIDE), order="C")
        rows, columns = box.seen_from(window).slices
        return np.asarray(self._network().analyse(torch.from_numpy(pixels), rows, columns).numpy())

    def analyse(self, image: Pixels) -> npt.NDArray[np.float32]:
        """Latents M×h×w before quantisation, of a whole image H×W×3 uint8."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ImageError(f"an image must be H×W×3 uint8 and not empty, not {image.dtype} {'×'.join(map(str, image.shape))}")
        height, width = tiles.latents_of(*image.shape[:2])
        y = np.empty((self.latents, height, width), np.float32)
        for box in itertools.chain(*tiles.grid(height, width, tiles.WINDOW)):
            y[:, box.slices[0], box.slices[1]] = self.analyse_window(image, box)
        return y

    def quantise(self, y: npt.NDArray[np.float32], quality: int) -> Symbols:
        """What a decoder gets, as exact integers, of latents M×h×w that are coded as one tile."""
        return self.entropy.quantise(y, quality)

    def synthesise_window(self, symbols: Symbols, quality: int, inner: Box, grey: bool = False) -> Pixels:
        """The pixels 16h×16w×3 uint8 (grey: 16h×16w) of a box in a window of decoded latents M×H×W that includes the box's halo."""
        return self.restore_window(self.entropy.dequantise(symbols, quality), quality, inner, grey)

    def precision_at(self, quality: int) -> str:
        """What the synthesis computes in at a quality, fp32 or bf16."""
        # Where steps are fine, rounding to bf16 would cost the picture more than hundredths of a decibel.
        return "fp32" if self.choice == "auto" and self.lambda_at(quality) > FINE_LAMBDA else self.precision

    def restore_window(self, y: npt.NDArray[np.float32], quality: int, inner: Box, grey: bool = False) -> Pixels:
        """The same of latents that are real numbers."""
        precision = self.precision_at(quality)
        owner = self if precision == self.precision else self.in_precision(precision)
        return np.asarray(owner._network(quality).synthesise(torch.from_numpy(y), *inner.slices, grey).numpy())

    def synthesise(self, symbols: Symbols, quality: int, height: int, width: int) -> Pixels:
        """The image height×width×3 uint8 of decoded latents M×h×w."""
        whole = Box(0, 0, height, width)
        return decoder.render(self, lambda box: symbols[:, box.slices[0], box.slices[1]], quality, whole, whole)

    def encode(self, image: Pixels, quality: int | None = None, effort: int | None = None, tune: str = encoder.TUNES[0]) -> bytes:
        """A whole `.rdae` stream of an image: RGB H×W×3, grey H×W, or either with an alpha channel, uint8.

        `effort` and `tune` are as in `Encoder`.

        Raises `ImageError` for an array of another kind, `DimensionsError` for too large a one, `ModelError` for a quality that
        the model does not have.
        """
        return encoder.Encoder(self, pictures.from_array(image), effort=effort, tune=tune).encode(self.check_quality(quality))

    def decode_latents(self, stream: container.Stream) -> Symbols:
        """The decoded latents M×h×w of a parsed stream, integers: exactly those that the encoder rounded to, on any machine.

        With a factorized model they are the symbols, with a hyperprior numbers of 2⁻¹⁶.

        Raises `UnknownModelError` when the stream was made with another model, `FormatError` when its latents are damaged.
        """
        return decoder.Latents(self, stream).all()

    def decode(self, data: bytes) -> Pixels:
        """The image of a stream, H×W×3 uint8, of grey pictures H×W, with an alpha channel H×W×4 or H×W×2.

        Raises an `RdaeError` that names what is wrong with it.
        """
        return decoder.decode(self, container.read(data)).array


def _tilt(synthesis: torch.nn.Sequential, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the weights of a synthesis change by from the middle of the ladder to its end, by their names; empty where they do not."""
    prefix, state = "synthesis.", synthesis.state_dict()
    tilt = {name.removeprefix(prefix).removesuffix(TILT): t.float() for name, t in tensors.items() if name.endswith(TILT)}
    for name, t in tilt.items():
        if name not in state or t.shape != state[name].shape or "gdn" in name or not torch.isfinite(t.sum()):
            raise ValueError(f"what {name!r} changes by is of another shape, or not finite")
    return tilt


def _filled(module: torch.nn.Sequential, tensors: dict[str, Tensor], prefix: str) -> torch.nn.Sequential:
    """The module with the tensors of this prefix as its weights, in single precision, ready for inference."""
    state = {name.removeprefix(prefix): t.float() for name, t in tensors.items() if name.startswith(prefix)}
    # A sum is finite only if all of its terms are.
    if not all(torch.isfinite(t.sum()) for t in state.values()):
        raise ValueError("a weight is not finite")
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)


def from_bytes(data: bytes, name: str, precision: str = "fp32") -> Model:
    """A model from the bytes of its file. Raises `ModelError` when they are not a model."""
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = json.loads(header["__metadata__"]["rdae"])
        known = metadata["format"] == FORMAT
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise ModelError(f"{name}: not an rdae model file") from error
    if not known:
        raise ModelError(f"{name}: a model of format {metadata['format']!r}, which this release does not read")
    return Model(tensors, metadata, hashlib.sha256(data).hexdigest(), name, precision)


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
    model = from_bytes(data, path.stem)
    _loaded[model.hash] = model
    return model


_loaded: WeakValueDictionary[bytes, Model] = WeakValueDictionary()


def load(model: str | Path | None = None, precision: str = "fp32") -> Model:
    """A shipped model by name (None: the default one), or any model file by path. Models are kept once loaded.

    `precision` is what the transforms compute in: "fp32"; "bf16", faster where the processor has it, at the price of up to a tenth of a
    decibel; or "auto", for bf16 where the processor has it, but for fine pictures.

    Raises `UnknownModelError` for a name that is not shipped, `ModelError` for a file that is not a model.
    """
    path = registry.path_of(model)
    try:
        modified = path.stat().st_mtime_ns
    except OSError as error:
        raise ModelError(f"{path}: cannot read the model: {error.strerror}") from error
    return _load_file(path, modified).in_precision(precision)


def load_for(stream: container.Stream, precision: str = "fp32") -> Model:
    """The model that a stream was made with: a shipped one, or one that was loaded in this process. `precision` is as in `load`.

    Raises `UnknownModelError`, naming it, when there is none.
    """
    name = registry.name_of(stream.model_hash)
    if name is not None:
        return load(name, precision)
    model = _loaded.get(stream.model_hash)
    if model is None:
        raise UnknownModelError(f"the stream needs model {stream.model_hash.hex()}, which is not shipped: name its file")
    return model.in_precision(precision)
