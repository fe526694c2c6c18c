"""Signals, killed processes and broken disks: one message, whole files, and the run goes on.

What strikes from without needs a process of its own; mistakes are in test_bad_input.py.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from mtlcore.errors import MtlError
from mtlcore.loading import lost_workers_told
from mtlcore.storage import load_checkpoint

Command = Callable[..., Result]
Place = Any  # the class in conftest.py

SABOTEUR = """
import os
import signal

WHEN, _, SIGNAL = os.environ.get("MTL_TEST_STRIKE", "").partition(" ")


def strike(moment):
    global WHEN
    if moment == WHEN:
        WHEN = ""
        os.kill(os.getpid(), getattr(signal, SIGNAL))


def at(moment, module, name):
    function = getattr(module, name)

    def strike_and_go_on(*arguments, **options):
        strike(moment)
        return function(*arguments, **options)

    setattr(module, name, strike_and_go_on)


strike("import")
if WHEN:
    import mtlcore.storage.checkpoints, mtlcore.engine, mtlcore.learner, mtlcore.report
    import mtlcore.engine.session

    at("building", mtlcore.engine.session, "build_learner")
    at("constants", mtlcore.engine.constant_baselines.ConstantFit, "update")
    at("evaluation", mtlcore.learner.Learner, "predict")
    at("write", mtlcore.storage.checkpoints, "_flush")
    at("report", mtlcore.report.writing, "save_curves")
"""
COMMAND = [sys.executable, "-m", "mtlcore"]


def start(place: Place, *arguments: str, strike: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process that is struck at the moment named."""
    paths = [str(place.path / "site"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "MTL_PLUGINS": "saboteur",
        "MTL_TEST_STRIKE": strike,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=place.path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def weights(run: Path) -> dict[str, torch.Tensor]:
    state = load_checkpoint(run / "checkpoints/last.safetensors")["learner"]
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


@pytest.fixture
def resume(mtl: Command, place: Place) -> Callable[[], None]:
    """Go on from `run`, which ends with the weights of the run that nothing disturbed."""

    def go_on() -> None:
        result = mtl("run", "--resume", "--out", "run", env={"MTL_PLUGINS": ""})
        assert result.exit_code == 0, result.output
        resumed, undisturbed = weights(place.path / "run"), weights(place.finished)
        assert resumed.keys() == undisturbed.keys()
        assert all(torch.equal(value, undisturbed[name]) for name, value in resumed.items())

    return go_on


# Before the run has written its configuration there is nothing that could be gone on with.
EARLY = {"import": "mtl: stopped", "building": "mtl: stopped"}
LATE = {
    "constants": "after step 0 of 6; saved. Go on with: mtl run --resume --out run",
    "evaluation": "after step 2 of 6; saved. Go on with: mtl run --resume --out run",
    "write": "Go on with: mtl run --resume --out run",
    "report": "go on from the last checkpoint with: mtl run --resume --out run",
}
FAST = [("SIGINT", "import"), ("SIGTERM", "evaluation")]
SIGNALS = [
    pytest.param(*pair, marks=() if pair in FAST else pytest.mark.slow)
    for pair in ((name, moment) for name in ("SIGINT", "SIGTERM") for moment in (EARLY | LATE))
]


@pytest.mark.parametrize(("name", "moment"), SIGNALS)
def test_a_signal_at_any_moment(
    place: Place, resume: Callable[[], None], name: str, moment: str
) -> None:
    place.plugin("saboteur", SABOTEUR)
    result = start(place, "run", *place.tiny, "--out=run", strike=f"{moment} {name}")
    assert result.returncode == 130, result.stderr
    place.assert_message(result.stderr, [(EARLY | LATE)[moment]])
    assert len(result.stderr.splitlines()) == 1, result.stderr
    place.assert_whole()
    if moment in LATE:
        about = json.loads((place.path / "run/run.json").read_text())
        assert about["status"] == "interrupted"
        resume()
    else:
        assert not place.contents("run")


def test_a_reader_that_goes_away_is_no_error_to_shout_about(place: Place) -> None:
    # 30 epochs: more lines are to come when `head` has gone.
    run = [*COMMAND, "run", *place.tiny, "--set=training.epochs=30", "--out=run"]
    environment = {**os.environ, "MTL_PLUGINS": ""}
    with subprocess.Popen(
        run, cwd=place.path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"run: run\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
    assert json.loads((place.path / "run/run.json").read_text())["status"] == "interrupted"
    place.assert_whole()


@functools.cache
def no_mounts() -> str:
    """Why no file system can be mounted here; empty where it can."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return "needs Linux with unshare"
    attempt = ["unshare", "-m", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    tried = subprocess.run(attempt, capture_output=True, text=True, check=False)
    return f"no tmpfs can be mounted: {tried.stderr.strip()}" if tried.returncode else ""


def in_namespace(place: Place, script: str) -> list[str]:
    """Run a script whose mounts nobody else sees and that end with it; `mtl` is the command.

    Returns:
        For each "rc" it prints, the text before: a command's messages.
    """
    if reason := no_mounts():
        pytest.skip(reason)
    (place.path / "disk").mkdir()
    (place.path / "tiny.sh").write_text(
        f'mtl() {{ "{sys.executable}" -m mtlcore "$@"; }}\n{script}'
    )
    result = subprocess.run(
        ["unshare", "-m", "sh", "tiny.sh"],
        cwd=place.path,
        env={**os.environ, "MTL_PLUGINS": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split("rc ")


def quoted(arguments: list[str]) -> str:
    return " ".join(f'"{argument}"' for argument in arguments)


@pytest.mark.parametrize(
    "size",
    ["300k", *(pytest.param(size, marks=pytest.mark.slow) for size in ("8k", "100k", "600k"))],
)
def test_a_full_disk(place: Place, resume: Callable[[], None], size: str) -> None:
    run = f"mtl run {quoted(place.tiny)} --out disk/run >/dev/null 2>messages"
    first, second, _ = in_namespace(
        place,
        f"""
mount -t tmpfs -o size={size} tmpfs disk || exit 1
{run}; status=$?; cat messages; echo "rc $status"
cp -r disk/run full
mount -o remount,size=20m disk
mtl run --resume --out disk/run >/dev/null 2>messages; status=$?; cat messages; echo "rc $status"
cp -r disk/run run
""",
    )
    assert second.startswith("1\n"), second
    place.assert_message(first, ["mtl: disk/run/", "cannot be written", "No space left"])
    place.assert_whole("full")
    assert (place.path / "run/summary.json").exists()
    shutil.rmtree(place.path / "full")
    resume()


# One process for all commands: most of the time is spent on importing torch.
ONE_PROCESS = """
import sys
from mtlcore.cli import main

for command in {commands!r}:
    try:
        main(command, prog_name="mtl")
    except SystemExit as ended:
        print("rc", ended.code, file=sys.stderr)
"""


def test_a_directory_that_cannot_be_written(place: Place) -> None:
    place.run()
    picture = place.finished / "report/predictions.png"
    commands = [
        ["run", *place.tiny, "--out", "disk/run"],
        ["run", "--resume", "--out", "run"],
        ["predict", "run", str(picture), "--out", "disk/out"],
    ]
    place.write("commands.py", ONE_PROCESS.format(commands=commands))
    parts = in_namespace(
        place,
        f"""
mount --bind disk disk && mount -o remount,bind,ro disk || exit 1
mount --bind run run && mount -o remount,bind,ro run || exit 1
"{sys.executable}" commands.py 2>&1 >/dev/null
""",
    )
    assert [part.splitlines()[0] for part in parts[1:]] == ["2", "2", "2"]
    refused = [parts[0], *("\n".join(part.splitlines()[1:]) for part in parts[1:3])]
    for text, name in zip(refused, ("disk/run", "run/", "disk/out"), strict=True):
        place.assert_message(text, [name, "cannot be written", "Read-only"])
    place.assert_whole("run")


def test_what_a_killed_process_left_goes_when_the_run_goes_on(
    place: Place, resume: Callable[[], None]
) -> None:
    run = place.run()
    left = [run / f"{name}.partial" for name in ("run.json", "checkpoints/best.safetensors")]
    for file in [*left, run / "film.mp4.partial"]:
        file.write_bytes(b"half")
    resume()
    assert [file.name for file in run.rglob("*.partial")] == ["film.mp4.partial"]


def test_a_killed_loader_is_told_wherever_torch_raises_it() -> None:
    with pytest.raises(MtlError, match=r"data\.workers=0"), lost_workers_told():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    with pytest.raises(RuntimeError, match="another"), lost_workers_told():
        raise RuntimeError("another error")
