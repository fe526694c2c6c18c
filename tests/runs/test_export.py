"""Trained runs as programs: what they compute, what they tell, and what cannot be one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image

import mtlcore
from mtlcore.config import Layer, resolve
from mtlcore.deployment import DeployedModel, activated, difference
from mtlcore.engine import build_learner
from mtlcore.errors import MtlError, UsageError
from mtlcore.plugins import Plugins
from mtlcore.runs import Exported, export_run
from mtlcore.runs.trained import Trained
from mtlcore.tasks import Task
from mtlcore.testing import tiny_learner

Command = Callable[..., Result]

#: Small networks, of which some cannot be traced, and exporters that are wrong.
PARTS = '''
import mtlcore
import torch
from mtlcore import BackboneSpec, ExporterSpec, HeadSpec, hookimpl
from mtlcore.features import Features
from mtlcore.models import Backbone
from mtlcore.standard.exporters import TorchExport
from mtlcore.standard.heads import ConvHead
from torch import nn


class Small(Backbone):
    out_channels, strides, input_multiple = (4,), (4,), 4

    def __init__(self, tasks):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, stride=4, padding=1)

    def forward(self, inputs, tasks):
        return Features(shared=(self.convolution(inputs - 0.5),))


class Positions(Small):
    """Knows maps of one size."""

    def __init__(self, tasks):
        super().__init__(tasks)
        self.positions = nn.Parameter(torch.randn(4, 8, 12))

    def forward(self, inputs, tasks):
        (x,) = super().forward(inputs, tasks).shared
        return Features(shared=(x + self.positions,))


class Looks(Small):
    def forward(self, inputs, tasks):
        if float(inputs.mean()) > 0.5:
            inputs = inputs / 2
        return super().forward(inputs, tasks)


class LookingHead(ConvHead):
    def forward(self, features):
        return super().forward(features) if float(features[0].mean()) > 9 else super().forward(
            [x / 2 for x in features]
        )


class Off(TorchExport):
    def read(self, path):
        file = super().read(path)

        class Read:
            description = file.description

            def run(self, inputs):
                return {name: x + 2e-4 for name, x in file.run(inputs).items()}

        return Read()


class OneSize(TorchExport):
    def write(self, program, path):
        if program.least:
            raise RuntimeError("this format knows no lengths that vary")
        super().write(program, path)


class Never(TorchExport):
    def write(self, program, path):
        raise RuntimeError("no such operator")


@hookimpl
def mtl_backbones():
    yield BackboneSpec(name="small", target=Small)
    yield BackboneSpec(name="positions", target=Positions)
    yield BackboneSpec(name="looks", target=Looks)


@hookimpl
def mtl_heads():
    yield HeadSpec(name="looking", target=LookingHead, task_kinds=("depth",))


@hookimpl
def mtl_exporters():
    yield ExporterSpec(name="off", target=Off)
    yield ExporterSpec(name="one-size", target=OneSize)
    yield ExporterSpec(name="never", target=Never)
'''

#: What somebody runs who has torch and numpy alone.
ALONE = """
import json, sys
sys.modules["mtlcore"] = None  # importing it fails
import numpy as np, torch
extra = {"mtlcore.json": ""}
program = torch.export.load(sys.argv[1], extra_files=extra).module()
values = program(torch.from_numpy(np.load(sys.argv[2])))
np.savez(sys.argv[3], **{name: x.numpy() for name, x in values.items()})
print(extra["mtlcore.json"])
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("parts") / "parts.py"
    file.write_text(PARTS)
    return file


@pytest.fixture(scope="module")
def run(parts: Path, no_pictures: None) -> Path:
    config = {
        "tasks": ["segmentation", "depth", "normals"],
        "data": {"train": 2, "val": 3, "size": [32, 48], "workers": 0},
        "model": {"backbone": {"name": "small"}},
        "training": {"steps": 1, "batch_size": 2},
    }
    out = parts.parent / "run"
    mtlcore.run(config, plugins=[str(parts)], out=str(out))
    return out


@pytest.fixture(scope="module")
def exported(mtl: Command, run: Path, parts: Path) -> tuple[Path, str]:
    file = run.parent / "deep" / "program.pt2"
    arguments = ["--to", "torch-export", "--out", str(file), "--plugin", str(parts)]
    result = mtl("export", str(run), *arguments)
    assert result.exit_code == 0, result.output
    assert not result.stderr
    return file, result.stdout


@pytest.fixture
def write(parts: Path, tmp_path: Path) -> Callable[..., Exported]:
    """Export a model that was not trained."""

    def export(to: str = "torch-export", only: list[str] | None = None, **values: Any) -> Exported:
        plugins = Plugins.from_environment()
        plugins.load_file(str(parts))
        defaults = {
            "tasks": ["segmentation", "depth"],
            "device": "cpu",
            "data": {"train": 2, "val": 2, "size": [32, 48], "workers": 0},
            "model": {"backbone": {"name": "small"}},
        }
        config = resolve(plugins, [], [Layer("test", {**defaults, **values})])
        learner = build_learner(config).eval()
        trained = Trained(config, learner, torch.device("cpu"))
        return export_run(trained, plugins.get("exporters", to), str(tmp_path / "out"), only)

    return export


def program_of(file: Path) -> Callable[..., dict[str, torch.Tensor]]:
    with file.open("rb") as stream:
        return torch.export.load(stream).module()


# What it computes


def test_what_is_printed(exported: tuple[Path, str]) -> None:
    file, printed = exported
    assert printed == (
        f"{file} computes what the model predicts, on 3 samples\n"
        "  in  image            uint8    (batch, 3, height, width)\n"
        "  out segmentation     float32  (batch, 13, height, width)\n"
        "  out depth            float32  (batch, 1, height, width)\n"
        "  out normals          float32  (batch, 3, height, width)\n"
        "  height is at least 5\n"
        "  width is at least 5\n"
    )


def test_it_predicts_without_mtlcore_what_mtl_predict_does(
    mtl: Command, run: Path, parts: Path, exported: tuple[Path, str], tmp_path: Path
) -> None:
    # Neither the size of the run nor a multiple of 4.
    pixels = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]))
    command = [sys.executable, "-I", "-c", ALONE, str(exported[0]), "a.npy", "found.npz"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")

    (tmp_path / "out").mkdir()
    where = ["--size", "37x50", "--out", str(tmp_path / "out"), "--trust"]
    result = mtl("predict", str(run), str(tmp_path / "a.png"), *where)
    assert result.exit_code == 0, result.output
    raw = {
        task: torch.from_numpy(np.load(tmp_path / "out" / f"a.{task}.npy"))
        for task in ("segmentation", "depth", "normals")
    }
    expected = {
        "segmentation": raw["segmentation"].softmax(0),
        "depth": raw["depth"],
        "normals": raw["normals"] / raw["normals"].norm(dim=0),
    }
    assert list(found) == list(expected)
    for task, values in expected.items():
        np.testing.assert_allclose(found[task][0], values, atol=1e-5, err_msg=task)


def test_what_it_tells_of_itself(exported: tuple[Path, str]) -> None:
    extra = {"mtlcore.json": ""}
    torch.export.load(str(exported[0]), extra_files=extra)
    told = json.loads(extra["mtlcore.json"])
    assert told["format"] == 1 and told["written_by"] == f"mtlcore {mtlcore.__version__}"
    assert told["inputs"] == [
        {
            "name": "image",
            "dtype": "uint8",
            "shape": ["batch", 3, "height", "width"],
            "layout": "NCHW",
            "channels": "RGB",
            "range": [0, 255],
            "trained_size": [32, 48],
        }
    ]
    segmentation, depth, normals = told["outputs"]
    assert segmentation["classes"][0] == "wall" and len(segmentation["classes"]) == 13
    assert (segmentation["values"], segmentation["range"]) == ("probability of each class", [0, 1])
    assert (depth["kind"], depth["unit"], depth["range"]) == ("depth", "m", [0, None])
    assert (normals["values"], normals["range"]) == ("vector of length 1", [-1, 1])
    assert told["least"] == {"batch": 1, "height": 5, "width": 5}
    assert told["most"] == told["fixed"] == {}


def test_it_holds_no_path_of_this_machine(exported: tuple[Path, str]) -> None:
    content = exported[0].read_bytes()
    for path in (Path(mtlcore.__file__).parent, exported[0].parent.parent, Path(sys.prefix)):
        assert str(path).encode() not in content


def test_only_some_tasks(write: Callable[..., Exported], tmp_path: Path) -> None:
    done = write(only=["depth"])
    assert [info.name for info in done.outputs] == ["depth"]
    values = program_of(tmp_path / "out")(torch.zeros(1, 3, 9, 6, dtype=torch.uint8))
    assert {name: list(x.shape) for name, x in values.items()} == {"depth": [1, 1, 9, 6]}
    for wrong, message in ((["dept"], "no task named 'dept'.*depth"), ([], "names no task")):
        with pytest.raises(UsageError, match=f"--tasks: {message}"):
            write(only=wrong)


def test_rows_of_a_table(write: Callable[..., Exported], tmp_path: Path) -> None:
    rows = "a,b,price,sort\n" + "".join(f"{i},{i % 3},{1e5 + i},{'xyz'[i % 3]}\n" for i in range(9))
    (tmp_path / "rows.csv").write_text(rows)
    targets = {
        "price": {"kind": "regression", "column": "price", "unit": "USD"},
        "sort": {"kind": "classification", "column": "sort", "classes": list("xyz")},
    }
    data = {"name": "tabular", "root": str(tmp_path), "file": "rows.csv", "targets": targets}
    model = {"backbone": {"name": "mlp", "inputs": 2, "hidden": [4]}}
    done = write(tasks=[*targets], data=data, model=model)
    assert [(info.name, info.shape) for info in done.inputs] == [("vector", ("batch", 2))]
    assert [(info.name, info.shape) for info in done.outputs] == [
        ("price", ("batch", 1)),
        ("sort", ("batch", 3)),
    ]
    values = program_of(tmp_path / "out")(torch.randn(5, 2))
    assert torch.allclose(values["sort"].sum(1), torch.ones(5))
    assert json.loads(done.description)["outputs"][0]["unit"] == "USD"


# What does not vary


def test_a_network_of_one_size(write: Callable[..., Exported], tmp_path: Path) -> None:
    done = write(model={"backbone": {"name": "positions"}})
    assert done.inputs[0].shape == ("batch", 3, 32, 48)
    assert done.fixed.keys() == {"height", "width"} == {*json.loads(done.description)["fixed"]}
    assert "must match" in done.fixed["height"]
    values = program_of(tmp_path / "out")(torch.zeros(5, 3, 32, 48, dtype=torch.uint8))
    assert values["depth"].shape == (5, 1, 32, 48)


def test_a_format_of_one_size(write: Callable[..., Exported]) -> None:
    done = write("one-size")
    assert done.inputs[0].shape == (1, 3, 32, 48) and done.least == {}
    assert {*done.fixed.values()} == {"this format knows no lengths that vary"}


def test_images_smaller_than_what_varies(write: Callable[..., Exported]) -> None:
    done = write(data={"train": 2, "val": 2, "size": [4, 48], "workers": 0})
    assert done.inputs[0].shape == ("batch", 3, 4, 48)
    assert "is 4 in the run's data, and a program in which it varies takes 5" in done.fixed["width"]


def test_why_is_told(mtl: Command, run: Path, parts: Path, tmp_path: Path) -> None:
    where = ["--to", "one-size", "--out", str(tmp_path / "a"), "--plugin", str(parts)]
    result = mtl("export", str(run), *where, "--json")
    assert result.exit_code == 0, result.output
    assert "note: height is fixed, the program takes no other (this format" in result.stderr
    assert json.loads(result.stdout)["fixed"]["batch"].startswith("this format")


def test_arithmetic_of_the_run(write: Callable[..., Exported]) -> None:
    (note,) = write(training={"precision": "bf16"}).notes
    assert note == "the run computes in bf16, mtl predict too; the program computes in fp32"


# What cannot be written


@pytest.mark.parametrize(
    ("to", "values", "message"),
    [
        (
            "torch-export",
            {"model": {"backbone": {"name": "looks"}}},
            "the backbone looks cannot be traced by torch.export .*another backbone",
        ),
        (
            "torch-export",
            {"model": {"backbone": {"name": "small"}, "heads": {"depth": {"name": "looking"}}}},
            r"the head looking of depth cannot be traced .*\(--tasks segmentation\), or export",
        ),
        ("off", {}, "not compute what the model predicts: segmentation differs by up to 0.0002"),
        ("never", {}, r"never cannot write this model \(no such operator\)"),
    ],
)  # fmt: skip
def test_what_is_refused(
    write: Callable[..., Exported],
    tmp_path: Path,
    to: str,
    values: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(MtlError, match=message):
        write(to, **values)
    assert not list(tmp_path.iterdir())


def test_the_plugin_of_a_format_is_named(mtl: Command, run: Path, tmp_path: Path) -> None:
    where = ["--to", "onnx", "--out", str(tmp_path / "a"), "--trust"]
    result = mtl("export", str(run), *where, plugins=Plugins(allow=()))
    assert result.exit_code == 2 and "pip install mtlcore-plugin-onnx" in result.stderr
    result = mtl("export", str(run.parent), *where[:-1])
    assert result.exit_code == 2 and "no run there" in result.stderr


# Its parts


@pytest.mark.parametrize(
    ("kind", "channels", "expected"),
    [
        ("segmentation", 3, lambda x: x.softmax(1)),
        ("classification", 3, lambda x: x.softmax(1)),
        ("edges", 1, torch.sigmoid),
        ("multilabel", 3, torch.sigmoid),
        ("normals", 3, lambda x: x / x.norm(dim=1, keepdim=True)),
        ("depth", 1, lambda x: x),
        ("regression", 2, lambda x: x),
        ("of-a-plugin", 2, lambda x: x),
    ],
)
def test_final_values(
    kind: str, channels: int, expected: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    task = Task(name="a", kind=kind, channels=channels)
    sides = (4, 5) if task.layout == "map" else ()
    raw = torch.randn(2, channels, *sides)
    assert torch.allclose(activated(task, raw), expected(raw))
    nothing = torch.zeros(1, channels, *sides)
    assert bool(activated(task, nothing).isfinite().all())


def test_names_of_inputs() -> None:
    model = tiny_learner().model
    tree = {"left.view": torch.zeros(1, 3, 8, 8), "ids": [torch.zeros(1, 2), torch.zeros(1, 2)]}
    deployed = DeployedModel(model, (), tree, "image")
    assert deployed.names == ("left_view", "ids_0", "ids_1")
    assert not deployed.reads_bytes
    again = deployed.inputs(deployed.tensors(tree))
    assert again["left.view"] is tree["left.view"] and again["ids"][1] is tree["ids"][1]
    assert DeployedModel(model, (), (torch.zeros(1, 2),) * 2, "pair").names == ("pair_0", "pair_1")
    with pytest.raises(UsageError, match=r"a\.b, a_b .* rename"):
        DeployedModel(model, (), {"a.b": torch.zeros(1), "a_b": torch.zeros(1)}, "x")


def test_what_differs() -> None:
    values = torch.tensor([0.0, 1e6, torch.inf, torch.nan])
    assert difference({"a": values}, {"a": values.clone()}) is None
    assert difference({"a": values + 9e-5}, {"a": values}) is None
    assert difference({"a": values * 1.00009}, {"a": values}) is None
    for place, other in ((0, 2e-4), (1, 1e6 + 200), (2, 1.0), (3, 0.0), (0, torch.nan)):
        changed = values.clone()
        changed[place] = other
        assert "differs" in str(difference({"a": changed}, {"a": values}))
    assert "float64" in str(difference({"a": values.double()}, {"a": values}))
    assert "[1, 4]" in str(difference({"a": values[None]}, {"a": values}))
    assert "outputs are b" in str(difference({"b": values}, {"a": values}))
