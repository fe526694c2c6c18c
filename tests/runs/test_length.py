"""A finished run that is given more epochs: the run that had them from the start, or refused."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from mtlcore.standard.mlp import MLP
from mtlcore.storage import flatten, load_checkpoint, save_checkpoint

Command = Callable[..., Result]

TINY = [
    "--set=data.name=tabular",
    "--set=data.file=rows.csv",
    "--set=data.targets.kind={kind='classification', column='kind', classes=['a', 'b']}",
    "--set=data.targets.size={kind='regression', column='size'}",
    "--set=data.workers=0",
    "--set=model.backbone={name='mlp', inputs=2, hidden=[8]}",
    "--set=model.head.name=linear",
    "--set=training.batch_size=4",
    "--set=training.threads=1",
    "--set=balancer.name=dwa",
]
EVERY = "--set=training.evaluate_every=1"
CONSTANT = "--set=optimizer.schedule.name=constant"

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A setting: the folder of ten rows, of which eight are trained on, two steps an epoch."""
    folder = tmp_path_factory.mktemp("table")
    rows = [f"{n},{n * n % 7},{'ab'[n % 3 == 0]},{n * 10}" for n in range(10)]
    (folder / "rows.csv").write_text("\n".join(["x,y,kind,size", *rows]))
    return f"--set=data.root={folder}"


@pytest.fixture
def trained(mtl: Command, table: str, tmp_path: Path) -> Callable[..., Path]:
    """Trains a run of some epochs, with more settings."""

    def train(name: str, epochs: int, *settings: str) -> Path:
        out, sets = tmp_path / name, [f"--set=training.epochs={epochs}", *settings]
        result = mtl("run", *TINY, table, *sets, "--out", str(out))
        assert result.exit_code == 0, result.output
        return out

    return train


def longer(mtl: Command, run: Path, setting: str) -> Result:
    return mtl("run", "--resume", "--out", str(run), f"--set={setting}")


def assert_same(one: Path, other: Path) -> None:
    """The last checkpoints hold the same, but for the time that the runs took."""
    last = "checkpoints/last.safetensors"
    first, second = (flatten(load_checkpoint(run / last)) for run in (one, other))
    assert first.keys() == second.keys()
    for path, value in first.items():
        if "seconds" not in path and path not in TIMES:
            assert equal(value, second[path]), path


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other or (one != one and other != other))


TIMES = {"metrics_length", "progress.peak_memory", "progress.step_times"}


def lines(run: Path) -> list[dict[str, Any]]:
    read = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: v for key, v in line.items() if key != "seconds"} for line in read]


@pytest.mark.parametrize("setting", ["training.epochs=4", "training.steps=8"])
def test_it_is_bit_for_bit_the_run_that_was_longer(
    mtl: Command, trained: Callable[..., Path], setting: str
) -> None:
    long, short = trained("long", 4, CONSTANT, EVERY), trained("short", 2, CONSTANT, EVERY)
    result = longer(mtl, short, setting)
    assert result.exit_code == 0, result.output
    assert "goes on from epoch 2 to 4" in " ".join(result.output.split())
    if setting == "training.epochs=4":
        assert_same(short, long)
        told, expected = ((r / "config.toml").read_text() for r in (short, long))
        assert tomllib.loads(told) == tomllib.loads(expected)
    assert lines(short) == lines(long)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (short, long)]
    for timed in ("seconds", "seconds_per_step", "peak_memory"):
        for summary in summaries:
            summary.pop(timed)
    assert summaries[0] == summaries[1]
    again = mtl("run", "--resume", "--out", str(short))
    assert (again.exit_code, "nothing to do" in again.output) == (0, True)


def test_a_checkpoint_that_knows_the_sum_of_its_times_goes_on(
    mtl: Command, trained: Callable[..., Path]
) -> None:
    """As versions wrote it that told means of the steps' times."""
    run = trained("run", 1)
    tree = load_checkpoint(run / "checkpoints/last.safetensors")
    del tree["progress"]["step_times"]
    tree["progress"] |= {"step_seconds": 1.0, "timed_steps": 5}
    save_checkpoint(run / "checkpoints/last.safetensors", tree)
    assert longer(mtl, run, "training.epochs=3").exit_code == 0
    summary = json.loads((run / "summary.json").read_text())
    assert 0 < summary["seconds_per_step"] < 1
    assert summary["stalled_seconds"] == 0


def test_a_run_that_is_longer_can_grow_again(mtl: Command, trained: Callable[..., Path]) -> None:
    run, long = trained("run", 1, CONSTANT, EVERY), trained("long", 3, CONSTANT, EVERY)
    for epochs in (2, 3):
        assert longer(mtl, run, f"training.epochs={epochs}").exit_code == 0
    assert_same(run, long)


def test_evaluations_at_other_epochs_are_told_and_nothing_else_differs(
    mtl: Command, trained: Callable[..., Path]
) -> None:
    """By default a run of 10 epochs is evaluated after each, one of 12 after every second."""
    short, long = trained("short", 10, CONSTANT), trained("long", 12, CONSTANT)
    result = longer(mtl, short, "training.epochs=12")
    assert result.exit_code == 0, result.output
    told = " ".join(result.output.split())
    assert "it would not have been evaluated after epoch 1, 3, 5, 7, 9" in told
    first, second = (load_checkpoint(run / "checkpoints/last.safetensors") for run in (short, long))
    for name, value in flatten(first["learner"]).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, flatten(second["learner"])[name]), name


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["optimizer.schedule.name=cosine"], "optimizer.schedule has followed how much"),
        (["optimizer.schedule.name=poly"], "optimizer.schedule has followed how much"),
        (["optimizer.schedule.warmup=0.5"], "optimizer.schedule has followed how much"),
        (
            ["optimizer.schedule.name=step", "optimizer.schedule.at=[0.5]"],
            "optimizer.schedule: 0.5 of the run came at step 2, and would come later",
        ),
        (
            ["model.freeze=['backbone']", "training.freeze_until=0.4"],
            "training.freeze_until: 0.4 of the run came at step 2, and would come at step 3",
        ),
        (
            ["training.evaluate_every=2", "optimizer.schedule.name=plateau"],
            "optimizer.schedule learns from evaluations, and it would not have been evaluated "
            "after epoch 2 and it would have been evaluated after epoch 1",
        ),
    ],
)
def test_what_would_be_different_is_said_and_nothing_changed(
    mtl: Command,
    trained: Callable[..., Path],
    settings: list[str],
    told: str,
    files: Callable[[Path], dict[Path, tuple[bytes, int]]],
) -> None:
    sets = [f"--set={setting}" for setting in settings]
    name = "schedule.name" in " ".join(settings)
    run = trained("run", 2, *([] if name else [CONSTANT]), *sets)
    before = files(run)
    result = longer(mtl, run, f"training.epochs={4 if told.count('later') else 3}")
    assert result.exit_code == 2, result.output
    said = " ".join(result.output.split())
    assert told in said
    assert "initial.run=" in said
    after = files(run)
    assert {f: after[f][0] for f in before} == {f: before[f][0] for f in before}
    assert (run / "summary.json").exists()


def test_a_run_that_ended_early_would_have_ended_early(
    mtl: Command, trained: Callable[..., Path]
) -> None:
    run = trained("run", 2, CONSTANT, EVERY, "--set=training.patience=9")
    last = run / "checkpoints/last.safetensors"
    state = load_checkpoint(last)
    state["progress"]["stopping"]["ended"] = 2
    save_checkpoint(last, state)
    result = longer(mtl, run, "training.epochs=4")
    assert result.exit_code == 2
    assert "ended by training.patience or training.task_patience after epoch 2" in " ".join(
        result.output.split()
    )


def test_a_step_that_has_not_come_is_no_difference(
    mtl: Command, trained: Callable[..., Path]
) -> None:
    schedule = [
        "--set=optimizer.schedule.name=step",
        "--set=optimizer.schedule.at=[1.0]",
        "--set=optimizer.schedule.gamma=0.1",
    ]
    long, short = trained("long", 3, *schedule, EVERY), trained("short", 2, *schedule, EVERY)
    assert longer(mtl, short, "training.epochs=3").exit_code == 0
    assert_same(short, long)


def test_fewer_epochs_than_are_done_are_refused(mtl: Command, trained: Callable[..., Path]) -> None:
    run = trained("run", 2, CONSTANT)
    result = longer(mtl, run, "training.epochs=1")
    assert result.exit_code == 2
    assert "2 epochs are done, so that a run of 1" in " ".join(result.output.split())


def test_other_settings_are_refused_beside_more_epochs(
    mtl: Command, trained: Callable[..., Path]
) -> None:
    run = trained("run", 1, CONSTANT)
    result = mtl(
        "run", "--resume", "--out", str(run), "--set=training.epochs=2", "--set=optimizer.lr=0.1"
    )
    assert result.exit_code == 2
    assert "differ: optimizer.lr. Leave" in " ".join(result.output.split())


def test_killed_before_its_first_new_checkpoint_it_goes_on(
    mtl: Command, trained: Callable[..., Path], tmp_path: Path
) -> None:
    """Then config.toml tells the new length and the checkpoint the old one."""
    run, long = trained("run", 2, CONSTANT, EVERY), trained("long", 3, CONSTANT, EVERY)
    begun = tmp_path / "begun"
    shutil.copytree(run, begun)
    assert longer(mtl, run, "training.epochs=3").exit_code == 0
    shutil.copy(run / "config.toml", begun)
    (begun / "summary.json").unlink()
    result = mtl("run", "--resume", "--out", str(begun))
    assert result.exit_code == 0, result.output
    assert_same(begun, long)


def test_a_run_at_a_url_is_given_more_epochs(mtl: Command, table: str) -> None:
    place = "memory://length/run"
    run = [*TINY, table, CONSTANT, EVERY, "--set=training.epochs=1", "--out", place]
    assert mtl("run", *run).exit_code == 0
    result = mtl("run", "--resume", "--out", place, "--set=training.epochs=2", "--json")
    assert result.exit_code == 0, result.output
    again = mtl("run", "--resume", "--out", place, "--json")
    assert json.loads(again.stdout)["epochs"] == 2


def test_a_checkpoint_that_does_not_say_is_not_given_another_length(
    mtl: Command, trained: Callable[..., Path]
) -> None:
    run = trained("run", 1, CONSTANT)
    last = run / "checkpoints/last.safetensors"
    state = load_checkpoint(last)
    del state["length"]
    save_checkpoint(last, state)
    result = longer(mtl, run, "training.epochs=2")
    assert result.exit_code == 2
    assert "begun by an earlier version" in " ".join(result.output.split())


def test_a_backbone_with_phases_is_named(
    mtl: Command, trained: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MLP, "at_progress", lambda self, fraction: None)
    run = trained("run", 1, CONSTANT)
    result = longer(mtl, run, "training.epochs=2")
    assert result.exit_code == 2
    assert "model.backbone has followed how much of the run is done since step 0" in " ".join(
        result.output.split()
    )
