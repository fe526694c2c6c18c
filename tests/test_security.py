"""What SECURITY.md says is not trusted, attacked: each row of its table has a test here.

One file: it is that table. What is trusted and whether it is loaded is in the same place.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import shutil
import struct
import tomllib
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import save_file

import mtlcore
from mtlcore.config import Layer, resolve
from mtlcore.data import DataError
from mtlcore.datasets.matlab import hdf5_array, hdf5_texts, opened_hdf5
from mtlcore.datasets.tables import Form, open_table
from mtlcore.errors import ConfigError, MtlError, UsageError
from mtlcore.loading import Root, convert, decode_image, decode_label
from mtlcore.plugins import Plugins
from mtlcore.report import make_report
from mtlcore.report.markup import without_home
from mtlcore.storage import RunDirectory, load_checkpoint, open_run, stored_study

Command = Callable[..., Result]
ROOT = Path(__file__).parents[1]
CONFIG = {
    "tasks": ["depth"],
    "data": {"train": 2, "val": 2, "size": [32, 32], "workers": 0},
    "model": {"backbone": {"width": 0.03125}},
    "training": {"steps": 1, "batch_size": 2, "threads": 1},
}
TRAP = "from pathlib import Path\nPath({!r}).touch()\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    mtlcore.run(CONFIG, out=str(out))
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A run that somebody has sent."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret.txt"
    file.write_text('{"status": "SECRET"}')
    return file


def changed(run: Path, **values: Any) -> None:
    tree = tomllib.loads((run / "config.toml").read_text())
    (run / "config.toml").write_text(tomli_w.dumps({**tree, **values}))


# The table


def untrusted() -> list[str]:
    text = (ROOT / "SECURITY.md").read_text("utf-8").partition("## What mtlcore does not trust")[2]
    rows = re.findall(r"^\| (.+?) \|", text.partition("\n## ")[0], re.MULTILINE)
    return [row for row in rows if row not in ("what", "---")]


HELD = {
    "the configuration of a run directory": "plugin_files_of_a_run",
    "other files of a run directory": "files_of_a_run",
    "study directories": "cells_of_a_study",
    "run directories at URLs and in archives": "archives",
    "checkpoints (`checkpoints/*.safetensors`)": "checkpoints",
    "images and labels": "images",
    "lists and descriptions that come with data": "lists_and_descriptions",
    "weights of a backbone": "weights",
    "label splits, `mtl labels`": "label_splits",
    "tables and MATLAB files": "tables",
    "names of methods, tasks and variants": "names",
    "pages": "pages",
}


def test_every_row_is_attacked() -> None:
    assert untrusted() == list(HELD)
    tests = [name for name in globals() if name.startswith("test_")]
    for row, name in HELD.items():
        assert any(test.startswith(f"test_{name}") for test in tests), row


# What a run names


@pytest.fixture
def trap(tmp_path: Path, run: Path) -> Path:
    """The file that shows that a plugin file of a run was run."""
    sprung = tmp_path / "sprung"
    (run / "trap.py").write_text(TRAP.format(str(sprung)))
    changed(run, plugins=[str(run / "trap.py")])
    return sprung


COMMANDS = {
    "eval": ["eval", "RUN"],
    "predict": ["predict", "RUN", "image.png", "--out", "predicted"],
    "pseudo-label": ["pseudo-label", "RUN", "--data", "photographs", "--out", "labelled"],
    "adapt": ["adapt", "RUN", "--tasks", "edges", "--out", "adapted"],
    "resume": ["run", "--resume", "--out", "RUN"],
    "teacher": ["config", "--set=tasks=['depth']", "--set=teachers.old='RUN'"],
    "study": ["study", "study.toml", "--out", "studied", "--prepare"],
}
STUDY = """
name = "s"
seeds = [0]
[base]
tasks = ["depth"]
teachers = {{old = {!r}}}
[variants.equal]
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_plugin_files_of_a_run_are_not_run_unasked(
    command: str, run: Path, trap: Path, mtl: Command, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("image.png")
    Path("study.toml").write_text(STUDY.format(str(run)))
    arguments = [word.replace("RUN", str(run)) for word in COMMANDS[command]]
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    for options in ([], ["--no-plugin", "trap"], ["--no-plugin", "ira"]):
        result = mtl(*options, *arguments, env={"MTL_PLUGINS": ""})
        assert result.exit_code == UsageError.exit_code, result.output
        assert "trap.py" in result.stderr and "Traceback" not in result.stderr
        assert ("--trust" in result.stderr) != ("trap" in options)
        assert not trap.exists()
    assert before == {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    # Blocked by its id, it is not run for any word of trust.
    result = mtl("--no-plugin", "trap", *arguments, "--trust", env={"MTL_PLUGINS": ""})
    assert result.exit_code == UsageError.exit_code
    assert not trap.exists()


@pytest.mark.parametrize("asked", [["--trust"], ["--plugin"]])
def test_plugin_files_of_a_run_are_run_for_who_asks(
    asked: list[str], run: Path, trap: Path, mtl: Command
) -> None:
    if asked == ["--plugin"]:
        asked = ["--plugin", str(run / "trap.py")]
    result = mtl("eval", str(run), *asked, env={"MTL_PLUGINS": ""})
    assert result.exit_code == 0, result.output
    assert trap.exists()


def test_plugin_files_of_a_run_are_asked_for_in_python_too(run: Path, trap: Path) -> None:
    (run / "summary.json").unlink()
    with pytest.raises(UsageError, match=r"trap\.py: .* --trust"):
        mtlcore.run(out=str(run), resume=True)
    assert not trap.exists()
    with suppress(MtlError):  # the run was trained without it
        mtlcore.run(out=str(run), resume=True, trust=True)
    assert trap.exists()


def test_plugin_files_of_a_run_stand_for_its_loggers(run: Path, mtl: Command, secret: Path) -> None:
    changed(run, loggers=[{"name": "json-lines", "to": str(secret)}])
    (run / "summary.json").unlink()
    content = secret.read_bytes()
    resume = ("run", "--resume", "--out", str(run))
    result = mtl(*resume, env={"MTL_PLUGINS": ""})
    assert result.exit_code == UsageError.exit_code
    assert "--trust" in result.stderr and "--set loggers=[]" in result.stderr
    # Evaluating logs nothing.
    assert mtl("eval", str(run), env={"MTL_PLUGINS": ""}).exit_code == 0
    assert mtl(*resume, "--set", "loggers=[]", env={"MTL_PLUGINS": ""}).exit_code == 0
    assert secret.read_bytes() == content


def test_a_message_says_when_going_on_needs_trust(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    plugins = Plugins(allow=())
    plain = resolve(plugins, (), [Layer("test", CONFIG)])
    own = resolve(plugins, (), [Layer("test", {**CONFIG, "plugins": [str(tmp_path / "mine.py")]})])
    assert plain.resume_command("out") == "mtl run --resume --out out"
    assert own.resume_command("my out") == "mtl run --resume --out 'my out' --trust"


# Files of runs and studies


@pytest.mark.parametrize(
    "name",
    [
        "../../../secret.txt",
        "/SECRET",
        "../../config.toml",
        "..",
        ".",
        "",
        "a\\..\\b",
        3,
        None,
        ["x"],
    ],
)
def test_files_of_a_run_are_pictures_beside_their_index(name: Any, run: Path, secret: Path) -> None:
    index = json.loads((run / "report/samples/index.json").read_text())
    if name == "/SECRET":
        name = str(secret)
    index["samples"][0]["pictures"]["input"] = name
    (run / "report/samples/index.json").write_text(json.dumps(index))
    with pytest.raises(MtlError):
        make_report([str(run)])


@pytest.mark.parametrize(
    "name",
    ["run.json", "summary.json", "metrics.jsonl", "config.toml", "report/samples/index.json"],
)
def test_files_of_a_run_that_are_links_lead_nowhere(name: str, run: Path, secret: Path) -> None:
    (run / name).unlink()
    (run / name).symlink_to(secret)
    with pytest.raises(MtlError, match=f"{re.escape(name)}: leads out of the directory"):
        make_report([str(run)])


def test_files_of_a_run_are_pngs(run: Path, secret: Path) -> None:
    picture = next(run.glob("report/samples/*.png"))
    picture.write_bytes(secret.read_bytes())
    with pytest.raises(MtlError, match=rf"{picture.name}: is no PNG"):
        make_report([str(run)])
    picture.unlink()
    picture.symlink_to(secret)
    with pytest.raises(MtlError, match=rf"{picture.name}: leads out"):
        make_report([str(run)])


@pytest.mark.parametrize("name", ["metrics.jsonl", "run.json.partial", "checkpoints", "report"])
def test_files_of_a_run_are_not_written_through_links(
    name: str, run: Path, tmp_path: Path, secret: Path, mtl: Command
) -> None:
    (run / "summary.json").unlink()
    place = run / name
    elsewhere: Path = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if place.is_dir():
        shutil.rmtree(place)
        place.symlink_to(elsewhere)
    else:
        place.unlink(missing_ok=True)
        place.symlink_to(secret)
    content = secret.read_bytes()
    result = mtl("run", "--resume", "--out", str(run), env={"MTL_PLUGINS": ""})
    assert result.exit_code == UsageError.exit_code, result.output
    assert f"{name}: is a symbolic link that leads out" in result.stderr
    assert secret.read_bytes() == content and not list(elsewhere.iterdir())


def test_files_of_a_run_may_lie_behind_a_link_that_is_named(
    run: Path, tmp_path: Path, mtl: Command
) -> None:
    (tmp_path / "link").symlink_to(run)
    (run / "summary.json").unlink()
    result = mtl("run", "--resume", "--out", str(tmp_path / "link"), env={"MTL_PLUGINS": ""})
    assert result.exit_code == 0, result.output
    assert make_report([str(tmp_path / "link")])


@pytest.mark.parametrize("link", ["report", "report/index.html"])
def test_files_of_a_run_take_no_page_elsewhere(
    link: str, run: Path, tmp_path: Path, secret: Path, mtl: Command
) -> None:
    """`mtl report RUN` writes into the run, where somebody may have put a link."""
    (tmp_path / "elsewhere").mkdir()
    if link == "report":
        (run / link).rename(run / "pictures")
    (run / link).symlink_to(tmp_path / "elsewhere" if link == "report" else secret)
    content = secret.read_bytes()
    result = mtl("report", str(run), env={"MTL_PLUGINS": ""})
    assert result.exit_code == 1, result.output
    assert f"leads out of the directory {run}" in result.stderr
    assert secret.read_bytes() == content and not list((tmp_path / "elsewhere").iterdir())


def test_cells_of_a_study_lie_in_it(tmp_path: Path) -> None:
    cell = {"variant": "a", "seed": 0, "group": None, "location": "cells/../../run",
            "status": "finished", "reason": None}  # fmt: skip
    study = {"name": "s", "baseline": "a", "delta_m": "mtan", "epoch": "last", "targets": [],
             "notes": [], "threads": 1, "cells": [cell]}  # fmt: skip
    (tmp_path / "study.json").write_text(json.dumps(study))
    with pytest.raises(MtlError, match=r"cells/\.\./\.\./run: leads out of the directory"):
        stored_study(str(tmp_path))
    (tmp_path / "study.json").write_text(
        json.dumps({**study, "cells": [{**cell, "location": "b"}]})
    )
    assert stored_study(str(tmp_path))
    (tmp_path / "b").symlink_to(tmp_path.parent)
    with pytest.raises(MtlError, match="b: leads out of the directory"):
        stored_study(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["../../evil.txt", "checkpoints/../../../evil.txt", "a/../../evil.txt"]
)
def test_archives_write_nothing_outside(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / "a/b/c"  # where it would be unpacked
    deep.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    archive = tmp_path / "run.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("config.toml", "seed = 0\n")
        file.writestr("summary.json", "{}")  # finished: nothing needs to be written there
        file.writestr(name, "evil")
    with pytest.raises(UsageError, match="leads out of the run's directory"):
        RunDirectory(f"zip://::{archive}", resume=True)
    assert not list(tmp_path.rglob("evil.txt"))


# Files that are read


class Trap:
    """What a pickle can hold that runs when it is read."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._place,)


@pytest.fixture
def sprung(tmp_path: Path) -> Path:
    return tmp_path / "sprung"


@pytest.mark.parametrize("form", ["pickle", "torch", "safetensors"])
def test_checkpoints_are_never_unpickled(form: str, tmp_path: Path, sprung: Path) -> None:
    file = tmp_path / "last.safetensors"
    if form == "pickle":
        file.write_bytes(pickle.dumps(Trap(sprung)))
    elif form == "torch":
        torch.save({"learner": Trap(sprung)}, file)
    else:
        save_file({"x": torch.zeros(1)}, file, {"format": "mtlcore-1", "tree": '{"$tensor": "y"}'})
    with pytest.raises(MtlError, match=r"last\.safetensors"):
        load_checkpoint(file)
    assert not sprung.exists()


def test_images_and_labels_are_never_unpickled(sprung: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Trap(sprung)], dtype=object), allow_pickle=True)
    for decode in (decode_image, decode_label):
        with pytest.raises(DataError, match="x: cannot be read"):
            decode(buffer.getvalue(), "x")
    assert not sprung.exists()


PATHS = ["../secret.txt", "a/../../secret.txt", "..", "a/..", "..\\secret.txt"]


@pytest.mark.parametrize("path", PATHS)
def test_lists_and_descriptions_lead_nowhere(path: str, tmp_path: Path, secret: Path) -> None:
    (tmp_path / "data/a").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as file:
        file.writestr("a/x", "")
    for root in (str(tmp_path / "data"), f"zip://::{tmp_path / 'data.zip'}", "memory://data"):
        for look in (Root(root).read_bytes, Root(root).exists, Root(root).list):
            with pytest.raises(DataError, match="leads out of the data's folder"):
                look(path)


def test_lists_and_descriptions_of_a_dataset(tmp_path: Path, mtl: Command) -> None:
    """The name in a list is that of a readable image outside, which is not read."""
    for split in ("train", "val"):
        for kind in ("rgb", "depth"):
            (tmp_path / f"photos/{split}/{kind}").mkdir(parents=True)
        (tmp_path / f"photos/{split}.txt").write_text("../../../outside\n")
    Image.new("RGB", (32, 32)).save(tmp_path / "outside.png")
    (tmp_path / "photos/dataset.toml").write_text(
        'image = "{split}/rgb/{name}.png"\nnames = "{split}.txt"\n'
        '[tasks.depth]\nkind = "depth"\nfile = "{split}/depth/{name}.png"\n'
    )
    settings = ["--set=data.name=folder", f"--set=data.root={tmp_path / 'photos'}"]
    result = mtl("run", *settings, "--out", str(tmp_path / "out"), env={"MTL_PLUGINS": ""})
    assert result.exit_code == 1, result.output
    assert "leads out of the data's folder" in result.stderr


def test_weights_are_tensors_alone(tmp_path: Path, sprung: Path) -> None:
    torch.save({"conv1.weight": Trap(sprung)}, tmp_path / "weights.pt")
    backbone = {"name": "resnet", "weights": str(tmp_path / "weights.pt")}
    config = resolve(
        Plugins(allow=()), (), [Layer("test", {**CONFIG, "model": {"backbone": backbone}})]
    )
    with pytest.raises(MtlError, match="neither safetensors nor a state dict"):
        config.backbone.make(config.tasks)
    assert not sprung.exists()


def pickled(content: bytes) -> bytes:
    """The .npy file of an object array whose pickle is this."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    header += b" " * (117 - len(header)) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


class Forged:
    """An array of objects whose bytes would be taken for their addresses."""

    def __init__(self, build: Callable[[], tuple[Any, ...]]) -> None:
        self._build = build

    def __reduce__(self) -> tuple[Any, ...]:
        return self._build()


def forged_type() -> Any:
    """The data type of objects with the flags of numbers, as no numpy writes it."""
    return Forged(lambda: (np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)))


ADDRESSES = b"A" * 16
# numpy's own constructors, wherever its version keeps them.
RECONSTRUCT = np.zeros(1).__reduce__()[0]
FROM_BUFFER = np.zeros(1).__reduce_ex__(5)[0]
SCALAR = np.int64(0).__reduce__()[0]
FORGED: dict[str, Callable[[], Any]] = {
    "array": lambda: Forged(
        lambda: (
            RECONSTRUCT, (np.ndarray, (0,), b"b"),
            (1, (2,), forged_type(), False, ADDRESSES),
        )
    ),
    "buffer": lambda: Forged(
        lambda: (FROM_BUFFER, (ADDRESSES, forged_type(), (2,), "C"))
    ),
    "scalar": lambda: Forged(lambda: (SCALAR, (forged_type(), ADDRESSES))),
    "composed": lambda: Forged(
        lambda: (
            RECONSTRUCT, (np.ndarray, (0,), b"b"),
            (1, (2,), np.dtype([("a", "O")]), False, ADDRESSES),
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORGED)
@pytest.mark.parametrize("protocol", range(6))
def test_label_splits_build_no_objects_of_bytes(kind: str, protocol: int, tmp_path: Path) -> None:
    file = tmp_path / "labels.npy"
    file.write_bytes(pickled(pickle.dumps({"semseg": FORGED[kind]()}, protocol)))
    with pytest.raises(UsageError, match=r"labels\.npy: cannot be read as a label file"):
        convert(file, [])


@pytest.mark.parametrize("protocol", range(6))
def test_label_splits_that_are_published_are_read(protocol: int, tmp_path: Path) -> None:
    names = {
        "a": np.array(["2008_000008", "é"]), "b": np.array([b"x", b"yy"]), "c": ["z", np.str_("w")],
        "d": np.arange(3), "e": np.array(["u", 3], dtype=object), "f": [np.int64(7)],
        "g": np.array([[1, 2], [3, 4]], dtype=">i2"),
    }  # fmt: skip
    file = tmp_path / "labels.npy"
    file.write_bytes(pickled(pickle.dumps(np.array(names, dtype=object), protocol)))
    assert convert(file, []) == {
        "a": ["2008_000008", "é"], "b": ["x", "yy"], "c": ["z", "w"], "d": [0, 1, 2],
        "e": ["u", 3], "f": [7], "g": [1, 2, 3, 4],
    }  # fmt: skip


def test_label_splits_of_torch_are_plain(tmp_path: Path, sprung: Path) -> None:
    torch.save({"a": Trap(sprung)}, tmp_path / "labels.pt")
    with pytest.raises(MtlError, match=r"labels\.pt"):
        convert(tmp_path / "labels.pt", [])
    assert not sprung.exists()


def test_tables_are_texts(tmp_path: Path, sprung: Path) -> None:
    (tmp_path / "table.csv").write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(MtlError):
        open_table(Root(str(tmp_path)), "table.csv", Form())
    assert not sprung.exists()


@pytest.mark.parametrize("sort", ["link", "external", "virtual"])
def test_values_of_a_matlab_file_lie_in_no_other_file(tmp_path: Path, sort: str) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "secret.h5", "w") as secret:
        secret["x"] = np.arange(4.0)
    (tmp_path / "data").mkdir()
    with h5py.File(tmp_path / "data" / "x.mat", "w") as file:
        file["own"] = np.arange(4.0)
        if sort == "link":
            file["x"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "x")
        elif sort == "external":
            outside = [(str(tmp_path / "secret.h5"), 0, 32)]
            file.create_dataset("x", (4,), np.float64, external=outside)
        else:
            layout = h5py.VirtualLayout((4,), np.float64)
            layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "x", (4,))
            file.create_virtual_dataset("x", layout)
        cells = file.create_dataset("names", (1,), h5py.ref_dtype)
        if sort != "link":
            cells[0] = file["x"].ref
    with opened_hdf5(Root(str(tmp_path / "data")), "x.mat", "x") as file:
        assert hdf5_array(file, "own", "x.mat")[3] == 3
        with pytest.raises(DataError, match=r"x\.mat: has no variable 'x' of its own"):
            hdf5_array(file, "x", "x.mat")
        with pytest.raises(DataError, match=r"x\.mat: 'names' is no cell array"):
            hdf5_texts(file, "names", "x.mat")


# Names and pages


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/b", ".hidden", "a\\b", "a\nb", "a\x00b"])
def test_names_are_no_paths(name: str) -> None:
    with pytest.raises(ConfigError, match="method: "):
        resolve(Plugins(allow=()), (), [Layer("test", {**CONFIG, "method": name})])


@pytest.mark.parametrize("name", ["pcgrad+dwa", "my method", "größe", "v1.2", "a-b_c"])
def test_names_of_methods_may_be_anything_else(name: str) -> None:
    config = resolve(Plugins(allow=()), (), [Layer("test", {**CONFIG, "method": name})])
    assert config.method == name


def test_pages_name_no_home_directory(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/srv/people/ann")
    data = tomllib.loads((run / "config.toml").read_text())["data"]
    changed(run, data={**data, "root": "/srv/people/ann/photos"}, method="/srv/people/ann/x")
    about = json.loads((run / "run.json").read_text())
    about |= {"argv": ["mtl", "--out=/home/bob/x"], "device": "/Users/eve/gpu",
              "origins": {"seed": "/home/bob/mine.toml"}}  # fmt: skip
    (run / "run.json").write_text(json.dumps(about))
    summary = json.loads((run / "summary.json").read_text())
    summary["skipped_samples"] = ["/srv/people/ann/photos/1.png: is broken"]
    (run / "summary.json").write_text(json.dumps(summary))
    index = json.loads((run / "report/samples/index.json").read_text())
    index["samples"][0]["key"] = "/srv/people/ann/photos/2.png"
    (run / "report/samples/index.json").write_text(json.dumps(index))
    page = make_report([str(run)])
    for name in ("ann", "bob", "eve"):
        assert not re.search(rf"\b{name}\b", page)
    assert "~/photos/2.png" in page and "--out=~/x" in page


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/ann", "~"),
        ("at /home/ann/x and file:///home/bob/y", "at ~/x and file://~/y"),
        ("https://site.org/home/ann", "https://site.org/home/ann"),
        ("/data/home/ann", "/data/home/ann"),
        (r"C:\Users\ann\x", r"~\x"),
        ("/homework/x", "/homework/x"),
    ],
)
def test_pages_know_homes_of_others(text: str, shown: str) -> None:
    assert without_home(text) == shown


def test_pages_take_colours_for_colours(run: Path) -> None:
    index = json.loads((run / "report/samples/index.json").read_text())
    index["tasks"]["depth"]["classes"] = {
        "good": "#87ff77", "bad": "red;position:fixed;inset:0", "worse": "url(http://x)",
    }  # fmt: skip
    (run / "report/samples/index.json").write_text(json.dumps(index))
    page = make_report([str(run)])
    assert "background:#87ff77" in page
    assert "position:fixed;inset" not in page and "url(http" not in page
    assert open_run(str(run)).pictures is not None
