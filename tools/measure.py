"""Encoding and decoding many images with many codecs at many settings, over processes."""

from __future__ import annotations

import itertools
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from codec import image as image_files
from tools import metrics
from tools.baselines import Codec, Setting
from tools.results import Row, Store

__all__ = ["BrokenProcessPool", "Task", "measure", "roundtrip"]
SAVE_EVERY_S: Final = 20.0
"""An interrupted run loses at most this much work."""


@dataclass(frozen=True)
class Task:
    """One image, one codec, one setting."""

    codec: Codec
    setting: Setting
    path: Path
    image: str
    """The hash of its pixels."""


def roundtrip(codec: Codec, setting: Setting, image: npt.NDArray[np.uint8]) -> tuple[bytes, npt.NDArray[np.uint8], Row]:
    """(file, decoded image, measurement) of an image H×W×3 uint8."""
    start = time.perf_counter()
    data = codec.encode(image, setting)
    encoded = time.perf_counter()
    decoded = codec.decode(data, setting)
    end = time.perf_counter()
    row: Row = {"bytes": len(data), "bpp": round(8 * len(data) / (image.shape[0] * image.shape[1]), 6)}
    row.update(metrics.compare(image, decoded))
    row.update(encode_s=round(encoded - start, 4), decode_s=round(end - encoded, 4))
    return data, decoded, row


def _start_worker() -> None:
    # An interrupt is for the parent, which keeps what was measured and stops the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


@lru_cache(maxsize=1)
def _read(path: Path) -> npt.NDArray[np.uint8]:
    return image_files.read(path)


def _measure(task: Task) -> Row | str:
    """A measurement, or why there is none: an encoder that fails must not end the run."""
    try:
        image = _read(task.path)
        if task.codec.key.startswith("rdae"):
            task.codec.encode(image[:16, :16], task.setting)  # loads the model, which is not a part of encoding
        return roundtrip(task.codec, task.setting, image)[2]
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"


def measure(store: Store, codecs: list[Codec], images: dict[str, Path], jobs: int) -> list[str]:
    """Add to the store whatever it lacks, saving it as it goes; returns the failures, a line each.

    One progress bar for each codec, on stderr. On an interrupt, or when a worker process dies, what was measured is kept.
    """
    failures: list[str] = []
    # Workers are spawned: forking a process in which torch has started threads can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker)
    try:
        for codec in codecs:
            everything = [Task(codec, setting, path, image) for image, path in images.items() for setting in codec.ladder]
            missing = [task for task in everything if not store.has(codec.key, str(task.setting), task.image)]
            with tqdm(total=len(everything), initial=len(everything) - len(missing), desc=codec.name, unit="file", file=sys.stderr) as bar:
                failed = {}
                for task, outcome in _results(pool, missing, 4 * jobs, store.save):
                    bar.update()
                    if isinstance(outcome, str):
                        failed[task] = f"{task.path}: {codec.name} {codec.parameter}={task.setting}: {outcome}"
                        tqdm.write(failed[task], file=sys.stderr)
                    else:
                        store.add(codec.key, str(task.setting), task.image, outcome)
                failures += failed.values()
            store.save()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        store.save()
    return failures


def _results(pool: ProcessPoolExecutor, tasks: Iterable[Task], ahead: int, save: Callable[[], None]) -> Iterable[tuple[Task, Row | str]]:
    """Outcomes as they come, with only so many tasks submitted ahead of time."""
    queue = iter(tasks)
    running: dict[Future[Row | str], Task] = {pool.submit(_measure, task): task for task in itertools.islice(queue, ahead)}
    saved = time.monotonic()
    while running:
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            yield running.pop(future), future.result()
        for task in itertools.islice(queue, len(done)):
            running[pool.submit(_measure, task)] = task
        if time.monotonic() - saved > SAVE_EVERY_S:
            save()
            saved = time.monotonic()
