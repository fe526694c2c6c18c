"""What programs that call mtlcore hear through `logging`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import mtlcore
from mtlcore.display import LoggingDisplay, SilentDisplay

TINY: dict[str, Any] = {
    "tasks": ["depth"],
    "data": {"train": 4, "val": 2, "size": [32, 32], "workers": 0},
    "model": {"backbone": {"width": 0.03125}},
    "training": {"epochs": 1, "batch_size": 2},
}
# Its first step is not finite, and the configuration notes that it replaces another balancer.
FIRST_STEP_NAN = """
from mtlcore import BalancerSpec, MethodSpec, hookimpl
from mtlcore.balancing import LossBalancer


class FirstStepNaN(LossBalancer):
    def transform(self, losses, context):
        factor = float("nan") if context.step == 0 else 1.0
        return {task: factor * loss for task, loss in losses.items()}


@hookimpl
def mtl_balancers():
    yield BalancerSpec(name="first-step-nan", target=FirstStepNaN)


@hookimpl
def mtl_methods():
    yield MethodSpec(name="noisy", preset={"balancer": {"name": "dwa"}})
"""
REPLACED = "first-step-nan (config) replaces dwa"


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    file = tmp_path / "noisy.py"
    file.write_text(FIRST_STEP_NAN)
    return str(file)


def test_a_run_from_python_is_logged(
    tmp_path: Path, plugin: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="mtlcore")
    config = {**TINY, "balancer": {"name": "first-step-nan"}}
    mtlcore.run(config, plugins=[plugin], out=str(tmp_path / "run"))
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert {record.name for record in caplog.records} == {"mtlcore"}
    warnings = [text for level, text in told if level == "WARNING"]
    assert len(warnings) == 2
    assert REPLACED in warnings[0]
    assert warnings[1].startswith("step 1: skipped, ")
    information = [text for level, text in told if level == "INFO"]
    assert any("learns depth from rooms" in text for text in information)
    assert any(text.startswith("epoch 1/1 | loss ") for text in information)
    assert any("constant predictors" in text for text in information)


def test_silence_can_be_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    mtlcore.run(TINY, out=str(tmp_path / "run"), display=SilentDisplay())
    assert not [record for record in caplog.records if record.name.startswith("mtlcore")]
    assert capsys.readouterr() == ("", "")


def test_the_command_says_everything_once(
    mtl: Callable[..., Result], tmp_path: Path, plugin: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    file = tmp_path / "config"
    file.write_text(
        'tasks = ["depth"]\nbalancer.name = "first-step-nan"\n'
        "data = {train = 4, val = 2, size = [32, 32], workers = 0}\n"
        "model.backbone.width = 0.03125\ntraining = {epochs = 1, batch_size = 2}\n"
    )
    arguments = ["run", str(file), "--plugin", plugin, "--out", str(tmp_path / "run")]
    result = mtl(*arguments)
    assert result.exit_code == 0, result.output
    assert result.output.count("replaces dwa") == 1
    assert result.output.count("skipped, ") == 1
    assert not [record for record in caplog.records if record.name.startswith("mtlcore")]


def test_one_process_of_several_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    displays = []
    monkeypatch.setattr(
        "mtlcore.runs.execution.execute",
        lambda plugins, config, location, resume, display: displays.append(type(display)) or {},
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        mtlcore.run(TINY, out=str(tmp_path / "run"))
    assert displays == [LoggingDisplay, SilentDisplay]
