"""A run that is asked to stop from outside: it saves, says so, and goes on bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from click.testing import Result

import mtlcore
from mtlcore.display import Display
from mtlcore.errors import Pruned, UsageError
from mtlcore.storage import load_checkpoint, open_run, request_stop

pytestmark = pytest.mark.usefixtures("no_pictures")

CONFIG: dict[str, Any] = {
    "tasks": ["segmentation", "depth"],
    "data": {"train": 4, "val": 2, "size": [32, 32], "workers": 0},
    "model": {"backbone": {"width": 0.03125}},
    "training": {"epochs": 3, "batch_size": 2, "threads": 1, "evaluate_every": 1},
}
LAST = "checkpoints/last.safetensors"


class Asks(Display):
    """Asks the run to stop while an epoch is at its end, before that epoch is saved."""

    def __init__(self, location: str, epoch: int) -> None:
        super().__init__()
        self._location, self._epoch = location, epoch

    def epoch(
        self, epoch: int, epochs: int, losses: Mapping[str, float], metrics: Any = None
    ) -> None:
        if epoch == self._epoch:
            request_stop(self._location, "worse than the median")

    def note(self, message: str) -> None: ...

    def stop(self) -> None: ...

    def _begin(self, title: str) -> None: ...


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    mtlcore.run(CONFIG, out=str(out))
    return out


def records(run: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in open_run(run).records]


def test_it_stops_after_its_epoch_and_goes_on_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Pruned, match=r"epoch 2 of 3 \(worse than the median\); saved"):
        mtlcore.run(CONFIG, out=str(out), display=Asks(str(out), 2))
    assert not (out / "stop.json").exists()
    about = json.loads((out / "run.json").read_text())
    assert about["status"] == "pruned"
    assert "worse than the median" in about["reason"]
    assert f"mtl run --resume --out {out}" in about["reason"]
    assert load_checkpoint(out / LAST)["progress"]["epoch"] == 2
    assert max(r["epoch"] for r in records(str(out)) if r["split"] == "val") == 2
    mtlcore.run(out=str(out), resume=True)
    assert records(str(out)) == records(str(whole))
    ours, theirs = (load_checkpoint(run / LAST)["learner"] for run in (out, whole))
    assert all(
        torch.equal(value, theirs[name])
        for name, value in ours.items()
        if isinstance(value, torch.Tensor)
    )


def test_a_run_in_its_last_epoch_finishes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert mtlcore.run(CONFIG, out=str(out), display=Asks(str(out), 3))["epochs"] == 3
    assert not (out / "stop.json").exists()


def test_a_request_of_before_does_not_stop_a_run_that_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Pruned):
        mtlcore.run(CONFIG, out=str(out), display=Asks(str(out), 1))
    (out / "stop.json").write_text('{"reason": "late"}')
    assert mtlcore.run(out=str(out), resume=True)["epochs"] == 3


def test_the_command_ends_with_a_code_of_its_own(
    mtl: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = tmp_path / "mine.toml", tmp_path / "run"
    file.write_text("".join(f"{table} = {_inline(value)}\n" for table, value in CONFIG.items()))
    monkeypatch.setattr("mtlcore.display.make_display", lambda: Asks(str(out), 1))
    result = mtl("run", str(file), "--out", str(out))
    assert result.exit_code == 3
    assert "asked to stop after epoch 1 of 3 (worse than the median)" in result.stderr


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_inline(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value)


def test_a_run_at_a_url_is_asked_there(tmp_path: Path) -> None:
    out = "memory://asked/run"
    with pytest.raises(Pruned):
        mtlcore.run(CONFIG, out=out, display=Asks(out, 1))
    assert open_run(out).provenance["status"] == "pruned"
    assert not fsspec.filesystem("memory").exists("/asked/run/stop.json")
    # One that comes too late is fetched with the run's files, and counts no more.
    fsspec.filesystem("memory").pipe_file("/asked/run/stop.json", b'{"reason": "late"}')
    assert mtlcore.run(out=out, resume=True)["epochs"] == 3
    assert not fsspec.filesystem("memory").exists("/asked/run/stop.json")


def test_only_a_running_run_is_asked(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be asked to stop, it is finished"):
        request_stop(str(whole), "no more")
    assert not (whole / "stop.json").exists()
    with pytest.raises(UsageError, match="nothing: is neither a run"):
        request_stop(str(tmp_path / "nothing"), "no more")
    shutil.copy(whole / "config.toml", tmp_path)
    with pytest.raises(UsageError, match="it is not begun"):
        request_stop(str(tmp_path), "no more")
