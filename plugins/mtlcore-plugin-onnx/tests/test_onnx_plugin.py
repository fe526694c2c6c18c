"""What mtlcore asks of every exporter, and what an ONNX file is to others."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import Result
from PIL import Image

import mtlcore
from mtlcore.errors import UsageError
from mtlcore.exporters import Program, TensorInfo
from mtlcore.testing import ExporterContract, assert_plugin_is_light, assert_plugin_is_whole
from mtlcore_onnx.exporter import Onnx

CONFIG = {
    "tasks": ["segmentation", "depth"],
    "data": {"train": 2, "val": 2, "size": [32, 48], "workers": 0},
    "model": {"backbone": {"name": "unet", "width": 0.03125}},
    "training": {"steps": 1, "batch_size": 2},
}

#: What somebody runs who has onnxruntime and numpy.
ALONE = """
import json, sys
for name in ("mtlcore", "torch"):
    sys.modules[name] = None  # importing it fails
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
image = np.load(sys.argv[2])
names = [output.name for output in session.get_outputs()]
np.savez(sys.argv[3], **dict(zip(names, session.run(names, {"image": image}))))
print(session.get_modelmeta().custom_metadata_map["mtlcore"])
"""


class TestOnnx(ExporterContract):
    def make(self) -> Onnx:
        return Onnx()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx") / "run"
    mtlcore.run(CONFIG, out=str(out))
    return out


def test_a_file_is_run_without_torch(mtl: Callable[..., Result], run: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    result = mtl("export", str(run), "--to", "onnx", "--out", str(file))
    assert result.exit_code == 0, result.output
    assert "(batch, 3, height, width)" in result.stdout

    # Neither the size of the run nor a multiple of 16.
    pixels = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.save(tmp_path / "image.npy", np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]))
    command = [sys.executable, "-c", ALONE, "model.onnx", "image.npy", "found.npz"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert [output["name"] for output in facts["outputs"]] == ["segmentation", "depth"]
    assert facts["outputs"][0]["classes"][0] == "wall"
    assert facts["outputs"][1]["unit"] == "m"

    result = mtl(
        "predict", str(run), str(tmp_path / "a.png"), "--size", "37x50", "--out", str(tmp_path)
    )
    assert result.exit_code == 0, result.output
    found = np.load(tmp_path / "found.npz")
    np.testing.assert_allclose(found["depth"][0], np.load(tmp_path / "a.depth.npy"), atol=1e-4)
    logits = torch.from_numpy(np.load(tmp_path / "a.segmentation.npy"))
    np.testing.assert_allclose(found["segmentation"][0], logits.softmax(0), atol=1e-4)

    model = onnx.load(file)
    (image,) = model.graph.input
    assert [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim] == [
        "batch", 3, "height", "width",
    ]  # fmt: skip
    for output in model.graph.output:
        dimensions = output.type.tensor_type.shape.dim
        assert [d.dim_param for d in dimensions if d.dim_param] == ["batch", "height", "width"]
    content = file.read_bytes()
    assert str(Path(mtlcore.__file__).parent).encode() not in content


def test_weights_that_are_too_large() -> None:
    class Large:
        # On the meta device nothing is stored.
        state_dict = {"weight": torch.empty(2**29, device="meta")}

    info = TensorInfo(name="image", dtype="uint8", shape=(1, 3, 8, 8))
    program = Program(
        traced=Large(),  # type: ignore[arg-type]
        inputs=(info,),
        outputs=(info,),
        least={},
        most={},
        description="{}",
    )
    with pytest.raises(UsageError, match=r"have 2\.0 GiB, and an ONNX file holds 2 GiB"):
        Onnx().write(program, Path("never"))


def test_the_plugin_can_be_listed_and_explained_without_torch() -> None:
    assert_plugin_is_light("mtlcore_onnx.plugin")
    assert_plugin_is_whole("mtlcore_onnx.plugin")
