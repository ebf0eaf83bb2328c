from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import SAMPLES
from PIL import Image

from train import data


def test_crops_do_not_depend_on_when_or_where_they_are_made() -> None:
    photographs = data.Photographs(data.find_photographs(SAMPLES))
    settings = {"seed": 3, "size": 4, "crop": 32, "latents": 5, "rates": 8}
    straight = list(data.batches(photographs, first=0, last=6, **settings))
    later = list(data.batches(photographs, first=4, last=6, **settings))
    for a, b in zip(straight[4:], later, strict=True):
        assert np.array_equal(a.crops, b.crops) and np.array_equal(a.noise, b.noise) and np.array_equal(a.position, b.position)
    halves = [next(data.batches(photographs, first=0, last=1, rank=rank, world=2, **settings)) for rank in (0, 1)]
    together = np.stack([halves[0].crops, halves[1].crops], axis=1).reshape(straight[0].crops.shape)
    np.testing.assert_array_equal(together, straight[0].crops)
    assert not np.array_equal(straight[0].crops, straight[1].crops)
    assert abs(straight[0].noise).max() <= 0.5 and straight[0].position.min() >= 0 and straight[0].position.max() <= 7


def test_small_photographs_are_mirrored_and_unreadable_ones_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    Image.new("RGB", (7, 90), "red").save(tmp_path / "deep" / "er" / "small.webp")
    Image.new("L", (1, 1), 9).save(tmp_path / "dot.png")
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    (tmp_path / "notes.txt").write_text("not an image by its name")
    paths = data.find_photographs(tmp_path)
    assert [p.name for p in paths] == ["broken.jpg", "small.webp", "dot.png"]
    photographs = data.Photographs(paths)
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert photographs.crop(48, rng).shape == (48, 48, 3)
    assert capsys.readouterr().err.count("skipped") == 1
    photographs = data.Photographs(paths[:1])
    with pytest.raises(data.DataError, match="no readable image"):
        photographs.crop(16, rng)


def test_a_list_file_names_photographs(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# two of them\na.png\n\nsub/b.png\n")
    assert data.find_photographs(tmp_path / "list.txt") == [tmp_path / "a.png", tmp_path / "sub" / "b.png"]


def test_the_held_out_split_follows_the_names() -> None:
    paths = [Path(f"folder/{i}.png") for i in range(100)]
    training, held_out = data.split(paths, 16)
    assert len(held_out) == 16 and not set(training) & set(held_out)
    assert data.split(paths[::-1], 16)[1] == held_out
    moved = [Path("elsewhere") / p.name for p in paths]
    assert [p.name for p in data.split(moved, 16)[1]] == [p.name for p in held_out]


def test_memory_is_bounded() -> None:
    photographs = data.Photographs(data.find_photographs(SAMPLES), budget=800_000)
    for i in range(4):
        photographs.get(i)
    assert 0 < sum(p.nbytes for p in photographs._cache.values()) <= 800_000
