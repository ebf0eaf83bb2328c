from __future__ import annotations

import dataclasses
from pathlib import Path

import judge
import numpy as np
import pytest
import torch
from conftest import TINY_SIZES, check_other_processes, tiny_hyper_bytes, tiny_hyper_tensors
from hypothesis import given, settings
from hypothesis import strategies as st

import codec
from codec import container, decoder, fixedpoint, hyperprior, layout, planes
from codec import model as models
from codec import picture as pictures
from codec.encoder import Encoder
from codec.errors import ModelError
from codec.hyperprior import Hyperprior
from codec.layout import Sizes
from codec.model import Model


def entropy_of(tensors: dict[str, torch.Tensor], sizes: Sizes = TINY_SIZES) -> Hyperprior:
    return Hyperprior(tensors, tensors["steps"].numpy().astype(np.int64), sizes)


def layers_of(entropy: Hyperprior) -> list[fixedpoint.Layer]:
    return [entropy._coarse, entropy._fine, *(layer for turns in entropy._turns for turn in turns for layer in turn)]


def run(entropy: Hyperprior, z: np.ndarray, quality: int, symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents, means and choices of table, M×h×w, for symbols M×h×w."""
    means, tables = np.full((2, *symbols.shape), -1, np.int64)

    def code(own: slice, at: np.ndarray, m: np.ndarray, t: np.ndarray) -> np.ndarray:
        means[own].reshape(len(m), -1)[:, at] = m
        tables[own].reshape(len(m), -1)[:, at] = t
        return symbols[own].reshape(len(m), -1)[:, at]

    return entropy.run(z, quality, *symbols.shape[1:], code), means, tables


def violent(seed: int, single: bool, sizes: Sizes = TINY_SIZES) -> dict[str, torch.Tensor]:
    """Weights as large as the proofs for single or double precision allow, so that everything saturates somewhere, and biases to match."""
    tensors = tiny_hyper_tensors(sizes=sizes, seed=seed)
    rng = np.random.default_rng(seed)
    limits = rng.integers(1, 257, 3) if single else rng.integers(1 << 20, (1 << 24) + 1, 3)
    tensors["limits"] = torch.from_numpy(limits.astype(np.int32))
    for name in [name for name in tensors if name.endswith(".shift")]:
        layer = name.removesuffix(".shift")
        # As if all turns were at once.
        parts = [f"{layer}.weight", *(f"{part}.weight" for part in sizes.ever_added(layer))]
        reach = [int(limits[0 if layer.endswith("conv1") else 2]), *[int(limits[1])] * (len(parts) - 1)]
        fine = layer.startswith("slices.") and int(layer.split(".")[1]) < sizes.fine
        if fine:
            reach = [x if part.endswith(".features.weight") else 1 << 24 for part, x in zip(parts, reach, strict=True)]
        small = single and not fine
        budget = (1 << 24) if small else (1 << 53)
        shift = rng.integers(-12, 13 if small else 31, tensors[name].shape)
        room = budget - (1 << 14 if small else 1 << 32)
        total = sum(tensors[p].double().abs().flatten(1).sum(1) * x for p, x in zip(parts, reach, strict=True))
        factor = min(room / max(float(total.max()), 1.0), 2.0 if small else 2.0**23)
        total = 0
        for part, x in zip(parts, reach, strict=True):
            tensors[part] = (tensors[part].double() * factor).trunc().to(torch.int32)
            total = total + tensors[part].long().abs().flatten(1).sum(1).numpy() * x
            if part.replace(".weight", ".bias") in tensors:
                tensors[part.replace(".weight", ".bias")] = torch.zeros(len(shift), dtype=torch.int32)
        rest = np.minimum(budget - 1 - (1 << shift.clip(0) >> 1) - total, (1 << 31) - 1)
        tensors[name] = torch.from_numpy(shift.astype(np.int32))
        signs = rng.choice((-1, 1), len(shift))
        if layer.endswith("conv2"):  # half of the bias depends on the quality
            tensors["features_bias"] = torch.from_numpy((rest.reshape(-1, 4).min(1) // 2 * signs[::4]).astype(np.int32)).repeat(3, 1)
            rest = rest - rest // 2
        tensors[f"{layer}.bias"] = torch.from_numpy((rest * signs).astype(np.int32))
    tensors["log2_steps"] = torch.from_numpy(rng.integers(-(1 << 24), (1 << 24) + 1, tensors["log2_steps"].shape).astype(np.int32))
    tensors["spread"] = torch.from_numpy(rng.integers(-4, 11, tensors["spread"].shape).astype(np.int32))
    for name in ("side_shift", "context_shift"):
        tensors[name] = torch.from_numpy(rng.integers(0, 31, tensors[name].shape).astype(np.int32))
    tensors["z_steps"] = torch.from_numpy(rng.integers(1, 1 << 31, tensors["z_steps"].shape).astype(np.int32))
    return tensors


def first_layout(tensors: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """Such tensors as the first files of the profile have: weights of sixteen bits, one shift for a layer, biases that come late."""
    rng = np.random.default_rng(seed)
    out = {name: tensor for name, tensor in tensors.items() if name not in ("limits", "side_shift", "context_shift")}
    for name, tensor in tensors.items():
        if name.endswith(".shift"):
            out[name] = torch.tensor(int(rng.integers(10, 19)), dtype=torch.int32)
        elif name.endswith(".weight") and tensor.dtype == torch.int8:
            out[name] = torch.from_numpy(rng.integers(-(1 << 15), 1 << 15, tensor.shape).astype(np.int16))
        elif name.endswith(".bias") and tensor.dtype == torch.int32:
            out[name] = torch.from_numpy(rng.integers(-(1 << 31), 1 << 31, tensor.shape).astype(np.int32))
    out["features_bias"] = torch.from_numpy(rng.integers(-(1 << 24), (1 << 24) + 1, out["features_bias"].shape).astype(np.int32))
    return out


FIRST_SIZES = dataclasses.replace(TINY_SIZES, slices=(4, 3, 5), turns=(), fine=0)
"""As the first models of the profile have them."""
sizes_drawn = st.sampled_from(
    [TINY_SIZES, dataclasses.replace(TINY_SIZES, kernel=1), dataclasses.replace(TINY_SIZES, slices=(12,), turns=(4,), fine=0), FIRST_SIZES,
     Sizes(side=1, analysis=1, synthesis=1, features=1, slices=(1, 1, 1), width=1, turns=(1, 7, 2), fine=2)]
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1 << 20),
    st.sampled_from(["bytes", "tame", "single", "double", "first layout"]),
    sizes_drawn,
    st.integers(1, 7),
    st.integers(1, 9),
    st.integers(1, 3),
)
def test_the_judge_gets_the_same_integers(seed: int, kind: str, sizes: Sizes, height: int, width: int, quality: int) -> None:
    """Means, choices of table and latents, for ordinary weights and weights at the bounds of the proofs, ordinary and absurd symbols."""
    sizes = FIRST_SIZES if kind == "first layout" else sizes
    if kind in ("single", "double"):
        tensors = violent(seed, kind == "single", sizes)
    else:
        tensors = tiny_hyper_tensors(sizes=sizes, seed=seed)
        tensors = first_layout(tensors, seed) if kind == "first layout" else tensors
    rng = np.random.default_rng(seed)
    reach = 1 << int(rng.choice((1, 3, 12, 31)))
    z = rng.integers(-reach, reach, (sizes.side, -(-height // 4), -(-width // 4))).astype(np.int32)
    symbols = rng.integers(-reach, reach, (sum(sizes.slices), height, width)).astype(np.int32)
    with pytest.MonkeyPatch.context() as patch:
        if kind != "bytes":
            patch.setattr(fixedpoint, "byte_products", lambda: False)
        entropy = entropy_of(tensors, sizes)
    way = torch.float64 if kind in ("double", "first layout") else torch.float32
    way = torch.int8 if kind == "bytes" and fixedpoint.byte_products() else way
    ways = {layer.dtype for layer in layers_of(entropy)}
    # Of fine slices, the first turn's first layer may sum little enough for single precision.
    assert ways | {torch.float32} == {way, torch.float32, *([torch.float64] if sizes.fine else [])} and (sizes.fine or ways == {way})
    latents, means, tables = run(entropy, z, quality, symbols)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}

    def given(first: int, where: list[tuple[int, int]], means: np.ndarray, tables: np.ndarray) -> np.ndarray:
        return symbols[first : first + len(means), [i for i, _ in where], [j for _, j in where]]

    expected = judge.decode(arrays, list(sizes.slices), list(sizes.turns), sizes.fine, quality, z, (height, width), given)
    for ours, judged in zip((latents, means, tables), expected, strict=True):
        np.testing.assert_array_equal(ours, judged)


def latents_like(model: Model, shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.laplace(0, 1, (model.latents, *shape)) * rng.choice((0.1, 1, 10), (model.latents, 1, 1))).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 20), st.integers(1, 12), st.integers(1, 12), st.integers(1, 3), st.booleans())
def test_latents_come_back_as_they_were_rounded(seed: int, height: int, width: int, quality: int, far: bool) -> None:
    model = models.from_bytes(tiny_hyper_bytes(seed=seed % 3), "tiny-hyper")
    y = latents_like(model, (height, width), seed)
    if far:
        y.flat[:: 1 + seed % 7] *= 3000  # escapes, up to the limit of what there can be
        y = y.clip(-32000, 32000)
    data = model.entropy.encode(y, quality)
    latents = model.entropy.decode(data, quality, height, width)
    np.testing.assert_array_equal(latents, model.entropy.quantise(y, quality))
    error = np.abs(model.entropy.dequantise(latents, quality) - y)
    assert (error <= model.steps[quality - 1, :, None, None] / 131072 + np.abs(y) * 1e-6 + 1e-4).all()


@given(height=st.integers(1, 23), width=st.integers(1, 23), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_features_of_zeros_are_found_from_a_few(height: int, width: int, seed: int) -> None:
    entropy = entropy_of(tiny_hyper_tensors(seed=seed))
    z = np.zeros((TINY_SIZES.side, -(-height // 4), -(-width // 4)), np.int32)
    assert torch.equal(entropy.features(z, 2, height, width), entropy._features(z, 2, height, width))


def test_silent_side_information_is_not_computed(tiny_hyper: Model, photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose hyper-analysis can say nothing but zero."""
    tensors = tiny_hyper_tensors()
    spoken = entropy_of(tensors)
    tensors["hyper_analysis.conv3.weight"].zero_()
    entropy = entropy_of(tensors)
    y = tiny_hyper.analyse(photograph[:208, :112])
    assert spoken.side_information(y, 1).any()
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda *a, **k: pytest.fail("a convolution"))
    assert entropy.side_information(y, 1).shape == (TINY_SIZES.side, 4, 2) and not entropy.side_information(y, 1).any()


def test_latents_beyond_what_there_can_be_are_an_error(tiny_hyper: Model) -> None:
    for value in (np.nan, np.inf, 40_000.0):
        y = np.zeros((12, 3, 3), np.float32)
        y[5, 1, 1] = value
        with pytest.raises(ModelError, match="out of range"):
            tiny_hyper.entropy.encode(y, 1)


def test_a_payload_is_as_long_as_the_tables_say(tiny_hyper: Model, photograph: np.ndarray) -> None:
    y = tiny_hyper.analyse(photograph)
    for quality in (1, 2, 3):
        side, rest = tiny_hyper.entropy.bits(y, quality)
        assert side > 100 and rest > 100
        assert side + rest <= 8 * len(tiny_hyper.entropy.encode(y, quality)) <= 1.001 * (side + rest) + 64


def test_each_turn_is_told_what_the_ones_before_it_were(tiny_hyper: Model) -> None:
    """A change of one latent changes means within the kernel's reach, in later turns of its slice and in later slices only."""
    z = np.zeros((4, 3, 3), np.int32)
    symbols = np.zeros((12, 9, 9), np.int32)
    before = run(tiny_hyper.entropy, z, 2, symbols)[1]
    # The first slice's second turn, and the third slice's first one.
    for channels, row, column, own, reach in ((slice(0, 2), 6, 2, slice(0, 2), 2), (slice(6, 9), 4, 4, slice(6, 9), 1)):
        changed = symbols.copy()
        changed[channels, row, column] = 9
        differs = run(tiny_hyper.entropy, z, 2, changed)[1] != before
        assert not differs[: own.start].any()
        turns = np.tile(layout.SQUARES[7 if reach == 2 else 2], (5, 5))[:9, :9]
        turns = turns - turns[row, column]
        places = np.argwhere(differs[own].any(axis=0))
        # Where a map is at its limit, or at zero, a change need not show; further turns see what it did to the next one.
        assert len(places) > 2 and all(turns[tuple(place)] > 0 for place in places)
        assert all(abs(place - (row, column)).max() <= reach for place in places if turns[tuple(place)] == 1)
        assert differs[own.stop :].any()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (5, 2), (9, 8)])
@pytest.mark.parametrize("count", list(layout.SQUARES))
def test_every_place_has_one_turn(count: int, height: int, width: int) -> None:
    seen = np.zeros((height, width), int)
    for turn in range(count):
        seen[layout.places(count, turn, height, width)] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("band", [1, 20, 10**6])
def test_bands_and_threads_change_nothing(tiny_hyper: Model, monkeypatch: pytest.MonkeyPatch, band: int) -> None:
    y = latents_like(tiny_hyper, (37, 23))
    expected = tiny_hyper.entropy.encode(y, 3)
    for module in (hyperprior, planes):
        monkeypatch.setattr(module, "BAND", band)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            np.testing.assert_array_equal(tiny_hyper.entropy.decode(expected, 3, 37, 23), tiny_hyper.entropy.quantise(y, 3))
            assert tiny_hyper.entropy.encode(y, 3) == expected
    finally:
        torch.set_num_threads(threads)


def test_another_process_with_other_threads_decodes_the_same_latents(tiny_hyper: Model, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(tiny_hyper_bytes())
    image = np.random.default_rng(0).integers(0, 256, (330, 290, 3), dtype=np.uint8)
    check_other_processes(tiny_hyper, tmp_path / "m.safetensors", image, tmp_path)


# Whole pictures


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 3), st.integers(0, 1 << 20))
def test_any_size_comes_back(width: int, height: int, quality: int, seed: int) -> None:
    model = models.from_bytes(tiny_hyper_bytes(), "tiny-hyper")
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    data = model.encode(image, quality)
    assert container.read(data).profile == container.HYPERPRIOR == data[5]
    latents = model.quantise(model.analyse(image), quality)
    np.testing.assert_array_equal(model.decode_latents(container.read(data)), latents)
    np.testing.assert_array_equal(model.decode(data), model.synthesise(latents, quality, height, width))


@pytest.fixture(scope="module")
def wide(photograph: np.ndarray) -> np.ndarray:
    return np.tile(photograph, (3, 2, 1))[:1101, :1070]


@pytest.mark.parametrize("tile", [0, 128, 512, 1024])
def test_tiles_regions_grey_alpha_and_threads(tiny_hyper: Model, wide: np.ndarray, tile: int) -> None:
    for array in (np.dstack([wide, wide[..., 0]]), wide[..., 1]):
        data = Encoder(tiny_hyper, pictures.from_array(array), tile=tile).encode(2)
        assert Encoder(tiny_hyper, pictures.from_array(array), tile=tile, jobs=2, keep=True).encode(2) == data
        stream = container.read(data)
        whole = decoder.decode(tiny_hyper, stream).array
        assert whole.shape == array.shape
        part = decoder.decode(tiny_hyper, stream, region=(900, 1000, 150, 90), jobs=2).array
        np.testing.assert_allclose(part.astype(int), whole[1000:1090, 900:1050], atol=1)


def test_what_is_coded_is_what_the_search_measured(tiny_hyper: Model, photograph: np.ndarray) -> None:
    picture = pictures.from_array(photograph)
    for tile in (128, 0):
        encoder = Encoder(tiny_hyper, picture, tile=tile, keep=True)
        shown = tiny_hyper.decode(encoder.encode(2))
        error = np.mean((shown.astype(np.float64) - photograph) ** 2)
        assert encoder.psnr(2) == pytest.approx(10 * np.log10(255**2 / error), abs=1e-3)
        stream = container.read(encoder.encode(2))
        np.testing.assert_array_equal(tiny_hyper.decode_latents(stream), encoder.symbols(2))


def test_through_the_public_functions_and_pillow(photograph: np.ndarray, tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "m.safetensors"
    path.write_bytes(tiny_hyper_bytes())
    by_quality = [len(codec.compress(photograph, model=path, quality=q)) for q in (1, 2, 3)]
    assert by_quality == sorted(by_quality)
    limited = codec.compress(photograph, model=path, size=by_quality[1])
    assert len(limited) == by_quality[1]
    middling = codec.compress(photograph, model=path, bpp=8 * by_quality[1] / photograph[..., 0].size)
    assert middling == limited
    best = codec.compress(photograph, model=path, psnr=1.0)
    assert len(best) == by_quality[0]
    Image.fromarray(photograph).save(tmp_path / "x.rdae", model=str(path), quality=2)
    with Image.open(tmp_path / "x.rdae") as opened:
        np.testing.assert_array_equal(np.asarray(opened), codec.decompress(limited))
