"""A run that is killed again and again, at times nobody chose, ends as if it had been left alone.

`MTL_TEST_KILLS` says how many kills (100). They come from outside, at delays that a seeded
generator draws: some while the process still starts, some while it trains.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtlcore.storage import load_checkpoint

KILLS = int(os.environ.get("MTL_TEST_KILLS", "100"))
EPOCHS = 2 * KILLS + 5  # more than so many processes get through before they are killed
SETTINGS = [
    "tasks=['segmentation', 'depth', 'normals']",
    "data.train=4",
    "data.val=2",
    "data.size=32x32",
    "data.workers=1",
    "data.augment.flip=true",
    "model.backbone.encoder.width=0.03125",
    f"training.epochs={EPOCHS}",
    "training.batch_size=2",
    "training.threads=1",
    "training.evaluate_every=1",
    "balancer.chain=[{name='uncertainty'}, {name='dwa'}]",
]
LAST = "checkpoints/last.safetensors"

Start = Callable[..., subprocess.Popen[bytes]]

pytestmark = pytest.mark.slow


@pytest.fixture
def start(spawn: Start, tmp_path: Path) -> Start:
    def run(out: str) -> subprocess.Popen[bytes]:
        arguments = [f"--set={setting}" for setting in SETTINGS]
        with (tmp_path / f"{out}.log").open("ab") as log:
            return spawn(
                [sys.executable, "-m", "mtlcore", "run", "--plugin=atinet", *arguments]
                + ["--out", out, "--resume"],
                cwd=tmp_path,
                env={**os.environ, "MTL_PLUGINS": "atinet", "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    return run


def written(run: Path) -> int:
    """When the last checkpoint was written; 0 before the first one."""
    file = run / LAST
    return file.stat().st_mtime_ns if file.exists() else 0


def let_live(process: subprocess.Popen[bytes], seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def kill(process: subprocess.Popen[bytes], run: Path, chance: random.Random, epoch: float) -> None:
    """Let a process live for a random while; every third one may not get past its start."""
    if chance.random() < 1 / 3:
        let_live(process, chance.uniform(0, 3))
    else:
        before = written(run)
        while written(run) == before and process.poll() is None:
            time.sleep(0.01)
        let_live(process, chance.uniform(0, 2 * epoch))
    assert process.poll() is None, (run.parent / f"{run.name}.log").read_text()[-2000:]
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def measured(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def tensors(tree: Any, path: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of a nested state by its path."""
    if isinstance(tree, torch.Tensor):
        return {path: tree}
    found: dict[str, torch.Tensor] = {}
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, torch.Tensor | dict | list | tuple):
            found.update(tensors(value, f"{path}/{key}"))
    return found


def test_killed_again_and_again(start: Start, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start("whole")
    if (
        process.wait()
        and "pip install mtlcore-plugin-atinet" in (tmp_path / "whole.log").read_text()
    ):
        pytest.skip("mtlcore-plugin-atinet is not installed")
    assert process.returncode == 0, (tmp_path / "whole.log").read_text()
    epoch = json.loads((whole / "summary.json").read_text())["seconds"] / EPOCHS

    chance = random.Random(20)
    steps = []
    for _ in range(KILLS):
        kill(start("killed"), killed, chance, epoch)
        steps.append(written(killed) and load_checkpoint(killed / LAST)["progress"]["step"])
    assert steps == sorted(steps), steps
    print("steps saved when it was killed:", steps)
    assert len(set(steps)) > KILLS // 3, "the kills were to spread over the run"
    last = start("killed")
    assert last.wait() == 0, (tmp_path / "killed.log").read_text()[-2000:]

    assert measured(killed) == measured(whole)
    states = [load_checkpoint(run / LAST) for run in (killed, whole)]
    for part in ("learner", "optimizer", "random"):
        ends = [tensors(state[part]) for state in states]
        assert ends[0] and ends[0].keys() == ends[1].keys()
        assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items()), part
    summaries = [json.loads((run / "summary.json").read_text()) for run in (killed, whole)]
    for key in ("final", "best", "constants", "steps"):
        assert summaries[0][key] == summaries[1][key], key
    assert not list(killed.rglob("*.partial"))
