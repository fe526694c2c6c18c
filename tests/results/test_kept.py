"""A study's results in one small file: the same tables, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from click.testing import Result

from mtlcore.errors import MtlError
from mtlcore.results import (
    Comparison,
    FailedCell,
    RunResult,
    Target,
    Variant,
    as_data,
    as_markdown,
    compare,
    find_definition,
    kept_results,
    read_kept,
)
from mtlcore.storage import StoredSearch, StoredTrial

METRICS = {"segmentation": {"miou": True, "miou/door": True}, "depth": {"abs_error": False}}


def run(variant: str, seed: int, tasks: tuple[str, ...] = ("segmentation", "depth")) -> RunResult:
    """A finished run whose values nobody could guess."""
    number = 1 + seed + len(variant)
    values = {
        task: {m: 0.1 * (place + 1) / number + 1e-7 / 3 for place, m in enumerate(METRICS[task])}
        for task in tasks
    }
    best = {task: {m: v * 0.9 for m, v in metrics.items()} for task, metrics in values.items()}
    curve = [
        {"split": "val", "task": "depth", "metric": "abs_error", "epoch": epoch, "step": epoch,
         "seconds": 2.0 * epoch, "value": 1 / (epoch + seed)}
        for epoch in (1, 2, 3)
    ]  # fmt: skip
    return RunResult(
        location=f"/elsewhere/study/cells/{variant}/seed-{seed}/{tasks[0]}",
        config={"seed": seed, "method": variant, "tasks": list(tasks)},
        summary={
            "final": {"val": values},
            "best": {"epoch": 2 + seed, "chosen_on": "val", "val": best},
            "averaged_over": 3,
            "higher_is_better": {task: METRICS[task] for task in tasks},
            "units": {"depth": "m"} if "depth" in tasks else {},
            "parameters": {"total": 100 * number},
            "seconds": 60.0 * number,
            "seconds_per_step": 0.01 * number,
            "stalled_seconds": 40.0 if (variant, seed) == ("own", 1) else 0.0,
            "peak_memory": 1e8 * number,
        },
        kept_records=tuple(curve) if "depth" in tasks else (),
    )


@pytest.fixture
def comparison() -> Comparison:
    """Of a variant with a model per task, one that lacks a seed, and one with NaN."""
    groups = (("segmentation",), ("depth",))
    nan = run("nan", 0)
    nan.summary["final"]["val"]["depth"]["abs_error"] = float("nan")
    failed = FailedCell(1, ("depth",), "/elsewhere/study/cells/lost/seed-1", "no disk", True)
    return Comparison(
        title="Kept, with a ü",
        variants=(
            Variant(
                name="own",
                runs={seed: tuple(run("own", seed, group) for group in groups) for seed in (0, 1)},
                groups=groups,
            ),
            Variant(name="lost", runs={0: (run("lost", 0),)}, failed=(failed,)),
            Variant(name="three", runs={seed: (run("three", seed),) for seed in (0, 1)}),
            Variant(name="nan", runs={0: (nan,)}),
        ),
        baseline="own",
        definition=find_definition("libmtl"),
        targets=(Target("depth", "abs_error", 0.4),),
        notes=("Two at a time.",),
        search=StoredSearch(
            objectives=("delta_m",), trials=(StoredTrial(name="lost", parameters={"lr": 0.1}),)
        ),
    )


@pytest.mark.parametrize("epoch", ["last", "best"])
def test_the_tables_are_the_same(comparison: Comparison, tmp_path: Path, epoch: str) -> None:
    file = tmp_path / "kept.json"
    file.write_text(kept_results(comparison), "utf-8")
    again, before = (attrs.evolve(c, epoch=epoch) for c in (compare([str(file)]), comparison))
    shown = as_markdown(before).replace("/elsewhere/study/cells/", "")
    assert as_markdown(again) == shown
    assert "epoch 3.0, 6.0 s" in shown
    assert "Processes stood still for 80 s in 2 runs" in shown
    assert "* lost, seed 1, depth: no disk (lost/seed-1)" in shown
    assert (again.search, again.failures) == (before.search, before.failures)


def test_nothing_of_this_machine_is_in_it_and_each_run_is_a_line(comparison: Comparison) -> None:
    text = kept_results(comparison)
    assert "/elsewhere" not in text
    assert sum('"seed": ' in line and '"last": ' in line for line in text.splitlines()) == 8


def test_it_is_compared_on_the_command_line(
    mtl: Callable[..., Result], comparison: Comparison, tmp_path: Path
) -> None:
    file = tmp_path / "kept.json"
    file.write_text(kept_results(comparison), "utf-8")
    result = mtl("compare", str(file), "--baseline", "three", "--json")
    assert result.exit_code == 0, result.output
    expected = as_data(attrs.evolve(comparison, baseline="three"))
    found = json.loads(result.stdout)
    assert found["baseline"] == "three"
    assert found["variants"][0]["mean_rank"] == expected["variants"][0]["mean_rank"]
    assert mtl("compare", str(file), str(file)).exit_code == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tree: tree.pop("variants"), "holds no kept results"),
        (lambda tree: tree.update(format=2), "of another version"),
        (lambda tree: tree.update(delta_m="mine"), "delta_m 'mine': unknown"),
        (lambda tree: tree["metrics"].pop("depth"), "its rows do not fit its metrics"),
        (lambda tree: tree["metrics"]["depth"].update(rmse=False), "its rows do not fit"),
        (lambda tree: tree.update(title=3), "title"),
    ],
)
def test_another_file_is_refused(
    comparison: Comparison, tmp_path: Path, change: Callable[[dict[str, object]], None], told: str
) -> None:
    file = tmp_path / "kept.json"
    tree = json.loads(kept_results(comparison))
    change(tree)
    file.write_text(json.dumps(tree))
    with pytest.raises(MtlError, match=told) as caught:
        read_kept(str(file))
    assert str(file) in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(MtlError, match="there is no such file"):
        compare([str(tmp_path / "none.json")])
