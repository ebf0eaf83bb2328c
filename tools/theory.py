"""Everything that docs/theory.md shows, made anew: its figures, its numbers, and the tables in its text.

    python -m tools.theory                                          with the models at hand: a few minutes
    python -m tools.theory --data PHOTOS --runs runs/short          also the short trainings of `tools.short_runs`: half an hour

Without --data, what the short trainings gave stays as it was measured last.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tools import densities, elbo, gdn, gradient_variance, noise_vs_rounding, rungs, sample, short_runs
from tools.readme import refreshed
from tools.rungs import RESULTS, ROOT

PAGE = ROOT / "docs" / "theory.md"
TOOLS = (noise_vs_rounding, densities, elbo, gradient_variance, sample, gdn)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, all but its first column set to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(part: float, whole: float) -> str:
    """By how much a part differs from the whole."""
    return signed(100 * (part / whole - 1))


def signed(value: float | None, digits: int = 1) -> str:
    """A percentage with its sign."""
    if value is None:
        return "no common range"
    return f"{round(value, digits) + 0.0:+.{digits}f} %".replace("-", "−")


def _rung(row: dict[str, Any]) -> str:
    return f"{row['lambda']:.3g}, `{row['model']}`"


def noise_table(result: dict[str, Any]) -> str:
    """Loss terms with noise and with rounding, means over the images."""
    rows = []
    for row in result["rows"]:
        m = row["mean"]
        rate = [f"{m['bpp_noise']:.3f}", f"{m['bpp_rounding']:.3f}", percent(m["bpp_noise"], m["bpp_rounding"])]
        error = [f"{m['mse_noise']:.1f}", f"{m['mse_rounding']:.1f}", percent(m["mse_noise"], m["mse_rounding"])]
        rows.append([_rung(row), *rate, f"{m['bpp_file']:.3f}", *error])
    return table(["λ, model", "bpp, noise", "bpp, rounding", "", "bpp, file", "MSE, noise", "MSE, rounding", ""], rows)


def densities_table(result: dict[str, Any]) -> str:
    """What the channels carry along λ."""
    rows = []
    for row in result["rows"]:
        widths = [f"{row['deviation_median']:.2f}", "–".join(f"{v:.2f}" for v in row["deviation_quartiles"])]
        channels = [f"{row['informative']} of {row['channels']}", str(sum(0.001 < bits < 0.1 for bits in row["bits_per_latent"]))]
        rows.append([_rung(row), f"{256 * row['bpp']:.0f}", *widths, f"{100 * row['zeros']:.0f} %", *channels])
    head = [
        "λ, model",
        "bits for 768 numbers",
        "median width",
        "quartiles",
        "zeros among all latents",
        "informative channels",
        "near the line",
    ]
    return table(head, rows)


def elbo_table(result: dict[str, Any]) -> str:
    """The parts of the bound, bits per pixel."""
    rows = []
    for row in result["rows"]:
        parts = [f"{row[key]:.3f}" for key in ("rate", "distortion_bits", "constant", "sampled")]
        difference = f"{1e3 * row['difference']:+.2f} ± {1e3 * row['standard_error']:.2f}".replace("-", "−")
        rows.append([_rung(row), f"{row['sigma']:.1f}", *parts, difference, f"{row['hard']:.3f}"])
    return table(["λ, model", "σ", "bpp", "λ·MSE", "(3/2) log₂ 2πσ²", "−ELBO, sampled", "less loss + constant, ×10⁻³", "hard ELBO"], rows)


def bits_back_table(result: dict[str, Any]) -> str:
    """Lattices of m points to a step."""
    keys = ("sent", "back", "net", "negative_elbo")
    rows = [[str(row["m"]), *(f"{row[key]:.3f}" for key in keys), f"{row['mse']:.1f}"] for row in result["bits_back"]]
    return table(["m", "sent, bpp", "given back, bpp", "net, bpp", "−ELBO, bpp", "MSE"], rows)


def gradient_table(result: dict[str, Any]) -> str:
    """Variance of one sample, and the samples that reach the accuracy of one reparametrised sample."""
    rows = []
    for name, value in result["variance"].items():
        ratio = value / result["variance"]["reparametrised"]
        rows.append([name, f"{value:.3g}", f"{ratio:,.0f}".replace(",", " ")])
    return table(["estimator", "variance of one sample", "over the reparametrised one"], rows)


def sample_table(result: dict[str, Any]) -> str:
    """Code lengths of the three pictures."""
    rows = [[row["title"], f"{row['bpp']:.3f}", f"{row['block_correlation']:.2f}"] for row in result["pictures"]]
    rows.append(["the prior's entropy", f"{result['prior_entropy_bpp']:.3f}", ""])
    return table(["latents", "bpp", "correlation of neighbouring blocks"], rows)


def gdn_table(result: dict[str, Any]) -> str:
    """Medians over channels and pairs."""
    names = {
        "kurtosis": "excess kurtosis",
        **{key: f"bits, {label}" for key, label in gdn.NAMES.items()},
        "correlation": "correlation of two channels",
    }
    rows = []
    for name, layer in result["layers"].items():
        for side in ("before", "after"):
            values = layer["median"][side]
            digits = [f"{round(values[key], 3) + 0.0:.{2 if key == 'kurtosis' else 3}f}" for key in names]  # no negative zero
            rows.append([f"{side} {name}", *digits])
    return table(["median", *names.values()], rows)


def vae_table(result: dict[str, Any]) -> str:
    """Both objectives at each λ."""
    rows = []
    for row in result["rows"]:
        for kind, label in short_runs.KINDS.items():
            m = row[kind]
            cells = [f"{m['bpp']:.3f}", f"{m['psnr']:.2f}", f"{m['negative_elbo']:.3f}", f"{m['informative']} of {m['channels']}"]
            cells.append(f"{m['width_spread']:.2f}" if kind == "vae" else "1")
            rows.append([f"{row['lambda']:g}, {label}", *cells])
    head = ["λ", "rate or KL(q‖p), bpp", "PSNR, dB", "−ELBO, bpp", "informative channels", "posterior widths, 90 % over 10 %"]
    equal = [signed(result[key]) for key in ("rate_at_equal_distortion_percent", "rate_against_rounded_percent")]
    summary = f"VAE at equal distortion: {equal[0]} bits against the codec with noise, {equal[1]} against the codec as it is used, rounded."
    return f"{table(head, rows)}\n\n{summary}"


def _at_least(anchor: dict[str, Any], row: dict[str, Any]) -> str:
    """What is known where a curve lies wholly below another: even its dearest point is not as good as the other's cheapest."""
    if max(row["psnr"]) >= min(anchor["psnr"]):
        return signed(None)
    return f"more than {signed(100 * (max(row['bpp']) / min(anchor['bpp']) - 1), 0)}"


def relu_table(result: dict[str, Any]) -> str:
    """Bits of ReLU against GDN's at equal PSNR."""
    rows, anchor = [], result["rows"][0]
    for row in result["rows"]:
        name = {"gdn": "GDN", "relu-equal-time": "ReLU, equal processor time"}.get(
            row["run"], row["run"].replace("relu-", "ReLU, Muon at ")
        )
        rate, gain = row["rate_at_equal_psnr_percent"], row["psnr_at_equal_rate_db"]
        costs = [_at_least(anchor, row) if rate is None else signed(rate)]
        costs += ["no common range" if gain is None else f"{gain:+.2f} dB".replace("-", "−")]
        rows.append([name, str(row["steps"]), *(["—", "—"] if row["run"] == "gdn" else costs)])
    return table(["network", "steps", "bits at equal PSNR", "PSNR at equal bits"], rows)


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "noise": ("noise_vs_rounding", noise_table),
    "densities": ("densities", densities_table),
    "elbo": ("elbo", elbo_table),
    "bits-back": ("elbo", bits_back_table),
    "gradient": ("gradient_variance", gradient_table),
    "sample": ("sample", sample_table),
    "gdn": ("gdn", gdn_table),
    "vae": ("vae", vae_table),
    "relu": ("relu", relu_table),
}
"""By the name of its marks on the page: the file of results that a table is made of, and how."""


def page(text: str, results: Path = RESULTS) -> str:
    """The page with its tables brought up to date."""
    for name, (file, make) in TABLES.items():
        text = refreshed(text, name, make(rungs.read_json(results, file)))
    return text


def main(argv: list[str] | None = None) -> int:
    """The command; returns the first exit status that is not 0."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.theory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", nargs="+", default=[], metavar="MODEL", help="names or files (default: all that ship, and data/models)")
    parser.add_argument("--data", type=Path, metavar="PHOTOS", help="photographs for the short trainings")
    parser.add_argument("--runs", type=Path, default=Path("runs/short"), metavar="DIR", help="folder for them (default: %(default)s)")
    parser.add_argument("--tables", action="store_true", help="measure nothing, only bring the tables of docs/theory.md up to date")
    arguments = parser.parse_args(argv)
    models = ["--model", *arguments.model] if arguments.model else []
    work = [] if arguments.tables else [(tool.main, models) for tool in TOOLS]
    if arguments.data and not arguments.tables:
        work.append((short_runs.main, ["--data", str(arguments.data), "--runs", str(arguments.runs)]))
    for tool, options in work:
        print(tool.__module__, file=sys.stderr)
        status = tool(options)
        if status:
            return status
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
