"""How a run keeps what it has: checkpoints that survive a full disk, signals that let it finish a step, and how it says that it stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


class TrainingError(Exception):
    """Training cannot go on; the message is one line."""


class Interrupted(Exception):  # noqa: N818 - not an error
    """A signal asked the run to stop; its state is saved."""


@contextmanager
def until_signalled() -> Iterator[Callable[[], bool]]:
    """Within the block, SIGINT and SIGTERM only raise a flag, which the yielded function reads."""
    seen: list[int] = []
    before = {s: signal.signal(s, lambda number, _: seen.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write beside the file and rename, so that a full disk or a crash leaves the old one. Raises `TrainingError`."""
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise TrainingError(f"{path}: cannot write the checkpoint: {error}") from error
