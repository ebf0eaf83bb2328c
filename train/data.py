"""Photographs to crops: any folder or list file, decoded when first needed, kept in memory up to a budget.

A crop is a pure function of (seed, step, index in the global batch): a resumed run, or one spread over several processes,
sees exactly the crops that a single uninterrupted process would have seen.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
Pixels = npt.NDArray[np.uint8]


class DataError(Exception):
    """The training data cannot be used; the message says why in one line."""


def find_photographs(source: Path) -> list[Path]:
    """Image files below a folder (any depth), or named line by line in a text file; sorted, none of them opened.

    Raises `DataError` when there are none.
    """
    if source.is_file():
        lines = source.read_text().splitlines()
        paths = [source.parent / line.strip() for line in lines if line.strip() and not line.startswith("#")]
    elif source.is_dir():
        paths = sorted(Path(folder) / name for folder, _, names in os.walk(source) for name in names if name.lower().endswith(SUFFIXES))
    else:
        raise DataError(f"{source}: no such folder or list file")
    if not paths:
        raise DataError(f"{source}: no images ({', '.join(SUFFIXES)})")
    return paths


def split(paths: list[Path], held_out: int) -> tuple[list[Path], list[Path]]:
    """(training, held-out) photographs. Which are held out depends on their names alone, not on order or folder."""
    by_hash = sorted(paths, key=lambda p: hashlib.sha256(p.name.encode()).digest())
    held_out = min(held_out, len(paths) // 2)
    chosen = set(by_hash[:held_out])
    return [p for p in paths if p not in chosen], sorted(chosen)


def manifest(paths: list[Path], sample: int = 1000) -> str:
    """SHA-256 over the names of all files and the sizes of the first `sample` of them by hash, to recognise a data set by.

    Sizes of all would mean a look at every file, too much where there are millions.
    """
    names = sorted(p.name for p in paths)
    some = sorted(paths, key=lambda p: hashlib.sha256(p.name.encode()).digest())[:sample]
    sizes = [str(p.stat().st_size) if p.exists() else "missing" for p in some]
    return hashlib.sha256("\n".join([*names, *sizes]).encode()).hexdigest()


def read(path: Path) -> Pixels:
    """Decode to H×W×3 uint8, upright. Raises OSError (or what Pillow raises) when the file is not an image."""
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


@dataclass
class Photographs:
    """Photographs with a memory. Unreadable files are reported once and drop out."""

    paths: list[Path]
    budget: int = 4 << 30
    """Bytes of decoded pixels to keep."""
    _cache: dict[int, Pixels] = field(default_factory=dict)
    _held: int = 0
    _bad: set[int] = field(default_factory=set)

    def get(self, index: int) -> Pixels:
        """The photograph at `index`, or the next readable one. Raises `DataError` when none is left."""
        for offset in range(len(self.paths)):
            i = (index + offset) % len(self.paths)
            if i in self._cache:
                return self._cache[i]
            if i in self._bad:
                continue
            try:
                pixels = read(self.paths[i])
            except Exception as error:  # Pillow's decoders raise many kinds
                print(f"train: {self.paths[i]}: skipped, not a readable image ({error})", file=sys.stderr)
                self._bad.add(i)
                continue
            if self._held + pixels.nbytes <= self.budget:
                self._cache[i] = pixels
                self._held += pixels.nbytes
            return pixels
        raise DataError("no readable image is left")

    def crop(self, size: int, rng: np.random.Generator, index: int | None = None) -> Pixels:
        """A random crop of size×size×3 of a random photograph, or of that at `index`, flipped at random.

        A photograph that is smaller is mirrored at its edges.
        """
        pixels = self.get(int(rng.integers(len(self.paths))) if index is None else index)
        short = [max(0, size - n) for n in pixels.shape[:2]]
        if any(short):
            pixels = np.pad(pixels, ((0, short[0]), (0, short[1]), (0, 0)), mode="reflect" if min(pixels.shape[:2]) > 1 else "edge")
        top, left = (int(rng.integers(n - size + 1)) for n in pixels.shape[:2])
        crop = pixels[top : top + size, left : left + size]
        if rng.integers(2):
            crop = crop[:, ::-1]
        if rng.integers(2):
            crop = crop.swapaxes(0, 1)
        return crop


@dataclass(frozen=True)
class Batch:
    """What one process sees in one step; every array has the process's share of the global batch as its first axis."""

    crops: Pixels
    """B×H×W×3, uint8."""
    position: npt.NDArray[np.float32]
    """B, where each image's λ lies on the ladder: 0…R-1."""
    noise: npt.NDArray[np.float32]
    """B×M×H/16×W/16, uniform in ±½."""


def batches(
    photographs: Photographs,
    *,
    seed: int,
    first: int,
    last: int,
    size: int,
    crop: int,
    latents: int,
    rates: int,
    alike: int = 1,
    lean: float = 1.0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """Batches of steps first…last-1, made one ahead in a thread. `size` counts all processes' crops together.

    So many crops as `alike` says have the same place on the ladder. With `lean` above one, high places are drawn more often: the
    density of u^(1/lean), for u even in 0…1, is lean · u^(lean - 1).
    """

    def make(step: int) -> Batch:
        crops, position, noise = [], [], []
        for index in range(rank, size, world):
            rng = np.random.default_rng((seed, step, index))
            crops.append(photographs.crop(crop, rng))
            # Stratified over the ladder, so that every batch sees low and high rates.
            shared = np.random.default_rng((seed, step, size + index // alike)) if alike > 1 else rng
            position.append(((index // alike + shared.random()) / -(-size // alike)) ** (1 / lean) * (rates - 1))
            noise.append(rng.random((latents, crop // 16, crop // 16), dtype=np.float32) - np.float32(0.5))
        return Batch(np.stack(crops), np.asarray(position, np.float32), np.stack(noise))

    with ThreadPoolExecutor(1) as worker:
        ahead = worker.submit(make, first)
        for step in range(first, last):
            batch = ahead.result()
            ahead = worker.submit(make, step + 1)
            yield batch
