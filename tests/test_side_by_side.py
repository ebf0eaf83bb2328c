from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_model_bytes
from PIL import Image

import codec
from tools import side_by_side
from tools.baselines import jpeg, jpeg2000, rdae
from tools.side_by_side import RATIOS, Version, compare, nearest, not_below, picture, size


@pytest.fixture(scope="module")
def image(photograph: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(photograph[:176, :240])


def byte_count(version: Version) -> int:
    return int(re.search(r"([\d,]+) bytes", version.lines[0])[1].replace(",", ""))  # type: ignore[index]


def test_the_rivals_get_no_fewer_bytes(image: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "ladder.safetensors"
    path.write_bytes(tiny_model_bytes(steps=tuple(np.geomspace(0.5, 0.002, 20))))
    ours = rdae([str(path)])
    sizes = [size(ours[0], image, quality) for quality in range(1, 21)]
    reachable = [length for length in sizes if length > 1500]  # JPEG cannot go much lower
    for bpp in (8 * length / (176 * 240) for length in (reachable[0], reachable[2])):
        original, progressive, wavelet, rdae_version = compare(image, bpp, ours)
        assert byte_count(rdae_version) == pytest.approx(bpp * 176 * 240 / 8)
        assert original.image is image
        for rival in (progressive, wavelet):
            assert byte_count(rdae_version) <= byte_count(rival) < 1.25 * byte_count(rdae_version)


def test_the_nearest_of_several_models_is_taken(image: np.ndarray, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in ("coarse", "fine")]
    for path, step in zip(paths, (1.0, 0.1), strict=True):
        path.write_bytes(tiny_model_bytes(steps=(step,)))
    ours = rdae([str(path) for path in paths])
    for path in paths:
        target = len(codec.load(path).encode(image)) * 1.02
        assert str(nearest(ours, image, target)[1]).startswith(path.stem)


def test_the_smallest_file_that_is_not_below(image: np.ndarray) -> None:
    progressive, wavelet = jpeg()[0], jpeg2000()[0]
    quality = not_below(progressive, image, range(101), 3000)
    assert size(progressive, image, quality) >= 3000 > size(progressive, image, int(quality) - 1)
    assert 2000 <= size(wavelet, image, not_below(wavelet, image, RATIOS, 2000)) < 2100
    assert not_below(progressive, image, range(101), 10**9) == 100


@pytest.mark.parametrize(("height", "width"), [(176, 240), (1, 1), (40, 900), (900, 40)])
def test_any_shape_fits_on_the_sheet(height: int, width: int) -> None:
    flat = np.full((height, width, 3), (10, 200, 30), np.uint8)
    sheet = picture([Version("a", flat, ("one", "two " * 40)), Version("b", flat // 2, ())], (10**6, -5))
    assert sheet.dtype == np.uint8
    assert (sheet == (10, 200, 30)).all(axis=2).any()
    assert (sheet[:, sheet.shape[1] // 2 :] == (5, 100, 15)).all(axis=2).any()
    assert (sheet[-8:] == 255).all()  # a margin below the captions


def test_command(image: np.ndarray, tiny_model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(image).save(tmp_path / "in.png")
    out = tmp_path / "out.png"
    arguments = [str(tmp_path / "in.png"), "--bpp", "0.5", "--models", str(tiny_model_file), "--out", str(out)]
    assert side_by_side.main(arguments) == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("JPEG 4:2:0", "JPEG 2000", "rdae tiny", "luma", "chroma", "MS-SSIM", "bpp"))
    with Image.open(out) as sheet:
        assert sheet.width > 4 * 240


def test_bad_input_is_one_line(
    tmp_path: Path, tiny_model_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "in.png")
    good = str(tmp_path / "in.png")
    monkeypatch.setattr(codec, "models", list)
    model = ["--models", str(tiny_model_file)]
    for arguments, reason in (
        ([good], "no model ships yet"),
        ([good, "--bpp", "0", *model], "--bpp must lie in 0…24"),
        ([str(tmp_path / "gone.png"), *model], "gone.png"),
        ([good, "--models", "no-such"], "no-such"),
        ([good, *model, "--out", str(tmp_path / "x.nothing")], "image format"),
    ):
        assert side_by_side.main(arguments) == 2
        error = capsys.readouterr().err
        assert reason in error
        assert error.count("\n") == 1
