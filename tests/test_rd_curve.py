from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

import codec
from tools import rd_curve
from tools.baselines import Codec, Setting, jpeg, jpeg2000
from tools.measure import measure
from tools.results import Store, image_hash

ROOT = Path(__file__).parent.parent


class Done(NamedTuple):
    """What a command left behind."""

    status: int
    stdout: str
    stderr: str


def command(*arguments: object) -> Done:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = rd_curve.main([str(argument) for argument in arguments])
    return Done(status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photograph: np.ndarray) -> Path:
    """Two images that are large enough for MS-SSIM, and one file that is not an image."""
    path = tmp_path_factory.mktemp("images")
    Image.fromarray(photograph[:176, :192]).save(path / "a.png")
    Image.fromarray(photograph[-170:, -200:]).save(path / "b.png")
    (path / "broken.png").write_bytes(b"not an image")
    (path / "README.txt").write_text("not measured")
    return path


@pytest.fixture(scope="module")
def first(folder: Path, tiny_model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    out = tmp_path_factory.mktemp("out") / "new"
    options = ["--codecs", "rdae", "jpeg", "--models", tiny_model_file, "--ladder", "jpeg", 5, 30, 80, "--jobs", 1]
    references = sorted((ROOT / "data" / "references").glob("*.json"))
    return out, command(folder, "--out", out, *options, "--qualities", 1, 3, "--reference", *references[:2])


def stored(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return loaded


def test_everything_is_measured_from_real_files(first: tuple[Path, Done], folder: Path, tiny_model_file: Path) -> None:
    out, done = first
    assert done.status == 1, done.stderr  # one image cannot be read
    assert f"{folder / 'broken.png'}: not an image" in done.stderr
    assert "Traceback" not in done.stderr
    data = stored(out)
    assert {image["name"] for image in data["images"].values()} == {"a.png", "b.png"}
    assert set(data["codecs"]) == {"rdae-tiny", "jpeg-420", "jpeg-444"}
    image = np.asarray(Image.open(folder / "a.png"))
    model = codec.load(tiny_model_file)
    for quality in (1, 3):
        row = data["codecs"]["rdae-tiny"]["points"][str(quality)][image_hash(image)]
        file = model.encode(image, quality)
        assert row["bytes"] == len(file)
        assert row["bpp"] == pytest.approx(8 * len(file) / (176 * 192), abs=1e-6)
        mse = np.mean(np.square(image.astype(float) - model.decode(file)))
        assert row["psnr"] == pytest.approx(10 * np.log10(255**2 / mse), abs=0.01)
        assert row["encode_s"] > 0
        assert row["decode_s"] > 0
        assert 0 < row["ms_ssim"] < 1
    for codec_ in jpeg():
        for quality in (5, 30, 80):
            row = data["codecs"][codec_.key]["points"][str(quality)][image_hash(image)]
            assert row["bytes"] == len(codec_.encode(image, quality))


def test_figures_tables_and_bars(first: tuple[Path, Done]) -> None:
    out, done = first
    assert "JPEG 4:2:0: 100%" in done.stderr
    assert "| JPEG 4:4:4 | " in done.stdout
    with Image.open(out / "rd.png") as figure:
        assert figure.width > 1200
    svg = (out / "rd.svg").read_text(encoding="utf-8")
    for name in ("JPEG 4:2:0", "JPEG 4:4:4", "rdae tiny", "bmshj2018-factorized"):
        assert svg.count(f"<!-- {name} -->") == 2  # once in each panel
    table = (out / "bd_rate.md").read_text(encoding="utf-8")
    assert "subsampling='4:2:0', optimize=True, progressive=True" in table
    assert "Pillow" in table
    assert {file.name for file in (out / "summary").iterdir()} == {"rdae-tiny.json", "jpeg-420.json", "jpeg-444.json"}


def test_rdae_at_several_efforts(tiny_model_file: Path, photograph: np.ndarray) -> None:
    plain, searched = rd_curve.chosen_codecs(["rdae"], [str(tiny_model_file)], [1, 2], {}, [0, 2])
    assert (plain.key, searched.key) == ("rdae-tiny", "rdae-tiny-effort-2") and searched.ladder == plain.ladder == (1, 2)
    model, image = codec.load(tiny_model_file), photograph[:32, :48]
    assert [c.encode(image, 2) for c in (plain, searched)] == [model.encode(image, 2, effort) for effort in (0, 2)]


def test_a_curve_with_the_encoder_s_search(tiny_model_file: Path, photograph: np.ndarray) -> None:
    name = str(tiny_model_file)
    codecs = rd_curve.chosen_codecs(["rdae"], [name], [1, 2, 3], {}, searched=[[name, "2", "psnr"], [name, "1", "ms-ssim", "1", "2"]])
    assert [c.key for c in codecs] == ["rdae-tiny", "rdae-tiny-effort-2", "rdae-tiny-ms-ssim-effort-1"]
    assert [len(c.ladder) for c in codecs] == [3, 10, 2] and codecs[2].name == "rdae tiny, tune ms-ssim, effort 1"
    model, image = codec.load(tiny_model_file), photograph[:32, :48]
    assert codecs[2].encode(image, 2) == model.encode(image, 2, 1, "ms-ssim") != model.encode(image, 2, 1)
    for wrong in ([name], [name, "0", "psnr"], [name, "1", "ssim"], [name, "1", "psnr", "x"]):
        with pytest.raises(rd_curve.UsageError, match="--searched takes a model, an effort of 1 to 9, psnr or ms-ssim, then qualities"):
            rd_curve.chosen_codecs(["rdae"], [name], [1], {}, searched=[wrong])


def test_nothing_is_measured_twice(first: tuple[Path, Done], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = stored(first[0])
    # A mark that measuring again would wipe out; and one measurement that is missing.
    rows = data["codecs"]["jpeg-420"]["points"]["30"]
    image, gone = list(rows)
    rows[image]["encode_s"] = 12345.0
    expected = rows.pop(gone)["bytes"]
    (tmp_path / "results.json").write_text(json.dumps(data), encoding="utf-8")
    arguments = [str(folder / "a.png"), str(folder / "b.png"), "--out", str(tmp_path), "--codecs", "jpeg", "--jobs", "1"]
    assert rd_curve.main([*arguments, "--ladder", "jpeg", "5", "30"]) == 0
    again = stored(tmp_path)
    assert again["codecs"]["jpeg-420"]["points"]["30"][image]["encode_s"] == 12345.0
    assert again["codecs"]["jpeg-420"]["points"]["30"][gone]["bytes"] == expected
    assert again["codecs"]["rdae-tiny"] == data["codecs"]["rdae-tiny"]  # kept, though not part of this run
    assert "rdae" not in (tmp_path / "bd_rate.md").read_text(encoding="utf-8")
    (tmp_path / "summary" / "rdae-tiny.json").write_text("{}")
    assert rd_curve.main([*arguments, "--ladder", "jpeg", "5", "--prune"]) == 0
    pruned = stored(tmp_path)["codecs"]
    assert {key: list(entry["points"]) for key, entry in pruned.items()} == {"jpeg-420": ["5"], "jpeg-444": ["5"]}
    assert not (tmp_path / "summary" / "rdae-tiny.json").exists()
    capsys.readouterr()


def _fails(image: np.ndarray, setting: Setting) -> bytes:
    if image.shape[0] == 8 or setting == 2:
        raise RuntimeError("out of luck\nsecond line")
    return bytes(image.shape[0])


def _black(data: bytes, _: Setting) -> np.ndarray:
    return np.zeros((len(data), 8, 3), np.uint8)


def test_a_failing_encoder_does_not_end_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images = {}
    for height in (8, 9, 10):
        pixels = np.full((height, 8, 3), height, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{height}.png")
        images[image_hash(pixels)] = tmp_path / f"{height}.png"
    broken = Codec("broken", "Broken", "", "", "quality", (1, 2, 3), _fails, _black)
    store = Store(tmp_path / "results.json")
    store.enter(broken)
    failures = measure(store, [broken], images, 1)
    assert len(failures) == 5
    assert f"{tmp_path / '8.png'}: Broken quality=1: RuntimeError: out of luck" in failures
    assert all("\n" not in line for line in failures)
    assert "out of luck" in capfd.readouterr().err
    points = Store(tmp_path / "results.json").codecs["broken"]["points"]
    assert {setting: len(rows) for setting, rows in points.items()} == {"1": 2, "2": 0, "3": 2}
    assert points["1"][list(images)[1]]["psnr"] == pytest.approx(20 * np.log10(255 / 9), abs=1e-5)


def test_what_was_measured_before_an_interrupt_is_kept(tmp_path: Path, photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    images = {}
    for i in range(3):
        pixels = np.ascontiguousarray(photograph[i : i + 32, :32])
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        images[image_hash(pixels)] = tmp_path / f"{i}.png"
    store = Store(tmp_path / "results.json")
    rival = jpeg2000()[0]
    store.enter(rival)
    add, added = store.add, []

    def interrupted(*arguments: Any) -> None:
        add(*arguments)
        added.append(arguments)
        if len(added) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(store, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(store, [rival], images, 1)
    points = Store(tmp_path / "results.json").codecs["jpeg2000"]["points"]
    assert sum(len(rows) for rows in points.values()) == 4


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert rd_curve.main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("rd_curve: ")
    return lines[-1]


def test_bad_input_is_one_line(tmp_path: Path, folder: Path, tiny_model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    out = ("--out", tmp_path / "out")
    assert f"{empty}: no images in this folder" in refused(capsys, empty, *out)
    assert "nowhere: no such file or folder" in refused(capsys, tmp_path / "nowhere", *out)
    assert "none of the images can be read" in refused(capsys, folder / "broken.png", *out, "--codecs", "jpeg")
    assert "no-such-model" in refused(capsys, folder, *out, "--models", "no-such-model")
    assert "qualities 1…3" in refused(capsys, folder, *out, "--models", tiny_model_file, "--qualities", 9)
    assert "quality must be 0…100, not 300" in refused(capsys, folder, *out, "--ladder", "jpeg", 300)
    assert "--ladder takes a codec" in refused(capsys, folder, *out, "--ladder", "gif", 3)
    assert "--jobs must be at least 1" in refused(capsys, folder, *out, "--jobs", 0)
    assert "not a reference curve" in refused(capsys, folder, *out, "--reference", folder / "README.txt")
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "results.json").write_text("precious")
    assert "not a results file" in refused(capsys, folder, *out, "--codecs", "jpeg")
    assert (tmp_path / "out" / "results.json").read_text() == "precious"


def test_without_a_model_the_codec_is_skipped_with_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(codec, "models", list)
    assert [c.key for c in rd_curve.chosen_codecs(["rdae", "jpeg"], [], [], {})] == ["jpeg-420", "jpeg-444"]
    assert "rdae: skipped, no model ships yet" in capsys.readouterr().err
    with pytest.raises(rd_curve.UsageError, match="none of the codecs"):
        rd_curve.chosen_codecs(["rdae"], [], [], {})


def test_folders_are_searched_and_the_same_picture_counts_once(
    tmp_path: Path, photograph: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deep").mkdir()
    Image.fromarray(photograph[:20, :20]).save(tmp_path / "deep" / "a.PNG")
    Image.fromarray(photograph[:20, :20]).save(tmp_path / "b.bmp")
    Image.fromarray(photograph[:20, :20]).convert("L").save(tmp_path / "grey.png")
    paths = rd_curve.image_paths([tmp_path])
    assert [path.name for path in paths] == ["b.bmp", "a.PNG", "grey.png"]
    store = Store(tmp_path / "none.json")
    found, failures = rd_curve.read_images(paths, store)
    assert (len(found), failures) == (2, [])
    told = capsys.readouterr().err.splitlines()
    assert "the same picture as" in told[0]
    assert told[1].startswith("2 of 2 images have a side under 161 pixels")
    assert len(told) == 2
