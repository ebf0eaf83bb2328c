"""Timings of whole processes for `tools.benchmark`: starting cold, memory, and many files."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

ROOT = Path(__file__).parent.parent
Pixels = npt.NDArray[np.uint8]


@contextmanager
def environment(threads: int) -> Iterator[dict[str, str]]:
    """As installed: with compiled modules kept, which the first run makes."""
    with tempfile.TemporaryDirectory() as folder:
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        yield {**inherited, "PYTHONPYCACHEPREFIX": folder, "OMP_NUM_THREADS": str(threads)}


LAUNCHER = """\
import json, os, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([time.perf_counter() - began, usage.ru_maxrss, os.waitstatus_to_exitcode(status)]))
"""
"""Starts a process from a small one: what the kernel says of a process's peak includes that of the one it was forked from."""


def run(arguments: list[str], variables: dict[str, str]) -> tuple[float, float]:
    """(seconds, peak resident memory in MiB) of a Python process. Raises `CalledProcessError`."""
    command = [sys.executable, "-c", LAUNCHER, *arguments]
    launched = subprocess.run(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True, check=True)
    seconds, peak, status = json.loads(launched.stdout)
    if status:
        raise subprocess.CalledProcessError(status, arguments)
    # In kB on Linux, in bytes on macOS.
    return seconds, peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def cold_starts(image: Pixels, threads: int, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds (median, first and third quartile) and peak memory of `import torch` and of each command on one image."""
    with environment(threads) as variables, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, small, back = (str(folder / file) for file in ("x.png", "x.rdae", "y.png"))
        Image.fromarray(image).save(source)
        commands = {
            "import torch": ["-c", "import torch"],
            "rdae compress": ["-m", "codec.cli", "compress", source, "-o", small, "--force"],
            "rdae decompress": ["-m", "codec.cli", "decompress", small, "-o", back, "--force"],
            "rdae info": ["-m", "codec.cli", "info", small],
        }
        taken: dict[str, list[tuple[float, float]]] = {command: [] for command in commands}
        for number in range(rounds + 1):
            for command, arguments in commands.items():
                measured = run(arguments, variables)
                if number:
                    taken[command].append(measured)
    return {
        command: {**summary([seconds for seconds, _ in runs]), "peak_mib": statistics.median(mib for _, mib in runs)}
        for command, runs in taken.items()
    }


def many_files(image: Pixels, count: int, jobs: tuple[int, ...] = (1, 2)) -> dict[str, dict[str, float]]:
    """Seconds of `rdae compress` and `rdae decompress` of so many 768×512 images, with numbers of jobs of one thread each.

    The images are crops of one that is laid out in mirrored copies, a different one each.
    """
    wide = mosaic(image, 1536, 1536)
    rng = np.random.default_rng(0)
    out: dict[str, dict[str, float]] = {}
    with environment(1) as variables, tempfile.TemporaryDirectory() as name:
        photographs = Path(name) / "photographs"
        photographs.mkdir()
        for number in range(count):
            top, left = rng.integers(0, 1536 - 512), rng.integers(0, 1536 - 768)
            crop = wide[top : top + 512, left : left + 768]
            Image.fromarray(crop[:, ::-1] if number % 2 else crop).save(photographs / f"{number:04}.png", compress_level=1)
        run(["-c", "import codec.batch, codec.rate, codec.image, codec.model"], variables)
        for number in jobs:
            coded, back = Path(name) / f"coded{number}", Path(name) / f"back{number}"
            common = ["-r", "--jobs", str(number)]
            seconds = {
                "compress": run(["-m", "codec.cli", "compress", str(photographs), "-o", str(coded), *common], variables)[0],
                "decompress": run(["-m", "codec.cli", "decompress", str(coded), "-o", str(back), *common], variables)[0],
            }
            out[f"{number} job" + "s" * (number > 1)] = seconds
    return out


def mosaic(image: Pixels, height: int, width: int) -> Pixels:
    """Height×width pixels of an image that goes on, mirrored, on all sides: as much detail per pixel as the image has."""
    pair = np.concatenate([image, image[:, ::-1]], axis=1)
    block = np.concatenate([pair, pair[::-1]])
    rows, columns = -(-height // len(block)), -(-width // block.shape[1])
    return np.ascontiguousarray(np.tile(block, (rows, columns, 1))[:height, :width])


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    first, median, third = np.percentile(seconds, [25, 50, 75])
    return {"median": float(median), "first_quartile": float(first), "third_quartile": float(third)}
