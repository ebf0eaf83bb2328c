from __future__ import annotations

import hashlib
import itertools
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from codec import container, decoder, tiles, transforms
from codec import picture as pictures
from codec.encoder import Encoder
from codec.errors import FormatError, ImageError
from codec.model import Model
from codec.tiles import Box


@pytest.fixture(scope="module")
def wide(photograph: np.ndarray) -> np.ndarray:
    """Larger than a window both ways, and no multiple of anything."""
    return np.tile(photograph, (3, 3, 1))[:1101, :1431]


def whole_latents(model: Model, image: np.ndarray) -> np.ndarray:
    """The analysis of the whole image at once, as the paper has it."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((0, -height % 16), (0, -width % 16), (0, 0)), mode="reflect")
    with torch.inference_mode():
        return np.asarray(model.analysis(torch.from_numpy(padded).permute(2, 0, 1)[None].float() / 255)[0].numpy())


def whole_pixels(model: Model, symbols: np.ndarray, quality: int) -> np.ndarray:
    step = torch.from_numpy((model.steps[quality - 1] / 65536).astype(np.float32))[:, None, None]
    with torch.inference_mode():
        x = model.synthesis((torch.from_numpy(symbols).float() * step)[None])[0]
    return np.asarray((x * 255).round().clamp(0, 255).permute(1, 2, 0).numpy())


def test_halos_follow_from_the_layers() -> None:
    # Analysis: 4 + 4·2 + 8·2 = 28 pixels, within two latents of 16; synthesis: 1 + 1/2 + 1/4 latents.
    assert tiles.halo(transforms.analysis(4, 6), 1 / 16) == 2
    assert tiles.halo(transforms.synthesis(4, 6)) == 2
    assert tiles.halo(nn.Sequential(nn.Conv2d(1, 1, 3, stride=2, padding=1), nn.Conv2d(1, 1, 5, padding=2))) == 1 + 2 * 2


@pytest.mark.parametrize(("build", "start"), [(transforms.analysis, 1 / 16), (transforms.synthesis, 1.0)])
def test_a_halo_is_as_wide_as_the_receptive_field(build: object, start: float) -> None:
    """What lies outside the halo has no influence, and the reach inside it is not overestimated by a whole latent."""
    torch.manual_seed(0)
    module = build(6, 8)  # type: ignore[operator]
    reach = tiles.halo(module, start)
    into, out = (16, 1) if start < 1 else (1, 16)
    x = torch.rand(1, 3 if start < 1 else 8, 20 * into, 20 * into, requires_grad=True)
    y = module(x)
    y[:, :, 10 * out : 11 * out, 10 * out : 11 * out].sum().backward()
    assert x.grad is not None
    rows = x.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    assert rows.min() >= (10 - reach) * into and rows.max() < (11 + reach) * into
    assert rows.min() < (10 - reach + 1) * into


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 100))
def test_mirroring_is_numpy_s(height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    padded = np.pad(image, ((0, -height % 16), (0, -width % 16), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(tiles.mirrored(image, Box(0, 0, *padded.shape[:2])), padded)
    part = Box(height // 2, width // 2, *padded.shape[:2])
    np.testing.assert_array_equal(tiles.mirrored(image, part), padded[part.slices])


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(10, 100))
def test_a_grid_covers_everything_once(height: int, width: int, side: int) -> None:
    count = np.zeros((height, width), int)
    for box in itertools.chain(*tiles.grid(height, width, side)):
        assert 0 < box.height <= side and 0 < box.width <= side
        count[box.slices] += 1
    assert (count == 1).all()


def test_latents_are_those_of_the_whole_image(tiny_model: Model, wide: np.ndarray) -> None:
    expected = whole_latents(tiny_model, wide)
    y = tiny_model.analyse(wide)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    for quality in (1, 2, 3):
        np.testing.assert_array_equal(tiny_model.quantise(y, quality), tiny_model.quantise(expected, quality))


def test_pixels_are_those_of_the_whole_image_and_no_seam_is_measurable(tiny_model: Model, wide: np.ndarray) -> None:
    symbols = tiny_model.quantise(tiny_model.analyse(wide), 3)
    expected = whole_pixels(tiny_model, symbols, 3)[: wide.shape[0], : wide.shape[1]]
    difference = np.abs(tiny_model.synthesise(symbols, 3, *wide.shape[:2]).astype(int) - expected)
    assert difference.max() <= 1
    assert difference[:, 1020:1028].mean() <= 1e-3 and difference[1020:1028].mean() <= 1e-3


@pytest.mark.parametrize("grey", [False, True])
def test_tiles_hold_the_same_latents_and_show_the_same_pixels(tiny_model: Model, wide: np.ndarray, grey: bool) -> None:
    picture = pictures.from_array(wide[..., 1] if grey else wide)
    shown, digests = [], set()
    for tile in (0, 128, 256, 512, 1024):
        data = Encoder(tiny_model, picture, tile=tile).encode(2)
        stream = container.read(data)
        assert stream.tile == tile and len(stream.payloads()) == (1 if tile == 0 else -(-1101 // tile) * -(-1431 // tile))
        digests.add(hashlib.sha256(tiny_model.decode_latents(stream).tobytes()).hexdigest())
        shown.append(tiny_model.decode(data))
    assert len(digests) == 1
    assert all(np.array_equal(shown[0], other) for other in shown[1:])


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (17, 1025), (1025, 16)])
def test_extreme_shapes(tiny_model: Model, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    data = tiny_model.encode(image, 3)
    expected = tiny_model.quantise(whole_latents(tiny_model, image), 3)
    np.testing.assert_array_equal(tiny_model.decode_latents(container.read(data)), expected)
    shown = whole_pixels(tiny_model, expected, 3)[: shape[0], : shape[1]]
    np.testing.assert_allclose(tiny_model.decode(data).astype(int), shown, atol=1)


def test_what_fits_into_a_tile_is_not_tiled(tiny_model: Model, photograph: np.ndarray) -> None:
    assert tiny_model.encode(photograph) == Encoder(tiny_model, pictures.from_array(photograph), tile=0).encode(2)
    assert container.read(tiny_model.encode(photograph)).tile == 0


@pytest.mark.parametrize(("side", "cost"), [(256, 0.012), (512, 0.005), (1024, 0.005)])
def test_tiling_costs_little(photograph: np.ndarray, side: int, cost: float) -> None:
    """At the size of Kodak's images, and with the model that ships: the whole file is compared. Tiles know nothing of their neighbours.

    Of the four sample photographs, tiles of 256 cost 0.3, 0.9, 1.0 and 1.3 %.
    """
    import codec

    model = codec.load()
    kodak = pictures.from_array(np.tile(photograph, (2, 2, 1))[:512, :768])
    plain, tiled = (len(Encoder(model, kodak, tile=tile).encode(model.default_quality)) for tile in (0, side))
    assert tiled <= (1 + cost) * plain


def test_threads_change_nothing(tiny_model: Model, wide: np.ndarray) -> None:
    picture = pictures.from_array(wide)
    data = [Encoder(tiny_model, picture, tile=256, jobs=jobs).encode(3) for jobs in (1, 3)]
    assert data[0] == data[1]
    one, three = (decoder.decode(tiny_model, container.read(data[0]), jobs=jobs).pixels for jobs in (1, 3))
    np.testing.assert_array_equal(one, three)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert Encoder(tiny_model, picture, tile=256).encode(3) == data[0]
    finally:
        torch.set_num_threads(threads)


@settings(max_examples=25, deadline=None)
@given(st.data(), st.sampled_from([0, 128, 512]))
def test_regions(tiny_model_stream: dict[int, tuple[Model, bytes, np.ndarray]], data: st.DataObject, tile: int) -> None:
    model, coded, whole = tiny_model_stream[tile]
    height, width = whole.shape[:2]
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    w, h = data.draw(st.integers(1, min(width - left, 300))), data.draw(st.integers(1, min(height - top, 300)))
    part = decoder.decode(model, container.read(coded), region=(left, top, w, h)).array
    assert part.shape == (h, w, 4)
    np.testing.assert_allclose(part.astype(int), whole[top : top + h, left : left + w], atol=1)
    np.testing.assert_array_equal(part[..., 3], whole[top : top + h, left : left + w, 3])


@pytest.fixture(scope="module")
def tiny_model_stream(tiny_model: Model, wide: np.ndarray) -> dict[int, tuple[Model, bytes, np.ndarray]]:
    picture = pictures.from_array(np.dstack([wide, wide[..., 0]]))
    out = {}
    for tile in (0, 128, 512):
        coded = Encoder(tiny_model, picture, tile=tile).encode(2)
        out[tile] = tiny_model, coded, tiny_model.decode(coded)
    return out


def test_a_region_decodes_only_the_tiles_around_it(tiny_model: Model, wide: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    from codec import coder

    stream = container.read(Encoder(tiny_model, pictures.from_array(wide), tile=128).encode(1))
    decoded = []
    original = coder.decode
    monkeypatch.setattr(coder, "decode", lambda *arguments: decoded.append(1) or original(*arguments))
    decoder.decode(tiny_model, stream, region=(400, 400, 100, 100))
    assert len(decoded) == 3 * 3  # latents of the pixels 400…512 and a halo of 32 pixels: the tiles at 256, 384 and 512 each way
    assert len(stream.payloads()) == 9 * 12


@pytest.mark.parametrize("region", [(-1, 0, 5, 5), (0, 0, 0, 5), (0, 0, 1432, 5), (1430, 0, 2, 1), (0, 1101, 1, 1), (0, 0, 1, -1)])
def test_regions_outside_the_image(
    tiny_model_stream: dict[int, tuple[Model, bytes, np.ndarray]], region: tuple[int, int, int, int]
) -> None:
    model, coded, _ = tiny_model_stream[0]
    with pytest.raises(ImageError, match=r"does not lie in the image of 1431×1101"):
        decoder.decode(model, container.read(coded), region=region)


@pytest.mark.parametrize("tile", [1, 16, 64, 100, 192, 2048, -256])
def test_impossible_tiles(tiny_model: Model, tile: int) -> None:
    with pytest.raises(ImageError, match="128, 256, 512 or 1024"):
        Encoder(tiny_model, pictures.from_array(np.zeros((9, 9), np.uint8)), tile=tile)


def forged(stream: container.Stream, chunk: bytes) -> container.Stream:
    changed = container.Stream(stream.model_hash, stream.quality, stream.width, stream.height, ((container.TILES, chunk),))
    return container.read(container.write(changed))


def test_damaged_chunks_of_tiles(tiny_model: Model, wide: np.ndarray) -> None:
    stream = container.read(Encoder(tiny_model, pictures.from_array(wide), tile=512).encode(1))
    chunk = stream.latents
    payloads = stream.payloads()
    assert container.pack_tiles(payloads, 512) == chunk
    for bad, words in (
        (b"\x07" + chunk[1:], "outside"),  # tiles of 112 pixels
        (b"\x81\x02" + chunk[1:], "outside"),  # of 4112
        (b"\x00" + chunk[1:], "outside"),
        (chunk[:-4], "fill"),
        (chunk + bytes(4), "fill"),
        (b"\x08\x01", "too short for 108 tiles"),
        (container.pack_tiles([payloads[0][:8], *payloads[1:]], 512), "too few"),
        (container.pack_tiles([payloads[0] + bytes(8), *payloads[1:]], 512), "go on"),
    ):
        with pytest.raises(FormatError, match=words):
            tiny_model.decode_latents(forged(stream, bad))


def test_a_tiny_file_cannot_declare_a_huge_image(tiny_model: Model) -> None:
    """A valid checksum does not help: so few bytes cannot hold the latents of so many pixels, and nothing is allocated."""
    import tracemalloc

    for chunk in ((container.LATENTS, bytes(400)), (container.TILES, container.pack_tiles([b""] * 16, 4096))):
        data = container.write(container.Stream(tiny_model.hash, 1, 13_000, 13_000, (chunk,)))
        tiny_model.entropy.tables(1)
        tracemalloc.start()
        began = time.monotonic()
        with pytest.raises(FormatError, match="too few for the latents of the declared dimensions"):
            tiny_model.decode(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20 and time.monotonic() - began < 2
        tracemalloc.stop()


def test_work_never_runs_far_ahead() -> None:
    """Results wait for whoever takes them, and only a few of them."""
    started, lock = [], threading.Lock()

    def work(item: int) -> int:
        with lock:
            started.append(item)
        return item

    results = tiles.ordered(work, range(100), 3)
    assert [next(results) for _ in range(5)] == list(range(5))
    time.sleep(0.05)
    assert len(started) <= 5 + 3
    assert list(results) == list(range(5, 100))


def test_errors_in_threads_are_raised() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise FormatError("three")
        return item

    with pytest.raises(FormatError, match="three"):
        list(tiles.ordered(work, range(10), 2))
