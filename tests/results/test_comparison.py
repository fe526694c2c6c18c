"""Comparisons of runs: variants, targets, tables and what is refused.

One file: all of it compares the runs that `write_run` leaves.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from click.testing import Result

from mtlcore.errors import MtlError, UsageError
from mtlcore.metrics import DELTA_M, delta_m
from mtlcore.results import (
    Comparison,
    Epoch,
    Reached,
    Target,
    as_csv,
    as_data,
    as_latex,
    as_markdown,
    compare,
    read_run,
    write_tables,
)

Command = Callable[..., Result]
Missing = dict[str, Mapping[str, float | None]]  # null stands for what is not finite

HIGHER_IS_BETTER = {
    "segmentation": {"miou": True, "accuracy": True},
    "depth": {"abs_error": False, "rel_error": False},
}

# Navon et al., ICML 2022, NYUv2: mIoU, pixel accuracy, absolute and relative error, mean and median
# angle, percent within 11.25, 22.5 and 30 degrees; then mean rank and delta_m as printed there.
NYUV2 = {
    "ls": ((39.29, 65.33, 0.5493, 0.2263, 28.15, 23.96, 22.09, 47.50, 61.08), 8.11, 5.59),
    "si": ((38.45, 64.27, 0.5354, 0.2201, 27.60, 23.37, 22.53, 48.57, 62.32), 7.11, 4.39),
    "rlw": ((37.17, 63.77, 0.5759, 0.2410, 28.27, 24.18, 22.26, 47.05, 60.62), 10.11, 7.78),
    "dwa": ((39.11, 65.31, 0.5510, 0.2285, 27.61, 23.18, 24.17, 50.18, 62.39), 6.88, 3.57),
    "uw": ((36.87, 63.17, 0.5446, 0.2260, 27.04, 22.61, 23.54, 49.05, 63.65), 6.44, 4.05),
    "mgda": ((30.47, 59.90, 0.6070, 0.2555, 24.88, 19.45, 29.18, 56.88, 69.36), 5.44, 1.38),
    "pcgrad": ((38.06, 64.64, 0.5550, 0.2325, 27.41, 22.80, 23.86, 49.83, 63.14), 6.88, 3.97),
    "graddrop": ((39.39, 65.12, 0.5455, 0.2279, 27.48, 22.96, 23.38, 49.44, 62.87), 6.44, 3.58),
    "cagrad": ((39.79, 65.49, 0.5486, 0.2250, 26.31, 21.58, 25.61, 52.36, 65.58), 3.77, 0.20),
    "imtl-g": ((39.35, 65.60, 0.5426, 0.2256, 26.02, 21.19, 26.20, 53.13, 66.24), 3.11, None),
    "nash-mtl": ((40.13, 65.93, 0.5261, 0.2171, 25.26, 20.08, 28.40, 55.47, 68.15), 1.55, -4.04),
}
NYUV2_ALONE = (38.30, 63.76, 0.6754, 0.2780, 25.01, 19.21, 30.14, 57.20, 69.15)
NYUV2_HIGHER_IS_BETTER = {
    "segmentation": {"miou": True, "accuracy": True},
    "depth": {"abs_error": False, "rel_error": False},
    "normals": {"mean": False, "median": False, "11": True, "22": True, "30": True},
}


def write_run(
    place: Path,
    metrics: Mapping[str, Mapping[str, float | None]],
    seed: int = 0,
    *,
    method: str = "equal",
    higher_is_better: Mapping[str, Mapping[str, bool]] = HIGHER_IS_BETTER,
    lr: float = 0.1,
    best: Mapping[str, Mapping[str, float]] | None = None,
    curve: tuple[tuple[int, float | None, float], ...] = (),
    costs: tuple[float, float] = (0.01, 1e8),
) -> str:
    """A finished run as `mtl run` leaves it: all that a comparison reads."""
    place.mkdir(parents=True)
    config = {
        "method": method, "seed": seed, "tasks": list(metrics),
        "data": {"name": "rooms", "workers": seed},
        "model": {"heads": {task: {"name": "conv"} for task in metrics}},
        "losses": {task: {"name": task} for task in metrics}, "metrics": {},
        "optimizer": {"lr": lr}, "training": {"threads": 1 + seed},
    }  # fmt: skip
    summary = {
        "final": {"val": {task: {**values, "loss": 1.0} for task, values in metrics.items()}},
        "final_split": "val",
        "averaged_over": 1,
        "best": {"epoch": 3 + seed, "chosen_on": "val", "val": best or metrics},
        "higher_is_better": {task: {**higher_is_better[task], "loss": False} for task in metrics},
        "units": {"depth": "m"},
        "constants": {},
        "parameters": {"total": 100},
        "epochs": 1,
        "steps": 1,
        "seconds": 1.0,
        "seconds_per_step": costs[0],
        "peak_memory": costs[1],
    }
    (place / "config.toml").write_text(tomli_w.dumps(config))
    (place / "summary.json").write_text(json.dumps(summary))
    rows = [
        {"step": epoch, "epoch": epoch, "split": split, "task": "depth", "metric": "abs_error",
         "value": value, "seconds": seconds}
        for epoch, value, seconds in curve for split in ("train", "val")
    ]  # fmt: skip
    # Nothing but the validation split counts.
    rows = [{**row, "value": 0.0} if row["split"] == "train" else row for row in rows]
    (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(place)


def both(miou: float, error: float) -> dict[str, dict[str, float]]:
    return {
        "segmentation": {"miou": miou, "accuracy": 0.5},
        "depth": {"abs_error": error, "rel_error": 0.1},
    }


@pytest.fixture
def three_seeds(tmp_path: Path) -> list[str]:
    """Two methods of three seeds: differences of miou 0.1, 0.2, 0.3 and of the error 0."""
    base = [0.50, 0.40, 0.45]
    return [
        *(write_run(tmp_path / f"a{s}", both(base[s], 1.0 + s), s) for s in range(3)),
        *(
            write_run(tmp_path / f"b{s}", both(base[s] + 0.1 * (s + 1), 1.0 + s), s, method="b")
            for s in range(3)
        ),
    ]


# delta_m and ranks


# delta_m


def nyuv2(row: tuple[float, ...]) -> dict[str, dict[str, float]]:
    values = iter(row)
    return {
        task: {m: next(values) for m in metrics} for task, metrics in NYUV2_HIGHER_IS_BETTER.items()
    }


@pytest.mark.parametrize("method", [name for name, row in NYUV2.items() if row[2] is not None])
def test_delta_m_is_the_published_one(method: str) -> None:
    row, _, expected = NYUV2[method]
    found = delta_m(nyuv2(row), nyuv2(NYUV2_ALONE), NYUV2_HIGHER_IS_BETTER, DELTA_M["cagrad"])
    assert found == pytest.approx(expected, abs=0.011)


def test_the_definitions_differ_in_what_they_average() -> None:
    values = {
        "segmentation": {"miou": 0.6, "accuracy": 0.45},
        "depth": {"abs_error": 0.9, "rel_error": 0.2},
    }
    gains = {"miou": 0.2, "accuracy": -0.1, "abs_error": 0.1, "rel_error": -1.0}
    expected = {
        "mtan": (gains["miou"] + gains["abs_error"]) / 2,
        "libmtl": ((0.2 - 0.1) / 2 + (0.1 - 1.0) / 2) / 2,
        "cagrad": -sum(gains.values()) / 4,
    }
    for name, value in expected.items():
        found = delta_m(values, both(0.5, 1.0), HIGHER_IS_BETTER, DELTA_M[name])
        assert found == pytest.approx(100 * value), name
    uneven = {"segmentation": HIGHER_IS_BETTER["segmentation"], "depth": {"abs_error": False}}
    pooled = delta_m(values, both(0.5, 1.0), uneven, DELTA_M["cagrad"])
    assert pooled == pytest.approx(-100 * (0.2 - 0.1 + 0.1) / 3)


def test_a_baseline_of_zero_has_no_relative_gain() -> None:
    assert math.isnan(delta_m(both(0.5, 1.0), both(0.0, 1.0), HIGHER_IS_BETTER, DELTA_M["mtan"]))


def test_mean_ranks_are_the_published_ones(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / name, nyuv2(row), method=name, higher_is_better=NYUV2_HIGHER_IS_BETTER)
        for name, (row, _, _) in NYUV2.items()
    ]
    comparison = compare(runs)
    for variant in comparison.variants:
        # To one rank in one of the nine metrics: the printed figures are rounded.
        assert comparison.mean_rank(variant) == pytest.approx(NYUV2[variant.name][1], abs=0.125)


# Comparisons


def test_seeds_of_one_method_are_one_variant(three_seeds: list[str]) -> None:
    comparison = compare(three_seeds)
    assert [variant.name for variant in comparison.variants] == ["equal", "b"]
    assert comparison.seeds == (0, 1, 2)
    assert comparison.columns == (
        ("segmentation", "miou"), ("segmentation", "accuracy"),
        ("depth", "abs_error"), ("depth", "rel_error"),
    )  # fmt: skip
    other = comparison.variant("b")
    spread = comparison.spread(other, "segmentation", "miou")
    assert spread is not None
    assert spread.mean == pytest.approx((0.6 + 0.6 + 0.75) / 3)
    difference = comparison.difference(other, "segmentation", "miou")
    assert difference is not None
    assert difference.mean == pytest.approx(0.2)
    assert difference.interval == pytest.approx((-0.048414, 0.448414), abs=1e-6)
    assert comparison.best("segmentation", "miou") == {"b"}
    # Equal on depth.
    assert comparison.best("depth", "abs_error") == frozenset()
    ranks = [comparison.mean_rank(variant) for variant in comparison.variants]
    assert ranks == [pytest.approx((2 + 1.5 * 3) / 4), pytest.approx((1 + 1.5 * 3) / 4)]
    assert other.best_epoch == 4


def test_the_mean_of_delta_m_is_that_of_the_means(three_seeds: list[str]) -> None:
    comparison = compare(three_seeds)
    mean = delta_m(both(0.65, 2.0), both(0.45, 2.0), HIGHER_IS_BETTER, DELTA_M["mtan"])
    found = comparison.delta_m(comparison.variant("b"))
    assert found is not None
    assert found.mean == pytest.approx(mean)
    base = comparison.delta_m(comparison.variant("equal"))
    assert base is not None
    assert base.mean == pytest.approx(0)
    # Its own seeds against their means, 0.45 and 2.
    gains = [(0.05 / 0.45 + 0.5) / 2, -0.05 / 0.45 / 2, -0.5 / 2]
    assert list(base.values.values()) == pytest.approx([100 * gain for gain in gains])
    difference = comparison.delta_m_difference(comparison.variant("b"))
    assert difference is not None
    assert list(difference.values.values()) == pytest.approx(
        [100 * gain / 0.45 / 2 for gain in (0.1, 0.2, 0.3)]
    )


def test_only_common_seeds_are_paired(three_seeds: list[str]) -> None:
    comparison = compare(three_seeds[:5])  # the other method lacks seed 2
    difference = comparison.difference(comparison.variant("b"), "segmentation", "miou")
    assert difference is not None
    assert list(difference.values) == [0, 1]
    assert "wide" in as_markdown(comparison)


def test_five_seeds_are_not_called_few(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"{method}{seed}", both(0.5 + seed / 100, 1.0), seed, method=method)
        for method in ("a", "b")
        for seed in range(5)
    ]
    assert "[95 % interval]" in as_markdown(compare(runs))
    assert "wide" not in as_markdown(compare(runs))
    assert "wide: few seeds" in as_markdown(compare(runs[:-1]))


def test_settings_make_variants_and_the_machine_does_not(tmp_path: Path) -> None:
    # The fixtures' runs differ in seed, workers and threads.
    runs = [write_run(tmp_path / f"{lr}", both(0.5, 1.0), lr=lr) for lr in (0.1, 0.2)]
    names = [variant.name for variant in compare(runs).variants]
    assert names == [f"equal ({run})" for run in runs]


def test_runs_of_one_task_each_are_the_single_task_models(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "multi", both(0.6, 1.2))]
    for task, metrics in both(0.5, 1.0).items():
        runs.append(write_run(tmp_path / task, {task: metrics}, costs=(0.02, 5e7)))
    comparison = compare(runs)
    alone = comparison.variants[1]
    assert (alone.name, alone.single_task, comparison.baseline) == (
        "single-task", True, "single-task",
    )  # fmt: skip
    assert alone.metrics(0, "last")["depth"]["abs_error"] == 1.0
    assert (alone.parameters, alone.seconds_per_step, alone.peak_memory) == (200, 0.04, 5e7)
    found = comparison.delta_m(comparison.variants[0])
    assert found is not None
    assert found.mean == pytest.approx(100 * (0.2 - 0.2) / 2)


def test_a_network_per_group_of_tasks_is_one_variant(tmp_path: Path) -> None:
    normals = {"normals": {"mean": 20.0}}
    higher = {**HIGHER_IS_BETTER, "normals": {"mean": False}}
    cells = [("all", None, both(0.6, 1.2) | normals)]
    cells += [("split", tuple(x), x) for x in (both(0.5, 1.0), normals)]
    listed = []
    for variant, group, metrics in cells:
        location = "+".join(group or ("all",))
        write_run(tmp_path / location, metrics, costs=(0.02, 5e7), higher_is_better=higher)
        listed.append({"variant": variant, "seed": 0, "group": group, "location": location,
                       "status": "finished", "reason": None})  # fmt: skip
    lost = {"variant": "split", "seed": 1, "group": ["normals"], "location": "lost",
            "status": "failed", "reason": "ran out of luck"}  # fmt: skip
    study = {"name": "Groups", "baseline": "all", "delta_m": "mtan", "epoch": "last",
             "targets": [], "notes": [], "threads": 1, "cells": [*listed, lost]}  # fmt: skip
    (tmp_path / "study.json").write_text(json.dumps(study))
    comparison = compare([str(tmp_path)])
    _, split = comparison.variants
    assert split.groups == (("segmentation", "depth"), ("normals",))
    assert not split.single_task
    assert {*split.metrics(0, "last")} == {"segmentation", "depth", "normals"}
    assert (split.parameters, split.seconds_per_step, split.peak_memory) == (200, 0.04, 5e7)
    found = comparison.delta_m(split)
    assert found is not None
    assert found.mean == pytest.approx(100 * (0.2 / 1.2 - 0.1 / 0.6) / 3)
    text = as_markdown(comparison)
    assert "One model per group of tasks (segmentation, depth | normals): its parameters" in text
    assert f"* split, seed 1, normals: ran out of luck ({tmp_path}/lost)" in text
    data = as_data(comparison)["variants"][1]
    assert (data["single_task"], data["groups"]) == (False, split.groups)


def test_a_variant_may_learn_more_tasks_than_the_baseline(tmp_path: Path) -> None:
    """delta_m and ranks are over the baseline's tasks; a variant that lacks one has neither."""
    normals = {"normals": {"mean": 20.0}}
    higher = {**HIGHER_IS_BETTER, "normals": {"mean": False}}
    cells = {"base": both(0.5, 1.0), "more": both(0.6, 0.8) | normals,
             "less": {"segmentation": both(0.9, 1.0)["segmentation"]} | normals}  # fmt: skip
    runs = [
        write_run(tmp_path / name, metrics, method=name, higher_is_better=higher)
        for name, metrics in cells.items()
    ]
    comparison = compare(runs, baseline="base")
    _, more, less = (comparison.variant(name) for name in cells)
    found = comparison.delta_m(more)
    assert found is not None
    assert found.mean == pytest.approx(100 * (0.1 / 0.5 + 0.2 / 1.0) / 2)
    assert comparison.mean_rank(more) == 1.25  # one metric is equal
    assert comparison.delta_m(less) is None and comparison.mean_rank(less) is None
    assert "are over the tasks of base (segmentation, depth)" in as_markdown(comparison)
    assert "are over the tasks of" not in as_markdown(compare(runs, baseline="more"))


def test_the_best_epoch_can_be_compared_instead(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", both(0.5, 1.0), best=both(0.7, 0.9))
    expected: dict[Epoch, float] = {"last": 0.5, "best": 0.7}
    for epoch, value in expected.items():
        comparison = compare([run], epoch=epoch)
        spread = comparison.spread(comparison.variants[0], "segmentation", "miou")
        assert spread is not None
        assert spread.mean == value
        assert ("no split chose" in as_markdown(comparison)) == (epoch == "last")


def test_nan_is_shown_and_ranks_last(tmp_path: Path) -> None:
    broken: Missing = {**both(1, 1.0), "segmentation": {"miou": None, "accuracy": 0.5}}
    runs = [
        write_run(tmp_path / "good", both(0.5, 1.0), method="good"),
        write_run(tmp_path / "broken", broken, method="broken"),
    ]
    comparison = compare(runs)
    spread = comparison.spread(comparison.variants[1], "segmentation", "miou")
    assert spread is not None
    assert math.isnan(spread.mean)
    assert comparison.best("segmentation", "miou") == frozenset()
    assert comparison.mean_rank(comparison.variants[1]) == pytest.approx((2 + 1.5 * 3) / 4)
    assert row_of(as_markdown(comparison), "segmentation", "broken")[1] == "NaN"
    write_tables(comparison, tmp_path)
    data = json.loads((tmp_path / "results.json").read_text())
    assert data["variants"][1]["metrics"]["segmentation"]["miou"]["mean"] is None


def test_two_seeds_with_nan_are_not_averaged_away(tmp_path: Path) -> None:
    bad: Missing = {**both(1, 1.0), "segmentation": {"miou": None, "accuracy": 0.5}}
    runs = [write_run(tmp_path / "0", both(0.5, 1.0)), write_run(tmp_path / "1", bad, 1)]
    assert row_of(as_markdown(compare(runs)), "segmentation", "equal")[1] == "NaN"


# Targets


def test_a_target_is_first_reached(tmp_path: Path) -> None:
    curve = ((1, None, 2.0), (2, 0.9, 4.0), (4, 0.5, 8.0), (6, 0.7, 12.0), (8, 0.4, 16.0))
    run = read_run(write_run(tmp_path / "run", both(0.5, 0.4), curve=curve))
    assert run.reached(Target("depth", "abs_error", 0.5)) == Reached(4, 8.0)
    assert run.reached(Target("depth", "abs_error", 0.45)) == Reached(8, 16.0)
    assert run.reached(Target("depth", "abs_error", 0.1)) is None


def test_a_target_where_higher_is_better(tmp_path: Path) -> None:
    curve = ((1, 0.9, 2.0), (2, 0.95, 4.0))
    higher_is_better = {**HIGHER_IS_BETTER, "depth": {"abs_error": True, "rel_error": False}}
    run = write_run(tmp_path / "run", both(0.5, 1), curve=curve, higher_is_better=higher_is_better)
    assert read_run(run).reached(Target("depth", "abs_error", 0.92)) == Reached(2, 4.0)


def test_targets_stand_in_every_table(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"{s}", both(0.5, 1.0), s, curve=((2 + 2 * s, 0.5 + s / 10, 3.0 + s),))
        for s in range(3)
    ]
    targets = [Target.parse(text) for text in ("depth.abs_error=0.6", "depth.abs_error=0.1")]
    comparison = compare(runs, targets=targets)
    row = row_of(as_markdown(comparison), "First reached", "equal")
    assert row[1:] == ["epoch 3.0, 3.5 s (2 of 3 seeds)", "never"]
    lines = {line["metric"]: line for line in csv.DictReader(io.StringIO(as_csv(comparison)))}
    assert lines["epoch_to:abs_error=0.6"]["mean"] == "3.0"
    assert lines["seconds_to:abs_error=0.1"]["mean"] == ""
    reached = as_data(comparison)["variants"][0]["targets"]
    assert reached["depth.abs_error=0.6"]["1"] == {"epoch": 4, "seconds": 4.0}
    assert reached["depth.abs_error=0.6"]["2"] is None


@pytest.mark.parametrize("text", ["depth=0.5", "depth.abs_error", "depth.abs_error=low", ".x=1"])
def test_a_target_is_written_so(text: str) -> None:
    with pytest.raises(UsageError, match=r"task\.metric=value"):
        Target.parse(text)


# Tables


def sections(markdown: str) -> dict[str, list[list[str]]]:
    """Heading -> rows of cells."""
    found: dict[str, list[list[str]]] = {}
    for part in markdown.split("\n## ")[1:]:
        title, _, body = part.partition("\n")
        lines = [line for line in body.splitlines() if line.startswith("| ")]
        found[title] = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return found


def row_of(markdown: str, section: str, variant: str) -> list[str]:
    return next(row for row in sections(markdown)[section] if row[0] == variant)


def test_the_markdown_says_it_all(three_seeds: list[str]) -> None:
    text = as_markdown(compare(three_seeds))
    found = sections(text)
    assert found["segmentation"][0] == ["variant", "miou ↑", "accuracy ↑"]
    assert found["depth (m)"][0] == ["variant", "abs_error ↓", "rel_error ↓"]
    assert row_of(text, "segmentation", "b")[1] == "**0.6500 ± 0.0866**"
    assert row_of(text, "segmentation", "equal")[1] == "0.4500 ± 0.0500"
    title = "segmentation: difference from equal [95 % interval, wide: few seeds]"
    assert row_of(text, title, "b")[1] == "+0.2000 [-0.0484, +0.4484]"
    overview = row_of(text, "All tasks", "b")
    assert overview[1].startswith("**22.22 ±")
    assert overview[3:] == ["100", "10.0", "100", "4.0", "3"]
    assert row_of(text, "All tasks", "equal (baseline)")[-1] == "3"
    assert "positive is better" in text
    assert "3 seeds (0, 1, 2)" in text
    assert "best mean rank of the tasks' first metrics on val" in text
    widths = {len(line) for line in text.split("## segmentation\n")[1].splitlines()[1:4]}
    assert len(widths) == 1, "columns are aligned"


def test_the_sign_convention_is_printed(three_seeds: list[str]) -> None:
    text = as_markdown(compare(three_seeds, definition="cagrad"))
    assert "Δm % ↓" in text
    assert "negative is better" in text


def test_the_latex_is_balanced_and_escaped(three_seeds: list[str]) -> None:
    text = as_latex(compare(three_seeds))
    assert r"\textbf{0.6500 $\pm$ 0.0866}" in text
    assert r"abs\_error $\downarrow$" in text
    for line in text.splitlines():
        if line.startswith("\\begin{tabular}"):
            columns = len(line.rpartition("{")[2].rstrip("}"))
        elif line.endswith(r"\\"):
            assert line.count(" & ") == columns - 1
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 6


def test_the_csv_has_full_precision(three_seeds: list[str]) -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv(compare(three_seeds)))))
    line = next(x for x in lines if (x["variant"], x["metric"]) == ("b", "miou"))
    assert float(line["mean"]) == pytest.approx(0.65, rel=1e-12)
    assert (line["n"], line["best"], line["baseline"]) == ("3", "True", "equal")
    assert float(line["low"]) == pytest.approx(0.2 - 4.30265272991 * 0.1 / math.sqrt(3), rel=1e-9)


# What is refused, and the command


def test_the_command_prints_the_same(mtl: Command, three_seeds: list[str]) -> None:
    result = mtl("compare", *three_seeds)
    assert result.exit_code == 0, result.output
    assert result.stdout == as_markdown(compare(three_seeds))


def test_the_command_prints_json(mtl: Command, three_seeds: list[str]) -> None:
    arguments = ["--baseline", "b", "--delta-m", "libmtl", "--epoch", "best", "--json"]
    result = mtl("compare", *three_seeds, *arguments, "--target", "depth.abs_error=0.5")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert (data["baseline"], data["delta_m"]["name"], data["epoch"]) == ("b", "libmtl", "best")
    assert data["variants"][0]["targets"] == {"depth.abs_error=0.5": dict.fromkeys("012")}


def test_an_unfinished_run_is_refused_with_its_reason(tmp_path: Path) -> None:
    place = Path(write_run(tmp_path / "run", both(0.5, 1.0)))
    (place / "summary.json").unlink()
    (place / "run.json").write_text(json.dumps({"status": "failed", "reason": "no more disk"}))
    with pytest.raises(UsageError, match=r"not finished \(failed: no more disk\)"):
        compare([str(place)])
    with pytest.raises(UsageError, match="is neither a run"):
        compare([str(tmp_path / "nothing")])


def test_damage_is_named(tmp_path: Path) -> None:
    place = Path(write_run(tmp_path / "run", both(0.5, 1.0)))
    (place / "metrics.jsonl").write_text('{"epoch": 1}\n{"epo')
    with pytest.raises(MtlError, match=r"metrics\.jsonl: not JSON lines"):
        _ = read_run(str(place)).records
    (place / "summary.json").write_text("{")
    with pytest.raises(MtlError, match=r"summary\.json: not JSON"):
        read_run(str(place))


def test_a_run_counts_once(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, both(0.5, 1.0)) for name in ("one", "two")]
    with pytest.raises(UsageError, match="the same run with the same seed"):
        compare(runs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"baseline": "eqal"}, r"no such variant; did you mean 'equal'"),
        ({"definition": "mtam"}, r"unknown; did you mean 'mtan'"),
        ({"targets": [Target("depth", "abs_eror", 1.0)]}, r"did you mean 'depth\.abs_error'"),
    ],
)
def test_names_that_do_not_exist(
    three_seeds: list[str], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        compare(three_seeds, **arguments)


def test_runs_are_read_from_urls(tmp_path: Path) -> None:
    import fsspec

    place = Path(write_run(tmp_path / "run", both(0.5, 1.0)))
    for file in place.iterdir():
        with fsspec.open(f"memory://compared/{file.name}", "wb") as target:
            target.write(file.read_bytes())
    comparison: Comparison = compare(["memory://compared"])
    assert comparison.variants[0].metrics(0, "last")["depth"]["abs_error"] == 1.0
