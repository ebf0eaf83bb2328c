"""A progress bar on standard error, where that is a terminal."""

from __future__ import annotations

import sys
import time


class Progress:
    """Called with what is done and how much there is; draws at most ten times a second, and leaves no trace."""

    def __init__(self, label: str, unit: str) -> None:
        self._label = label
        self._unit = unit
        self._shown = False
        self._began = self._last = time.monotonic()
        self._enabled = sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        """Draw."""
        now = time.monotonic()
        if not self._enabled or now - self._last < 0.1:
            return
        self._last = now
        filled = 24 * done // max(total, 1)
        left = (now - self._began) * (total - done) / max(done, 1)
        bar = "█" * filled + "·" * (24 - filled)
        print(f"\r\x1b[K{self._label} {bar} {done}/{total} {self._unit}, {left:.0f} s left", end="", file=sys.stderr, flush=True)
        self._shown = True

    def close(self) -> None:
        """Wipe the bar."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._shown = False
