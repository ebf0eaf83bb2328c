from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from conftest import SAMPLES, tiny_model_bytes
from PIL import Image

import codec
from codec import container
from codec.errors import ImageError, RdaeWarning, TruncatedError, UnknownModelError


@pytest.fixture
def image(photograph: np.ndarray) -> np.ndarray:
    return photograph[60:100, 200:250]


def test_whatever_holds_an_image_gives_the_same_stream(image: np.ndarray, tiny_model_file: Path, tmp_path: Path) -> None:
    Image.fromarray(image).save(tmp_path / "x.png")
    data = codec.compress(image, model=tiny_model_file)
    with (tmp_path / "x.png").open("rb") as file:
        for source in (Image.fromarray(image), tmp_path / "x.png", str(tmp_path / "x.png"), file):
            assert codec.compress(source, model=tiny_model_file) == data


def test_whatever_holds_a_stream_gives_the_same_image(image: np.ndarray, tiny_model_file: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    data = codec.compress(image, tmp_path / "x.rdae", model=tiny_model_file, quality=3)
    assert (
        codec.compress(image, buffer, model=tiny_model_file, quality=3) == data == buffer.getvalue() == (tmp_path / "x.rdae").read_bytes()
    )
    restored = codec.decompress(data, model=tiny_model_file)
    buffer.seek(0)
    for source in (buffer, tmp_path / "x.rdae", str(tmp_path / "x.rdae"), bytearray(data), memoryview(data)):
        np.testing.assert_array_equal(codec.decompress(source, model=tiny_model_file), restored)
    np.testing.assert_array_equal(np.asarray(codec.decompress_image(data, model=tiny_model_file)), restored)
    out = io.BytesIO()
    codec.decompress(data, out, model=tiny_model_file)
    codec.decompress(data, tmp_path / "y.bmp", model=tiny_model_file)
    for written in (out, tmp_path / "y.bmp"):
        np.testing.assert_array_equal(np.asarray(Image.open(written)), restored)
    assert out.getvalue().startswith(b"\x89PNG")


def test_the_model_is_found_once_it_was_loaded(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    path.write_bytes(tiny_model_bytes(seed=77))
    with pytest.raises(UnknownModelError, match="not shipped"):
        from codec.model import from_bytes

        codec.decompress(from_bytes(path.read_bytes(), "own").encode(np.zeros((9, 9, 3), np.uint8)))
    data = codec.compress(np.zeros((9, 9, 3), np.uint8), model=path)
    assert codec.decompress(data).shape == (9, 9, 3)


def test_modes_of_arrays(image: np.ndarray, tiny_model_file: Path) -> None:
    rgba = np.dstack([image, image[..., 0]])
    for array, mode in ((image[..., 0], "L"), (rgba[..., 2:], "LA"), (image, "RGB"), (rgba, "RGBA")):
        data = codec.compress(array, model=tiny_model_file)
        assert codec.decompress(data, model=tiny_model_file).shape == array.shape
        assert codec.decompress_image(data, model=tiny_model_file).mode == mode


def test_a_grey_picture_is_not_three_times_the_work(photograph: np.ndarray) -> None:
    grey = np.asarray(Image.fromarray(photograph).convert("L"))
    data = codec.compress(grey)
    assert len(data) <= len(codec.compress(photograph))
    restored = codec.decompress(data)
    assert restored.ndim == 2
    assert np.mean((restored.astype(float) - grey) ** 2) < 100
    assert len(data) == len(codec.compress(np.repeat(grey[..., None], 3, axis=2)))


def test_targets_frames_and_regions(image: np.ndarray, tiny_model_file: Path) -> None:
    small = codec.compress(image, model=tiny_model_file, quality=1)
    assert codec.compress(image, model=tiny_model_file, size=len(small)) == small
    with pytest.warns(RdaeWarning, match="out of reach"):
        codec.compress(image, model=tiny_model_file, psnr=90)
    part = codec.decompress(small, model=tiny_model_file, region=(5, 6, 20, 10))
    np.testing.assert_allclose(part.astype(int), codec.decompress(small, model=tiny_model_file)[6:16, 5:25], atol=1)
    frames = io.BytesIO()
    Image.new("RGB", (8, 8)).save(frames, "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 8))])
    assert container.read(codec.compress(frames, model=tiny_model_file, frame=1)).width == 9
    with pytest.raises(ImageError, match="eight bits"):
        codec.compress(np.zeros((3, 3), np.uint16), model=tiny_model_file, strict=True)


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"missing\.png: No such file"):
        codec.compress(tmp_path / "missing.png")
    with pytest.raises(ImageError, match=r"missing\.rdae: No such file"):
        codec.decompress(tmp_path / "missing.rdae")
    with pytest.raises(TruncatedError):
        codec.decompress(b"")
    with pytest.raises(ImageError, match="already"):
        codec.compress(io.BytesIO(codec.compress(SAMPLES / "chelsea.png")))
