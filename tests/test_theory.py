"""docs/theory.md shows the committed numbers, and what it claims follows from them."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tools import rungs, short_runs, theory

PAGE = theory.PAGE.read_text(encoding="utf-8")
MODELS = {row["model"] for row in rungs.read_json(theory.RESULTS, "elbo")["rows"]}


def result(name: str) -> dict[str, Any]:
    return rungs.read_json(theory.RESULTS, name)


def rows_of(name: str, model: str) -> list[dict[str, Any]]:
    """In rising order of λ."""
    return sorted((row for row in result(name)["rows"] if row["model"] == model), key=lambda row: row["lambda"])


@pytest.mark.parametrize("name", theory.TABLES)
def test_tables_on_the_page_are_the_committed_numbers(name: str) -> None:
    file, make = theory.TABLES[name]
    assert PAGE.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0].strip() == make(result(file)).strip()


def test_a_changed_number_changes_the_page(tmp_path: Path) -> None:
    for file in {file for file, _ in theory.TABLES.values()}:
        (tmp_path / f"{file}.json").write_bytes((theory.RESULTS / f"{file}.json").read_bytes())
    assert theory.page(PAGE, tmp_path) == PAGE
    changed = result("sample")
    changed["prior_entropy_bpp"] = 7.125
    rungs.write_json(changed, tmp_path, "sample")
    assert "| the prior's entropy | 7.125 |" in theory.page(PAGE, tmp_path) != PAGE


def test_pictures_and_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGE)
    assert len([link for link in links if link.endswith(".png")]) == 9
    for link in links:
        assert (theory.PAGE.parent / link).exists(), link
    for name in set(re.findall(r"`?python -m (tools\.\w+)", PAGE)):
        assert (theory.ROOT / name.replace(".", "/")).with_suffix(".py").exists(), name


# What the text says, section by section


def test_1_noise_overstates_the_rate_and_most_where_latents_round_to_zero() -> None:
    for row in result("noise_vs_rounding")["rows"]:
        mean = row["mean"]
        assert mean["bpp_noise"] > mean["bpp_rounding"]
        assert mean["bpp_rounding"] <= mean["bpp_file"] < 1.03 * mean["bpp_rounding"]
        soft, hard = (np.array(row[f"empirical_entropy_{kind}"]) for kind in ("noise", "rounding"))
        assert soft.sum() > hard.sum()
    for model in MODELS:
        means = [row["mean"] for row in rows_of("noise_vs_rounding", model)]
        if len(means) > 2:
            excess = [m["bpp_noise"] / m["bpp_rounding"] for m in means]
            assert excess == sorted(excess, reverse=True)
            damage = [m["mse_noise"] / m["mse_rounding"] for m in means]
            assert damage[0] > 1 and abs(damage[-1] - 1) < abs(damage[0] - 1)


def test_1_the_gap_opens_below_a_bit() -> None:
    row = next(row for row in result("noise_vs_rounding")["rows"] if "pixel_error_noise" in row)
    soft, hard = (np.array(row[f"bits_per_latent_{kind}"]) for kind in ("noise", "rounding"))
    below, above = (hard > 0.01) & (hard < 1), hard > 2
    assert np.median(soft[below] / hard[below]) > 1.05 > 1.03 > np.median(soft[above] / hard[above])
    silent = hard < 0.01
    if silent.any():
        assert np.median(np.array(row["pixel_error_noise"])[silent]) > 10 * np.median(np.array(row["pixel_error_rounding"])[silent])


def test_2_latents_narrow_as_lambda_falls() -> None:
    for row in result("densities")["rows"]:
        code = np.array(row["bits_per_latent"])
        assert row["mass_error"] < 1e-9 and row["channels"] == 192
        assert row["informative"] == (code > 0.01).sum()
    for model in MODELS:
        rows = rows_of("densities", model)
        for low, high in pairwise(rows):
            assert low["bpp"] < high["bpp"] and low["deviation_median"] < high["deviation_median"] and low["zeros"] > high["zeros"]


def test_3_the_loss_is_the_elbo_and_rounding_is_the_cheapest_grid() -> None:
    found = result("elbo")
    for row in found["rows"]:
        assert abs(row["difference"]) < 4 * row["standard_error"] < 0.01
        assert row["relative_difference_same_noise"] < 1e-5
        assert row["hard"] < row["sampled"]
    assert np.mean([abs(row["difference"]) < 2 * row["standard_error"] for row in found["rows"]]) > 0.7
    middling = [row for row in found["rows"] if 0.003 < row["lambda"] < 0.02]
    assert middling and all(row["mse"] < row["sigma"] ** 2 for row in middling)
    one, two, *_, finest = found["bits_back"]
    assert one["back"] == 0 and one["m"] == 1 and two["m"] == 2
    assert two["net"] == max(row["net"] for row in found["bits_back"]) and one["net"] == min(row["net"] for row in found["bits_back"])
    soft = next(row for row in found["rows"] if row["lambda"] == found["bits_back_lambda"])
    assert finest["net"] == pytest.approx(soft["rate"], rel=0.06)


def test_4_the_estimators_agree_and_their_variances_do_not() -> None:
    found = result("gradient_variance")
    assert (
        0.5 < found["agreement"]["mean_square_z"] < 1.6 and found["agreement"]["distance"] < 1.5 * found["agreement"]["expected_distance"]
    )
    variance = found["variance"]
    assert variance["score"] > 100 * variance["reparametrised"]
    assert variance["score with baseline"] < 0.1 * variance["score"]
    assert variance["score with baseline"] > 8 * variance["reparametrised"]
    for errors in found["error"].values():
        known = [(n, e) for n, e in zip(found["sizes"], errors, strict=True) if e is not None]
        slope = np.polyfit(np.log([n for n, _ in known]), np.log([e for _, e in known]), 1)[0]
        assert slope == pytest.approx(-0.5, abs=0.06)
    for row in found["uniform_noise"]:
        assert abs(row["reparametrised"] - row["ends"]) < 4 * row["standard_error"] < 0.2 * abs(row["ends"])
    subsets = found["by_number_of_noisy_latents"]
    assert subsets[-1]["score with baseline"] < max(row["score with baseline"] for row in subsets)


def test_5_a_draw_costs_what_a_photograph_costs() -> None:
    found = result("sample")
    photo, mixed, drawn = found["pictures"]
    assert drawn["bpp"] == pytest.approx(found["prior_entropy_bpp"], rel=0.02)
    assert 0.5 < drawn["bpp"] / photo["bpp"] < 2 and mixed["bpp"] == photo["bpp"]
    assert photo["block_correlation"] > 0.2 + max(mixed["block_correlation"], drawn["block_correlation"])


def test_6_the_bounds_are_near_and_rounding_decides() -> None:
    found = result("vae")
    for row in found["rows"]:
        codec, rounded, vae = (row[kind] for kind in short_runs.KINDS)
        assert abs(codec["negative_elbo"] - vae["negative_elbo"]) < 0.1
        assert rounded["negative_elbo"] < min(codec["negative_elbo"], vae["negative_elbo"])
        assert rounded["bpp"] < codec["bpp"] and abs(rounded["mse"] / codec["mse"] - 1) < 0.06
        assert 1 < vae["width_spread"] < 1.2
        assert all(m["informative"] == m["channels"] for m in (codec, vae))
    assert abs(found["rate_at_equal_distortion_percent"]) < 10 < found["rate_against_rounded_percent"]


def test_7_gdn_lightens_tails_and_leaves_most_of_the_dependence() -> None:
    layers = result("gdn")["layers"]
    left = {name: layer["median"]["after"]["kurtosis"] / layer["median"]["before"]["kurtosis"] for name, layer in layers.items()}
    assert left["gdn1"] < left["gdn2"]
    for layer in layers.values():
        before, after = layer["median"]["before"], layer["median"]["after"]
        assert after["kurtosis"] < before["kurtosis"]
        for key in ("space", "channels"):
            assert 0.7 * before[key] < after[key] < before[key]
            assert after[key] > 20 * abs(after["shuffled"])


def test_7_relu_costs_bits() -> None:
    found = {row["run"]: row for row in result("relu")["rows"]}
    equal = [found[f"relu-{lr:g}"]["psnr_at_equal_rate_db"] for lr in short_runs.RELU_RATES]
    best = found[f"relu-{result('relu')['best_learning_rate']:g}"]["psnr_at_equal_rate_db"]
    assert best == max(equal) < -0.3 and found["relu-equal-time"]["psnr_at_equal_rate_db"] < -0.3
    assert max(found["relu-equal-time"]["psnr"]) < min(found["gdn"]["psnr"])
    assert best > -3
    assert short_runs.RELU_RATES[0] < result("relu")["best_learning_rate"]  # not at the edge of what was tried
