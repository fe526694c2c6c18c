"""One process writes a run at a time; names of runs are made by one of several at once."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from mtlcore.errors import MtlError, UsageError
from mtlcore.storage import LAST, RunDirectory, next_directory
from mtlcore.system import HeldLock

REMOTE = "memory://claims/run"


@pytest.fixture
def remote() -> Iterator[fsspec.AbstractFileSystem]:
    files = fsspec.filesystem("memory")
    yield files
    if files.exists("/claims"):
        files.rm("/claims", recursive=True)


def begun(location: str) -> RunDirectory:
    directory = RunDirectory(location, resume=True)
    directory.write_text("config.toml", "seed = 0\n")
    directory.open_metrics(0)
    directory.save_checkpoint(LAST, {"step": 1})
    directory.upload()
    return directory


# Local directories


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_writer_is_refused_and_told_of_the_first(tmp_path: Path, resume: bool) -> None:
    place = str(tmp_path / "run")
    first = RunDirectory(place, resume=False)
    says = rf"run: is being written by process {os.getpid()} on .*; wait .* another --out"
    with pytest.raises(UsageError, match=says):
        RunDirectory(place, resume=resume)
    first.write_text("config.toml", "seed = 0\n")
    with pytest.raises(UsageError, match=says if resume else "is not empty"):
        RunDirectory(place, resume=resume)
    first.close()
    RunDirectory(place, resume=True).close()
    assert sorted(p.name for p in Path(place).iterdir()) == ["checkpoints", "config.toml"]


def test_what_a_killed_process_left_is_taken_over(tmp_path: Path) -> None:
    begun(str(tmp_path)).close()
    (tmp_path / "run.lock").write_text("process 1 on this machine, since yesterday\n")
    directory = RunDirectory(str(tmp_path), resume=True)
    assert f"process {os.getpid()}" in (tmp_path / "run.lock").read_text()
    directory.close()


def test_a_lock_alone_makes_no_run(tmp_path: Path) -> None:
    """A process that was killed before it wrote anything leaves an empty directory."""
    (tmp_path / "run.lock").write_text("")
    (tmp_path / "checkpoints").mkdir()
    RunDirectory(str(tmp_path), resume=False).close()


def test_who_came_first_between_look_and_lock_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process begins and ends a run just before this one has its lock."""
    before = HeldLock.__init__

    def after_another(self: HeldLock, file: Path) -> None:
        (tmp_path / "config.toml").write_text("seed = 0\n")
        before(self, file)

    monkeypatch.setattr(HeldLock, "__init__", after_another)
    with pytest.raises(UsageError, match="is not empty"):
        RunDirectory(str(tmp_path), resume=False)
    assert not (tmp_path / "run.lock").exists()


def test_a_stop_request_is_the_live_runs(tmp_path: Path) -> None:
    first = begun(str(tmp_path))
    (tmp_path / "stop.json").write_text('{"reason": "enough"}')
    with pytest.raises(UsageError, match="is being written"):
        RunDirectory(str(tmp_path), resume=True)
    assert (tmp_path / "stop.json").exists()
    first.close()


@pytest.mark.parametrize("again", [False, True])
def test_a_directory_that_is_deleted_is_not_written_anew(tmp_path: Path, again: bool) -> None:
    directory = begun(str(tmp_path / "run"))
    shutil.rmtree(tmp_path / "run")
    if again:
        RunDirectory(str(tmp_path / "run"), resume=False).close()
    assert directory.metrics_length() == 0
    with pytest.raises(MtlError, match=r"run: was deleted or moved"):
        directory.save_checkpoint(LAST, {})
    assert not (tmp_path / "run" / LAST).exists()
    directory.close()


def test_a_finished_run_is_read_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(str(tmp_path)).close()
    (tmp_path / "summary.json").write_text(json.dumps({"steps": 1}))

    def refused(*_: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", refused)
    directory = RunDirectory(str(tmp_path), resume=True)
    assert directory.read_json("summary.json") == {"steps": 1}
    directory.close()


def test_a_place_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("precious")
    for place in ("/dev/null", str(tmp_path / "file"), str(tmp_path / "dangling")):
        with pytest.raises(UsageError, match="cannot be written"):
            RunDirectory(place, resume=False)
    assert (tmp_path / "file").read_text() == "precious"
    assert (tmp_path / "dangling").is_symlink()


# URLs


@pytest.mark.usefixtures("remote")
def test_who_starts_last_has_a_remote_directory() -> None:
    first = begun(REMOTE)
    assert first.taken_from is None
    second = RunDirectory(REMOTE, resume=True)
    assert second.taken_from is not None and f"process {os.getpid()}" in second.taken_from
    first.write_text("config.toml", "seed = 1\n")
    with pytest.raises(MtlError, match="another process has taken this run over"):
        first.close()
    assert fsspec.filesystem("memory").cat_file("/claims/run/config.toml") == b"seed = 0\n"
    second.close()


def test_of_two_that_start_a_remote_run_one_has_a_result(
    remote: fsspec.AbstractFileSystem,
) -> None:
    first, second = (RunDirectory(REMOTE, resume=False) for _ in range(2))
    second.write_text("config.toml", "seed = 2\n")
    with pytest.raises(MtlError, match="another process"):
        first.save_checkpoint(LAST, {})
    with pytest.raises(MtlError, match="another process"):
        first.close()
    second.close()
    assert list(remote.find("/claims/run")) == ["/claims/run/config.toml"]


def test_a_process_that_ends_says_so(remote: fsspec.AbstractFileSystem) -> None:
    begun(REMOTE).close()
    assert not remote.exists("/claims/run/run.lock")
    again = RunDirectory(REMOTE, resume=True)
    assert again.taken_from is None
    again.close()


# Names


def test_names_are_made_by_one_of_several_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made: list[str] = []
    start = threading.Barrier(8)

    def name() -> None:
        start.wait()
        made.extend(next_directory("equal") for _ in range(5))

    threads = [threading.Thread(target=name) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == sorted(f"runs/equal-{number}" for number in range(1, 41))


def test_names_need_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").write_text("a file")
    with pytest.raises(UsageError, match=r"runs: no directory .* --out"):
        next_directory("equal")
