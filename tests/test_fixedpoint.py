from __future__ import annotations

import judge
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codec import fixedpoint
from codec.fixedpoint import EXACT, LIMIT, Kind, Layer, kind

PLAIN = Kind(-LIMIT, LIMIT, 0, torch.float32)
RECTIFIED = Kind(0, LIMIT, 0, torch.float32)


def flat(x: np.ndarray, like: Kind = PLAIN) -> torch.Tensor:
    return like.flat(like.held(torch.from_numpy(x)))


def applied(layer: Layer, maps: list[np.ndarray], kernels: list[int], device: str = "cpu") -> np.ndarray:
    """Of maps C×h×w, with the margins that the layer wants."""
    width = maps[0].shape[2]
    prepared = []
    for x, kernel, like in zip(maps, kernels, layer._maps, strict=True):
        flat = like.flat(like.held(torch.from_numpy(x))).to(device)
        # Under a 1×1 kernel, the same rows as those that a 3×3 kernel gives, two columns too long.
        prepared.append(flat if kernel == 3 else flat[:, width + 3 : -width - 3])
    return fixedpoint.rows(layer(prepared, width + 2), width).cpu().numpy().astype(np.int64) + layer.out.offset


def make(weights: list[np.ndarray], bias: np.ndarray, shift: int, rectify: bool, reach: int = LIMIT) -> Layer:
    """With the same shift for all outputs."""
    maps = [Kind(-reach, reach, 0, torch.float32)] * len(weights)
    return Layer(weights, maps, bias[None], np.full(len(bias), shift), RECTIFIED if rectify else PLAIN)


def judged(weights: list[np.ndarray], bias: np.ndarray, shift: int, rectify: bool, maps: list[np.ndarray]) -> np.ndarray:
    total = sum(judge.convolve(x, w) for x, w in zip(maps, weights, strict=True))
    return judge.requantise(total, bias, np.full(len(bias), shift), 0 if rectify else -LIMIT, LIMIT)


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
    layer = make(weights, bias, shift, rectify)
    np.testing.assert_array_equal(applied(layer, maps, kernels), judged(weights, bias, shift, rectify, maps))


def wide(seed: int = 0) -> tuple[list[np.ndarray], np.ndarray, list[np.ndarray]]:
    """As many products as the real networks have, enough for several threads, with a few numbers that need all 53 bits."""
    rng = np.random.default_rng(seed)
    weights = [rng.integers(-(1 << 15), 1 << 15, (64, 40, k, k)) for k in (1, 3)]
    bias = rng.integers(-(1 << 30), 1 << 30, 64)
    maps = [rng.integers(-LIMIT, LIMIT + 1, (40, 20, 33)) for _ in range(2)]
    return weights, bias, maps


def test_order_threads_and_layout_change_nothing() -> None:
    weights, bias, maps = wide()
    expected = applied(make(weights, bias, 20, False), maps, [1, 3])
    assert len(np.unique(expected)) > 10_000
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for seed in range(3):
                order = np.random.default_rng(seed).permutation(40)
                shuffled = [w[:, order] for w in weights], [x[order] for x in maps]
                np.testing.assert_array_equal(applied(make(shuffled[0], bias, 20, False), shuffled[1], [1, 3]), expected)
            # Channels last: neighbours in memory are channels, not columns.
            last = [np.ascontiguousarray(x.transpose(1, 2, 0)).transpose(2, 0, 1) for x in maps]
            np.testing.assert_array_equal(applied(make(weights, bias, 20, False), last, [1, 3]), expected)
            held = [flat(x) for x in maps]
            strided = [held[0][:, 36:-36].t().contiguous().t(), held[1].t().contiguous().t()]
            out = fixedpoint.rows(make(weights, bias, 20, False)(strided, 35).contiguous(), 33)
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
    np.testing.assert_array_equal(applied(make(weights, bias, 1, False), maps, [kernel]), expected)


def test_the_judge_agrees_on_a_wide_layer() -> None:
    weights, bias, maps = wide(1)
    small = [x[:, :4, :5] for x in maps]
    np.testing.assert_array_equal(applied(make(weights, bias, 20, True), small, [1, 3]), judged(weights, bias, 20, True, small))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_the_same_integers() -> None:
    weights, bias, maps = wide(2)
    layer = make(weights, bias, 20, False)
    np.testing.assert_array_equal(applied(layer, maps, [1, 3], "cuda"), applied(layer, maps, [1, 3]))


def small(rng: np.random.Generator, kernels: list[int], shift: int) -> tuple[list[np.ndarray], np.ndarray, list[np.ndarray]]:
    """As near to 2²⁴ as may be, with operands of eight bits and a sign."""
    weights = [rng.integers(-256, 257, (5, 30 if k == 3 else 80, k, k)) for k in kernels]
    reach = int(rng.choice((1, 17, 255, 256)))
    total = sum(np.abs(w).reshape(5, -1).sum(1) for w in weights)
    room = (LIMIT - 1 - (1 << shift >> 1)) // reach
    weights = [w * min(1, room / total.max()) for w in weights]
    weights = [np.trunc(w).astype(np.int64) for w in weights]
    total = sum(np.abs(w).reshape(5, -1).sum(1) for w in weights)
    bias = (LIMIT - 1 - (1 << shift >> 1) - total * reach) * rng.choice((-1, 1), 5)
    return weights, bias, [rng.choice((-reach, reach), (w.shape[1], 4, 6)) for w in weights]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from([[1], [3], [1, 3]]), st.integers(0, 12), st.booleans())
def test_small_sums_are_exact_in_single_precision(seed: int, kernels: list[int], shift: int, aligned: bool) -> None:
    weights, bias, maps = small(np.random.default_rng(seed), kernels, shift)
    if aligned:  # the largest sum that there can be
        maps = [abs(x) * np.where(w[0].sum((1, 2)) < 0, -1, 1)[:, None, None] for x, w in zip(maps, weights, strict=True)]
    layer = make(weights, bias, shift, False, int(abs(maps[0]).max()))
    assert layer.dtype == torch.float32
    np.testing.assert_array_equal(applied(layer, maps, kernels), judged(weights, bias, shift, False, maps))


def test_settings_that_trade_precision_for_speed_change_nothing() -> None:
    weights, bias, maps = small(np.random.default_rng(0), [1, 3], 3)
    layer = make(weights, bias, 3, False, int(abs(maps[0]).max()))
    expected = judged(weights, bias, 3, False, maps)
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(precision)
            np.testing.assert_array_equal(applied(layer, maps, [1, 3]), expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_each_output_has_its_own_shift_and_each_row_its_bias() -> None:
    rng = np.random.default_rng(3)
    weight, shift = rng.integers(-100, 101, (6, 9, 3, 3)), np.array([0, -1, 2, 5, -12, 30])
    bias, x = rng.integers(-100_000, 100_000, (3, 6)), rng.integers(0, 200, (9, 5, 4))
    for out in (PLAIN, Kind(0, 255, 0, torch.float32)):
        layer = Layer([weight], [Kind(0, 200, 0, torch.float32)], bias, shift, out)
        for row in range(3):
            got = fixedpoint.rows(layer([flat(x)], 6, row), 4).numpy()
            expected = judge.requantise(judge.convolve(x, weight), bias[row], shift, out.lowest, out.highest)
            np.testing.assert_array_equal(got, expected)


needs_bytes = pytest.mark.skipif(not fixedpoint.byte_products(), reason="this processor has no products of bytes")


@needs_bytes
@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 1 << 30), st.sampled_from([[1], [3], [1, 3], [3, 1], [1, 1]]), st.integers(1, 40), st.integers(1, 7), st.integers(1, 9)
)
def test_bytes_give_the_same_integers(seed: int, kernels: list[int], outputs: int, height: int, width: int) -> None:
    """Maps with and without a sign, extreme numbers and others, whatever follows; single precision is asked too, and the judge."""
    rng = np.random.default_rng(seed)
    weights, kinds, maps = [], [], []
    for k in kernels:
        shape = outputs, int(rng.integers(1, 70)), k, k
        weights.append(rng.choice((-127, 127), shape) if rng.integers(2) else rng.integers(-127, 128, shape))
        kinds.append(kind(*[(-127, 127), (-128, 1), (0, 255), (0, 100), (0, 128)][rng.integers(5)]))
        ends = kinds[-1].lowest, kinds[-1].highest
        shape = shape[1], height, width
        maps.append(rng.choice(ends, shape) if rng.integers(2) else rng.integers(ends[0], ends[1] + 1, shape))
    bias, shift = rng.integers(-(1 << 20), 1 << 20, (2, outputs)), rng.integers(0 if rng.integers(4) else -12, 18, outputs)
    out = kind(*[(0, 255), (-127, 127), (0, 31), (-LIMIT, LIMIT)][rng.integers(4)])
    row = int(rng.integers(2))
    layer = Layer(weights, kinds, bias, shift, out)
    assert layer.dtype == torch.int8
    prepared = [
        x if k == 3 else x[:, width + 3 : -width - 3].contiguous()
        for x, k in ((like.flat(like.held(torch.from_numpy(m))), k) for like, m, k in zip(kinds, maps, kernels, strict=True))
    ]
    got = fixedpoint.rows(layer(prepared, width + 2, row), width)
    assert (got.dtype == torch.int8) == (out.dtype == torch.int8)
    total = sum(judge.convolve(x, w) for x, w in zip(maps, weights, strict=True))
    expected = judge.requantise(total, bias[row], shift, out.lowest, out.highest)
    np.testing.assert_array_equal(got.numpy().astype(np.int64) + out.offset, expected)
    floats = [Kind(like.lowest, like.highest, 0, torch.float32) for like in kinds]
    single = Layer(weights, floats, bias, shift, Kind(out.lowest, out.highest, 0, torch.float32))
    assert single.dtype != torch.int8
    taken = fixedpoint.rows(single([x.float() + like.offset for x, like in zip(prepared, kinds, strict=True)], width + 2, row), width)
    np.testing.assert_array_equal(taken.numpy(), expected)


@needs_bytes
def test_threads_change_nothing_in_bytes() -> None:
    rng = np.random.default_rng(5)
    weights, x = [rng.integers(-127, 128, (96, 130, 3, 3))], kind(0, 255)
    layer = Layer(weights, [x], rng.integers(-9999, 9999, (1, 96)), rng.integers(8, 14, 96), kind(0, 255))
    held = x.flat(x.held(torch.from_numpy(rng.integers(0, 256, (130, 40, 41)))))
    before, seen = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            seen.append(layer([held], 43))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2]) and len(seen[0].unique()) > 100


@needs_bytes
def test_what_bytes_cannot_hold_is_computed_otherwise() -> None:
    def way(weight: int, highest: int, shift: int, bias: int = 0, inputs: int = 2) -> torch.dtype:
        layer = Layer([np.full((1, inputs, 1, 1), weight)], [kind(0, highest)], np.array([[bias]]), np.array([shift]), kind(0, 255))
        return layer.dtype

    assert way(127, 255, 23) == torch.int8
    assert way(128, 255, 23) == torch.float32
    assert way(127, 256, 23) == torch.float32
    assert way(127, 257, 23) == torch.float64
    # 128 · 2²⁴ has 32 bits; so may the bias, or have the sums.
    assert way(127, 255, 24) == torch.float32
    assert way(127, 255, 0, (1 << 31) - 512 * 254 - 129) == torch.int8
    assert way(127, 255, 0, (1 << 31) - 512 * 254 - 128) == torch.float64
    assert way(127, 255, 0, 0, 40_000) == torch.float64


def test_products_of_bytes_that_saturate_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they do on processors before VNNI, where pairs of products are added in 16 bits; or where there are none."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True, raising=False)
    exact = torch._int_mm

    def saturating(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        pairs = (a.int()[:, :, None] * b.int()[None]).view(len(a), -1, 2, b.shape[1]).sum(2)
        return pairs.clamp(-(1 << 15), (1 << 15) - 1).sum(1).int()

    def halved(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return exact(a, b.div(2, rounding_mode="floor").to(torch.int8)) * 2

    def missing(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("not on this processor")

    try:
        for product in (saturating, halved, missing):
            monkeypatch.setattr(torch, "_int_mm", product)
            fixedpoint.byte_products.cache_clear()
            assert not fixedpoint.byte_products()
            assert kind(0, 255).dtype == torch.float32
    finally:
        monkeypatch.undo()
        fixedpoint.byte_products.cache_clear()


def test_the_bounds_are_where_they_should_be() -> None:
    """One less than 2⁵³ is accepted, and one less than 2²⁴ taken to single precision; the very numbers are not."""
    for limit, size, inputs, reach in ((EXACT, (1 << 28) - 32, 2, LIMIT), (LIMIT, 255, 250, 256)):
        weight = np.full((1, inputs, 1, 1), size)
        rest = limit - 1 - (1 << 9) - inputs * size * reach
        assert rest > 0
        for sign in (-1, 1):
            layer = make([sign * weight], np.array([sign * rest]), 10, False, reach)
            assert layer.dtype == (torch.float32 if limit == LIMIT else torch.float64)
            if limit == EXACT:
                with pytest.raises(ValueError, match="exact"):
                    make([sign * weight], np.array([sign * (rest + 1)]), 10, False, reach)
            else:
                assert make([sign * weight], np.array([sign * (rest + 1)]), 10, False, reach).dtype == torch.float64


def test_operands_that_reduced_precision_would_round_are_kept_from_it() -> None:
    weight = np.full((1, 2, 1, 1), 257)
    assert make([weight - 1], np.array([0]), 1, False, 256).dtype == torch.float32
    assert make([weight], np.array([0]), 1, False, 256).dtype == torch.float64
    assert make([weight - 1], np.array([0]), 1, False, 257).dtype == torch.float64


ONES = np.ones((2, 3, 1, 1), np.int64)


@pytest.mark.parametrize(
    ("weight", "bias", "shift", "reach", "words"),
    [
        (np.ones((2, 3, 2, 2), np.int64), [0, 0], [5, 5], 1, "shapes"),
        (ONES, [0, 0, 0], [5, 5], 1, "shapes"),
        (ONES, [0, 0], [5, 5, 5], 1, "shapes"),
        (ONES, [0, 0], [5, -13], 1, "shift"),
        (ONES, [0, 0], [31, 5], 1, "shift"),
        (np.full((2, 3, 1, 1), -(1 << 63)), [0, 0], [5, 5], 1, "32 bits"),
        (ONES, [0, -(1 << 63)], [5, 5], 1, "53 bits"),
        (np.full((2, 3, 3, 3), 1 << 30), [0, 0], [5, 5], LIMIT, "exact"),
    ],
)
def test_absurd_layers_are_refused(weight: np.ndarray, bias: list[int], shift: list[int], reach: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Layer([weight], [Kind(-reach, reach, 0, torch.float32)], np.array([bias]), np.array(shift), PLAIN)


@pytest.mark.parametrize("limits", [(0, 0), (0, LIMIT + 1), (-LIMIT - 1, 5), (1, 5), (0, -3)])
def test_absurd_limits_are_refused(limits: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="limit"):
        kind(*limits)


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.sampled_from([(-127, 127), (0, 255), (0, LIMIT)]))
def test_flat_maps_hold_what_was_put_in_and_zeros_around(channels: int, height: int, width: int, limits: tuple[int, int]) -> None:
    like = kind(*limits)
    x = torch.arange(1, channels * height * width + 1).reshape(channels, height, width) % (limits[1] - 1) + 1
    held = like.flat(like.held(x))
    assert held.dtype == like.dtype
    numbers = held.long() + like.offset
    assert torch.equal(fixedpoint.inside(numbers, height, width), x)
    assert int(numbers.count_nonzero()) == x.numel() and held.shape == (channels, (height + 2) * (width + 2) + 2)
