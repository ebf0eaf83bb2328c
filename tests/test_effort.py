from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_hyper_bytes
from PIL import Image

import codec
from codec import cli
from codec.search import ITERATIONS
from tools import effort
from tools.metrics import psnr
from tools.results import Store

RESULTS = Path(__file__).parent.parent / "data" / "results"


@pytest.fixture(scope="module")
def measured(photograph: np.ndarray, tmp_path_factory: pytest.TempPathFactory, tiny_model_file: Path) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("effort")
    (folder / "images").mkdir()
    for name, part in (("a", photograph[:64, :96]), ("b", photograph[200:280, 100:170])):
        Image.fromarray(part).save(folder / "images" / f"{name}.png")
    (folder / "second.safetensors").write_bytes(tiny_hyper_bytes())
    command = [str(folder / "images"), "--out", str(folder / "effort.json"), "--efforts", "1", "2", "--qualities", "1", "2", "3"]
    command += ["--models", str(tiny_model_file), str(folder / "second.safetensors"), "--jobs", "1"]
    assert effort.main(command) == 0
    return folder, command


def test_numbers_are_those_of_files(measured: tuple[Path, list[str]], tiny_model_file: Path) -> None:
    data = json.loads((measured[0] / "effort.json").read_text(encoding="utf-8"))
    model, image = codec.load(tiny_model_file), np.asarray(Image.open(measured[0] / "images" / "a.png"))
    key = next(image for image, about in data["images"].items() if about["name"] == "a.png")
    for level in (0, 1, 2):
        row = data["codecs"][f"rdae-tiny-effort-{level}"]["points"]["2"][key]
        file = model.encode(image, 2, level)
        assert row["bytes"] == len(file)
        assert row["psnr"] == pytest.approx(psnr(image, model.decode(file))[0], abs=1e-5)


def test_the_table_has_a_line_for_each_effort(measured: tuple[Path, list[str]]) -> None:
    text = (measured[0] / "effort.md").read_text(encoding="utf-8")
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|") and "---" not in line]
    first = [[cell.strip() for cell in line] for line in lines[1 : len(ITERATIONS) + 1]]
    assert [int(line[0]) for line in first] == list(range(len(ITERATIONS))) and [int(line[1]) for line in first] == list(ITERATIONS)
    assert first[0][3:] == first[3][3:] == ["–"] * 3  # nothing to compare, not measured
    assert all(line[4].startswith("−") and line[5] == "2" for line in first[1:3])
    assert text.count("## ") == 2


def test_what_is_there_is_not_measured_again(measured: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    before = (measured[0] / "effort.json").read_bytes()
    ticks = iter(range(1000))
    monkeypatch.setattr(effort, "cpu_seconds", lambda model, path, level: float(next(ticks) + 1))
    assert effort.main([*measured[1], "--time", str(measured[0] / "images" / "a.png")]) == 0
    after = (measured[0] / "effort.json").read_text(encoding="utf-8")
    assert json.loads(after)["codecs"]["rdae-tiny-effort-1"] == json.loads(before)["codecs"]["rdae-tiny-effort-1"]
    assert "| 4 | " in (text := (measured[0] / "effort.md").read_text(encoding="utf-8")) and "| 5.0× |" in text
    assert effort.main(measured[1]) == 0 and next(ticks) == 2 * len(ITERATIONS)
    assert "| 5.0× |" in (measured[0] / "effort.md").read_text(encoding="utf-8")


def test_help_tells_the_measured_times(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = json.loads((RESULTS / "effort.json").read_text(encoding="utf-8"))["codecs"]["rdae-hyperprior-9-effort-0"]["seconds"]
    times = [round(seconds[str(level)] / seconds["0"]) for level in range(1, len(ITERATIONS))]
    with pytest.raises(SystemExit):
        cli.main(["compress", "--help"])
    assert f"about {', '.join(map(str, times))} times as long" in " ".join(capsys.readouterr().out.split())


def test_the_table_is_that_of_the_measurements() -> None:
    """Files with measurements are not written by hand."""
    text = (RESULTS / "effort.md").read_text(encoding="utf-8")
    store = Store(RESULTS / "effort.json")
    for name in ("hyperprior-9", "lambda-0.013"):
        model = codec.load(name)
        key = f"rdae-{model.name}" if model.qualities > 1 else "rdae-fixed"
        lines = effort.table(store, model, key, list(store.images), store.codecs[f"{key}-effort-0"]["seconds"])
        assert "\n".join(lines) in text


def test_seconds_are_the_processor_s(tiny_model_file: Path, measured: tuple[Path, list[str]]) -> None:
    assert effort.cpu_seconds(codec.load(tiny_model_file), measured[0] / "images" / "a.png", 1) > 0


def test_efforts_that_do_not_exist(measured: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert effort.main([str(measured[0] / "images"), "--out", str(measured[0] / "x.json"), "--efforts", "10"]) == 2
    assert capsys.readouterr().err == "effort: efforts run from 0 to 9\n"
