"""Mutated and random inputs for everything that reads bytes: streams, Pillow's door to them, and model files.

python tests/fuzz/fuzz.py --count 1000000 --seed 1        a long run; anything that is found ends it, with the input in a file

Seeds are valid streams of every kind. Most mutants get a fresh checksum, or nothing behind it would ever be tried. What must hold:

- nothing but `RdaeError` is raised (through Pillow, what its plug-ins raise);
- a mutant without a fresh checksum is never decoded;
- what is decoded has the declared dimensions, within the permitted number of pixels;
- no input takes longer, or more memory, than valid ones of the permitted size.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import resource
import sys
import time
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

sys.path.insert(0, str(Path(__file__).parent.parent))

from conftest import SAMPLES, tiny_hyper_bytes, tiny_model_bytes, tiny_tilted_bytes

from codec import container, decoder
from codec import model as models
from codec import picture as pictures
from codec.encoder import Encoder
from codec.errors import RdaeError
from codec.layout import Sizes
from codec.model import Model

PERMITTED = 1 << 20
"""Pixels: of `container.MAX_PIXELS`, so that mutants that declare more are refused and others stay quick."""
SECONDS = 10.0
"""For one input; a valid one of the permitted size takes less than one second."""
MEGABYTES = 700
"""Growth of the process: latents, pixels and transforms of the permitted size, a few times over."""


SIZES = Sizes(side=2, analysis=2, synthesis=2, features=3, slices=(2, 4), width=3)
"""Of the model with a hyperprior."""


class FoundError(Exception):
    """What must hold does not."""


class Fuzzer:
    """Draws inputs, and tries them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.model_bytes = [
            tiny_model_bytes(filters=4, latents=6),
            tiny_hyper_bytes(filters=4, sizes=SIZES),
            tiny_tilted_bytes(filters=4, latents=6),
        ]
        self.models = [models.from_bytes(data, "tiny") for data in self.model_bytes]
        # Pillow finds models by their hashes among those that were loaded.
        models._loaded.update({model.hash: model for model in self.models})
        self.seeds = [data for model in self.models for data in seeds(model)]
        self.outcomes: Counter[str] = Counter()
        self.slowest = 0.0
        self.grown = 0

    def mutant(self, data: bytes) -> bytes:
        """The data with one to six changes."""
        rng = self.random
        out = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
            at = rng.randrange(len(out)) if out else 0
            # Headers are short, and most of what can go wrong is said there, behind the magic, the version and the hash.
            if rng.random() < 0.3:
                at = min(at, rng.randrange(14, 50))
            kind = rng.randrange(7)
            if kind == 0 and out:
                out[at] ^= 1 << rng.randrange(8)
            elif kind == 1 and out:
                out[at] = rng.choice((0, 1, 2, 127, 128, 255, rng.randrange(256)))
            elif kind == 2:
                del out[at : at + rng.choice((1, 2, 4, 40, 1000))]
            elif kind == 3:
                out[at:at] = rng.randbytes(rng.choice((1, 2, 4, 40)))
            elif kind == 4:
                other = rng.choice(self.seeds)
                start = rng.randrange(len(other))
                out[at : at + rng.randrange(50)] = other[start : start + rng.randrange(50)]
            elif kind == 5:
                out[at : at + rng.randrange(6)] = container.write_varint(rng.choice((0, 1, 2**7, 2**14, 2**20, 2**31, 2**35 - 1)))
            else:
                del out[at:]
        return bytes(out)

    def stream(self) -> tuple[bytes, bool]:
        """(an input, whether its checksum was made to fit)."""
        rng = self.random
        if rng.random() < 0.02:
            return container.MAGIC[: rng.randrange(5)] + rng.randbytes(rng.randrange(80)), False
        data = rng.choice(self.seeds)
        if rng.random() < 0.1:
            changed = self.mutant(data)
            return changed, changed in self.seeds
        if rng.random() < 0.6:
            data = self.rebuilt(container.read(data))
        body = data[:-4]
        if rng.random() < 0.5:
            body = self.mutant(body)
            body = fitted(body) if rng.random() < 0.9 else body
        return body + zlib.crc32(body).to_bytes(4, "little"), True

    def rebuilt(self, stream: container.Stream) -> bytes:
        """Well-formed, with other dimensions, chunks dropped, doubled, exchanged and damaged."""
        rng = self.random
        chunks = list(stream.chunks)
        for _ in range(rng.randrange(3)):
            i = rng.randrange(len(chunks))
            tag, data = chunks[i]
            change = rng.randrange(8)
            if change == 0:
                chunks[i] = (rng.choice((tag, 1, 2, 128, 129, 130, 131, 200)), self.mutant(data))
            elif change == 1:
                chunks.insert(i, (tag, data))
            elif change == 2 and len(chunks) > 1:
                del chunks[i]
            elif change == 3:
                chunks[i] = (tag, rng.randbytes(4 * rng.randrange(400)))
            elif change == 4:
                chunks.append((131, bytes([rng.randrange(5)]) + self.mutant(data)))
            else:
                # As long as before: damage that only the entropy decoder and the filters can notice.
                at = rng.randrange(len(data) + 1)
                noise = rng.randbytes(rng.choice((1, 4, 400)))
                chunks[i] = (tag, (data[:at] + noise + data[at + len(noise) :])[: len(data)])
        width, height = stream.width, stream.height
        if rng.random() < 0.3:
            width, height = (rng.choice((1, 15, 17, side, side + 1, 2 * side, 1024, PERMITTED, PERMITTED + 1)) for side in (width, height))
        quality, mode = rng.choice((stream.quality,) * 5 + (1, 2, 3, 4, 100)), rng.choice((stream.mode, 0, 1))
        with contextlib.suppress(RdaeError):
            profile = rng.choice((stream.profile,) * 9 + (3 - stream.profile,))
            return container.write(container.Stream(stream.model_hash, quality, width, height, tuple(chunks), profile, mode))
        return container.write(stream)

    def tried(self, data: bytes, sealed: bool) -> str:
        """The outcome, in a word."""
        choice = self.random.random()
        if choice < 0.1:
            return self.through_pillow(data)
        region = (0, 0, 3, 2) if choice < 0.2 else None
        try:
            stream = container.read(data)
            model = next((model for model in self.models if model.hash == stream.model_hash), self.models[0])
            picture = decoder.decode(model, stream, region=region)
        except RdaeError as error:
            if not str(error) or "\n" in str(error):
                raise FoundError(f"not one line: {error!r}") from error
            return type(error).__name__
        if not sealed:
            raise FoundError("decoded in spite of its checksum")
        expected = (2, 3) if region else (stream.height, stream.width)
        if picture.pixels.shape[:2] != expected or (picture.alpha is not None and picture.alpha.shape != expected):
            raise FoundError(f"shape {picture.pixels.shape}")
        return "decoded"

    def through_pillow(self, data: bytes) -> str:
        """As `tried`, with `Image.open` and `load`."""
        try:
            with Image.open(io.BytesIO(data), formats=["RDAE"]) as image:
                image.load()
        except (UnidentifiedImageError, OSError) as error:
            return f"Pillow: {type(error).__name__}"
        return "Pillow: loaded"

    def model_file(self) -> str:
        """A mutant of a model file, and a picture through it if it is accepted."""
        data = self.mutant(self.random.choice(self.model_bytes))
        try:
            model = models.from_bytes(data, "mutant")
            model.decode(model.encode(np.zeros((20, 20, 3), np.uint8)))
        except RdaeError as error:
            return f"model: {type(error).__name__}"
        return "model: used"

    def run(self, count: int, save_to: Path | None = None) -> None:
        """Try so many inputs. Raises what it finds, after saving the input."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for number in range(count):
                state = self.random.getstate()
                data, sealed = self.stream()
                began = time.monotonic()
                try:
                    outcome = self.model_file() if self.random.random() < 0.03 else self.tried(data, sealed)
                    took = time.monotonic() - began
                    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
                    if took > SECONDS or grown > MEGABYTES:
                        raise FoundError(f"{took:.1f} s, {grown} MB more")
                except BaseException:
                    if save_to:
                        (save_to / f"found-{number}.bin").write_bytes(data)
                        (save_to / f"found-{number}.state").write_text(repr(state))
                    raise
                self.slowest, self.grown = max(self.slowest, took), grown
                self.outcomes[outcome] += 1


def fitted(body: bytes) -> bytes:
    """The body of a stream with the length that it has, so that a mutant gets further than the length check."""
    try:
        _, at = container.read_varint(body, 16)
        _, at = container.read_varint(body, at)
        _, end = container.read_varint(body, at)
    except RdaeError:
        return body
    return body[:at] + container.write_varint(len(body) - end) + body[end:]


def seeds(model: Model) -> list[bytes]:
    """Valid streams of every kind."""
    with Image.open(SAMPLES / "chelsea.png") as opened:
        image = np.asarray(opened.convert("RGB"))
    alpha = np.hypot(*np.mgrid[-20:20, -30:30]).clip(10, 25).astype(np.uint8) * 10
    small = image[100:140, 100:160]
    noise = np.random.default_rng(0).integers(0, 2, small.shape).astype(np.uint8) * 255
    metadata = {"icc": bytes(range(200)), "exif": b"II*\0" + bytes(30), "xmp": b"<x:xmpmeta/>" * 9}
    kinds = [
        (pictures.Picture(small), 0),
        (pictures.Picture(noise), 0),
        (pictures.Picture(small[..., 0]), 0),
        (pictures.Picture(small, alpha), 0),
        (pictures.Picture(small[..., 0], np.full(small.shape[:2], 255, np.uint8)), 0),
        (pictures.Picture(small, alpha, **metadata), 0),
        (pictures.Picture(small[:1, :1]), 0),
        (pictures.Picture(image[:200, :300]), 128),
        (pictures.Picture(image[:150, :280, 0]), 128),
        (pictures.Picture(image[:, :257], **metadata), 256),
    ]
    return [Encoder(model, picture, tile=tile).encode(quality) for picture, tile in kinds for quality in (1, 3)]


def main() -> None:
    """A long run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-to", type=Path, default=Path())
    arguments = parser.parse_args()
    container.MAX_PIXELS = PERMITTED
    fuzzer = Fuzzer(arguments.seed)
    began = time.monotonic()
    fuzzer.run(arguments.count, arguments.save_to)
    took = time.monotonic() - began
    print(f"{arguments.count} inputs in {took:.0f} s, the slowest {fuzzer.slowest:.2f} s; the process grew by {fuzzer.grown} MB")
    for outcome, count in fuzzer.outcomes.most_common():
        print(f"{count:8d}  {outcome}")


if __name__ == "__main__":
    main()
