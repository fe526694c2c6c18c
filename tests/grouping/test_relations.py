"""How tasks relate, by files of runs that were written by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from mtlcore.errors import UsageError
from mtlcore.grouping import (
    Missing,
    Relations,
    as_data,
    as_text,
    best_grouping,
    check_relations,
    finished_runs,
    recorded_relations,
    transfer_gains,
    write_pairs,
)
from mtlcore.grouping.likeness import spearman
from mtlcore.grouping.writing import _rounds
from mtlcore.report import heat_map

_METRICS = {"a": ("accuracy", True), "b": ("error", False), "c": ("error", False)}


def _run(
    place: Path,
    metrics: dict[str, float],
    seed: int = 0,
    records: tuple[tuple[str, str, float | None], ...] = (),
) -> str:
    place.mkdir(parents=True)
    tasks = list(metrics)
    config = {
        "method": "equal", "seed": seed, "tasks": tasks, "data": {"name": "rooms"}, "model": {},
        "losses": {}, "metrics": {}, "optimizer": {}, "training": {},
    }  # fmt: skip
    val = {task: {_METRICS[task][0]: value, "loss": 1.0} for task, value in metrics.items()}
    summary = {
        "final": {"val": val}, "final_split": "val", "averaged_over": 1,
        "best": {"epoch": 1, "chosen_on": "val", "val": val},
        "higher_is_better": {
            task: {_METRICS[task][0]: _METRICS[task][1], "loss": False} for task in tasks
        },
        "units": {}, "constants": {}, "parameters": {"total": 1}, "epochs": 1, "steps": 1,
        "seconds": 1.0, "seconds_per_step": 1.0, "peak_memory": 1.0,
    }  # fmt: skip
    (place / "config.toml").write_text(tomli_w.dumps(config))
    (place / "summary.json").write_text(json.dumps(summary))
    lines = [
        {"step": number, "epoch": 1, "split": "train", "task": task, "metric": metric,
         "value": value, "seconds": 0.0}
        for number, (task, metric, value) in enumerate(records)
    ]  # fmt: skip
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(place)


def test_affinities_are_means_over_training_and_keep_their_direction(tmp_path: Path) -> None:
    runs = [
        _run(tmp_path / str(seed), {"a": 1.0, "b": 1.0}, seed, (
            ("a", "affinity/b", 0.25 + seed), ("a", "affinity/b", 0.75 + seed),
            ("b", "affinity/a", -1.0), ("b", "affinity/a", None), ("a", "loss", 5.0),
        ))
        for seed in range(2)
    ]  # fmt: skip
    relations = recorded_relations(finished_runs(runs), "affinity")
    assert relations.mean("a", "b") == 1.0
    assert relations.mean("b", "a") == -1.0
    low, high = relations.values["a", "b"].interval
    assert low < 0.5 and high > 1.5
    assert math.isnan(relations.mean("a", "a"))


def test_cosines_are_the_same_in_both_directions(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", {"a": 1.0, "b": 1.0}, records=(("a|b", "cosine", 0.5),))
    relations = recorded_relations(finished_runs([run]), "cosine")
    assert relations.mean("a", "b") == relations.mean("b", "a") == 0.5
    assert "no interval" in as_text(relations, None)


def test_a_run_that_recorded_nothing_is_told_how(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", {"a": 1.0, "b": 1.0})
    for metric in ("affinity", "cosine", "loss"):
        with pytest.raises(UsageError, match=rf"recorded no '{metric}' of pairs of tasks"):
            recorded_relations(finished_runs([run]), metric)


def test_runs_of_other_tasks_are_refused(tmp_path: Path) -> None:
    cosine = (("a|b", "cosine", 0.5),)
    runs = [
        _run(tmp_path / "one", {"a": 1.0, "b": 1.0}, records=cosine),
        _run(tmp_path / "two", {"a": 1.0, "c": 1.0}, records=cosine),
    ]
    with pytest.raises(UsageError, match="two: learnt a, c"):
        recorded_relations(finished_runs(runs), "cosine")


def test_gains_are_in_percent_and_towards_better(tmp_path: Path) -> None:
    runs = [
        _run(tmp_path / "a", {"a": 0.5}),
        _run(tmp_path / "b", {"b": 2.0}),
        _run(tmp_path / "ab", {"a": 0.6, "b": 2.5}),
    ]
    relations = transfer_gains(finished_runs(runs))
    assert relations.mean("b", "a") == pytest.approx(20)  # b makes a better by 20 %
    assert relations.mean("a", "b") == pytest.approx(-25)
    assert best_grouping(relations, 2).groups == (("a",), ("b",))


def test_seeds_are_compared_with_their_own(tmp_path: Path) -> None:
    runs = []
    for seed, (alone, together) in enumerate(((1.0, 2.0), (10.0, 20.0))):
        runs += [
            _run(tmp_path / f"a{seed}", {"a": alone}, seed),
            _run(tmp_path / f"b{seed}", {"b": 1.0}, seed),
            _run(tmp_path / f"ab{seed}", {"a": together, "b": 1.0}, seed),
        ]
    value = transfer_gains(finished_runs(runs)).values["b", "a"]
    assert dict(value.values) == {0: pytest.approx(100), 1: pytest.approx(100)}


def test_runs_that_are_not_there_are_listed(tmp_path: Path) -> None:
    runs = finished_runs([_run(tmp_path / "all", {"a": 1.0, "b": 1.0, "c": 1.0})])
    with pytest.raises(Missing) as missing:
        transfer_gains(runs)
    assert missing.value.groups == (
        ("a",), ("b",), ("c",), ("a", "b"), ("a", "c"), ("b", "c"),
    )  # fmt: skip


def test_two_runs_of_the_same_are_refused(tmp_path: Path) -> None:
    runs = [_run(tmp_path / "one", {"a": 1.0}), _run(tmp_path / "two", {"a": 1.0})]
    (tmp_path / "two" / "config.toml").write_text(
        (tmp_path / "two" / "config.toml").read_text().replace('"equal"', '"other"')
    )
    with pytest.raises(UsageError, match=r"two: learnt a with seed 0, as .*one did"):
        transfer_gains(finished_runs(runs))


@pytest.mark.parametrize("count", range(2, 8))
def test_every_pair_meets_once_and_every_task_is_in_every_round(count: int) -> None:
    tasks = "abcdefg"[:count]
    rounds = _rounds(tasks)
    pairs = [frozenset(g) for groups in rounds for g in groups if len(g) == 2]
    assert len(pairs) == len(set(pairs)) == count * (count - 1) // 2
    assert all(sorted(t for g in groups for t in g) == list(tasks) for groups in rounds)


def test_the_study_of_pairs_keeps_the_settings_of_the_run(tmp_path: Path) -> None:
    import tomllib

    (run,) = finished_runs([_run(tmp_path / "all", {"a": 1.0, "b": 1.0, "c": 1.0}, seed=5)])
    study = tomllib.loads(write_pairs(tmp_path / "out", run).read_text())
    assert study["seeds"] == [5, 6, 7]
    assert study["base"]["data"] == {"name": "rooms"}
    assert "seed" not in study["base"]
    assert len(study["variants"]) == 1 + 3


def test_ranks_are_correlated() -> None:
    one = np.array([1.0, 5.0, 2.0, 9.0])
    assert spearman(one, np.exp(one)) == pytest.approx(1)
    assert spearman(one, -one) == pytest.approx(-1)
    # Worked out by hand: ranks 1 2.5 2.5 4 and 1 2 3 4.
    assert spearman(np.array([1, 2, 2, 3]), np.array([1, 2, 3, 4])) == pytest.approx(0.948683)


def test_the_picture_holds_every_number_and_no_markup_of_others() -> None:
    picture = heat_map("<b>", ["a", "<script>"], {("a", "<script>"): 0.25, ("<script>", "a"): -1})
    assert "0.25" in picture and "\N{MINUS SIGN}1" in picture
    assert "<script>" not in picture and "<b>" not in picture


def test_data_are_the_text(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", {"a": 1.0, "b": 1.0}, records=(("a|b", "cosine", 0.5),))
    relations: Relations = recorded_relations(finished_runs([run]), "cosine")
    data = as_data(relations, best_grouping(relations, 2))
    assert data["groups"] == [["a", "b"]]
    assert data["score"] == 0.5
    assert {(p["source"], p["target"]) for p in data["pairs"]} == {("a", "b"), ("b", "a")}


def _measured(tmp_path: Path) -> list[str]:
    """Every group of a, b and c: a and b help each other, c harms both and gains."""
    alone = {"a": 1.0, "b": 1.0, "c": 1.0}
    better = {"a": 1.5, "b": 0.7}  # an accuracy, and an error
    runs = [_run(tmp_path / task, {task: value}) for task, value in alone.items()]
    runs.append(_run(tmp_path / "ab", better))
    runs.append(_run(tmp_path / "ac", {"a": 0.5, "c": 0.9}))
    runs.append(_run(tmp_path / "bc", {"b": 1.8, "c": 0.8}))
    runs.append(_run(tmp_path / "abc", {"a": 1.1, "b": 1.2, "c": 0.95}))
    return runs


def test_a_table_is_checked_against_runs_of_groups(tmp_path: Path) -> None:
    runs = finished_runs(_measured(tmp_path))
    relations = transfer_gains(runs)
    chosen = best_grouping(relations, 2)
    check = check_relations(relations, chosen, 2, runs)
    assert chosen.groups == (("a", "b"), ("c",))
    assert check.chosen == pytest.approx((50 + 30) / 3)
    assert check.best is not None and check.best.groups == chosen.groups
    assert check.best.score == pytest.approx(check.chosen)
    assert check.compared == 9 and 0.5 < check.correlation < 1
    text = as_text(relations, chosen, check)
    assert "rank correlation" in text and "better in the chosen groups than alone by 26.7 %" in text


def test_groups_that_nobody_trained_are_told(tmp_path: Path) -> None:
    runs = finished_runs(_measured(tmp_path))
    relations = transfer_gains(runs)
    chosen = best_grouping(relations, 1)
    without = [run for run in runs if len(run.tasks) < 3]
    check = check_relations(relations, chosen, 1, without)
    assert math.isnan(check.chosen) and check.best is None
    assert "Not all of the chosen groups were trained" in as_text(relations, chosen, check)
    with pytest.raises(UsageError, match="0 task"):
        check_relations(relations, chosen, 1, [run for run in runs if len(run.tasks) == 1])
