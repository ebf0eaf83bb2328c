"""The `.rdae` container: header and chunks to bytes and back. Pure Python.

Layout of a stream (version 1). A *varint* is an unsigned integer in little-endian groups of seven bits, the high bit of a
byte set when another follows; at most five bytes, no superfluous ones.

    bytes   content
    4       magic: D2 52 44 41 ("ÒRDA")
    1       version: 1
    1       profile, the entropy model: 1 = factorized
    8       model hash: the first eight bytes of the SHA-256 of the model file
    1       quality, 1…100
    1       colour mode: 0 = RGB
    varint  width in pixels, 1 or more
    varint  height in pixels, 1 or more
    varint  length of the body in bytes
    body    chunks, one after the other
    4       CRC-32 (as in PNG and zlib) of everything before it, little-endian

A chunk is a tag (one byte), a varint with the length of its data, and the data. Tags below 128 are critical: a decoder that
does not know one must refuse the stream. Tags from 128 are optional and are skipped when unknown.

    tag     content
    1       latents: the entropy-coded latents of the whole image. Exactly one, the first chunk.

Nothing may follow the checksum. A reader checks the magic, version, profile, colour mode and dimensions, the length and the
checksum, in this order, before it allocates anything whose size the stream declares.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Final

from codec.errors import (
    BadMagicError,
    ChecksumError,
    DimensionsError,
    FormatError,
    TrailingDataError,
    TruncatedError,
    UnsupportedError,
)

MAGIC: Final = b"\xd2RDA"
VERSION: Final = 1
FACTORIZED: Final = 1
"""Profile: one static table per latent channel."""
HASH_BYTES: Final = 8
RGB: Final = 0
LATENTS: Final = 1
"""Tag of the chunk that holds the entropy-coded latents."""
OPTIONAL: Final = 128
"""Chunks with this tag or a higher one may be skipped."""
MAX_PIXELS: int = 2 * 89_478_485
"""Images of more pixels are refused, at the bound where Pillow raises `DecompressionBombError`; set it to 0 for no limit."""
MAX_SIDE: Final = (1 << 31) - 1
_MAX_VARINT: Final = 5


@dataclass(frozen=True)
class Stream:
    """One compressed image: what the container holds, as plain values."""

    model_hash: bytes
    """The first eight bytes of the model file's SHA-256."""
    quality: int
    width: int
    height: int
    chunks: tuple[tuple[int, bytes], ...] = field(repr=False)
    """(tag, data), the latents first."""
    profile: int = FACTORIZED
    mode: int = RGB

    @property
    def latents(self) -> bytes:
        """The entropy-coded latents."""
        return self.chunks[0][1]


def write_varint(value: int) -> bytes:
    """A non-negative integer below 2**35 in as few bytes as it needs."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, position behind it). Raises `TruncatedError`, or `FormatError` when it is longer than it need be."""
    value = 0
    for i in range(_MAX_VARINT):
        if at + i >= len(data):
            raise TruncatedError("the stream ends inside a number")
        byte = data[at + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            if byte == 0 and i:
                raise FormatError("a number is padded")
            return value, at + i + 1
    raise FormatError("a number is too long")


def check_dimensions(width: int, height: int) -> None:
    """Raises `DimensionsError` for an empty image or one beyond `MAX_PIXELS`."""
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise DimensionsError(f"impossible dimensions {width}×{height}")
    if MAX_PIXELS and width * height > MAX_PIXELS:
        raise DimensionsError(f"{width}×{height} pixels exceed the limit of {MAX_PIXELS} pixels")


def write(stream: Stream) -> bytes:
    """The bytes of a stream. Raises `DimensionsError`, or ValueError for values that the format cannot hold."""
    check_dimensions(stream.width, stream.height)
    if len(stream.model_hash) != HASH_BYTES or not 1 <= stream.quality <= 100:
        raise ValueError("a model hash has eight bytes and a quality lies in 1…100")
    body = b"".join(bytes([tag]) + write_varint(len(data)) + data for tag, data in stream.chunks)
    out = (
        MAGIC
        + bytes([VERSION, stream.profile])
        + stream.model_hash
        + bytes([stream.quality, stream.mode])
        + write_varint(stream.width)
        + write_varint(stream.height)
        + write_varint(len(body))
        + body
    )
    return out + zlib.crc32(out).to_bytes(4, "little")


def read(data: bytes) -> Stream:
    """Parse and check a whole stream. Raises the `FormatError` that fits; allocates nothing beyond copies of the chunks."""
    if data[:4] != MAGIC[: len(data)]:
        raise BadMagicError("not an .rdae stream")
    if len(data) < 16:
        raise TruncatedError("the stream ends inside its header")
    version, profile, quality, mode = data[4], data[5], data[14], data[15]
    if version != VERSION:
        raise UnsupportedError(f"version {version} of the format is not supported (this release reads version {VERSION})")
    if profile != FACTORIZED:
        raise UnsupportedError(f"profile {profile} is not supported by this release")
    if mode != RGB:
        raise UnsupportedError(f"colour mode {mode} is not supported by this release")
    if not 1 <= quality <= 100:
        raise FormatError(f"quality {quality} is outside 1…100")
    width, at = read_varint(data, 16)
    height, at = read_varint(data, at)
    length, at = read_varint(data, at)
    end = at + length
    if len(data) < end + 4:
        raise TruncatedError(f"the stream is cut off: {len(data)} of {end + 4} bytes")
    if len(data) > end + 4:
        raise TrailingDataError(f"{len(data) - end - 4} bytes follow the end of the stream")
    if zlib.crc32(data[:end]) != int.from_bytes(data[end:], "little"):
        raise ChecksumError("checksum mismatch: the data are damaged")
    check_dimensions(width, height)
    return Stream(data[6:14], quality, width, height, _read_chunks(data[at:end]), profile, mode)


def _read_chunks(body: bytes) -> tuple[tuple[int, bytes], ...]:
    chunks: list[tuple[int, bytes]] = []
    at = 0
    while at < len(body):
        tag = body[at]
        length, at = read_varint(body, at + 1)
        if at + length > len(body):
            raise FormatError(f"chunk {tag} is longer than the body")
        if tag < OPTIONAL and tag != LATENTS:
            raise UnsupportedError(f"chunk {tag} is not supported by this release")
        chunks.append((tag, body[at : at + length]))
        at += length
    if [tag for tag, _ in chunks].count(LATENTS) != 1 or chunks[0][0] != LATENTS:
        raise FormatError("the stream must hold one chunk of latents, the first")
    return tuple(chunks)
