from __future__ import annotations

import judge
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codec import fixedpoint
from codec.fixedpoint import EXACT, LIMIT, Layer


def applied(layer: Layer, maps: list[np.ndarray], kernels: list[int], device: str = "cpu") -> np.ndarray:
    """Of maps C×h×w, with the margins that the layer wants."""
    width = maps[0].shape[2]
    prepared = []
    for x, kernel in zip(maps, kernels, strict=True):
        flat = fixedpoint.flat(torch.from_numpy(x)).to(device)
        # Under a 1×1 kernel, the same rows as those that a 3×3 kernel gives, two columns too long.
        prepared.append(flat if kernel == 3 else flat[:, width + 3 : -width - 3])
    return fixedpoint.rows(layer(prepared, width + 2), width).cpu().numpy().astype(np.int64)


def judged(weights: list[np.ndarray], bias: np.ndarray, shift: int, rectify: bool, maps: list[np.ndarray]) -> np.ndarray:
    total = sum(judge.convolve(x, w) for x, w in zip(maps, weights, strict=True))
    return judge.requantise(total, bias, shift, rectify)


def extreme(rng: np.random.Generator, kernels: list[int], outputs: int, shift: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Weights and a bias whose sums, with activations at their limit, come as near to 2⁵³ as they may, give or take one weight."""
    weights = [rng.integers(-1000, 1001, (outputs, int(rng.integers(1, 6)), k, k)) for k in kernels]
    total = sum(np.abs(w).reshape(outputs, -1).sum(1) for w in weights)
    room = (EXACT - 1) // LIMIT
    scale = max(1, (room - (1 << shift) // LIMIT - 200) // int(total.max()))
    weights = [w * scale for w in weights]
    total = sum(np.abs(w).reshape(outputs, -1).sum(1) for w in weights)
    bias = np.minimum(EXACT - 1 - (1 << (shift - 1)) - total * LIMIT, (1 << 31) - 1) * rng.choice((-1, 1), outputs)
    return weights, bias


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from([[1], [3], [1, 3], [1, 1]]), st.integers(1, 7), st.integers(1, 7), st.integers(20, 30))
def test_sums_near_the_proven_bound_are_those_of_integers(seed: int, kernels: list[int], height: int, width: int, shift: int) -> None:
    rng = np.random.default_rng(seed)
    weights, bias = extreme(rng, kernels, int(rng.integers(1, 6)), shift)
    # Of the largest size, with the weights' signs or anyhow; or anything.
    kind = int(rng.integers(3))
    maps = []
    for w in weights:
        shape = (w.shape[1], height, width)
        values = rng.choice((-LIMIT, LIMIT), shape) if kind else rng.integers(-LIMIT, LIMIT + 1, shape)
        maps.append(np.sign(w[0].sum((1, 2)))[:, None, None] * np.abs(values) if kind == 2 else values)
    rectify = bool(rng.integers(2))
    layer = Layer(weights, bias, shift, rectify=rectify)
    np.testing.assert_array_equal(applied(layer, maps, kernels), judged(weights, bias, shift, rectify, maps))


@pytest.mark.parametrize("kernels", [[1], [3], [1, 3]])
def test_a_layer_s_real_numbers_are_those_that_its_integers_stand_for(kernels: list[int]) -> None:
    rng = np.random.default_rng(5)
    weights = [rng.integers(-3000, 3000, (4, 3, k, k)) for k in kernels]
    layer = Layer(weights, rng.integers(-(1 << 20), 1 << 20, 4), 10, rectify=True)
    maps = [rng.integers(-8000, 8000, (3, 5, 6)) for _ in kernels]
    real, bias = layer.real()
    x = [torch.from_numpy(map_ / (1 << fixedpoint.BITS)).float()[None] for map_ in maps]
    out = sum(torch.nn.functional.conv2d(a, w, padding=w.shape[2] // 2) for a, w in zip(x, real, strict=True))
    out = torch.relu(out + bias[:, None, None])[0]
    np.testing.assert_allclose(applied(layer, maps, kernels) / (1 << fixedpoint.BITS), out.numpy(), atol=2.0**-fixedpoint.BITS)


def wide(seed: int = 0) -> tuple[list[np.ndarray], np.ndarray, list[np.ndarray]]:
    """As many products as the real networks have, enough for several threads, with a few numbers that need all 53 bits."""
    rng = np.random.default_rng(seed)
    weights = [rng.integers(-(1 << 15), 1 << 15, (64, 40, k, k)) for k in (1, 3)]
    bias = rng.integers(-(1 << 30), 1 << 30, 64)
    maps = [rng.integers(-LIMIT, LIMIT + 1, (40, 20, 33)) for _ in range(2)]
    return weights, bias, maps


def test_order_threads_and_layout_change_nothing() -> None:
    weights, bias, maps = wide()
    expected = applied(Layer(weights, bias, 20, rectify=False), maps, [1, 3])
    assert len(np.unique(expected)) > 10_000
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for seed in range(3):
                order = np.random.default_rng(seed).permutation(40)
                shuffled = [w[:, order] for w in weights], [x[order] for x in maps]
                np.testing.assert_array_equal(applied(Layer(shuffled[0], bias, 20, rectify=False), shuffled[1], [1, 3]), expected)
            # Channels last: neighbours in memory are channels, not columns.
            last = [np.ascontiguousarray(x.transpose(1, 2, 0)).transpose(2, 0, 1) for x in maps]
            np.testing.assert_array_equal(applied(Layer(weights, bias, 20, rectify=False), last, [1, 3]), expected)
            flat = [fixedpoint.flat(torch.from_numpy(x)) for x in maps]
            strided = [flat[0][:, 36:-36].t().contiguous().t(), flat[1].t().contiguous().t()]
            out = fixedpoint.rows(Layer(weights, bias, 20, rectify=False)(strided, 35).contiguous(), 33)
            np.testing.assert_array_equal(out.numpy().astype(np.int64), expected)
    finally:
        torch.set_num_threads(before)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 30))
def test_the_last_bit_survives_sums_that_cancel(seed: int) -> None:
    """Partial sums near 2⁵³ that leave next to nothing: a number rounded on the way would show."""
    rng = np.random.default_rng(seed)
    (weight,), _ = extreme(rng, [int(rng.choice((1, 3)))], 4, 1)
    weight, kernel = weight // 2, weight.shape[2]
    x = rng.choice((-LIMIT + 9, LIMIT - 9), (weight.shape[1], 4, 5))
    # One channel more than cancels, with a weight of one.
    weights = [np.concatenate([weight, -weight, np.pad(np.ones((4, 1, 1, 1), np.int64), [(0, 0)] * 2 + [(kernel // 2,) * 2] * 2)], axis=1)]
    maps = [np.concatenate([x, x, rng.integers(-LIMIT, LIMIT, (1, 4, 5))])]
    bias = rng.integers(-100, 100, 4)
    expected = judged(weights, bias, 1, False, maps)
    np.testing.assert_array_equal(expected, np.repeat(maps[0][-1:], 4, axis=0) + bias[:, None, None] + 1 >> 1)
    np.testing.assert_array_equal(applied(Layer(weights, bias, 1, rectify=False), maps, [kernel]), expected)


def test_the_judge_agrees_on_a_wide_layer() -> None:
    weights, bias, maps = wide(1)
    small = [x[:, :4, :5] for x in maps]
    np.testing.assert_array_equal(applied(Layer(weights, bias, 20, rectify=True), small, [1, 3]), judged(weights, bias, 20, True, small))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_the_same_integers() -> None:
    weights, bias, maps = wide(2)
    layer = Layer(weights, bias, 20, rectify=False)
    np.testing.assert_array_equal(applied(layer, maps, [1, 3], "cuda"), applied(layer, maps, [1, 3]))


def test_the_bound_is_where_it_should_be() -> None:
    """One less than 2⁵³ is accepted; the very number is not, whichever of weights and bias brings it about."""
    room, shift = EXACT - 1 - (1 << 9), 10
    weight = np.full((1, 2, 1, 1), ((1 << 29) - 64) // 2)
    rest = room - ((1 << 29) - 64) * LIMIT
    assert 0 < rest < 1 << 31
    for sign in (-1, 1):
        Layer([sign * weight], np.array([sign * rest]), shift, rectify=False)
        with pytest.raises(ValueError, match="exact"):
            Layer([sign * weight], np.array([sign * (rest + 1)]), shift, rectify=False)
    with pytest.raises(ValueError, match="exact"):
        Layer([weight, np.full((1, 1, 3, 3), 8)], np.array([0]), shift, rectify=False)


@pytest.mark.parametrize(
    ("weight", "bias", "shift", "words"),
    [
        (np.ones((2, 3, 2, 2), np.int64), np.zeros(2, np.int64), 5, "shapes"),
        (np.ones((2, 3, 1, 1), np.int64), np.zeros(3, np.int64), 5, "shapes"),
        (np.ones((2, 3, 1, 1), np.int64), np.zeros(2, np.int64), 0, "shifts by 0"),
        (np.ones((2, 3, 1, 1), np.int64), np.zeros(2, np.int64), 31, "shifts by 31"),
        (np.full((2, 3, 1, 1), -(1 << 63)), np.zeros(2, np.int64), 5, "32 bits"),
        (np.ones((2, 3, 1, 1), np.int64), np.full(2, -(1 << 63)), 5, "32 bits"),
        (np.full((2, 3, 3, 3), 1 << 30), np.zeros(2, np.int64), 5, "exact"),
    ],
)
def test_absurd_layers_are_refused(weight: np.ndarray, bias: np.ndarray, shift: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Layer([weight], bias, shift, rectify=True)


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
def test_flat_maps_hold_what_was_put_in_and_zeros_around(channels: int, height: int, width: int) -> None:
    x = torch.arange(1, channels * height * width + 1).reshape(channels, height, width)
    flat = fixedpoint.flat(x)
    assert torch.equal(fixedpoint.inside(flat, height, width), x.double())
    assert int(flat.count_nonzero()) == x.numel() and flat.shape == (channels, (height + 2) * (width + 2) + 2)
