"""`python -m tools.readme`: bring the README's BD-rate tables up to date with data/results/kodak."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tools.bdrate import MS_SSIM_ANCHORS, readme_table

ROOT = Path(__file__).parent.parent


def refreshed(text: str, name: str, content: str) -> str:
    """The text with new content between <!-- name --> and <!-- /name -->."""
    return re.sub(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m: f"{m[1]}\n{content.strip()}\n\n{m[2]}", text, flags=re.DOTALL)


def main() -> int:
    """Rewrite README.md in place."""
    path = ROOT / "README.md"
    folder = ROOT / "data" / "results" / "kodak"
    text = refreshed(path.read_text(encoding="utf-8"), "bd-rate", readme_table(folder))
    path.write_text(refreshed(text, "ms-ssim", readme_table(folder, MS_SSIM_ANCHORS, "ms_ssim_db")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
