"""A lock that names its holder: refused, released, taken over; and what children have of it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from mtlcore.errors import UsageError
from mtlcore.system import HeldLock, LockHeld, locked

pytest.importorskip("fcntl")


def test_who_holds_it_is_named(tmp_path: Path) -> None:
    first = HeldLock(tmp_path / "lock")
    with pytest.raises(LockHeld, match=rf"process {os.getpid()} on .+, since \d{{4}}-"):
        HeldLock(tmp_path / "lock")
    first.release()
    assert not (tmp_path / "lock").exists()
    HeldLock(tmp_path / "lock").release()


def test_what_a_dead_process_left_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("process 999999 on elsewhere, since long ago\n")
    lock = HeldLock(tmp_path / "lock")
    assert f"process {os.getpid()}" in (tmp_path / "lock").read_text()
    lock.release()


def test_a_file_that_was_deleted_or_replaced_is_no_lock(tmp_path: Path) -> None:
    lock = HeldLock(tmp_path / "lock")
    assert lock.is_held()
    (tmp_path / "lock").unlink()
    assert not lock.is_held()
    other = HeldLock(tmp_path / "lock")
    assert not lock.is_held() and other.is_held()
    lock.release()  # of nothing: the other's file stays
    assert other.is_held()
    other.release()


def test_a_forked_child_does_not_hold_it(tmp_path: Path) -> None:
    """Workers outlive a killed process by seconds; the next start must not wait for them."""
    lock = HeldLock(tmp_path / "lock")
    ours, theirs = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        lock.release()  # it has nothing to release
        os.write(ours[1], b"x")
        os.read(theirs[0], 1)  # until its parent has tried
        os._exit(0)
    try:
        os.read(ours[0], 1)
        assert lock.is_held()
        # As if this process had been killed.
        os.close(lock._descriptor)
        HeldLock(tmp_path / "lock").release()
    finally:
        os.write(theirs[1], b"x")
        os.waitpid(child, 0)
        for end in (*ours, *theirs):
            os.close(end)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "lock").symlink_to(tmp_path / "mine")
    with pytest.raises(UsageError, match="lock: cannot be written"):
        HeldLock(tmp_path / "lock")
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_file_system_without_locks_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", unknown)
    with pytest.warns(UserWarning, match="this file system has no locks"):
        lock = HeldLock(tmp_path / "lock")
    lock.release()
    # A study cannot do without.
    with pytest.raises(UsageError, match="cannot be locked"), locked(tmp_path / "l", pytest.fail):
        pass


def test_a_place_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", refused)
    says = rf"{re.escape(str(tmp_path))}/lock: cannot be written \(Read-only file system\)"
    with pytest.raises(UsageError, match=says), locked(tmp_path / "lock", pytest.fail):
        pass
    with pytest.raises(UsageError, match=says):
        HeldLock(tmp_path / "lock")
