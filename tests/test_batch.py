"""Many files, standard input and output: through the command line."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import SAMPLES
from PIL import Image

from codec import batch, cli, container
from codec import image as images

PROGRAM = [sys.executable, "-m", "codec.cli"]


def run(capsys: pytest.CaptureFixture[str], status: int, *arguments: object) -> tuple[str, str]:
    """Standard output and standard error."""
    assert cli.main([str(a) for a in arguments]) == status
    captured = capsys.readouterr()
    return captured.out, captured.err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images on three levels, something else, and something hidden."""
    root = tmp_path / "photos"
    (root / "a" / "b").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for i, name in enumerate(("one.png", "a/two.jpg", "a/b/three.webp", "a/b/FOUR.TIF", ".hidden/five.png", ".six.png")):
        Image.new("RGB", (40 + i, 30), (50 * i, 99, 30)).save(root / name)
    (root / "notes.txt").write_text("not an image, by its name")
    return root


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def cells(summary: str) -> dict[str, str]:
    head, values = summary.strip().splitlines()[-2:]
    return dict(zip([h.strip() for h in head.split("  ") if h.strip()], values.split(), strict=True))


def test_a_folder_there_and_back(tmp_path: Path, folder: Path, tiny_model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, back = tmp_path / "small", tmp_path / "back"
    out, err = run(capsys, 0, "compress", folder, "-r", "-o", small, "--model", tiny_model_file)
    assert names(small) == ["a/b/FOUR.rdae", "a/b/three.rdae", "a/two.rdae", "one.rdae"] and err == ""
    table = cells(out)
    assert (table["files"], table["skipped"], table["failed"]) == ("4", "0", "0")
    sizes = {name: (small / name).stat().st_size for name in names(small)}
    assert table["bytes after"] == f"{sum(sizes.values()):,}"
    streams = {name: container.read((small / name).read_bytes()) for name in sizes}
    mean = np.mean([8 * sizes[name] / (s.width * s.height) for name, s in streams.items()])
    assert table["mean bpp"] == f"{mean:.3f}"
    out, _ = run(capsys, 0, "decompress", small, "-r", "-o", back, "--model", tiny_model_file, "--format", "webp")
    assert names(back) == ["a/b/FOUR.webp", "a/b/three.webp", "a/two.webp", "one.webp"]
    assert cells(out)["mean bpp"] == f"{mean:.3f}" and images.read(back / "a" / "two.webp").shape == (30, 41, 3)


def test_work_done_is_skipped_and_one_bad_file_does_not_stop_the_rest(
    tmp_path: Path, folder: Path, tiny_model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small"
    command = ["compress", folder, "-r", "-o", small, "--model", tiny_model_file]
    (folder / "a" / "bad.png").write_bytes(b"not an image, by its content")
    out, err = run(capsys, 1, *command)
    assert err == f"rdae: {folder}/a/bad.png: not an image that Pillow can read\n"
    assert (cells(out)["files"], cells(out)["failed"]) == ("4", "1") and len(names(small)) == 4
    stamp = (small / "one.rdae").stat().st_mtime_ns
    (folder / "a" / "bad.png").unlink()
    Image.new("RGB", (9, 9)).save(folder / "new.png")
    out, _ = run(capsys, 0, *command)
    assert (cells(out)["files"], cells(out)["skipped"]) == ("1", "4")
    assert (small / "one.rdae").stat().st_mtime_ns == stamp
    # What is newer than its output is not done, but nothing is overwritten unasked.
    os.utime(folder / "one.png", ns=(stamp + 10**9, stamp + 10**9))
    _, err = run(capsys, 1, *command)
    assert "one.rdae: exists already; --force" in err
    out, _ = run(capsys, 0, *command, "--force")
    assert cells(out)["files"] == "5"


def test_processes(tmp_path: Path, folder: Path, tiny_model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    (folder / "bad.png").write_bytes(b"bad")
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(folder / "deep.png")
    for output, jobs in ((one, 1), (two, 2)):
        out, err = run(capsys, 1, "compress", folder, "-r", "-o", output, "--model", tiny_model_file, "--jobs", jobs)
        assert cells(out)["files"] == "5" and cells(out)["failed"] == "1"
        assert sorted(err.splitlines()) == [
            f"rdae: {folder}/bad.png: not an image that Pillow can read",
            f"rdae: warning: {folder}/deep.png: has more than eight bits a channel; they are rounded to eight",
        ]
    assert {n: (one / n).read_bytes() for n in names(one)} == {n: (two / n).read_bytes() for n in names(two)}


def test_files_by_name_and_by_wildcard(tmp_path: Path, folder: Path, tiny_model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", tiny_model_file]
    run(capsys, 0, "compress", folder / "one.png", folder / "a" / "two.jpg", "-o", tmp_path / "out", *model)
    assert names(tmp_path / "out") == ["one.rdae", "two.rdae"]
    out, _ = run(capsys, 0, "compress", f"{folder}/**/*.[jw]*", "-o", tmp_path / "wild", *model)
    assert names(tmp_path / "wild") == ["three.rdae", "two.rdae"] and cells(out)["files"] == "2"
    # A single file goes into a folder too, as cp would have it; without -o, it stays beside the input.
    run(capsys, 0, "compress", folder / "one.png", "-o", tmp_path / "wild", *model)
    assert (tmp_path / "wild" / "one.rdae").exists()
    run(capsys, 0, "compress", folder / "a", "-r", *model)
    assert (folder / "a" / "b" / "three.rdae").exists()


def test_names_that_are_not_text(tmp_path: Path, tiny_model_file: Path) -> None:
    name = os.fsdecode(b"na\xefve.png")
    Image.new("RGB", (9, 9)).save(tmp_path / name)
    command = [*PROGRAM, "compress", str(tmp_path / name), "--model", str(tiny_model_file)]
    assert b"na\\udcefve.rdae: 9" in subprocess.run(command, capture_output=True, check=True).stdout


def test_two_files_of_one_name(tmp_path: Path, folder: Path, tiny_model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(folder / "one.png", folder / "one.tiff")
    _, err = run(capsys, 1, "compress", folder, "-r", "-o", tmp_path / "out", "--model", tiny_model_file)
    assert err == f"rdae: {folder}/one.tiff: would be written to {tmp_path}/out/one.rdae, as is {folder}/one.png\n"


def test_what_makes_no_sense(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for arguments, words in (
        (["compress", folder], "is a folder; -r"),
        (["compress", tmp_path / "empty", "-r"], "no images in there"),
        (["decompress", folder, "-r"], "no *.rdae files in there"),
        (["compress", folder, "-r", "-o", tmp_path / "file"], "is not a folder"),
        (["compress", folder, "-r", "-o", "-"], "one file at a time"),
        (["compress", "-", folder / "one.png"], "one file at a time"),
        (["compress", tmp_path / "*.nothing"], "nothing has such a name"),
    ):
        out, err = run(capsys, 2, *arguments)
        assert words in err and err.count("\n") == 1 and out == ""


def test_through_pipes(tmp_path: Path, tiny_model_file: Path, photograph: np.ndarray) -> None:
    """Nothing but image bytes on standard output, in both directions, in a chain."""
    image = photograph[:50, :70]
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    model = ["--model", str(tiny_model_file)]
    first = subprocess.run([*PROGRAM, "compress", "-", *model], input=buffer.getvalue(), capture_output=True, check=True)
    assert container.read(first.stdout).width == 70 and b"70\xc3\x9750" in first.stderr
    second = subprocess.run([*PROGRAM, "decompress", "-", *model], input=first.stdout, capture_output=True, check=True)
    assert np.asarray(Image.open(io.BytesIO(second.stdout))).shape == (50, 70, 3)
    (tmp_path / "x.rdae").write_bytes(first.stdout)
    ppm = [*PROGRAM, "decompress", str(tmp_path / "x.rdae"), "-o", "-", "--format", "ppm", *model]
    assert subprocess.run(ppm, capture_output=True, check=True).stdout.startswith(b"P6\n70 50\n255\n")


def test_errors_of_pipes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Piped(io.StringIO):
        buffer = io.BytesIO(b"neither an image nor a stream")

    for command, words in (("compress", "standard input: not an image"), ("decompress", "standard input: not an .rdae")):
        monkeypatch.setattr(sys, "stdin", Piped())
        Piped.buffer.seek(0)
        out, err = run(capsys, 2, command, "-")
        assert words in err and err.count("\n") == 1 and out == ""


def test_image_bytes_are_not_written_to_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    _, err = run(capsys, 2, "compress", SAMPLES / "coffee.png", "-o", "-")
    assert "terminal" in err


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_an_interrupt_leaves_no_half_written_file(tmp_path: Path, tiny_model_file: Path, jobs: str) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    rng = np.random.default_rng(0)
    for i in range(60):
        Image.fromarray(rng.integers(0, 256, (700, 900, 3), dtype=np.uint8)).save(source / f"{i}.bmp")
    command = [*PROGRAM, "compress", str(source), "-r", "-o", str(tmp_path / "out"), "--model", str(tiny_model_file), "--jobs", jobs]
    # Shells have it ignored by what they start in the background, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    signal.signal(signal.SIGINT, before)
    for _ in range(600):
        if any((tmp_path / "out").glob("*.rdae")):
            break
        time.sleep(0.05)
    # To the whole group, as a terminal sends it.
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "rdae: interrupted\n"
    written = list((tmp_path / "out").iterdir())
    assert 0 < len(written) < 60 and all(p.suffix == ".rdae" for p in written)
    for path in written:
        assert container.read(path.read_bytes()).width == 900


def test_a_killed_worker_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> None:
    """As the kernel does it to a process that takes too much memory."""
    tasks = [(folder / "one.png", tmp_path / f"{i}.rdae") for i in range(6)]
    monkeypatch.setattr(batch, "_one", _die)
    outcomes = list(batch._outcomes("compress", tasks, batch.Options(), 2))
    assert len(outcomes) == 6 and all(o.error and "was killed" in o.error for o in outcomes)


def _die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
