"""The README's figures are those of the committed measurements, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

from tools.bdrate import MS_SSIM_ANCHORS, readme_table
from train.config import tomllib

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def marked(name: str) -> str:
    """What stands between <!-- name --> and <!-- /name -->."""
    return README.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0].strip()


def test_the_bd_rate_tables_are_the_measured_ones() -> None:
    folder = ROOT / "data" / "results" / "kodak"
    assert marked("bd-rate") == readme_table(folder).strip()
    assert marked("ms-ssim") == readme_table(folder, MS_SSIM_ANCHORS, "ms_ssim_db").strip() != marked("bd-rate")


def test_pictures_and_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert "data/results/kodak/rd.png" in links
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_modules_it_runs_exist() -> None:
    for name in set(re.findall(r"python -m (\w+(?:\.\w+)?)", README)) - {"venv", "pytest"}:
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), name


def test_only_the_codec_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["setuptools"]["packages"] == ["codec"]
    runtime = {re.split(r"[<>=!~ ;\[]", d)[0] for d in project["project"]["dependencies"]}
    assert runtime == {"constriction", "numpy", "pillow", "safetensors", "torch"}
