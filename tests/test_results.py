from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from compressai.utils.plot.__main__ import main as plot_with_compressai

from tools.baselines import Codec
from tools.results import Curve, ResultsError, Row, Store, curves, image_hash, read_reference, stored_curves, summary

CODEC = Codec("one", "One", "best", "lib 1", "quality", (10, 20), lambda _, __: b"", lambda _, __: np.zeros((1, 1, 3), np.uint8))
OTHER = dataclasses.replace(CODEC, key="other", name="Other")
ONE = {"one": ["10", "20"]}
BOTH = {"one": ["10", "20"], "other": ["10", "20"]}


def row(bpp: float, psnr: float | None, ms_ssim: float | None = 0.9) -> Row:
    return {"bytes": 1, "bpp": bpp, "psnr": psnr, "psnr_luma": psnr, "psnr_chroma": psnr} | {
        "ms_ssim": ms_ssim,
        "ms_ssim_db": None,
        "encode_s": 0.5,
        "decode_s": 0.25,
    }


def filled(path: Path) -> Store:
    store = Store(path)
    for codec in (CODEC, OTHER):
        store.enter(codec)
        for image, shift in (("x", 0.0), ("y", 2.0)):
            store.images[image] = {"name": f"{image}.png", "width": 4, "height": 4}
            for setting in codec.ladder:
                store.add(codec.key, str(setting), image, row(setting / 10, 28 + shift + setting / 10))
    return store


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    store = filled(tmp_path / "results.json")
    store.save()
    again = Store(tmp_path / "results.json")
    assert (again.images, again.codecs) == (store.images, store.codecs)
    assert not again.enter(CODEC)
    assert again.has("one", "10", "x")
    assert not again.has("one", "10", "z")
    assert len((tmp_path / "results.json").read_text().splitlines()) < 60  # a measurement is one line


def test_other_settings_or_libraries_are_measured_anew(tmp_path: Path) -> None:
    for change in ({"settings": "worse"}, {"library": "lib 2"}):
        store = filled(tmp_path / "none.json")
        assert store.enter(dataclasses.replace(CODEC, **change))
        assert not store.has("one", "10", "x")
        assert store.has("other", "10", "x")


def test_codecs_and_settings_keep_the_order_of_the_last_run(tmp_path: Path) -> None:
    store = filled(tmp_path / "none.json")
    store.enter(dataclasses.replace(CODEC, ladder=(5, 20, 15)))
    assert list(store.codecs) == ["other", "one"]
    assert list(store.codecs["one"]["points"]) == ["5", "20", "15", "10"]


def test_averages() -> None:
    store = filled(Path("none.json"))
    found, used, remarks = curves(store, BOTH, ["x", "y"])
    assert (used, remarks) == (["x", "y"], [])
    assert found[0].means["bpp"] == [1, 2]
    assert found[0].means["psnr"] == [30, 31]
    assert found[0].means["ms_ssim_db"] == pytest.approx([10, 10])
    assert list(found[0].points("psnr", "y")[1]) == [31, 32]


def test_curves_are_read_back_from_a_folder(tmp_path: Path) -> None:
    store = filled(tmp_path / "results.json")
    store.save()
    assert stored_curves(tmp_path) == curves(store, BOTH, ["x", "y"])[0]
    with pytest.raises(ResultsError, match="holds no measurements"):
        stored_curves(tmp_path / "nowhere")


def test_all_codecs_are_averaged_over_the_same_images() -> None:
    store = filled(Path("none.json"))
    del store.codecs["other"]["points"]["20"]["y"]
    found, used, remarks = curves(store, BOTH, ["x", "y"])
    assert used == ["x"]
    assert found[0].means["psnr"] == [29, 30]
    assert remarks == ["y.png: left out of all averages, some codec failed on it"]


def test_a_setting_or_codec_that_never_works_is_left_out() -> None:
    store = filled(Path("none.json"))
    del store.codecs["one"]["points"]["10"]
    assert curves(store, ONE, ["x", "y"])[0][0].labels == ("20",)
    store.codecs["one"]["points"] = {}
    found, _, remarks = curves(store, BOTH, ["x", "y"])
    assert [curve.key for curve in found] == ["other"]
    assert remarks[0].startswith("One: left out")


def test_infinite_psnr_is_no_point_and_small_images_have_no_part_in_ms_ssim() -> None:
    store = filled(Path("none.json"))
    store.add("one", "20", "x", row(2, None, None))
    found = curves(store, ONE, ["x", "y"])[0][0]
    assert found.means["psnr"] == [30, None]
    assert found.means["ms_ssim"] == pytest.approx([0.9, 0.9])
    assert list(found.points("psnr")[1]) == [30]


def test_pruning_forgets_the_rest() -> None:
    store = filled(Path("none.json"))
    store.prune([dataclasses.replace(CODEC, ladder=(20,))], ["y"])
    assert list(store.codecs) == ["one"]
    assert {setting: list(rows) for setting, rows in store.codecs["one"]["points"].items()} == {"20": ["y"]}
    assert list(store.images) == ["y"]


def test_the_hash_is_that_of_pixels_and_shape() -> None:
    a = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert image_hash(a) == image_hash(a.copy())
    assert len({image_hash(a), image_hash(a.reshape(4, 2, 3)), image_hash(a + np.uint8(1))}) == 3


def test_compressais_tool_plots_a_summary(tmp_path: Path) -> None:
    curve = curves(filled(Path("none.json")), ONE, ["x", "y"])[0][0]
    file = tmp_path / "one.json"
    file.write_text(summary(curve, 2), encoding="utf-8")
    assert json.loads(file.read_text(encoding="utf-8"))["results"]["psnr-rgb"] == [30, 31]
    for metric in ("psnr", "ms-ssim"):
        plot_with_compressai(["-f", str(file), "-m", metric, "-o", str(tmp_path / f"{metric}.png")])
        assert (tmp_path / f"{metric}.png").stat().st_size > 5000
    assert read_reference(file).means["psnr"] == [30, 31]


@pytest.mark.parametrize("text", ["", "[]", '{"format": "other"}', '{"format": "rdae-rd-1"}', "\xff"])
def test_files_that_are_not_results_are_not_overwritten(text: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ResultsError, match=r"results\.json: not a results file"):
        Store(path)


@pytest.mark.parametrize(
    "results", [{}, {"bpp": [1]}, {"bpp": [1, 2], "psnr": [30]}, {"bpp": ["a"], "psnr": [30]}, {"bpp": None, "psnr": [1]}]
)
def test_bad_references(results: object, tmp_path: Path) -> None:
    path = tmp_path / "reference.json"
    path.write_text(json.dumps({"name": "n", "results": results}))
    with pytest.raises(ResultsError, match=r"reference\.json: not a reference curve"):
        read_reference(path)


def test_published_curves_name_their_source() -> None:
    files = sorted((Path(__file__).parent.parent / "data" / "references").glob("*.json"))
    assert len(files) >= 5
    for file in files:
        assert json.loads(file.read_text(encoding="utf-8"))["source"].startswith("https://")
        curve = read_reference(file)
        assert isinstance(curve, Curve)
        rate, quality = curve.points("psnr")
        assert (np.diff(rate) > 0).all()
        assert (np.diff(quality) > 0).all()
