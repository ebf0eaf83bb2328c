"""The `.rdae` container: header and chunks to bytes and back. Pure Python.

Layout of a stream (version 1). A *varint* is an unsigned integer in little-endian groups of seven bits, the high bit of a
byte set when another follows; at most five bytes, no superfluous ones.

    bytes   content
    4       magic: D2 52 44 41 ("ÒRDA")
    1       version: 1
    1       profile, the entropy model: 1 = factorized, 2 = hyperprior
    8       model hash: the first eight bytes of the SHA-256 of the model file
    1       quality, 1…100
    1       colour mode: 0 = RGB, 1 = grey
    varint  width in pixels, 1 or more
    varint  height in pixels, 1 or more
    varint  length of the body in bytes
    body    chunks, one after the other
    4       CRC-32 (as in PNG and zlib) of everything before it, little-endian

A chunk is a tag (one byte), a varint with the length of its data, and the data. Tags below 128 are critical: a decoder that
does not know one must refuse the stream. Tags from 128 are optional and are skipped when unknown; those below occur at most once.

    tag     content
    1       latents: the entropy-coded latents of the whole image, a payload
    2       tiles: the latents in tiles, each coded on its own
    128     ICC profile    }
    129     EXIF           } a zlib stream (RFC 1950) of at most 16 MiB of data
    130     XMP            }
    131     alpha plane

The first chunk is either *latents* or *tiles*, and there is no second one of either kind.

*Payloads.* In profile 1, one run of the range coder over all latents (`codec/coder.py`). In profile 2, one run over the side information
and then the slices of latents, in sections (`codec/hyperprior.py`); the side information is the payload's own, and no context
reaches beyond a tile. Both are a whole number of 32-bit words.

*Tiles.* Tiles are squares of side S, which is a multiple of 16 pixels in 128…4096; those at the right and lower edge are cut off
by the image. They are numbered row by row from the upper left corner, ⌈width / S⌉ · ⌈height / S⌉ of them. The chunk holds

    varint  S / 16
    varint  for each tile in turn, the length of its payload in 32-bit words
    bytes   the payloads, one after the other

A payload is coded as if its tile's latents were a whole image's. A latent belongs to the tile that holds its 16×16 pixels.
Tiling is one of the entropy coding only: analysis and synthesis see the whole image, so the latents are the same with any S.

*Grey* pictures are coded as RGB pictures with three equal channels. What the synthesis returns, before it is rounded to integers,
is turned back to grey by 0.299 R + 0.587 G + 0.114 B.

*EXIF* begins with the TIFF header ("II" or "MM"), without "Exif" and two zero bytes before it. The pixels are stored upright: a writer that
applies the orientation sets the tag to 1 or takes it out.

*Alpha*, one byte for each pixel of the whole image, 255 = opaque. If the chunk holds a single byte, that is the value everywhere.
Otherwise its first byte names a filter and the rest is raw LZMA2 data (lc = lp = pb = 0, dictionary of 1 MiB) of exactly
width · height bytes, the filtered rows. Filter bit 0: from each byte, its left neighbour was subtracted; bit 1: then from each
byte, its upper neighbour; both modulo 256, with 0 outside the image. The colour under alpha 0 is not kept.

Nothing may follow the checksum. A reader checks the magic, version, profile, colour mode and dimensions, the length and the
checksum, in this order, before it allocates anything whose size the stream declares; and it refuses a payload that is too short
to hold the latents of so many pixels (`codec/coder.py`).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import IO, Final

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
HYPERPRIOR: Final = 2
"""Profile: mean and scale of each latent from side information and from the channels before it."""
PROFILES: Final = {FACTORIZED: "factorized", HYPERPRIOR: "hyperprior"}
HASH_BYTES: Final = 8
RGB: Final = 0
GREY: Final = 1
MODES: Final = {RGB: "RGB", GREY: "grey"}
LATENTS: Final = 1
"""Tag of the chunk that holds the entropy-coded latents."""
TILES: Final = 2
"""Tag of the chunk that holds them in tiles."""
OPTIONAL: Final = 128
"""Chunks with this tag or a higher one may be skipped."""
ICC: Final = 128
EXIF: Final = 129
XMP: Final = 130
ALPHA: Final = 131
NAMES: Final = {LATENTS: "latents", TILES: "latents", ICC: "icc", EXIF: "exif", XMP: "xmp", ALPHA: "alpha"}
UNIT: Final = 16
"""Tiles are a multiple of this many pixels wide."""
MIN_TILE: Final = 128
"""Smaller tiles are refused: the work around them, which is done for each anew, would outgrow the work on them."""
MAX_TILE: Final = 4096
MAX_METADATA: Final = 1 << 24
"""Bytes of an ICC profile, EXIF or XMP block."""
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
        """The entropy-coded latents, or the chunk of tiles."""
        return self.chunks[0][1]

    @property
    def tile(self) -> int:
        """The side of the tiles in pixels, 0 when there are none."""
        return UNIT * read_varint(self.latents, 0)[0] if self.chunks[0][0] == TILES else 0

    def payloads(self) -> list[bytes]:
        """The coded latents of each tile, row by row; a single one when the image is not tiled. Raises `FormatError`."""
        if self.chunks[0][0] == LATENTS:
            return [self.latents]
        return _payloads(self.latents, self.width, self.height)

    def chunk(self, tag: int) -> bytes | None:
        """The data of an optional chunk, None without it."""
        return next((data for found, data in self.chunks if found == tag), None)

    def metadata(self, tag: int) -> bytes | None:
        """The ICC profile, EXIF or XMP block, None without it. Raises `FormatError`."""
        packed = self.chunk(tag)
        if packed is None:
            return None
        try:
            decompressor = zlib.decompressobj()
            data = decompressor.decompress(packed, MAX_METADATA)
        except zlib.error as error:
            raise FormatError(f"the {NAMES[tag]} chunk is damaged") from error
        if not decompressor.eof or decompressor.unused_data:
            raise FormatError(f"the {NAMES[tag]} chunk is damaged or too large")
        return data


def pack_metadata(data: bytes) -> bytes:
    """The chunk of an ICC profile, EXIF or XMP block. Raises ValueError above `MAX_METADATA`."""
    if len(data) > MAX_METADATA:
        raise ValueError(f"{len(data)} bytes are more than a chunk of metadata holds")
    return zlib.compress(data, 9)


def pack_tiles(payloads: list[bytes], side: int) -> bytes:
    """The chunk of tiles of a side (in pixels)."""
    if side % UNIT or not MIN_TILE <= side <= MAX_TILE:
        raise ValueError(f"tiles are a multiple of {UNIT} in {MIN_TILE}…{MAX_TILE} pixels wide, not {side}")
    return b"".join([write_varint(side // UNIT), *(write_varint(len(payload) // 4) for payload in payloads), *payloads])


def _payloads(data: bytes, width: int, height: int) -> list[bytes]:
    units, at = read_varint(data, 0)
    side = UNIT * units
    if not MIN_TILE <= side <= MAX_TILE:
        raise FormatError(f"tiles of {side} pixels are outside {MIN_TILE}…{MAX_TILE}")
    count = -(-width // side) * -(-height // side)
    if count > len(data):
        raise FormatError(f"the chunk of tiles is too short for {count} tiles")
    sizes = []
    for _ in range(count):
        words, at = read_varint(data, at)
        sizes.append(4 * words)
    if at + sum(sizes) != len(data):
        raise FormatError("the tiles do not fill their chunk")
    out = []
    for size in sizes:
        out.append(data[at : at + size])
        at += size
    return out


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


def _read_header(data: bytes) -> tuple[Stream, int, int]:
    """(the stream without its chunks, where the body begins, where it ends)."""
    if data[:4] != MAGIC[: len(data)]:
        raise BadMagicError("not an .rdae stream")
    if len(data) < 16:
        raise TruncatedError("the stream ends inside its header")
    version, profile, quality, mode = data[4], data[5], data[14], data[15]
    if version != VERSION:
        raise UnsupportedError(f"version {version} of the format is not supported (this release reads version {VERSION})")
    if profile not in PROFILES:
        raise UnsupportedError(f"profile {profile} is not supported by this release")
    if mode not in MODES:
        raise UnsupportedError(f"colour mode {mode} is not supported by this release")
    if not 1 <= quality <= 100:
        raise FormatError(f"quality {quality} is outside 1…100")
    width, at = read_varint(data, 16)
    height, at = read_varint(data, at)
    length, at = read_varint(data, at)
    return Stream(data[6:14], quality, width, height, (), profile, mode), at, at + length


def read(data: bytes) -> Stream:
    """Parse and check a whole stream. Raises the `FormatError` that fits; allocates nothing beyond copies of the chunks."""
    stream, at, end = _read_header(data)
    if len(data) < end + 4:
        raise TruncatedError(f"the stream is cut off: {len(data)} of {end + 4} bytes")
    if len(data) > end + 4:
        raise TrailingDataError(f"{len(data) - end - 4} bytes follow the end of the stream")
    if zlib.crc32(memoryview(data)[:end]) != int.from_bytes(data[end:], "little"):
        raise ChecksumError("checksum mismatch: the data are damaged")
    check_dimensions(stream.width, stream.height)
    chunks: list[tuple[int, bytes]] = []
    while at < end:
        tag = data[at]
        length, at = read_varint(data, at + 1)
        if at + length > end:
            raise FormatError(f"chunk {tag} is longer than the body")
        chunks.append((tag, data[at : at + length]))
        at += length
    _check_tags([tag for tag, _ in chunks])
    return Stream(stream.model_hash, stream.quality, stream.width, stream.height, tuple(chunks), stream.profile, stream.mode)


def peek(file: IO[bytes]) -> Stream:
    """The header and the chunks of metadata of a seekable file at its position, without reading the latents and the alpha plane.

    Their chunks are empty in what is returned, and the checksum is not looked at. Raises the `FormatError` that fits.
    """
    start = file.tell()
    stream, at, end = _read_header(file.read(16 + 3 * _MAX_VARINT))
    check_dimensions(stream.width, stream.height)
    chunks: list[tuple[int, bytes]] = []
    while at < end:
        file.seek(start + at)
        head = file.read(1 + _MAX_VARINT)
        length, used = read_varint(head, 1)
        tag, at = head[0], at + used
        if at + length > end:
            raise FormatError(f"chunk {tag} is longer than the body")
        wanted = tag in (ICC, EXIF, XMP)
        if wanted:
            # Files make room for what is asked of them before they look at what they have.
            if length > 2 * MAX_METADATA:
                raise FormatError(f"the {NAMES[tag]} chunk is too large")
            file.seek(start + at)
        data = file.read(length) if wanted else b""
        if wanted and len(data) < length:
            raise TruncatedError("the stream is cut off")
        chunks.append((tag, data))
        at += length
    _check_tags([tag for tag, _ in chunks])
    return Stream(stream.model_hash, stream.quality, stream.width, stream.height, tuple(chunks), stream.profile, stream.mode)


def _check_tags(tags: list[int]) -> None:
    for tag in tags:
        if tag < OPTIONAL and tag not in NAMES:
            raise UnsupportedError(f"chunk {tag} is not supported by this release")
        if tag in NAMES and tags.count(tag) > 1 and tag not in (LATENTS, TILES):
            raise FormatError(f"there are two chunks {tag}")
    if not tags or tags[0] not in (LATENTS, TILES) or tags.count(LATENTS) + tags.count(TILES) != 1:
        raise FormatError("the stream must hold one chunk of latents, the first")
