"""What a program is started with and told to write to: streams, folders, homes, devices, memory."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image

from mtlcore.errors import MtlError, UsageError
from mtlcore.loading import Root
from mtlcore.runs.execution import _memory_told, _refuse_different, _refuse_other_data
from mtlcore.system import prepare_streams

Command = Callable[..., Result]
Place = Any  # the class in conftest.py


@pytest.fixture
def image(place: Place) -> str:
    Image.new("RGB", (32, 32)).save(place.path / "image.png")
    return "image.png"


# Where results go


def test_predictions_go_to_a_url(place: Place, mtl: Command, image: str) -> None:
    run = str(place.finished)
    result = mtl("predict", run, image, "--out", "memory://predicted/x", env={"MTL_PLUGINS": ""})
    assert result.exit_code == 0, result.output
    assert not list(place.path.glob("memory:*"))
    files = fsspec.filesystem("memory")
    depth = np.load(io.BytesIO(files.cat_file("/predicted/x/image.depth.npy")))
    assert depth.shape == (1, 32, 32)
    assert "memory://predicted/x/image.depth.png" in result.stdout.splitlines()


@pytest.mark.parametrize("out", ["/dev/null", "page.html/x", "unheardof://x"])
def test_predictions_without_a_place(place: Place, mtl: Command, image: str, out: str) -> None:
    place.write("page.html", "precious")
    before = place.contents()
    result = mtl("predict", str(place.finished), image, "--out", out, env={"MTL_PLUGINS": ""})
    assert result.exit_code in (1, 2), result.output
    place.assert_message(result.stderr, [out, "cannot be written"])
    assert place.contents() == before


def test_pages_and_lists_go_through_links_and_to_devices(place: Place, mtl: Command) -> None:
    np.savetxt(place.path / "labels.txt", np.eye(2), fmt="%d")
    for command in (("report", str(place.finished)), ("labels", "labels.txt", "--tasks", "a,b")):
        place.write("target", "old")
        (place.path / "link").unlink(missing_ok=True)
        (place.path / "link").symlink_to("target")
        for out in ("link", "/dev/null", "memory://pages/x"):
            result = mtl(*command, "--out", out, env={"MTL_PLUGINS": ""})
            assert result.exit_code == 0, result.output
        assert (place.path / "link").is_symlink()
        assert (place.path / "target").read_bytes() != b"old"
        assert Path("/dev/null").is_char_device()


def test_a_plugin_and_a_study_need_a_folder_of_this_machine(place: Place, mtl: Command) -> None:
    place.write("s.toml", 'name = "s"\nseeds = [0]\n[variants.equal]\n')
    for command in (["new-plugin", "mine", "--kind", "balancer"], ["study", "s.toml"]):
        result = mtl(*command, "--out", "memory://x", env={"MTL_PLUGINS": ""})
        assert result.exit_code == UsageError.exit_code, result.output
        place.assert_message(result.stderr, ["--out memory://x", "local"])
    assert [file.name for file in place.path.iterdir()] == ["s.toml"]


def test_a_dry_run_makes_no_directory(place: Place, mtl: Command) -> None:
    result = mtl("run", *place.tiny, "--dry-run", env={"MTL_PLUGINS": ""})
    assert result.exit_code == 0, result.output
    assert not (place.path / "runs").exists()


def test_a_read_only_study_is_told(place: Place, mtl: Command, monkeypatch) -> None:
    place.write("s.toml", 'name = "s"\nseeds = [0]\n[base]\ntasks = ["depth"]\n[variants.equal]\n')

    def refused(*_: object) -> int:
        raise OSError(30, "Read-only file system")

    (place.path / "out").mkdir()
    monkeypatch.setattr("mtlcore.system.locks.os.open", refused)
    monkeypatch.setattr("mtlcore.cli.group.prepare_streams", lambda: None)
    result = mtl("study", "s.toml", "--out", "out", env={"MTL_PLUGINS": ""})
    assert result.exit_code == UsageError.exit_code, result.output
    place.assert_message(result.stderr, ["out/study.lock: cannot be written (Read-only file"])


# Streams and folders


def test_text_that_an_encoding_lacks_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    prepare_streams()
    print("2 \N{MULTIPLICATION SIGN} \udcff", flush=True)
    assert written.getvalue() == b"2 \\xd7 \\udcff\n"


CLOSED = """
import os, sys
os.closerange(0, 3)
sys.stdin = sys.stdout = sys.stderr = None
from mtlcore.system import prepare_streams
prepare_streams()
print("nobody reads this", flush=True)
with open(sys.argv[1], "w") as file:
    print("nor this", flush=True)
    print("nor this", file=sys.stderr, flush=True)
    file.write(f"{file.fileno()} {sys.stdin.read()}")
"""


def test_closed_streams_are_no_files_that_are_opened_later(tmp_path: Path) -> None:
    file = tmp_path / "file"
    code = subprocess.run([sys.executable, "-c", CLOSED, str(file)], check=False).returncode
    assert code == 0
    assert file.read_text() == "3 "


def test_a_full_standard_output_is_told(place: Place) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "mtlcore", "list", "balancers"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
            env={**os.environ, "MTL_PLUGINS": ""},
        )  # fmt: skip
    assert result.returncode == 1
    place.assert_message(result.stderr, ["standard output cannot be written", "No space left"])


def test_a_folder_that_is_gone(place: Place, mtl: Command, monkeypatch) -> None:
    (place.path / "gone").mkdir()
    monkeypatch.chdir(place.path / "gone")
    shutil.rmtree(place.path / "gone")
    for command in (["list", "balancers"], ["run", *place.tiny], ["doctor"], ["plugins"]):
        result = mtl(*command, env={"MTL_PLUGINS": ""})
        assert result.exit_code == UsageError.exit_code
        place.assert_message(result.stderr, ["the current folder was deleted", "change to another"])


def test_a_run_whose_folder_is_deleted_says_so(place: Place, mtl: Command, monkeypatch) -> None:
    import mtlcore.engine.training as training

    save = training.save_last

    def delete_before(session: Any) -> None:
        if session.progress.epoch == 2:
            shutil.rmtree(place.path / "run")
        save(session)

    monkeypatch.setattr(training, "save_last", delete_before)
    result = mtl("run", *place.tiny, "--out", "run", env={"MTL_PLUGINS": ""})
    assert result.exit_code == 1, result.output
    place.assert_message(result.stderr, ["run: was deleted or moved while the run wrote it"])
    assert not (place.path / "run").exists()


def test_nobody_has_a_home(place: Place, mtl: Command, monkeypatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("MTLCORE_CACHE", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    result = mtl("report", str(place.finished), "--out", "page.html", env={"MTL_PLUGINS": ""})
    assert result.exit_code == 0, result.output
    for file in ("~/mine.py", "~nobody-here/mine.py"):
        result = mtl("config", "--plugin", file, env={"MTL_PLUGINS": ""})
        assert result.exit_code == UsageError.exit_code
        place.assert_message(result.stderr, ["mine.py", "no such file"])
    with pytest.raises(MtlError, match="set MTLCORE_CACHE to a folder"):
        Root("https://example.invalid/data").read_bytes("x.png")


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK"])
def test_variables_that_are_empty_or_left_over(name: str, place: Place, mtl: Command) -> None:
    for value in ("", "3") if name != "WORLD_SIZE" else ("",):
        result = mtl("run", *place.tiny, "--dry-run", env={"MTL_PLUGINS": "", name: value})
        assert result.exit_code == 0 and json.loads(result.stdout)["losses"], result.output
    result = mtl("run", *place.tiny, env={"MTL_PLUGINS": "", "WORLD_SIZE": "many"})
    assert result.exit_code == UsageError.exit_code
    place.assert_message(result.stderr, ["WORLD_SIZE='many'"])


# Memory, threads and other processes


def test_memory_that_does_not_suffice_is_told(place: Place, mtl: Command, monkeypatch) -> None:
    monkeypatch.setattr("mtlcore.runs.execution.check", lambda _session: torch.empty(2**50))
    result = mtl("run", *place.tiny, "--out", "run", env={"MTL_PLUGINS": ""})
    assert result.exit_code == 1, result.output
    place.assert_message(
        result.stderr, ["the memory of this machine does not suffice", "training.batch_size"]
    )

    def exhausted(_places: object) -> str:
        raise MemoryError

    monkeypatch.setattr("mtlcore.report.make_report", exhausted)
    result = mtl("report", str(place.finished), env={"MTL_PLUGINS": ""})
    assert result.exit_code == 1
    place.assert_message(result.stderr, ["the memory of this machine does not suffice"])


def test_other_errors_are_not_about_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"), _memory_told("here"):
        raise RuntimeError("shapes")


class Ranks:
    """Two processes, of which this is the second: `all_gather` returns what both have."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        self._change = change

    def all_gather(self, value: Any) -> list[Any]:
        return [self._change(value), value]


class Config:
    tree = {"seed": 1, "device": "cuda:1", "data": {"name": "rooms", "root": "/node1"}}


class OfSplits:
    splits = {"train": range(4), "val": range(2)}

    def __init__(self, change: Callable[[Any], Any]) -> None:
        self.distributed = Ranks(change)


def test_processes_with_different_settings_are_refused() -> None:
    # Devices and places of data are each machine's own.
    _refuse_different(Config, Ranks(lambda own: {"seed": 1, "data.name": "rooms"}))
    with pytest.raises(UsageError, match=r"rank 1 differ from those of rank 0 in data\.name, seed"):
        _refuse_different(Config, Ranks(lambda own: {**own, "seed": 2, "data.name": "x"}))


def test_processes_with_different_data_are_refused() -> None:
    _refuse_other_data(OfSplits(lambda own: own))
    with pytest.raises(UsageError, match=r"rank 1 finds 2 samples in the split 'val' and rank 0 3"):
        _refuse_other_data(OfSplits(lambda own: {**own, "val": 3}))
