"""Without the POSIX modules of Python, as on Windows, everything but studies works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mtlcore.errors import UsageError
from mtlcore.system import locked, peak_memory

WITHOUT_POSIX = """
import os, signal, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
del signal.pthread_sigmask
del os.sched_getaffinity
from mtlcore.cli import main
main(prog_name="mtl")
"""
TINY_STUDY = """
name = "one"
seeds = [0]
[base]
tasks = ["depth"]
data = {train = 2, val = 2, size = [32, 32], workers = 0}
[variants.equal]
"""


def mtl(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process where the POSIX modules are missing."""
    command = [sys.executable, "-c", WITHOUT_POSIX, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "text"), [(["--help"], "Usage: mtl"), (["list", "balancers"], "equal")]
)
def test_commands_that_look(arguments: list[str], text: str) -> None:
    result = mtl(*arguments)
    assert result.returncode == 0, result.stderr
    assert text in result.stdout


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_of_one_step(workers: int, tmp_path: Path) -> None:
    settings = ["tasks=['depth']", "data.train=2", "data.val=2", "data.size=32x32",
                f"data.workers={workers}", "model.backbone.width=0.03125",
                "training.steps=1", "training.batch_size=2"]  # fmt: skip
    result = mtl("run", *(f"--set={one}" for one in settings), "--out", str(tmp_path / "run"))
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_study_says_what_it_lacks(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(TINY_STUDY)
    result = mtl("study", str(file), "--out", str(tmp_path / "out"))
    assert result.returncode == UsageError.exit_code
    assert "fcntl" in result.stderr and "mtl run" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_lock_needs_fcntl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    file = tmp_path / "lock"
    with pytest.raises(UsageError, match=r"lock: .*fcntl"), locked(file, pytest.fail):
        pass


def test_a_lock_waits_for_its_holder(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    file = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c",
         "import sys; from pathlib import Path; from mtlcore.system import locked\n"
         "with locked(Path(sys.argv[1]), print): print('held', flush=True); sys.stdin.read()",
         str(file)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdin is not None and holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    waited = []

    def let_go() -> None:
        waited.append(holder.poll())
        holder.communicate()

    with locked(file, let_go):
        assert holder.returncode == 0
    assert waited == [None]


def test_peak_memory_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("resource")
    cpu = torch.device("cpu")
    assert 1e7 < peak_memory(cpu) < 1e12
    monkeypatch.setattr("mtlcore.system.memory._STATUS", tmp_path / "none")
    assert 1e7 < peak_memory(cpu) < 1e12


def test_peak_memory_that_nobody_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtlcore.system.memory._STATUS", tmp_path / "none")
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory(torch.device("cpu")) == 0
