"""The launcher of a study: how it is chosen, what it is given, and when it is not believed."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import mtlcore
from mtlcore.launchers import CellCommand

pytest.importorskip("fcntl", reason="studies need file locks")

Command = Callable[..., Result]

STUDY = """
name = "Launched"
seeds = [0, 1]
{launcher}
[base]
plugins = ["{plugin}"]
tasks = ["depth"]
data = {{train = 4, val = 2, size = [32, 32], workers = 0}}
training = {{steps = 2, batch_size = 2, threads = 1}}
[variants.equal]
[variants.short]
training.steps = 1
"""
# A launcher that runs nothing: it notes what it is asked, and says that cells ended.
PLUGIN = """
import json
from pathlib import Path

from mtlcore import LauncherSpec, hookimpl


@hookimpl
def mtl_launchers():
    from mtlcore.launchers import CellExit, Launcher

    class Paper(Launcher):
        outlives = {outlives}
        poll_seconds = 0.0

        def __init__(self, folder, lock, *, code: int = 0, interrupts: bool = False):
            self.folder, self.code, self.interrupts = folder, code, interrupts
            self.running = []

        def note(self, **values):
            with (self.folder / "notes").open("a") as file:
                file.write(json.dumps(values) + "\\n")

        def start(self, cell):
            self.note(call="start", location=cell.location, arguments=cell.arguments,
                      threads=cell.threads, most=len(self.running) + 1)
            self.running.append(cell.location)

        def poll(self):
            if self.interrupts:
                self.interrupts = False
                raise KeyboardInterrupt
            self.note(call="poll")
            location, *self.running = self.running
            return [CellExit(location=location, code=self.code, seconds=1.0, output="mtl: no")]

        def stop(self):
            self.note(call="stop")

        def stop_at_once(self):
            self.note(call="stop_at_once")

    yield LauncherSpec(name="paper", target=Paper, summary="Runs nothing.")
"""


@pytest.fixture
def study(mtl: Command, tmp_path: Path) -> Command:
    def command(launcher: str, *options: str, outlives: bool = True) -> Result:
        plugin = tmp_path / "paper.py"
        plugin.write_text(PLUGIN.replace("{outlives}", str(outlives)))
        file = tmp_path / "study.toml"
        file.write_text(STUDY.format(launcher=launcher, plugin=plugin))
        return mtl("study", str(file), "--out", str(tmp_path / "out"), *options)

    return command


def notes(tmp_path: Path, call: str) -> list[dict[str, Any]]:
    lines = (tmp_path / "out" / "notes").read_text().splitlines()
    return [note for note in map(json.loads, lines) if note["call"] == call]


def states(tmp_path: Path) -> list[tuple[str, str | None]]:
    content = json.loads((tmp_path / "out" / "study.json").read_text())
    return [(cell["status"], cell["reason"]) for cell in content["cells"]]


def test_the_file_names_it_and_its_settings(study: Command, tmp_path: Path) -> None:
    result = study('launcher = {name = "paper", code = 5}', "--jobs", "3")
    assert result.exit_code == 1, result.output
    started = notes(tmp_path, "start")
    assert [start["location"] for start in started] == [
        "cells/equal/seed-0", "cells/short/seed-0", "cells/equal/seed-1", "cells/short/seed-1",
    ]  # fmt: skip
    assert max(start["most"] for start in started) == 3, "as many at a time as --jobs says"
    assert {start["threads"] for start in started} == {1}
    assert states(tmp_path) == [("failed", "no")] * 4
    # A failed cell is tried again; nothing else changes.
    study('launcher = {name = "paper", code = 5}')
    assert len(notes(tmp_path, "start")) == 8


@pytest.mark.parametrize(("outlives", "module"), [(True, "mtlcore"),
                                                  (False, "mtlcore.cli.study_cell")])  # fmt: skip
def test_the_command_goes_on_with_the_cell(
    study: Command, tmp_path: Path, outlives: bool, module: str
) -> None:
    study("", "--launcher", "paper", outlives=outlives)
    arguments = notes(tmp_path, "start")[0]["arguments"]
    directory = tmp_path / "out" / "cells" / "equal" / "seed-0"
    assert arguments[1:] == ["-m", module, "run", str(directory / "config.toml"),
                             "--out", str(directory), "--resume"]  # fmt: skip


def test_a_cell_without_a_result_has_not_finished_whatever_the_launcher_says(
    study: Command,
    tmp_path: Path,
) -> None:
    result = study('launcher = {name = "local"}', "--launcher", "paper")
    assert result.exit_code == 1
    assert states(tmp_path) == [("failed", "it ended with status 0 and has no result")] * 4


def test_a_stopped_study_hears_of_its_cells(study: Command, tmp_path: Path) -> None:
    launcher = 'launcher = {name = "paper", code = 130, interrupts = true}'
    result = study(launcher, "--jobs", "2")
    assert result.exit_code == 130, result.output
    assert len(notes(tmp_path, "stop")) == 1 and not notes(tmp_path, "stop_at_once")
    assert [status for status, _ in states(tmp_path)] == ["interrupted"] * 2 + ["waiting"] * 2


@pytest.mark.parametrize(
    ("launcher", "options", "message"),
    [
        ('launcher = {name = "papr"}', [], "did you mean 'paper'?"),
        ("", ["--launcher", "papr"], "did you mean 'paper'?"),
        ('launcher = {name = "paper", cod = 3}', [], "launcher.cod: unknown setting"),
        ("launcher = {code = 5}", [], "launcher.name"),
        ('launcher = "paper"', [], "launcher: expected"),
    ],
)
def test_mistakes_are_told_before_the_first_cell(
    study: Command, tmp_path: Path, launcher: str, options: list[str], message: str
) -> None:
    result = study(launcher, *options)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert not (tmp_path / "out" / "notes").exists()


def test_cells_end_with_the_process_that_forked_them(tmp_path: Path) -> None:
    """Otherwise a study whose helper was killed waits for ever, or leaves cells behind."""
    pids = tmp_path / "pids"
    code = f"import os, sys; open({str(pids)!r}, 'w').write(f'{{os.getppid()}}'); sys.stdin.read()"
    with (tmp_path / "lock").open("w") as lock:
        launcher = mtlcore.create("launchers", "local", tmp_path, lock.fileno())
        for turn in range(2):  # a new one forks what is started afterwards
            pids.unlink(missing_ok=True)
            launcher.start(
                CellCommand(
                    location="cells/a",
                    arguments=(sys.executable, "-c", code),
                    log=tmp_path / "log.txt",
                    threads=1,
                )
            )
            while not (pids.exists() and pids.read_text()):
                assert not launcher.poll()
                time.sleep(launcher.poll_seconds)
            os.kill(int(pids.read_text()), signal.SIGKILL)
            while not (ended := launcher.poll()):
                time.sleep(launcher.poll_seconds)
            assert [(e.location, e.code) for e in ended] == [("cells/a", -signal.SIGKILL)], turn
        launcher.close()
