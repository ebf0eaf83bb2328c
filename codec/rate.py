"""The quality that meets a target: bits per pixel, bytes, or PSNR. Rates are those of whole files, metadata included.

An `Encoder` that keeps its latents is asked for a few qualities, by bisection: each try costs tables and entropy coding, and for a
PSNR a synthesis, but no further analysis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from codec.encoder import Encoder
from codec.errors import ImageError


@dataclass(frozen=True)
class Coded:
    """A stream, and how it was arrived at."""

    data: bytes = field(repr=False)
    quality: int
    note: str | None = None
    """What kept the target from being met, in words; None when it is met as well as the model's qualities allow."""


def _first(condition: Callable[[int], bool], last: int) -> int:
    """The first of 1…last that fulfils a condition which all later ones fulfil too; last + 1 when none does."""
    low, high = 1, last + 1
    while low < high:
        middle = (low + high) // 2
        if condition(middle):
            high = middle
        else:
            low = middle + 1
    return low


class Search:
    """The tries for one picture; every stream and PSNR is worked out at most once."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.last = encoder.model.qualities
        self._streams: dict[int, bytes] = {}
        self._one = f" (model {encoder.model.name} offers this one rate only)" if self.last == 1 else ""

    def stream(self, quality: int) -> bytes:
        """The stream at a quality."""
        if quality not in self._streams:
            self._streams[quality] = self.encoder.encode(quality)
        return self._streams[quality]

    def size(self, limit: int) -> Coded:
        """The best quality in at most so many bytes. Raises `ImageError` when no quality is that small."""
        quality = _first(lambda q: len(self.stream(q)) > limit, self.last) - 1
        if quality == 0:
            raise ImageError(f"cannot be coded in {limit} bytes: the smallest file has {len(self.stream(1))}{self._one}")
        return Coded(self.stream(quality), quality)

    def bpp(self, target: float) -> Coded:
        """The quality that comes nearest to so many bits per pixel."""
        pixels = self.encoder.picture.width * self.encoder.picture.height

        def rate(quality: int) -> float:
            return 8 * len(self.stream(quality)) / pixels

        above = _first(lambda q: rate(q) > target, self.last)
        quality = min((q for q in (above - 1, above) if 1 <= q <= self.last), key=lambda q: abs(rate(q) - target))
        reached = rate(quality)
        note = None
        if self.last == 1 or (quality == 1 and reached > target) or (quality == self.last and reached < target):
            note = f"{target:g} bpp asked for, the nearest there is has {reached:.3f} bpp{self._one}"
        return Coded(self.stream(quality), quality, note)

    def psnr(self, target: float) -> Coded:
        """The smallest quality with at least so many dB; the highest one when none has."""
        known: dict[int, float] = {}

        def restored(quality: int) -> float:
            if quality not in known:
                known[quality] = self.encoder.psnr(quality)
            return known[quality]

        quality = _first(lambda q: restored(q) >= target, self.last)
        note = None
        if quality > self.last:
            quality = max(known, key=restored)
            note = f"{target:g} dB are out of reach, the best there is has {restored(quality):.2f} dB{self._one}"
        elif self.last == 1:
            note = f"{target:g} dB asked for and met: {restored(quality):.2f} dB{self._one}"
        return Coded(self.stream(quality), quality, note)


def encode(
    encoder: Encoder, *, quality: int | None = None, bpp: float | None = None, size: int | None = None, psnr: float | None = None
) -> Coded:
    """The stream at a quality, or at what meets one target. Raises `ImageError` when a size cannot be met, or for two targets."""
    if sum(target is not None for target in (quality, bpp, size, psnr)) > 1:
        raise ImageError("only one of quality, bpp, size and psnr can be asked for")
    for name, target in (("bpp", bpp), ("size", size), ("psnr", psnr)):
        if target is not None and not target > 0:
            raise ImageError(f"{name}: {target} is not a positive number")
    search = Search(encoder)
    if bpp is not None:
        return search.bpp(bpp)
    if size is not None:
        return search.size(size)
    if psnr is not None:
        return search.psnr(psnr)
    quality = encoder.model.check_quality(quality)
    return Coded(search.stream(quality), quality)
