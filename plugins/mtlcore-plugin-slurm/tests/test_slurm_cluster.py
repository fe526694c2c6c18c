"""The launcher on a real Slurm: two nodes of this machine, one of which is lost."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtlcore.testing import LauncherContract
from mtlcore_slurm.launcher import Slurm

Start = Callable[..., subprocess.Popen[str]]
Until = Callable[..., None]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]

STUDY = """
name = "On a cluster"
seeds = [0]
launcher = {{name = "slurm", time = 60, mem = 0.9}}

[base]
plugins = []
tasks = ["depth"]
data = {{train = 8, val = 2, size = [32, 32], workers = 0}}
training = {{epochs = {epochs}, batch_size = 2, threads = 1, evaluate_every = 1}}

[variants.slow]
optimizer.lr = 1e-4
[variants.fast]
optimizer.lr = 1e-2
"""


class TestOnSlurm(LauncherContract):
    def make(self, folder: Path, lock: int) -> Slurm:
        return Slurm(folder, lock, mem=0.5)


def epoch_of(cell: Path) -> int:
    file = cell / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return json.loads(lines[-1])["epoch"] if lines else 0


@pytest.fixture
def study(tmp_path: Path) -> Callable[[int], Path]:
    def write(epochs: int) -> Path:
        file = tmp_path / "study.toml"
        file.write_text(STUDY.format(epochs=epochs))
        return file

    return write


def test_a_killed_study_goes_on_elsewhere_while_its_jobs_run(
    study: Callable[[int], Path], tmp_path: Path, study_process: Start, until: Until
) -> None:
    out = tmp_path / "out"
    first = study_process(study(30), out, "--jobs", "2")
    cells = [out / "cells" / name / "seed-0" for name in ("slow", "fast")]
    until(lambda: all(epoch_of(cell) for cell in cells))
    first.kill()
    first.communicate()
    jobs = [(cell / "job" / "id").read_text() for cell in cells]
    second = study_process(study(30), out, "--jobs", "2")
    said, _ = second.communicate(timeout=300)
    assert second.returncode == 0, said
    assert jobs == [(cell / "job" / "id").read_text() for cell in cells], "submitted again"
    for cell in cells:
        assert (cell / "log.txt").read_text().count("30 epochs") == 1, "begun again"


def test_cells_of_a_lost_node_run_again(
    study: Callable[[int], Path], tmp_path: Path, study_process: Start, until: Until, cluster: Any
) -> None:
    out = tmp_path / "out"
    process = study_process(study(40), out, "--jobs", "2")
    cells = [out / "cells" / name / "seed-0" for name in ("slow", "fast")]
    until(lambda: all(epoch_of(cell) >= 2 for cell in cells))
    node = cluster.nodes_of("RUNNING").split()[0]
    cluster.kill(node)
    try:
        said, _ = process.communicate(timeout=900)
    finally:
        cluster.start(node)
    assert process.returncode == 0, said
    assert all((cell / "summary.json").exists() for cell in cells)


def test_a_job_whose_time_is_nearly_up_saves_and_is_queued_again(
    study: Callable[[int], Path], tmp_path: Path, study_process: Start, until: Until
) -> None:
    out = tmp_path / "out"
    process = study_process(study(40), out, "--jobs", "2")
    cell = out / "cells" / "slow" / "seed-0"
    until(lambda: epoch_of(cell) >= 2)
    job = (cell / "job" / "id").read_text()
    # What Slurm sends before it ends a job, to all its processes.
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said
    told = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True,
                          check=True).stdout  # fmt: skip
    assert "Restarts=1" in told
    log = (cell / "log.txt").read_text()
    assert "stopped by SIGTERM" in log, "the cell has not saved before it was queued again"
