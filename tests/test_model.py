from __future__ import annotations

import hashlib
import json
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import check_other_processes, tiny_model_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

import codec
from codec import coder, container
from codec import model as models
from codec.errors import DimensionsError, FormatError, ImageError, ModelError, UnknownModelError
from codec.model import Model


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 3), st.integers(0, 1 << 20))
def test_any_size_comes_back_with_the_latents_that_were_rounded(width: int, height: int, quality: int, seed: int) -> None:
    model = models.from_bytes(tiny_model_bytes(), "tiny")
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    data = model.encode(image, quality)
    stream = container.read(data)
    symbols = model.quantise(model.analyse(image), quality)
    np.testing.assert_array_equal(model.decode_latents(stream), symbols)
    restored = model.decode(data)
    assert restored.shape == image.shape and restored.dtype == np.uint8
    np.testing.assert_array_equal(restored, model.synthesise(symbols, quality, height, width))


def test_rate_is_the_code_length(tiny_model: Model, photograph: np.ndarray) -> None:
    for quality in (1, 2, 3):
        size = len(tiny_model.encode(photograph, quality))
        symbols = tiny_model.quantise(tiny_model.analyse(photograph), quality)
        ideal = tiny_model.entropy.tables(quality).bits(symbols).sum() / 8
        assert ideal < size < 1.001 * ideal + 16 + 32


def test_a_finer_step_restores_better_and_costs_more(photograph: np.ndarray) -> None:
    """With transforms that invert each other (nearly), the gain trades rate for distortion."""
    model = models.from_bytes(tiny_model_bytes(), "tiny")
    y = model.analyse(photograph)
    errors, sizes = [], []
    for quality in (1, 2, 3):
        symbols = model.quantise(y, quality)
        step = model.steps[quality - 1] / 65536
        errors.append(float(np.abs(symbols * step[:, None, None] - y).max()))
        sizes.append(len(coder.encode(symbols, model.entropy.tables(quality))))
        assert errors[-1] <= step.max() / 2 + 1e-4
    assert errors == sorted(errors, reverse=True) and sizes == sorted(sizes)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -3e9, 2147483648.0])
def test_latents_that_no_integer_holds_are_refused(tiny_model: Model, value: float) -> None:
    y = np.zeros((tiny_model.latents, 3, 4), np.float32)
    y[-1, 1, 2] = value
    with pytest.raises(ModelError, match="out of range"):
        tiny_model.quantise(y, 1)
    y[-1, 1, 2] = 2147483000.0
    assert tiny_model.quantise(y, 1)[-1, 1, 2] == round(float(y[-1, 1, 2]))


def test_same_bytes_from_the_same_image(tiny_model: Model, photograph: np.ndarray) -> None:
    assert tiny_model.encode(photograph) == tiny_model.encode(photograph.copy(order="F"))


def test_another_process_with_other_threads_decodes_the_same_latents(tiny_model: Model, tiny_model_file: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    check_other_processes(tiny_model, tiny_model_file, image, tmp_path)


def test_settings_around_the_codec_change_nothing(tiny_model: Model, photograph: np.ndarray) -> None:
    """Mixed precision and another default type belong to whoever trains next door in the process."""
    image = photograph[:90, :130]
    data = tiny_model.encode(image, 3)
    shown = tiny_model.decode(data)
    try:
        torch.set_default_dtype(torch.float64)
        with torch.autocast("cpu", torch.bfloat16):
            assert tiny_model.encode(image, 3) == data
            np.testing.assert_array_equal(tiny_model.decode(data), shown)
            grey = tiny_model.decode(tiny_model.encode(image[..., 0], 3))
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(tiny_model.decode(tiny_model.encode(image[..., 0], 3)), grey)


def test_identity_is_the_hash_of_the_file(tiny_model_file: Path) -> None:
    model = codec.load(tiny_model_file)
    assert model.sha256 == hashlib.sha256(tiny_model_file.read_bytes()).hexdigest()
    assert codec.load(tiny_model_file) is model
    assert tiny_model_bytes() == tiny_model_file.read_bytes()  # the same tensors give the same file


def test_weights_are_used_as_stored(tiny_model: Model) -> None:
    stored = load(tiny_model_bytes())["synthesis.conv2.weight"]
    assert stored.dtype == torch.float16
    assert torch.equal(tiny_model.synthesis.conv2.weight, stored.float())


def test_a_stream_of_another_model_is_refused_by_name(tiny_model: Model) -> None:
    other = models.from_bytes(tiny_model_bytes(seed=1), "other")
    data = other.encode(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UnknownModelError, match=other.hash.hex()):
        tiny_model.decode(data)
    with pytest.raises(UnknownModelError, match=other.hash.hex()):
        codec.decompress(data)


def test_a_quality_that_is_not_there(tiny_model: Model) -> None:
    with pytest.raises(ModelError, match=r"no quality 4: it has 1…3"):
        tiny_model.encode(np.zeros((8, 8, 3), np.uint8), 4)
    stream = container.Stream(tiny_model.hash, 50, 8, 8, ((container.LATENTS, b""),))
    with pytest.raises(FormatError, match="claims quality 50"):
        tiny_model.decode(container.write(stream))


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8, 5), np.uint8), np.zeros(8, np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((0, 8, 3), np.uint8)],
)
def test_arrays_that_are_not_images(tiny_model: Model, image: np.ndarray) -> None:
    with pytest.raises((ImageError, DimensionsError)):
        tiny_model.encode(image)


def damaged(change: str) -> bytes:
    data = tiny_model_bytes()
    tensors = load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    if change == "missing tensor":
        del tensors["density.cdf"]
    elif change == "another shape":
        tensors["synthesis.conv1.weight"] = tensors["synthesis.conv1.weight"][:, :3].contiguous()
    elif change == "not finite":
        tensors["analysis.conv2.weight"][0, 0, 0, 0] = float("nan")
    elif change == "zero step":
        tensors["steps"][0, 0] = 0
    elif change == "falling distribution":
        tensors["density.cdf"][0, 0] = 1 << 29
    elif change == "float tables":
        tensors["density.cdf"] = tensors["density.cdf"].float()
    elif change == "no metadata":
        header = {}
    elif change == "another format":
        header = {"rdae": json.dumps({**json.loads(header["rdae"]), "format": "rdae-model-9"})}
    elif change == "absurd width":
        header = {"rdae": json.dumps({**json.loads(header["rdae"]), "filters": 10**9})}
    return save(tensors, header)


@pytest.mark.parametrize(
    "change",
    [
        "missing tensor",
        "another shape",
        "not finite",
        "zero step",
        "falling distribution",
        "float tables",
        "no metadata",
        "another format",
        "absurd width",
    ],
)
def test_damaged_model_files(change: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(damaged(change))
    with pytest.raises(ModelError, match="bad"):
        codec.load(path)


def test_files_that_are_not_models(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    for data in (b"", b"\x80\x04K\x01.", tiny_model_bytes()[:1000], bytes(100)):
        path.write_bytes(data)
        models._load_file.cache_clear()
        with pytest.raises(ModelError, match="not an rdae model"):
            codec.load(path)
    with pytest.raises(UnknownModelError, match="no model is called 'nosuch'"):
        codec.load("nosuch")
    with pytest.raises(ModelError, match="cannot read"):
        codec.load(tmp_path / "missing.safetensors")
    with pytest.raises(ModelError, match="cannot read"):
        codec.load(tmp_path)


def test_a_small_file_cannot_declare_a_huge_model() -> None:
    data = tiny_model_bytes()
    tensors = load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["rdae"]
    for claim in ({"filters": 4096}, {"latents": 4096}, {"filters": 1e400}, {"filters": [8]}, {"default_quality": "best"}):
        began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ModelError, match="not a usable model"):
            models.from_bytes(save(tensors, {"rdae": json.dumps({**json.loads(header), **claim})}), "huge")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began < 100_000  # kB
