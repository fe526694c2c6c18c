"""A run: what it leaves behind, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

import mtlcore
from mtlcore.errors import MtlError, UsageError
from mtlcore.storage import load_checkpoint, save_checkpoint

Command = Callable[..., Result]

TINY = {
    "tasks": ["segmentation", "depth"],
    "data": {"train": 6, "val": 3, "size": [32, 32], "workers": 0},
    "model": {"backbone": {"width": 0.03125}},
    "training": {"epochs": 2, "batch_size": 3},
}
ARGUMENTS = [
    "--set=tasks=['segmentation', 'depth']",
    "--set=data.train=6",
    "--set=data.val=3",
    "--set=data.size=32x32",
    "--set=data.workers=0",
    "--set=model.backbone.width=0.03125",
    "--set=training.epochs=2",
    "--set=training.batch_size=3",
]


def values(path: Path) -> list[tuple[Any, ...]]:
    """Everything in metrics.jsonl but the time it was measured at."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [tuple(value for key, value in line.items() if key != "seconds") for line in lines]


@pytest.fixture(scope="module")
def finished(mtl: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    result = mtl("run", *ARGUMENTS, "--out", str(out))
    assert result.exit_code == 0, result.output
    return out


def test_without_its_checkpoints_it_is_finished_still(
    mtl: Command, finished: Path, tmp_path: Path
) -> None:
    """They are large, and people delete them: the rest must not be written over."""
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    result = mtl("run", "--resume", "--out", str(tmp_path / "run"))
    assert result.exit_code == 0 and "nothing to do" in result.output
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before


def test_it_leaves_everything_behind(finished: Path) -> None:
    for name in ("config.toml", "run.json", "metrics.jsonl", "summary.json"):
        assert (finished / name).is_file()
    for name in ("last", "best"):
        assert (finished / "checkpoints" / f"{name}.safetensors").is_file()
    assert (finished / "report" / "predictions.png").stat().st_size > 1000
    curves = (finished / "report" / "curves.svg").read_text("utf-8")
    assert "abs_error ↓, validation: model from" in curves
    assert "constant at" in curves
    assert not list(finished.rglob("*.partial"))
    about = json.loads((finished / "run.json").read_text())
    assert (about["status"], about["reason"]) == ("finished", None)
    assert about["plugins"]["standard"] == f"mtlcore {mtlcore.__version__}"


def test_metrics_are_one_value_a_line(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert {tuple(line) for line in lines} == {
        ("step", "epoch", "split", "task", "metric", "value", "seconds")
    }
    kinds = {(line["split"], line["task"], line["metric"]) for line in lines}
    assert {("train", "depth", "loss"), ("val", "depth", "abs_error")} <= kinds
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert {line["epoch"] for line in lines} == {1, 2}


def test_the_summary_stands_beside_the_constants(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    for figures in (
        summary["final"]["val"],
        summary["best"]["val"],
        summary["constants"]["global"],
        summary["constants"]["pixel"],
    ):
        assert math.isfinite(figures["segmentation"]["miou"])
        assert math.isfinite(figures["depth"]["abs_error"])
    parameters = summary["parameters"]
    assert parameters["total"] == parameters["shared"] + sum(parameters["tasks"].values())
    assert parameters["total"] == sum(parameters["modules"].values())
    assert summary["steps"] == 4
    assert summary["skipped_steps"] == 0


def test_the_last_evaluations_are_those_of_the_last_epochs(tmp_path: Path) -> None:
    """Averaged over the last two epochs though only every third is evaluated."""
    training = {**TINY["training"], "epochs": 5, "evaluate_every": 3, "average_last": 2}
    summary = mtlcore.run({**TINY, "training": training}, out=str(tmp_path / "run"))
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    found = {
        line["epoch"]: line["value"]
        for line in lines
        if (line["split"], line["task"], line["metric"]) == ("val", "depth", "abs_error")
    }
    assert list(found) == [2, 4, 5]
    assert summary["averaged_over"] == 2
    mean = (found[4] + found[5]) / 2
    assert summary["final"]["val"]["depth"]["abs_error"] == pytest.approx(mean)
    assert summary["best"]["epoch"] in found


def test_its_configuration_repeats_it(mtl: Command, finished: Path, tmp_path: Path) -> None:
    result = mtl("run", str(finished / "config.toml"), "--out", str(tmp_path / "again"))
    assert result.exit_code == 0, result.output
    assert values(tmp_path / "again" / "metrics.jsonl") == values(finished / "metrics.jsonl")


def test_python_runs_it_too(finished: Path, tmp_path: Path) -> None:
    summary = mtlcore.run(TINY, out=str(tmp_path / "python"))
    assert summary["final"] == json.loads((finished / "summary.json").read_text())["final"]


def test_workers_change_nothing(finished: Path, tmp_path: Path) -> None:
    config = {**TINY, "data": {**TINY["data"], "workers": 1}}
    mtlcore.run(config, out=str(tmp_path / "workers"))
    assert values(tmp_path / "workers" / "metrics.jsonl") == values(finished / "metrics.jsonl")


def test_another_seed_is_another_run(finished: Path, tmp_path: Path) -> None:
    mtlcore.run({**TINY, "seed": 1}, out=str(tmp_path / "seed"))
    assert values(tmp_path / "seed" / "metrics.jsonl") != values(finished / "metrics.jsonl")


def test_a_directory_in_use_is_refused(mtl: Command, finished: Path) -> None:
    before = sorted(finished.rglob("*"))
    result = mtl("run", *ARGUMENTS, "--out", str(finished))
    assert result.exit_code == 2
    assert "is not empty" in result.output
    assert sorted(finished.rglob("*")) == before


def test_resuming_what_is_finished_says_so(mtl: Command, finished: Path) -> None:
    result = mtl("run", "--resume", "--out", str(finished))
    assert result.exit_code == 0
    assert "finished" in result.output


def test_resuming_with_other_settings_is_refused(mtl: Command, finished: Path) -> None:
    """Only what differs from the run's own is named."""
    result = mtl("run", "--set=optimizer.lr=1.0", "--resume", "--out", str(finished))
    assert result.exit_code == 2
    assert "these differ: optimizer.lr. Leave" in result.output
    result = mtl("run", "--plugin=pcgrad", "--resume", "--out", str(finished))
    assert result.exit_code == 2
    assert "balancer.name" in result.output


def test_python_goes_on_with_the_runs_own_configuration(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "stopped")
    (run / "summary.json").unlink()  # as if it had been stopped after its last step
    summary = mtlcore.run(out=str(run), resume=True)
    assert summary["final"] == json.loads((finished / "summary.json").read_text())["final"]
    with pytest.raises(UsageError, match="these differ: data"):
        mtlcore.run({}, out=str(run), resume=True)


def test_python_refuses_to_go_on_with_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"lonk: no run there to go on with"):
        mtlcore.run(out=str(tmp_path / "lonk"), resume=True)
    with pytest.raises(UsageError, match="--resume needs --out"):
        mtlcore.run(TINY, resume=True)


def test_what_belongs_to_the_machine_may_change(
    mtl: Command, finished: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "moved")
    (run / "summary.json").unlink()  # as if it had been stopped after its last step
    result = mtl("run", "--set=data.workers=1", "--device=cpu", "--resume", "--out", str(run))
    assert result.exit_code == 0, result.output
    stored = tomllib.loads((run / "config.toml").read_text())
    assert (stored["data"]["workers"], stored["device"]) == (1, "cpu")


def test_resuming_nothing_starts(mtl: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = mtl("run", *ARGUMENTS, "--resume", "--out", str(tmp_path / "empty"))
    assert result.exit_code == 0, result.output


def test_a_misspelt_run_is_not_started_anew(mtl: Command, tmp_path: Path) -> None:
    result = mtl("run", "--resume", "--out", str(tmp_path / "lonk"))
    assert result.exit_code == 2
    for part in ("lonk: ", "no run there", "config.toml"):
        assert part in result.output
    assert not (tmp_path / "lonk").exists()
    (tmp_path / "notes.txt").write_text("mine")
    result = mtl("run", *ARGUMENTS, "--resume", "--out", str(tmp_path))
    assert result.exit_code == 2
    assert "is not empty and holds no run" in result.output


def test_a_run_at_a_url_is_uploaded(finished: Path) -> None:
    import fsspec

    mtlcore.run(TINY, out="memory://runs/one")
    files = fsspec.filesystem("memory").find("/runs/one")
    assert {"/runs/one/summary.json", "/runs/one/checkpoints/last.safetensors"} <= set(files)
    assert mtlcore.run(TINY, out="memory://runs/one", resume=True)["steps"] == 4
    with pytest.raises(UsageError, match="is not empty"):
        mtlcore.run(TINY, out="memory://runs/one")


def test_a_dry_run_writes_nothing(
    mtl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = mtl("run", *ARGUMENTS, "--dry-run")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["steps"] == 4
    assert not list(tmp_path.iterdir())


def test_runs_without_a_name_are_numbered(
    mtl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        result = mtl("run", *ARGUMENTS, "--set=training.epochs=1")
        assert result.stdout.startswith(f"run: runs/default-{number}\n")


def test_a_loss_that_is_never_finite_stops_the_run(tmp_path: Path) -> None:
    config = {**TINY, "optimizer": {"lr": 1e30}, "training": {"epochs": 20, "batch_size": 3}}
    with pytest.raises(MtlError, match=r"10 steps in a row .* last good checkpoint"):
        mtlcore.run(config, out=str(tmp_path / "run"))
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["status"] == "failed"
    state = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.safetensors")
    assert state["progress"]["step"] > 0


def test_a_full_gpu_is_told_what_would_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    from mtlcore.learner import Learner

    monkeypatch.setattr(Learner, "forward", full)
    with pytest.raises(MtlError, match=r"CUDA out of memory.*training\.batch_size"):
        mtlcore.run(TINY, out=str(tmp_path / "run"))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "failed"


def test_a_checkpoint_of_another_model_is_refused(finished: Path, tmp_path: Path) -> None:
    target = tmp_path / "run"
    (target / "checkpoints").mkdir(parents=True)
    for name in ("config.toml", "metrics.jsonl"):
        (target / name).write_bytes((finished / name).read_bytes())
    state = load_checkpoint(finished / "checkpoints" / "last.safetensors")
    del state["learner"]["model.heads.task_depth." + next(iter(_head_names(state)))]
    save_checkpoint(target / "checkpoints" / "last.safetensors", state)
    with pytest.raises(MtlError, match="belongs to another model"):
        mtlcore.run(TINY, out=str(target), resume=True)


def _head_names(state: dict[str, Any]) -> list[str]:
    prefix = "model.heads.task_depth."
    return [key.removeprefix(prefix) for key in state["learner"] if key.startswith(prefix)]


@pytest.mark.parametrize("damage", ["truncated", "text", "foreign"])
def test_a_damaged_checkpoint_is_named(finished: Path, tmp_path: Path, damage: str) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "last.safetensors"
    whole = (finished / "checkpoints" / "last.safetensors").read_bytes()
    if damage == "foreign":
        save_file({"weight": torch.zeros(2)}, file)
    else:
        file.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"not a checkpoint")
    with pytest.raises(MtlError, match=r"last\.safetensors: not a"):
        load_checkpoint(file)
