"""The page's data against files made again, and what bad input does. How it behaves in a browser: `test_report_browser.py`."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SAMPLES, tiny_model_bytes
from PIL import Image

import codec
from codec import image as image_files
from tools import bdrate, metrics, report, report_data
from tools.baselines import RIVALS, Codec, Setting
from tools.rd_curve import UsageError
from tools.results import stored_curves

KODAK = report.KODAK.parent
EVIL = """<img src=x onerror=alert(1)>&"'<!--<script>.png"""


def data_of(page: Path) -> Any:
    """What the page carries, read as a browser does: up to the first end tag."""
    text = page.read_text(encoding="utf-8")
    return json.loads(text.split('<script type="application/json" id="data">')[1].split("</script")[0])


def pixels_of(url: str) -> np.ndarray:
    kind, encoded = url.split(",")
    assert kind == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))) as image:
        assert image.format == "WEBP" and image.mode == "RGB"
        return np.asarray(image)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, photograph: np.ndarray) -> Iterator[Path]:
    """A photograph with a name that is hard to quote, and one too small for MS-SSIM."""
    folder = tmp_path_factory.mktemp("images")
    Image.fromarray(photograph[:176, :240]).save(folder / EVIL)
    Image.fromarray(photograph[200:248, 300:364]).save(folder / "small.png")
    yield folder


@pytest.fixture(scope="module")
def page(images: Path, tiny_model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    assert report.main([str(images), "-o", str(out), "--model", str(tiny_model_file), "--quality", "3", "1", "3"]) == 0
    return out


def rival(key: str) -> Codec:
    return next(found for make in RIVALS.values() for found in make() if found.key == key)


def test_every_number_and_pixel_is_that_of_a_file(page: Path, images: Path, tiny_model_file: Path) -> None:
    data = data_of(page)
    assert [image["name"] for image in data["images"]] == [EVIL, "small.png"]
    model = codec.load(tiny_model_file)
    for shown in data["images"]:
        image = image_files.read(images / shown["name"])
        height, width = image.shape[:2]
        assert (shown["width"], shown["height"], shown["window"]) == (width, height, [0, 0, width, height])
        np.testing.assert_array_equal(pixels_of(data["pictures"][shown["original"]]), image)
        assert [size["setting"] for size in shown["sizes"]] == ["quality 1", "quality 3"]
        for quality, size in zip((1, 3), shown["sizes"], strict=True):
            keys = [version["key"] for version in size["versions"]]
            assert keys == ["jpeg-420", "jpeg2000", "webp", "jxl", "avif-psnr", "rdae"]
            for version in size["versions"]:
                if version["key"] == "rdae":
                    assert version["setting"] == f"quality {quality}"
                    file = model.encode(image, quality)
                    decoded = model.decode(file)
                    assert len(file) == size["bytes"]
                else:
                    codec_, value = rival(version["key"]), float(version["setting"].split()[1])
                    setting = int(value) if codec_.parameter == "quality" else value
                    file = codec_.encode(image, setting)
                    decoded = codec_.decode(file, setting)
                    settings = list(report_data.rising(codec_))
                    at = settings.index(setting)
                    # The smallest that is not below, or the largest there is.
                    assert len(file) >= size["bytes"] or at == len(settings) - 1
                    assert at == 0 or len(codec_.encode(image, settings[at - 1])) < size["bytes"]
                picture = pixels_of(data["pictures"][version["picture"]])
                np.testing.assert_array_equal(picture, decoded)
                assert version["bytes"] == len(file)
                assert version["bpp"] == pytest.approx(8 * len(file) / (width * height), abs=1e-6)
                mse = np.mean(np.square(picture.astype(float) - image))
                assert version["psnr"] == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-5)
                assert version["ms_ssim"] == (None if height == 48 else pytest.approx(metrics.ms_ssim(image, picture), abs=1e-5))


def test_the_curves_and_bd_rates_are_those_of_the_results(page: Path) -> None:
    shown = data_of(page)["rd"]
    curves = {curve.name: curve for curve in stored_curves(KODAK)}
    drawn = {curve["name"]: curve for curve in shown["curves"] if not curve["published"]}
    assert list(drawn) == list(curves)
    assert "ELIC 2022" in {curve["name"] for curve in shown["curves"] if curve["published"]}
    for name, curve in curves.items():
        for metric in ("bpp", "psnr", "ms_ssim", "ms_ssim_db"):
            assert [point[metric] for point in drawn[name]["points"]] == curve.means[metric]
    assert drawn["JPEG 4:2:0"]["points"][0]["setting"] == f"quality {curves['JPEG 4:2:0'].labels[0]}"
    assert len(shown["images"]) == 24
    table = [["BD-rate", *(f"against {name}" for name in shown["bd"]["psnr"]["anchors"])]]
    table += [[row["name"], *row["cells"]] for row in shown["bd"]["psnr"]["rows"]]
    in_readme = [line.strip("| ").split(" | ") for line in bdrate.readme_table(KODAK).splitlines()]
    assert table == [in_readme[0], *in_readme[2:]]


def test_nothing_is_fetched_and_no_name_becomes_markup(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"\w+://[^\"'\s]*", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert re.findall(r"(?:src|href)=\"([^\"]*)", text) == ["data:,"]
    assert "default-src 'none'; img-src data:" in text
    assert text.count("<script") == text.count("</script") == 2
    assert "<img" not in text and "<!--" not in text


def test_the_same_images_make_the_same_page(images: Path, tiny_model_file: Path, tmp_path: Path) -> None:
    pages = []
    for name in ("one.html", "two.html"):
        arguments = [images / "small.png", images / "small.png", "-o", tmp_path / name, "--model", tiny_model_file, "--codecs", "webp"]
        assert report.main([str(argument) for argument in arguments]) == 0
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]
    assert len(data_of(tmp_path / "one.html")["images"]) == 1  # the same picture twice is shown once
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.html", "two.html"]


def test_of_a_large_image_the_middle_is_shown_and_the_whole_is_measured(
    photograph: np.ndarray, tiny_model_file: Path, tmp_path: Path
) -> None:
    Image.fromarray(photograph[:101, :200]).save(tmp_path / "a.png")
    options = ["--max-side", "64", "--codecs", "jpeg-444", "--model", tiny_model_file, "--quality", "2", "-o", tmp_path / "a.html"]
    assert report.main([str(argument) for argument in (tmp_path / "a.png", *options)]) == 0
    data = data_of(tmp_path / "a.html")
    (shown,) = data["images"]
    assert shown["window"] == [68, 18, 64, 64]
    np.testing.assert_array_equal(pixels_of(data["pictures"][shown["original"]]), photograph[18:82, 68:132])
    model = codec.load(tiny_model_file)
    file = model.encode(photograph[:101, :200], 2)
    assert shown["sizes"][0]["bytes"] == len(file)
    assert shown["sizes"][0]["bpp"] == pytest.approx(8 * len(file) / (101 * 200), abs=1e-6)
    decoded = model.decode(file)[18:82, 68:132]
    np.testing.assert_array_equal(pixels_of(data["pictures"][shown["sizes"][0]["versions"][-1]["picture"]]), decoded)


def test_qualities_are_spread_and_a_fixed_model_has_one(tmp_path: Path, tiny_model_file: Path) -> None:
    (tmp_path / "hundred.safetensors").write_bytes(tiny_model_bytes(steps=tuple(np.geomspace(1, 0.01, 100))))
    (tmp_path / "one.safetensors").write_bytes(tiny_model_bytes(steps=(0.5,)))
    chosen = report.chosen_models([str(tmp_path / "hundred.safetensors")], [])
    assert [setting for _, setting in chosen] == [10, 35, 60, 85]
    assert [setting for _, setting in report.chosen_models([str(tiny_model_file)], [])] == [1, 2, 3]
    both = report.chosen_models([str(tmp_path / name) for name in ("one.safetensors", "hundred.safetensors")], [7])
    assert [str(setting).split("@")[0] for _, setting in both] == ["one", "7"]
    with pytest.raises(UsageError, match="one quality only"):
        report.chosen_models([str(tmp_path / "one.safetensors")], [7])


def _fails(_: np.ndarray, __: Setting) -> bytes:
    raise RuntimeError("out of luck\nsecond line")


def test_a_rival_that_fails_is_left_out_and_named(
    images: Path, tiny_model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Codec("broken", "Broken", "", "", "quality", (1,), _fails, lambda *_: np.zeros((1, 1, 3), np.uint8))
    monkeypatch.setitem(RIVALS, "broken", lambda: [broken])
    out = tmp_path / "a.html"
    arguments = [images / "small.png", "-o", out, "--model", tiny_model_file, "--codecs", "broken", "webp"]
    assert report.main([str(argument) for argument in arguments]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "small.png: Broken failed: out of luck"
    (shown,) = data_of(out)["images"]
    assert shown["failures"] == ["Broken failed: out of luck"]
    assert [version["key"] for version in shown["sizes"][0]["versions"]] == ["webp", "rdae"]


def test_an_interrupted_run_keeps_the_old_page(
    images: Path, tiny_model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.html"
    out.write_text("old")

    def interrupted(_: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "page", interrupted)
    arguments = [images / "small.png", "-o", out, "--model", tiny_model_file, "--codecs", "webp"]
    assert report.main([str(argument) for argument in arguments]) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]
    assert out.read_text() == "old"


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert report.main([str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("report: ")
    return line


def test_bad_input_is_one_line_and_writes_nothing(tmp_path: Path, tiny_model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, out = SAMPLES / "chelsea.png", tmp_path / "out.html"
    (tmp_path / "broken.png").write_bytes(b"not an image")
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "image.png")
    for arguments, reason in (
        ((tmp_path / "gone.png",), "gone.png: no such file"),
        ((tmp_path / "broken.png",), "broken.png: not an image"),
        ((good, tmp_path / "broken.png"), "broken.png: not an image"),
        ((tmp_path / "empty",), "empty: no images in this folder"),
        ((good, "--model", "no-such"), "no-such"),
        ((good, "--model", "lambda-0.013", "--quality", 3), "one quality only"),
        ((good, "--model", tiny_model_file, "--quality", 9), "qualities 1…3"),
        ((good, "--codecs", "webp", "gif"), "no codec here is called 'gif'"),
        ((good, "--max-side", 0), "--max-side must lie in 1…16383"),
        ((good, "--results", tmp_path / "gone.json"), "gone.json: no such file"),
        ((good, "--results", tmp_path / "broken.png"), "broken.png: not a results file"),
        ((good, "--results", tmp_path), "not a results file"),
        ((good, "--reference", tmp_path / "broken.png"), "not a reference curve"),
    ):
        assert reason in refused(capsys, *arguments, "-o", out)
    assert "missing/x.html" in refused(capsys, good, "-o", tmp_path / "missing" / "x.html")
    assert "empty: is a folder" in refused(capsys, good, "-o", tmp_path / "empty")
    assert "would be overwritten" in refused(capsys, tmp_path / "image.png", "-o", tmp_path / "image.png")
    assert image_files.read(tmp_path / "image.png").shape == (20, 20, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.png", "empty", "image.png"]


def _set(*path: Any) -> Callable[[Any], None]:
    *way, last, value = path

    def change(data: Any) -> None:
        for key in way:
            data = data[key] if key is not None else next(iter(data.values()))
        data[last if last is not None else next(iter(data))] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("format", "other"),
        _set("codecs", []),
        _set("codecs", {}),
        _set("images", {}),
        _set("images", []),
        _set("codecs", "jpeg-420", None),
        _set("codecs", "jpeg-420", "points", 3),
        _set("codecs", "jpeg-420", "points", None, None, 7),
        _set("codecs", "jpeg-420", "points", None, None, {}),
        _set("codecs", "jpeg-420", "points", None, None, "bpp", float("nan")),
        _set("codecs", "jpeg-420", "points", None, None, "bpp", -100),
        _set("codecs", "jpeg-420", "points", None, None, "psnr", "high"),
        _set("codecs", "jpeg-420", "points", None, None, "ms_ssim", float("nan")),
    ],
)
def test_damaged_results_are_refused(change: Callable[[Any], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(report.KODAK.read_text(encoding="utf-8"))
    change(data)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    line = refused(capsys, SAMPLES / "chelsea.png", "--results", path, "-o", tmp_path / "out.html")
    assert str(path) in line
    assert not (tmp_path / "out.html").exists()
