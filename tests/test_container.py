from __future__ import annotations

import io
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec import container
from codec.container import Stream
from codec.errors import (
    BadMagicError,
    ChecksumError,
    DimensionsError,
    FormatError,
    TrailingDataError,
    TruncatedError,
    UnsupportedError,
)

STREAM = Stream(bytes(range(8)), 42, 768, 512, ((container.LATENTS, b"payload"),))


def sealed(data: bytes) -> bytes:
    """The data with a fresh checksum in the place of their last four bytes."""
    return data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little")


def rebuilt(*, at: int, to: int) -> bytes:
    data = bytearray(container.write(STREAM))
    data[at] = to
    return sealed(bytes(data))


def test_the_layout_is_the_documented_one() -> None:
    data = container.write(STREAM)
    expected = (
        b"\xd2RDA" + b"\x01" + b"\x01" + bytes(range(8)) + b"\x2a" + b"\x00" + b"\x80\x06" + b"\x80\x04" + b"\x09" + b"\x01\x07payload"
    )
    assert data == expected + zlib.crc32(expected).to_bytes(4, "little")


def test_a_kodak_image_pays_at_most_32_bytes() -> None:
    payload = bytes(40_000)
    data = container.write(Stream(bytes(8), 100, 768, 512, ((container.LATENTS, payload),)))
    assert len(data) - len(payload) <= 32


@settings(deadline=None)
@given(
    st.binary(min_size=8, max_size=8),
    st.integers(1, 100),
    st.integers(1, 70_000),
    st.integers(1, 2000),
    st.binary(max_size=300),
    st.lists(st.tuples(st.integers(128, 255), st.binary(max_size=20)), max_size=3, unique_by=lambda chunk: chunk[0]),
)
def test_round_trip(model_hash: bytes, quality: int, width: int, height: int, payload: bytes, extra: list[tuple[int, bytes]]) -> None:
    stream = Stream(model_hash, quality, width, height, ((container.LATENTS, payload), *extra))
    assert container.read(container.write(stream)) == stream


def test_truncation_at_every_byte() -> None:
    data = container.write(STREAM)
    for length in range(len(data)):
        with pytest.raises(TruncatedError):
            container.read(data[:length])


def test_every_flipped_bit_is_noticed() -> None:
    data = container.write(STREAM)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            container.read(bytes(damaged))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.booleans())
def test_noise_is_refused(noise: bytes, plausible: bool) -> None:
    with pytest.raises(FormatError):
        container.read(container.write(STREAM)[:16] + sealed(noise + bytes(4)) if plausible else noise)


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(30), BadMagicError, "not an .rdae"),
        (b"", TruncatedError, "header"),
        (rebuilt(at=4, to=2), UnsupportedError, "version 2"),
        (rebuilt(at=5, to=9), UnsupportedError, "profile 9"),
        (rebuilt(at=15, to=7), UnsupportedError, "colour mode 7"),
        (rebuilt(at=14, to=0), FormatError, "quality 0"),
        (rebuilt(at=14, to=101), FormatError, "quality 101"),
        (container.write(STREAM) + b"\0", TrailingDataError, "1 bytes follow"),
        (container.write(STREAM)[:-1] + b"\0", ChecksumError, "checksum"),
        (rebuilt(at=21, to=3), UnsupportedError, "chunk 3"),
        (rebuilt(at=21, to=200), FormatError, "one chunk of latents"),
        (rebuilt(at=22, to=8), FormatError, "longer than the body"),
    ],
)
def test_each_defect_has_its_own_error(data: bytes, kind: type[FormatError], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        container.read(data)
    assert caught.type is kind


def with_dimensions(width: bytes, height: bytes) -> bytes:
    data = container.write(STREAM)
    return sealed(data[:16] + width + height + data[20:])


@pytest.mark.parametrize(
    ("width", "height", "kind"),
    [
        (b"\x00", b"\x01", DimensionsError),
        (b"\x80\x80\x04", b"\x80\x80\x04", DimensionsError),  # 65536 × 65536
        (b"\xff\xff\xff\xff\x7f", b"\x01", DimensionsError),
        (b"\x80\x00", b"\x01", FormatError),  # a padded number
        (b"\xff\xff\xff\xff\xff\x01", b"\x01", FormatError),  # a number of six bytes
    ],
)
def test_absurd_dimensions(width: bytes, height: bytes, kind: type[FormatError]) -> None:
    with pytest.raises(kind):
        container.read(with_dimensions(width, height))


def test_the_limit_can_be_lifted(monkeypatch: pytest.MonkeyPatch) -> None:
    huge = with_dimensions(b"\x80\x80\x04", b"\x80\x80\x04")
    with pytest.raises(DimensionsError, match="exceed the limit"):
        container.read(huge)
    monkeypatch.setattr(container, "MAX_PIXELS", 0)
    assert container.read(huge).width == 65536


def test_optional_chunks_are_kept_and_skipped() -> None:
    stream = Stream(bytes(8), 1, 1, 1, ((container.LATENTS, b""), (222, b"what may this be")))
    assert container.read(container.write(stream)).latents == b""


def test_two_chunks_of_latents_are_one_too_many() -> None:
    twice = ((container.LATENTS, b"a"), (container.LATENTS, b"b"))
    with pytest.raises(FormatError, match="one chunk of latents"):
        container.read(container.write(Stream(bytes(8), 1, 1, 1, twice)))


def test_metadata_are_bounded_and_checked() -> None:
    def with_chunk(data: bytes) -> Stream:
        return container.read(container.write(Stream(bytes(8), 1, 1, 1, ((container.LATENTS, b""), (container.XMP, data)))))

    assert with_chunk(container.pack_metadata(b"text")).metadata(container.XMP) == b"text"
    assert with_chunk(container.pack_metadata(b"")).metadata(container.ICC) is None
    bomb = zlib.compress(bytes(container.MAX_METADATA + 1), 9)
    assert len(bomb) < 20_000
    packed = container.pack_metadata(b"text")
    for bad in (bomb, packed[:-1], packed + b"x", b"", b"nonsense"):
        with pytest.raises(FormatError, match="the xmp chunk is damaged"):
            with_chunk(bad).metadata(container.XMP)
    with pytest.raises(ValueError, match="more than a chunk"):
        container.pack_metadata(bytes(container.MAX_METADATA + 1))
    twice = Stream(bytes(8), 1, 1, 1, ((container.LATENTS, b""), (container.XMP, packed), (container.XMP, packed)))
    with pytest.raises(FormatError, match="two chunks 130"):
        container.read(container.write(twice))


def test_a_peek_reads_headers_and_metadata_only() -> None:
    chunks = (
        (container.LATENTS, bytes(5000)),
        (container.ICC, container.pack_metadata(b"profile")),
        (container.ALPHA, bytes(3000)),
        (222, b"?"),
    )
    data = container.write(Stream(bytes(8), 7, 30, 20, chunks, mode=container.GREY))
    seen = container.peek(io.BytesIO(data))
    assert (seen.width, seen.height, seen.quality, seen.mode) == (30, 20, 7, container.GREY)
    assert seen.metadata(container.ICC) == b"profile"
    assert [(tag, len(body)) for tag, body in seen.chunks] == [(1, 0), (128, len(chunks[1][1])), (131, 0), (222, 0)]


def test_writing_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="eight bytes"):
        container.write(Stream(b"short", 1, 1, 1, ((1, b""),)))
    with pytest.raises(DimensionsError):
        container.write(Stream(bytes(8), 1, 0, 1, ((1, b""),)))
