from __future__ import annotations

import io
import lzma

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

import codec
from codec import alpha, container
from codec.errors import FormatError
from codec.model import Model

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def disc(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.clip(60 + 4 * (min(height, width) / 3 - np.hypot(y - height / 2, x - width / 2)), 0, 255).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(st.data(), SHAPES)
def test_any_plane_comes_back(data: st.DataObject, shape: tuple[int, int]) -> None:
    plane = data.draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 128, 255])))
    np.testing.assert_array_equal(alpha.decode(alpha.encode(plane), *shape), plane)


@pytest.mark.parametrize("value", [0, 77, 255])
def test_a_constant_plane_is_one_byte(value: int) -> None:
    data = alpha.encode(np.full((500, 700), value, np.uint8))
    assert data == bytes([value])
    assert (alpha.decode(data, 5, 7) == value).all()


def test_masks_are_about_as_small_as_lossless_webp() -> None:
    ramp = np.add.outer(np.arange(300) // 2, np.arange(400) // 4).astype(np.uint8)
    for plane in (disc(300, 400), 255 * (disc(300, 400) > 99).astype(np.uint8), ramp):
        buffer = io.BytesIO()
        Image.fromarray(plane).save(buffer, "WEBP", lossless=True, method=6)
        assert len(alpha.encode(plane)) < 1.1 * len(buffer.getvalue())


def test_damaged_planes_are_refused() -> None:
    plane = disc(40, 50)
    data = alpha.encode(plane)
    with pytest.raises(FormatError, match="each pixel"):
        alpha.decode(data, 40, 51)
    with pytest.raises(FormatError, match="each pixel"):
        alpha.decode(data, 40, 49)
    for bad in (b"", b"\x04" + data[1:], data[:-1], data + b"x", data[:1] + b"\xff" + data[2:]):
        with pytest.raises(FormatError, match="alpha"):
            alpha.decode(bad, 40, 50)


def test_a_bomb_does_not_go_off() -> None:
    """A gigabyte of zeros in 150 kB, declared as a tiny plane."""
    filters = alpha._chain(1)
    packer = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=filters)
    bomb = b"\0" + b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    with pytest.raises(FormatError, match="each pixel"):
        alpha.decode(bomb, 10, 10)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 20), SHAPES, st.integers(2, 256))
def test_filling_leaves_what_is_visible(seed: int, shape: tuple[int, int], levels: int) -> None:
    rng = np.random.default_rng(seed)
    plane = rng.integers(0, levels, shape).astype(np.uint8)
    for pixels in (rng.integers(0, 256, (*shape, 3), dtype=np.uint8), rng.integers(0, 256, shape, dtype=np.uint8)):
        filled = alpha.fill(pixels, plane)
        np.testing.assert_array_equal(filled[plane > 0], pixels[plane > 0])
        if (plane > 0).any():
            visible = pixels[plane > 0]
            assert filled.min() >= visible.min() and filled.max() <= visible.max()


def test_filling_continues_smoothly_across_blocks() -> None:
    ramp = np.tile(np.arange(2048) // 16 + 60, (64, 1)).astype(np.uint8)
    plane = np.full(ramp.shape, 255, np.uint8)
    plane[8:40, 900:1150] = 0  # across the border of two windows
    hidden = ramp.copy()
    hidden[plane == 0] = 0
    assert np.abs(alpha.fill(hidden, plane).astype(int) - ramp).max() < 10


def test_colour_that_nobody_sees_is_not_paid_for(photograph: np.ndarray) -> None:
    model = codec.load()
    plane = 255 * (disc(*photograph.shape[:2]) > 99).astype(np.uint8)
    noisy = photograph.copy()
    noisy[plane == 0] = np.random.default_rng(0).integers(0, 256, (int((plane == 0).sum()), 3))
    plain, hidden = (model.encode(np.dstack([pixels, plane])) for pixels in (photograph, noisy))
    assert plain == hidden
    assert len(hidden) < 0.7 * len(model.encode(photograph)) and len(hidden) < 0.4 * len(model.encode(noisy))


def test_opaque_alpha_costs_three_bytes(tiny_model: Model, photograph: np.ndarray) -> None:
    image = photograph[:64, :80]
    with_alpha = tiny_model.encode(np.dstack([image, np.full(image.shape[:2], 255, np.uint8)]))
    assert len(with_alpha) - len(tiny_model.encode(image)) <= 4
    restored = tiny_model.decode(with_alpha)
    assert restored.shape == (64, 80, 4) and restored[..., 3].min() == 255


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_kept_exactly(tiny_model: Model, photograph: np.ndarray, channels: int) -> None:
    plane = disc(91, 123)
    image = np.dstack([photograph[:91, :123, : channels - 1], plane])
    data = tiny_model.encode(image)
    restored = tiny_model.decode(data)
    assert restored.shape == image.shape
    np.testing.assert_array_equal(restored[..., -1], plane)
    # A reader that knows nothing of alpha still has the colours.
    stream = container.read(data)
    plain = container.Stream(stream.model_hash, stream.quality, stream.width, stream.height, stream.chunks[:1], mode=stream.mode)
    np.testing.assert_array_equal(tiny_model.decode(container.write(plain)).reshape(91, 123, -1), restored[..., :-1])
