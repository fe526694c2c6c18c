"""Killed at any moment and resumed, a run ends bit for bit as if nothing had happened.

A real process is killed by SIGKILL (or stopped by SIGINT or SIGTERM) from within, at an exact
moment: a plugin of one file, named in the configuration of both runs, counts steps and writes.
What is not killed runs in the process of the tests, which has torch imported.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

from mtlcore.storage import load_checkpoint

Command = Callable[..., Result]

SABOTEUR = '''
import os
import signal

from mtlcore.storage import checkpoints
from mtlcore import BalancerSpec, hookimpl

WHEN, _, SIGNAL = os.environ.get("MTL_TEST_STRIKE", "").rpartition(" ")
flush, writes = checkpoints._flush, 0


def strike(moment):
    if moment == WHEN:
        os.kill(os.getpid(), getattr(signal, SIGNAL))


def flush_and_strike(path):
    """Half way into a write: the file is there under its partial name, not yet its own."""
    global writes
    if path.name == "last.safetensors.partial":
        writes += 1
        strike(f"write {writes}")
    flush(path)


if WHEN:
    checkpoints._flush = flush_and_strike


@hookimpl
def mtl_balancers():
    from mtlcore.balancing import LossBalancer

    class Strike(LossBalancer):
        def transform(self, losses, context):
            strike(f"step {context.step}")
            return losses

    yield BalancerSpec(name="strike", target=Strike)
'''
SETTINGS = [
    "tasks=['segmentation', 'depth', 'normals']",
    "data.train=12",
    "data.val=3",
    "data.size=32x32",
    "data.workers=1",
    "data.augment.flip=true",
    "model.backbone.encoder.width=0.03125",
    "model.backbone.distil_from=0.5",
    "training.epochs=4",
    "training.batch_size=4",
    "training.threads=1",
    "training.evaluate_every=1",
]
# 12 steps, 3 to an epoch; the backbone changes itself before step 6.


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    (folder / "saboteur.py").write_text(SABOTEUR)
    return folder


CHAIN = "balancer.chain=[{name='strike'}, {name='uncertainty'}, {name='dwa'}]"
RUN = [
    "run",
    "--plugin=atinet",
    "--plugin=saboteur.py",
    *(f"--set={setting}" for setting in [*SETTINGS, CHAIN]),
]


def struck(work: Path, out: str, strike: str) -> subprocess.CompletedProcess[str]:
    """A run in a process of its own, which gets a signal at a moment."""
    return subprocess.run(
        [sys.executable, "-m", "mtlcore", *RUN, "--out", out],
        cwd=work,
        env={**os.environ, "MTL_PLUGINS": "atinet", "MTL_TEST_STRIKE": strike},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def here(mtl: Command, work: Path) -> Command:
    """The command with the plugins and in the folder of the killed runs."""

    def command(*arguments: str) -> Result:
        with contextlib.chdir(work):
            return mtl(*arguments, env={"MTL_PLUGINS": "atinet"})

    return command


@pytest.fixture(scope="module")
def uninterrupted(here: Command, work: Path) -> Path:
    result = here(*RUN, "--out", "whole")
    if "atinet" in result.stderr and "not installed" in result.stderr:
        pytest.skip("mtlcore-plugin-atinet is not installed")
    assert result.exit_code == 0, result.stderr
    return work / "whole"


def assert_same(one: Path, other: Path) -> None:
    first, second = (
        load_checkpoint(path / "checkpoints" / "last.safetensors") for path in (one, other)
    )
    for part in ("learner", "optimizer", "plans", "random"):
        assert_equal_trees(first[part], second[part], part)
    measured = [
        [
            {key: value for key, value in json.loads(line).items() if key != "seconds"}
            for line in (path / "metrics.jsonl").read_text().splitlines()
        ]
        for path in (one, other)
    ]
    assert measured[0] == measured[1]
    final = [json.loads((path / "summary.json").read_text())["final"] for path in (one, other)]
    assert final[0] == final[1]


def assert_equal_trees(one: object, other: object, path: str) -> None:
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_equal_trees(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal_trees(a, b, f"{path}[{i}]")
    else:
        assert one == other, path


# Write 1 comes before the first step, write 3 after the last one before the switch.
OFTEN = ("write 3",)
SELDOM = (
    "step 6",
    "step 8",
    "step 0",
    "write 1",
    "write 2",
    "step 4",
    "write 4",
    "step 11",
    "write 5",
)


@pytest.mark.parametrize(
    "moment", [*OFTEN, *(pytest.param(moment, marks=pytest.mark.slow) for moment in SELDOM)]
)
def test_after_sigkill(here: Command, work: Path, uninterrupted: Path, moment: str) -> None:
    out = f"killed at {moment}"
    assert struck(work, out, f"{moment} SIGKILL").returncode == -signal.SIGKILL
    result = here(*RUN, "--out", out, "--resume")
    assert result.exit_code == 0, result.stderr
    assert_same(work / out, uninterrupted)


@pytest.mark.parametrize("name", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(
    here: Command, work: Path, uninterrupted: Path, name: str
) -> None:
    out = f"stopped by {name}"
    stopped = struck(work, out, f"step 7 {name}")
    assert stopped.returncode == 130, stopped.stderr
    assert f"stopped by {name} after step 8 of 12; saved" in stopped.stderr
    assert "mtl run --resume --out" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    about = json.loads((work / out / "run.json").read_text())
    assert about["status"] == "interrupted"
    # The advice printed is enough: no other argument. The run's plugin file asks for trust.
    assert stopped.stderr.rstrip().endswith("--trust")
    again = here("run", "--resume", "--out", out, "--trust")
    assert again.exit_code == 0, again.stderr
    assert_same(work / out, uninterrupted)
