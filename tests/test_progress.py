from __future__ import annotations

import sys

import numpy as np
import pytest

from codec import container, decoder
from codec import picture as pictures
from codec.encoder import Encoder
from codec.model import Model
from codec.progress import Progress


def test_windows_are_counted(tiny_model: Model, photograph: np.ndarray) -> None:
    image, seen = np.tile(photograph, (1, 2, 1)), []
    data = Encoder(tiny_model, pictures.from_array(image), progress=lambda *now: seen.append(now)).encode(1)
    decoder.decode(tiny_model, container.read(data), progress=lambda *now: seen.append(now))
    assert seen == [(1, 2), (2, 2)] * 2


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_drawn_on_terminals_only_and_wiped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    now = iter(np.arange(0, 100, 0.05))
    monkeypatch.setattr("time.monotonic", lambda: float(next(now)))
    progress = Progress("photo.png", "windows")
    for done in range(1, 9):
        progress(done, 8)
    progress.close()
    drawn = capsys.readouterr().err
    if terminal:
        assert "photo.png" in drawn and "4/8 windows" in drawn and drawn.endswith("\r\x1b[K") and drawn.count("/8 windows") <= 4
    else:
        assert drawn == ""
