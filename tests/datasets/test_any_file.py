"""Whatever a description, a label, a list or a table holds: a value of its kind, or a message."""

import copy
import io
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from mtlcore.data import DataError, collate
from mtlcore.datasets.ade20k import ADE20K
from mtlcore.datasets.celeba import ATTRIBUTES, CelebA
from mtlcore.datasets.cityscapes_png import CityscapesPNG
from mtlcore.datasets.folder import Folder
from mtlcore.datasets.kitti_depth import KITTIDepth
from mtlcore.datasets.tabular import Tabular, Target
from mtlcore.errors import ConfigError, MtlError
from mtlcore.loading import decode_image
from mtlcore.testing.base import spread

FEW = settings(settings.get_profile("fast"), max_examples=40)
SIZE = (4, 6)
SPEC = {
    "image": "{split}/rgb/{name}.png",
    "size": [4, 6],
    "tasks": {
        "t": {
            "kind": "segmentation",
            "file": "{split}/t/{name}.npy",
            "classes": ["a", "b"],
            "values": {"7": "a", "8": "b"},
            "invalid": [0, "nan"],
        },
        "d": {"kind": "depth", "file": "{split}/d/{name}.npy", "scale": 0.001, "offset": [0.0]},
    },
}
VALUES = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(
            ["nan", "#804080", "#80408", "1,2,3", "{name}", "{a,b}", "a", "{name}{x,}"]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
PATHS = [
    ("image",), ("size",), ("names",), ("val",), ("encoding",), ("tasks",), ("tasks", "t"),
    *[("tasks", "t", key) for key in (*SPEC["tasks"]["t"], "scale", "offset", "channels", "unit")],
    *[("tasks", "d", key) for key in ("kind", "scale", "offset", "invalid", "values", "channels")],
]  # fmt: skip


@FEW
@given(st.dictionaries(st.sampled_from(PATHS), VALUES, min_size=1, max_size=3))
def test_any_description_is_read_or_told_by_its_path(tmp_path, changes):
    spec = copy.deepcopy(SPEC)
    for path, value in sorted(changes.items()):
        table = spec
        for key in path[:-1]:
            table = table.get(key) if isinstance(table, dict) else None
        if isinstance(table, dict):
            table[path[-1]] = value
    try:
        text = tomli_w.dumps(spec)
    except (TypeError, ValueError, OverflowError, UnicodeEncodeError):
        return
    (tmp_path / "dataset.toml").write_text(text, "utf-8", "surrogatepass")
    try:
        assert Folder.describe(str(tmp_path))
    except ConfigError as error:
        assert all(str(tmp_path) in problem for problem in error.problems)


KINDS = {
    "segmentation": 'classes = ["a", "b"]',
    "depth": "",
    "normals": "",
    "edges": "",
    "saliency": "channels = 1",
    "heat": "channels = 2",
}
EXTRAS = ["", "invalid = [0, 255]", "invalid = 'nan'", "offset = -1"]
LABELS = st.one_of(
    arrays(
        st.sampled_from([np.uint8, np.int16, np.int64, np.float32, np.float64, np.bool_, ">u2"]),
        array_shapes(min_dims=1, max_dims=4, max_side=6) | st.just(SIZE) | st.just((*SIZE, 3)),
    ),
    arrays(np.uint8, SIZE, elements=st.sampled_from([0, 1, 255])),
    arrays(np.float32, SIZE, elements=st.sampled_from([0, 0.5, 1, -1, math.nan, math.inf])),
)


def check(task, target, valid):
    """What `mtlcore.testing.DatasetContract` asks of labels."""
    known = target[spread(valid, target)]
    assert bool(target.isfinite().all())
    if not len(known):
        return
    low, high = float(known.min()), float(known.max())
    assert task.dtype != "int64" or (low >= 0 and high < task.channels)
    assert task.values != "positive" or low > 0
    assert task.values != "share" or (low >= 0 and high <= 1)
    if task.values == "direction":
        lengths = torch.linalg.vector_norm(target, dim=1)[valid]
        assert float((lengths - 1).abs().max()) < 0.01


@FEW
@given(kind=st.sampled_from(sorted(KINDS)), extra=st.sampled_from(EXTRAS), label=LABELS)
def test_any_label_is_one_of_its_kind_or_told(tmp_path, kind, extra, label):
    for folder in ("rgb", "t"):
        (tmp_path / "train" / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "train/rgb/0.png")
    np.save(tmp_path / "train/t/0.npy", label)
    (tmp_path / "dataset.toml").write_text(
        f'image = "{{split}}/rgb/{{name}}.png"\n[tasks.t]\nkind = "{kind}"\n'
        f'file = "{{split}}/t/{{name}}.npy"\n{KINDS[kind]}\n{extra}\n'
    )
    (task,) = Folder.describe(str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = Folder(str(tmp_path), "train")
    try:
        batch = collate([data[0]], [task])
    except DataError as error:
        assert str(tmp_path / "train/t/0.npy") in str(error)
    else:
        check(task, batch.targets["t"], batch.valid["t"])


@FEW
@given(LABELS)
def test_any_array_is_a_photograph_or_told(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    try:
        image = decode_image(buffer.getvalue(), "x.npy")
    except DataError as error:
        assert str(error).startswith("x.npy: ")
    else:
        assert image.shape[0] == 3
        assert image.dtype == torch.float32


CELLS = st.sampled_from(["", "1", "1.0", "2,5", "2.5", "nan", "a", '"', "x;y", "\0", "1e999", "é"])
TABLES = st.tuples(
    st.sampled_from([",", ";", "\t", "|", " "]),
    st.lists(st.lists(CELLS, min_size=1, max_size=4), min_size=1, max_size=6),
    st.sampled_from(["utf-8", "utf-16", "latin-1"]),
)


@FEW
@given(TABLES, st.sampled_from(["x,v", "x;v", ",v", "v", "x,v,v", ""]))
def test_any_table_is_read_or_told(tmp_path, table, header):
    delimiter, rows, encoding = table
    lines = [header, *(delimiter.join(row) for row in rows)]
    (tmp_path / "t.csv").write_bytes("\n".join(lines).encode(encoding))
    target = {"v": Target(kind="regression", column="v")}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = Tabular(str(tmp_path), "train", file="t.csv", targets=target)
        collate([data[i] for i in range(len(data))], Tabular.describe(None, targets=target))
    except MtlError as error:
        assert str(error)


@FEW
@given(st.binary(max_size=40) | st.text(max_size=20).map(str.encode))
def test_any_list_is_read_or_told(tmp_path, content):
    (tmp_path / "rgb").mkdir(exist_ok=True)
    (tmp_path / "train.txt").write_bytes(content)
    (tmp_path / "dataset.toml").write_text(
        'names = "{split}.txt"\nimage = "rgb/{name}.png"\n[tasks.t]\nkind = "edges"\n'
        'file = "t/{name}.png"\n'
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            Folder(str(tmp_path), "train")[0]
        except MtlError as error:
            assert str(error)
        else:
            pytest.fail(f"there is no photograph in {list(Path(tmp_path).iterdir())}")


DRIVE = "2011_09_26/2011_09_26_drive_0001_sync"
LINES = st.lists(
    st.sampled_from([
        "", "1", "7", "1\twall", "2\tsky\t", "Idx\tName", "000001.jpg 0", "000001.jpg 3", "a b c",
        " ".join(ATTRIBUTES), "000001.jpg" + " -1" * 40, "000001.jpg" + " 1" * 39,
        f"{DRIVE} 5 l", f"{DRIVE}/image_02/data/5.png x", f"../{DRIVE} 5 r", f"{DRIVE} {9**99}",
    ]) | st.text(max_size=12),
    max_size=5,
)  # fmt: skip
CONTENTS = st.binary(max_size=40) | LINES.map(
    lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass")
)


def told(make):
    """Whatever is in a file, it is read, or a message of mtlcore says what is wrong."""
    try:
        make()
    except MtlError as error:
        assert str(error)


@FEW
@given(CONTENTS, CONTENTS)
def test_any_list_of_a_published_dataset_is_read_or_told(tmp_path, content, other):
    for folder in ("images/training", "img_align_celeba", "train"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for name in ("objectInfo150.txt", "list_eval_partition.txt", "list-train.txt"):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "list_attr_celeba.txt").write_bytes(other)
    root = str(tmp_path)
    told(lambda: ADE20K.describe(root))
    told(lambda: CelebA(root, "train"))
    told(lambda: KITTIDepth(root, "train", names="list-{split}.txt")[0])


CAMERAS = st.binary(max_size=20) | VALUES.map(
    lambda tree: json.dumps({"extrinsic": {"baseline": tree}, "intrinsic": {"fx": 2.0}}).encode()
)


@FEW
@given(CAMERAS)
def test_any_camera_is_read_or_told(tmp_path, content):
    place = "train/ulm/ulm_000000_000019"
    for kind, array in (
        ("leftImg8bit", np.zeros((*SIZE, 3), np.uint8)),
        ("disparity", np.full(SIZE, 700, np.uint16)),
    ):
        file = tmp_path / kind / f"{place}_{kind}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(file)
    camera = tmp_path / "camera" / f"{place}_camera.json"
    camera.parent.mkdir(parents=True, exist_ok=True)
    camera.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = CityscapesPNG(str(tmp_path), "train", depth="metres")
    try:
        batch = collate([dataset[0]], dataset.describe(None, depth="metres"))
    except DataError as error:
        assert str(camera) in str(error)
    else:
        assert bool((batch.targets["depth"] > 0).all())
