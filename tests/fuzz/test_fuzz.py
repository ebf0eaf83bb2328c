from __future__ import annotations

import numpy as np
import pytest
from fuzz import PERMITTED, Fuzzer
from hypothesis import given, settings
from hypothesis import strategies as st

from codec import container
from codec.errors import FormatError


def test_a_few_thousand_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "MAX_PIXELS", PERMITTED)
    fuzzer = Fuzzer(seed=0)
    fuzzer.run(3000)
    # It got through to everything that it is meant to try.
    reached = {"decoded", "FormatError", "TruncatedError", "ChecksumError", "DimensionsError", "UnsupportedError", "UnknownModelError"}
    assert reached <= set(fuzzer.outcomes)
    assert {"Pillow: loaded", "Pillow: OSError", "model: ModelError"} <= set(fuzzer.outcomes)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=20))
def test_noise(noise: bytes, start: bytes) -> None:
    for data in (noise, container.MAGIC + b"\1\1" + start + noise):
        with pytest.raises(FormatError):
            container.read(data)


def test_every_flipped_bit_of_every_kind_is_reported() -> None:
    fuzzer = Fuzzer(seed=1)
    rng = np.random.default_rng(0)
    for data in fuzzer.seeds:
        for bit in rng.permutation(8 * len(data))[:200]:
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(FormatError):
                fuzzer.models[0].decode(bytes(damaged))
