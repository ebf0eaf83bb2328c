from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import codec
from codec.model import Model
from tools import benchmark, contenders, processes
from tools.contenders import Contender, macs_per_pixel, stopwatch


def test_multiply_accumulates_are_those_of_the_architecture() -> None:
    """Filters, by hand: taps × channels in × channels out over the stride's square."""
    ours = contenders.rdae(codec.load("lambda-0.013", "fp32"), "fp32", "cpu").macs
    gdn = 128 * 128
    analysis = 81 * 3 * 128 / 4**2 + gdn / 4**2 + 25 * gdn / 8**2 + gdn / 8**2 + 25 * 128 * 192 / 16**2
    synthesis = 9 * 192 * 512 / 16**2 + gdn / 8**2 + 9 * 128 * 512 / 8**2 + gdn / 4**2 + 9 * 128 * 48 / 4**2
    assert ours == {"encode": pytest.approx(analysis), "decode": pytest.approx(synthesis)}
    theirs = contenders.compressai("bmshj2018-factorized", "fp32", "cpu", np.zeros((64, 64, 3), np.uint8) + np.uint8(99)).macs
    half = 25 * 3 * 128 / 4 + gdn / 4 + 25 * gdn / 16 + gdn / 16 + 25 * gdn / 64 + gdn / 64 + 25 * 128 * 192 / 256
    assert theirs == {"encode": pytest.approx(half), "decode": pytest.approx(half)}


def test_counting_leaves_no_hook_behind() -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ConvTranspose2d(5, 2, 4, stride=2, padding=1))
    assert macs_per_pixel(network, torch.zeros(1, 3, 8, 8), 64) == 3 * 5 * 9 + 5 * 2 * 16
    assert not any(module._forward_hooks for module in network.modules())


def test_a_stopwatch_puts_functions_back(tiny_model: Model) -> None:
    from codec import coder

    before = coder.encode
    network = tiny_model._network()
    with stopwatch({"a": ((coder, "encode"),), "b": ((network, "analyse"),), "c": ((tiny_model.entropy, "quantise"),)}) as spent:
        tiny_model.encode(np.zeros((40, 40, 3), np.uint8))
        assert coder.encode is not before
    assert coder.encode is before and "analyse" not in vars(network) and "quantise" not in vars(tiny_model.entropy)
    assert set(spent) == {"a", "b", "c"} and min(spent.values()) > 0


@pytest.mark.parametrize("name", ["bmshj2018-factorized", "bmshj2018-hyperprior"])
def test_rival_networks_code_latents_of_a_real_scale(name: str, photograph: np.ndarray) -> None:
    rival = contenders.compressai(name, "fp32", "cpu", photograph)
    image = photograph[:100, :150]
    with stopwatch(rival.stages) as spent:
        stream = rival.encode(image)
        assert rival.decode(stream).shape == image.shape
    assert rival.size(stream) > 0.02 * image.size
    assert {"analysis", "entropy coding", "synthesis"} <= set(spent)


def test_a_mosaic_is_mirrored_on_all_sides() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    wide = processes.mosaic(image, 23, 30)
    np.testing.assert_array_equal(wide, np.pad(image, ((0, 18), (0, 23), (0, 0)), mode="symmetric"))


def test_ratios_follow_from_the_times() -> None:
    def row(name: str, seconds: float, transform: float) -> dict[str, object]:
        times = {"median": seconds, "first_quartile": seconds, "third_quartile": seconds}
        both = {d: {**times, "stages": {s: transform}} for d, s in (("encode", "analysis"), ("decode", "synthesis"))}
        return {"codec": name, "precision": "fp32", "macs_per_pixel": {"encode": 100.0, "decode": 200.0}, "megapixels": 2.0, **both}

    rows = [row("rdae", 0.5, 0.4), row("other", 2.0, 1.0)]
    benchmark.derive(rows, {"fp32": 1e9})
    assert rows[1]["encode"]["times_ours"] == 4 and rows[0]["decode"]["times_ours"] == 1
    assert rows[0]["encode"]["fraction_of_peak"] == pytest.approx(2 * 100 * 2e6 / 0.4 / 1e9)
    assert rows[0]["encode"]["megapixels_per_second"] == 4 and rows[0]["encode"]["not_transform"] == pytest.approx(0.2)


def test_memory_is_that_of_the_process_itself() -> None:
    with processes.environment(1) as variables:
        _, small = processes.run(["-c", "pass"], variables)
        _, large = processes.run(["-c", "x = b'x' * (100 << 20)"], variables)
        assert small < 60 and 80 < large - small < 125
        with pytest.raises(subprocess.CalledProcessError):
            processes.run(["-c", "raise SystemExit(3)"], variables)


def test_without_a_rival_s_library_its_row_is_left_out(
    tmp_path: Path, tiny_model_file: Path, photograph: np.ndarray, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "compressai", None)
    monkeypatch.setattr(benchmark, "LARGE", (96, 128))
    monkeypatch.setattr(benchmark, "peaks", lambda precisions, device: dict.fromkeys(precisions, 1e9))
    source, out = tmp_path / "small.png", tmp_path / "benchmark.json"
    Image.fromarray(photograph[:48, :64]).save(source)
    command = ["--images", source, "--parts", "codecs", "large", "--rounds", 2, "--threads", 1, "--model", tiny_model_file, "--out", out]
    assert benchmark.main([str(word) for word in command]) == 0
    captured = capsys.readouterr()
    assert "bmshj2018-factorized is left out" in captured.err and "rdae fp32" in captured.out
    result = json.loads(out.read_text())
    assert set(result["images"]) == {"small.png", "128×96"}
    rows = {(row["codec"], row["precision"]): row for row in result["images"]["small.png"]["codecs"]}
    assert ("rdae", "fp32") in rows and ("WebP", "") in rows and not any("bmshj" in name for name, _ in rows)
    for row in rows.values():
        for direction in ("encode", "decode"):
            times = row[direction]
            assert 0 < times["first_quartile"] <= times["median"] <= times["third_quartile"]
            assert sum(times["stages"].values()) <= 2 * times["third_quartile"]
    assert {"quantise", "entropy coding", "container", "analysis"} <= set(rows["rdae", "fp32"]["encode"]["stages"])


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--images", str(tmp_path / "missing.png")], "missing.png"),
        (["--rounds", "0"], "positive"),
        *([] if torch.cuda.is_available() else [(["--device", "cuda"], "no GPU")]),
    ):
        assert benchmark.main([*arguments, "--out", str(tmp_path / "x.json")]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("benchmark: ") and words in captured.err and captured.err.count("\n") == 1
    assert not (tmp_path / "x.json").exists()


def test_a_contender_is_a_plain_record() -> None:
    one = Contender("x", "", lambda image: b"", lambda data: np.zeros((1, 1, 3), np.uint8), len, {})
    rows = benchmark.race([one], np.zeros((4, 4, 3), np.uint8), 3)
    assert rows[0]["bytes"] == 0 and set(rows[0]["encode"]["stages"]) == {"copies and the rest"}


def test_the_written_table_is_the_measured_one() -> None:
    folder = benchmark.ROOT / "data" / "results"
    images = json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))["images"]
    lines = (folder / "benchmark.md").read_text(encoding="utf-8").splitlines()
    tables = [[line for line in lines if line.startswith(f"| {direction} |")] for direction in ("encode", "decode")]
    for direction, rows in zip(("encode", "decode"), tables, strict=True):
        for (_, image), row, unit in zip(images.items(), rows, (1e3, 1), strict=True):
            written = [float(cell) for cell in row.split("|")[2:-1]]
            measured = [unit * codec_[direction]["median"] for codec_ in image["codecs"]]
            assert written == pytest.approx(measured, rel=0.02, abs=0.06)
