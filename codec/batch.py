"""Many files: which ones, where to, in how many processes, and what became of them."""

from __future__ import annotations

import glob
import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import FrameType

from codec.errors import ImageError
from codec.progress import Progress
from codec.work import STANDARD, SUFFIX, Done, Options, bits_per_pixel, guarded

Task = tuple[Path, Path]
"""An input file and its output file."""


def expand(inputs: Sequence[str]) -> list[Path]:
    """The paths, with the wildcards that the shell left. Raises `ImageError` when nothing fits one."""
    found: list[Path] = []
    for word in inputs:
        if word != str(STANDARD) and not Path(word).exists() and glob.has_magic(word):
            matches = sorted(glob.glob(word, recursive=True))  # noqa: PTH207 (absolute patterns too)
            if not matches:
                raise ImageError(f"{word}: nothing has such a name")
            found += map(Path, matches)
        else:
            found.append(Path(word))
    return found


def plan(inputs: Sequence[Path], output: Path | None, recursive: bool, command: str, ending: str) -> list[Task]:
    """What is read from where and written to where: files keep their place in the folder that was named.

    `output` is a folder, which is made; None writes beside the inputs. Raises `ImageError` when there is nothing to do.
    """
    if STANDARD in inputs or output == STANDARD:
        raise ImageError("standard input and output take one file at a time")
    if output is not None and output.exists() and not output.is_dir():
        raise ImageError(f"{output}: is not a folder, which several files need")
    tasks: list[Task] = []
    for path in inputs:
        if path.is_dir():
            if not recursive:
                raise ImageError(f"{path}: is a folder; -r takes what is in it")
            tasks += [(file, (output or path) / file.relative_to(path).with_suffix(ending)) for file in _files(path, command)]
        else:
            tasks.append((path, ((output / path.name) if output else path).with_suffix(ending)))
    if not tasks:
        kind = "images" if command == "compress" else "*.rdae files"
        raise ImageError(f"{', '.join(map(str, inputs))}: no {kind} in there")
    return tasks


def _files(folder: Path, command: str) -> Iterator[Path]:
    """The files below a folder that have the name of an image (or of a stream), in order."""
    endings = {SUFFIX}
    if command == "compress":
        from PIL import Image

        Image.init()
        endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in ("RDAE", "EPS")}
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in endings:
                yield Path(root) / name


def run(command: str, tasks: Sequence[Task], options: Options, jobs: int) -> int:
    """Do it all; say what failed, and sum up. Exit status: 1 if anything failed."""
    outcomes: list[Done] = []
    todo: list[Task] = []
    taken: dict[Path, Path] = {}
    for source, target in tasks:
        if target in taken:
            error = f"{source}: would be written to {target}, as is {taken[target]}"
            outcomes.append(Done(source, target, error=error))
        elif not options.force and _finished(source, target):
            outcomes.append(Done(source, target, skipped=True))
        else:
            todo.append((source, target))
        taken.setdefault(target, source)
    progress = Progress(command, "files")
    for outcome in outcomes:
        _say(outcome, progress)
    for outcome in _outcomes(command, todo, options, jobs):
        outcomes.append(outcome)
        _say(outcome, progress)
        progress(len(outcomes), len(tasks))
    progress.close()
    print(_summary(command, outcomes))
    return 1 if any(outcome.error for outcome in outcomes) else 0


def _finished(source: Path, target: Path) -> bool:
    """Whether the target is there and no older than the source; outputs appear whole or not at all."""
    try:
        return target.stat().st_mtime_ns >= source.stat().st_mtime_ns
    except OSError:
        return False


def _say(outcome: Done, progress: Progress) -> None:
    if outcome.error or outcome.notes:
        progress.close()
    for note in outcome.notes:
        print(f"rdae: warning: {note}", file=sys.stderr)
    if outcome.error:
        print(f"rdae: {outcome.error}", file=sys.stderr)


def _one(command: str, task: Task, options: Options) -> Done:
    source, target = task
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return Done(source, target, error=f"{target.parent}: {error.strerror}")
    return guarded(command, source, target, options)


def _outcomes(command: str, tasks: Sequence[Task], options: Options, jobs: int) -> Iterator[Done]:
    """What became of each task, in the order in which they end."""
    if jobs <= 1 or len(tasks) <= 1:
        for task in tasks:
            yield _one(command, task, options)
        return
    jobs = min(jobs, len(tasks))
    # Each process starts afresh: forking a process that runs threads, as torch does, is not safe.
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker, initargs=(threads,))
    remaining, running = iter(tasks), dict[Future[Done], Task]()
    try:
        while True:
            for task in itertools.islice(remaining, 2 * jobs - len(running)):
                running[_submit(pool, command, task, options)] = task
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                source, target = running.pop(future)
                try:
                    yield future.result()
                except BrokenProcessPool:
                    yield Done(source, target, error=f"{source}: not done, a process was killed (out of memory?)")
        pool.shutdown()
    except BaseException:
        # Interrupted: workers drop what they are at, and remove their temporary files.
        for process in multiprocessing.active_children():
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)
        raise


def _submit(pool: ProcessPoolExecutor, command: str, task: Task, options: Options) -> Future[Done]:
    # Processes are started here. While an interrupt is held back, they are born deaf to it, and leave no traceback if one comes early.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else None
    try:
        return pool.submit(_one, command, task, options)
    except BrokenProcessPool as error:
        failed: Future[Done] = Future()
        failed.set_exception(error)
        return failed
    finally:
        if held is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _start_worker(threads: int) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(130)

    # An interrupt from the keyboard reaches all processes; the first one decides what happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, stop)


def _summary(command: str, outcomes: Sequence[Done]) -> str:
    done = [outcome for outcome in outcomes if not outcome.error and not outcome.skipped]
    rates = [bits_per_pixel(o.after if command == "compress" else o.before, o.width, o.height) for o in done]
    cells = {
        "files": f"{len(done)}",
        "skipped": f"{sum(outcome.skipped for outcome in outcomes)}",
        "failed": f"{sum(outcome.error is not None for outcome in outcomes)}",
        "bytes before": f"{sum(outcome.before for outcome in done):,}",
        "bytes after": f"{sum(outcome.after for outcome in done):,}",
        "mean bpp": f"{sum(rates) / len(rates):.3f}" if rates else "–",
    }
    widths = [max(len(name), len(cell)) for name, cell in cells.items()]
    rows = (cells.keys(), cells.values())
    return "\n".join("  ".join(word.rjust(width) for word, width in zip(row, widths, strict=True)) for row in rows)
