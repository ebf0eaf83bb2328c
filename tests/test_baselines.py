from __future__ import annotations

import io
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_model_bytes
from PIL import Image, features

import codec
from codec.errors import ModelError, UnknownModelError
from tools import baselines
from tools.baselines import RIVALS, Codec, UnavailableError, rdae, with_ladder
from tools.metrics import psnr

CODECS = [pytest.param(codec_, id=codec_.key) for family in RIVALS.values() for codec_ in family()]


@pytest.fixture(scope="module")
def crop(photograph: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(photograph[:72, 8:97])


@pytest.mark.parametrize("codec_", CODECS)
def test_more_bits_restore_better(codec_: Codec, crop: np.ndarray) -> None:
    ends = codec_.ladder[2], codec_.ladder[-1]
    files = [codec_.encode(crop, value) for value in ends]
    decoded = [codec_.decode(data, value) for data, value in zip(files, ends, strict=True)]
    assert all(image.shape == crop.shape and image.dtype == np.uint8 for image in decoded)
    assert len(files[1]) > len(files[0])
    assert psnr(crop, decoded[1])[0] > psnr(crop, decoded[0])[0] > 14


@pytest.mark.parametrize("codec_", CODECS)
def test_a_codec_can_be_sent_to_another_process(codec_: Codec, crop: np.ndarray) -> None:
    sent = pickle.loads(pickle.dumps(codec_))
    assert sent.encode(crop, codec_.ladder[-1]) == codec_.encode(crop, codec_.ladder[-1])


@pytest.mark.parametrize("codec_", CODECS)
def test_ladders_rise_and_name_their_library(codec_: Codec) -> None:
    # Ratio and distance fall as rate rises.
    steps = np.sign(np.diff(np.array(codec_.ladder, dtype=float)))
    assert len(codec_.ladder) >= 8
    assert set(steps) == ({1.0} if codec_.parameter == "quality" else {-1.0})
    assert any(digit.isdigit() for digit in codec_.library)


def test_jpeg_is_progressive_and_optimised(crop: np.ndarray) -> None:
    for codec_, sampling in zip(RIVALS["jpeg"](), (b"\x22\x11\x11", b"\x11\x11\x11"), strict=True):
        data = codec_.encode(crop, 50)
        start = data.index(b"\xff\xc2")  # start of a progressive frame
        assert data[start + 11 : start + 20 : 3] == sampling
        buffer = io.BytesIO()
        Image.fromarray(crop).save(buffer, "JPEG", quality=50, subsampling=codec_.name.split()[1])
        assert len(data) < len(buffer.getvalue())


def test_jpeg2000_is_irreversible_with_its_colour_transform(crop: np.ndarray) -> None:
    data = RIVALS["jpeg2000"]()[0].encode(crop, 24)
    start = data.index(b"\xff\x52")  # coding style: COD
    length, _, _, _, transform = struct.unpack(">HBBHB", data[start + 2 : start + 9])
    wavelet = data[start + 2 + 11]
    assert length == 12
    assert transform == 1  # multiple component transform
    assert wavelet == 0  # 9/7 irreversible
    assert 8 * len(data) / (crop.shape[0] * crop.shape[1]) < 1.05
    assert data[:4] == b"\xff\x4f\xff\x51"  # a bare codestream


def test_jpeg2000_beats_pillows_default_by_far(photograph: np.ndarray) -> None:
    codec_ = RIVALS["jpeg2000"]()[0]
    image = np.ascontiguousarray(photograph[:256, :256])
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG2000", quality_mode="rates", quality_layers=[48])
    default = psnr(image, np.asarray(Image.open(buffer).convert("RGB")))[0]
    assert psnr(image, codec_.decode(codec_.encode(image, 48), 48))[0] > default + 1


def test_avif_keeps_chroma_at_full_resolution() -> None:
    # Columns of red and blue in turn: halved chroma cannot hold them.
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, ::2, 0] = image[:, 1::2, 2] = 255
    for codec_ in RIVALS["avif"]():
        assert psnr(image, codec_.decode(codec_.encode(image, 90), 90))[0] > 25


def test_a_codec_that_is_not_built_in_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda feature: feature != "avif")
    with pytest.raises(UnavailableError, match="pip install --upgrade pillow"):
        RIVALS["avif"]()
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(UnavailableError, match="pip install imagecodecs"):
        RIVALS["jxl"]()


@pytest.mark.parametrize(("family", "value"), [("jpeg", 101), ("jpeg", 10.5), ("webp", -1), ("jxl", 0), ("jxl", 26), ("jpeg2000", 0.5)])
def test_impossible_settings(family: str, value: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        with_ladder(RIVALS[family]()[0], [value])


def fixed(folder: Path, *seeds: int) -> list[str]:
    paths = [folder / f"model-{seed}.safetensors" for seed in seeds]
    for path, seed in zip(paths, seeds, strict=True):
        path.write_bytes(tiny_model_bytes(steps=(0.25,), seed=seed))
    return [str(path) for path in paths]


def test_fixed_models_form_one_curve_and_a_variable_one_its_own(tmp_path: Path, tiny_model_file: Path, crop: np.ndarray) -> None:
    models = [*fixed(tmp_path, 1, 2), str(tiny_model_file)]
    first, second = rdae(models, [1, 3])
    assert (first.key, second.key) == ("rdae-fixed", "rdae-tiny")
    assert [str(value).split("@")[0] for value in first.ladder] == ["model-1", "model-2"]
    assert second.ladder == (1, 3)
    for codec_ in (first, second):
        for value in codec_.ladder:
            data = codec_.encode(crop, value)
            assert data[:4] == b"\xd2RDA"
            assert codec_.decode(data, value).shape == crop.shape
    model = codec.load(tiny_model_file)
    assert second.encode(crop, 3) == model.encode(crop, 3)
    assert second.settings.startswith(f"variable-rate model tiny@{model.sha256[:8]}")


def test_models_that_cannot_be_used(tmp_path: Path, tiny_model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"qualities 1…3"):
        rdae([str(tiny_model_file)], [4])
    with pytest.raises(UnknownModelError, match="no-such-model"):
        rdae(["no-such-model"])
    monkeypatch.setattr(baselines.codec, "models", list)
    with pytest.raises(UnavailableError, match="--models"):
        rdae()
