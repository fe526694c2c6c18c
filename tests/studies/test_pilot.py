"""What a study says before it runs: what its seeds detect and how long it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from click.testing import Result

from mtlcore.errors import ConfigError
from mtlcore.metrics import DELTA_M
from mtlcore.results import Comparison, RunResult, Variant, compare, detectable, kept_results
from mtlcore.studies import read_study
from mtlcore.studies.pilot import announce

STUDY = """
name = "Tiny"
seeds = [3, 4, 5, 6, 7]
delta_m = "libmtl"
pilot = "PILOT"

[base]
tasks = ["depth"]
data = {train = 4, val = 2, size = [32, 32], workers = 0}
training = {epochs = 1, batch_size = 2, threads = 1}
model.backbone = {name = "unet", width = 0.03125}

[variants.equal]
[variants.other]
optimizer.lr = 1e-4
"""


def run(variant: str, seed: int, error: float) -> RunResult:
    metrics = {"depth": {"abs_error": error}}
    return RunResult(
        location=f"out/{variant}/{seed}",
        config={"seed": seed, "method": variant, "tasks": ["depth"]},
        summary={
            "final": {"val": metrics}, "best": {"epoch": 1, "chosen_on": "val", "val": metrics},
            "averaged_over": 1, "higher_is_better": {"depth": {"abs_error": False}}, "units": {},
            "parameters": {"total": 3}, "seconds": 90.0,
        },
        kept_records=(),
    )  # fmt: skip


def pilot(**errors: list[float]) -> Comparison:
    """Variants with the errors of their seeds, the first the baseline."""
    return Comparison(
        title="Pilot",
        variants=tuple(
            Variant(name=name, runs={s: (run(name, s, error),) for s, error in enumerate(values)})
            for name, values in errors.items()
        ),
        baseline=next(iter(errors)),
        definition=DELTA_M["mtan"],
    )


def study_with(folder: Path, comparison: Comparison | None) -> str:
    file, kept = folder / "study.toml", folder / "pilot.json"
    if comparison is not None:
        kept.write_text(kept_results(comparison))
    file.write_text(STUDY.replace("PILOT", str(kept)))
    return str(file)


def test_it_says_what_it_detects_and_how_long_it_takes(tmp_path: Path) -> None:
    errors = pilot(first=[1.0, 1.1, 0.9], equal=[1.2, 1.0, 1.1], other=[1.0, 1.0, 1.0])
    told: list[str] = []
    study, found = announce(read_study(study_with(tmp_path, errors)), told.append)
    assert found is not None
    # The study has a variant "equal", its baseline; so has the pilot.
    assert found.comparison.baseline == "equal"
    assert found.comparison.definition.name == "libmtl"
    expected = detectable(attrs.evolve(errors, baseline="equal"), 5)
    assert expected is not None
    # The median of the deviations of first - equal and of other - equal, times 3.761 / sqrt(5).
    assert expected.metrics["depth", "abs_error"] == pytest.approx(
        3.76106 / 5**0.5 * 0.136603, rel=1e-4
    )
    assert told == [
        "5 seeds find these true differences in four of five such studies, by the spread of "
        f"{tmp_path}/pilot.json: 21 % of Δm, 0.23 of depth.abs_error."
    ]
    assert study.notes == (f"Before it ran: {told[0]}",)
    assert "10 cells, 2 at a time: about 0:07:30" in found.duration(10, 2)
    assert "1 cells, 2 at a time: about 0:01:30" in found.duration(1, 2)


def test_it_speaks_of_its_own_tasks_only(tmp_path: Path) -> None:
    errors = pilot(first=[1.0, 1.1, 0.9], equal=[1.2, 1.0, 1.1])
    told: list[str] = []
    file = Path(study_with(tmp_path, errors))
    text = file.read_text()
    file.write_text(text.replace('tasks = ["depth"]', 'tasks = ["depth", "normals"]'))
    announce(read_study(str(file)), told.append)
    assert told[0].endswith("pilot.json: 0.29 of depth.abs_error.")  # and nothing of delta_m
    file.write_text(text.replace('tasks = ["depth"]', 'tasks = ["normals"]'))
    announce(read_study(str(file)), told.append)
    assert "two variants of these tasks" in told[1]


@pytest.mark.parametrize(
    "errors",
    [
        pytest.param({"equal": [1.0], "other": [2.0]}, id="one seed"),
        pytest.param({"equal": [1.0, 2.0]}, id="one variant"),
    ],
)
def test_a_pilot_without_spread_says_nothing_and_that_is_told(
    tmp_path: Path, errors: dict[str, list[float]]
) -> None:
    told: list[str] = []
    announce(read_study(study_with(tmp_path, pilot(**errors))), told.append)
    assert "does not say what difference 5 seeds detect" in told[0]


def test_without_a_pilot_that_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    file = Path(study_with(tmp_path, None))
    file.write_text(file.read_text().replace("pilot =", "#"))
    study, found = announce(read_study(str(file)), told.append)
    assert (found, study.notes) == (None, ())
    assert "names no pilot" in told[0]


def test_a_pilot_that_is_not_there_is_refused_before_anything_runs(
    mtl: Callable[..., Result], tmp_path: Path
) -> None:
    file = study_with(tmp_path, None)
    with pytest.raises(ConfigError, match=r"study\.toml: pilot: .*pilot\.json: there is no such"):
        announce(read_study(file), print)
    result = mtl("study", file, "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_study_is_the_pilot_of_the_next(mtl: Callable[..., Result], tmp_path: Path) -> None:
    file = study_with(tmp_path, None)
    text = Path(file).read_text()
    Path(file).write_text(text.replace("pilot =", "#").replace("5, 6, 7", ""))
    assert mtl("study", file, "--out", str(tmp_path / "small")).exit_code == 0
    Path(file).write_text(text.replace(str(tmp_path / "pilot.json"), str(tmp_path / "small")))
    result = mtl("study", file, "--out", str(tmp_path / "out"), "--jobs", "2")
    assert result.exit_code == 0, result.output
    first, second = result.stdout.splitlines()[:2]
    assert first.startswith("5 seeds find these true differences in four of five such studies")
    assert second.startswith("10 cells, 2 at a time: about 0:0")
    table = (tmp_path / "out/table.md").read_text()
    assert f"* Before it ran: {first}" in table
    assert "by the spread seen here" in table
    assert compare([str(tmp_path / "out/values.json")]).title == "Tiny"
