"""Photographs labelled by trained runs, and who learns from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image

import mtlcore
from mtlcore.data import complete
from mtlcore.datasets.folder import Folder
from mtlcore.errors import ConfigError, UsageError
from mtlcore.plugins import Plugins
from mtlcore.runs import load_run, predict_image, pseudo_label
from mtlcore.runs.pseudo_labels import _label
from mtlcore.tasks import Task

Command = Callable[..., Result]
pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture(scope="module")
def runs(folder: Path, small: dict[str, Any], without_pictures: None) -> list[str]:
    """Two runs that know two tasks each."""
    places = []
    for tasks in (["segmentation", "depth"], ["normals", "edges"]):
        places.append(str(folder / tasks[0]))
        changes = {"tasks": tasks, "training": {**small["training"], "epochs": 1}}
        mtlcore.run({**small, **changes}, out=places[-1])
    return places


@pytest.fixture(scope="module")
def photographs(folder: Path) -> Path:
    """Two photographs of other sizes than the runs', and what is none."""
    place = folder / "photographs"
    (place / "deeper").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for name, size in (("one.png", (40, 56)), ("two.JPG", (36, 36))):
        image = Image.fromarray(draw.integers(0, 255, (*size, 3), dtype=np.uint8))
        image.save(place / name, "PNG" if name.endswith("png") else "JPEG")
    (place / "notes.txt").write_text("no photograph")
    return place


@pytest.fixture(scope="module")
def labelled(mtl: Command, runs: list[str], photographs: Path, folder: Path) -> tuple[Path, Result]:
    out = folder / "labelled"
    arguments = ["--data", str(photographs), "--out", str(out), "--threshold", "0.3"]
    result = mtl("pseudo-label", *runs, *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return out, result


def test_labels_are_what_the_runs_predict(
    labelled: tuple[Path, Result], runs: list[str], photographs: Path
) -> None:
    out, result = labelled
    assert f"2 photographs in {out}" in result.stdout
    assert f"depth            by {runs[0]}\n" in result.stdout
    tasks = Folder.describe(str(out))
    data = Folder(str(out), "train")
    teachers = [load_run(Plugins.from_environment(), run, "best") for run in runs]
    known = {task.name: task for teacher in teachers for task in teacher.config.tasks}
    assert {task.name: task for task in tasks} == known
    assert Folder.default_size(str(out)) == (32, 32)
    for sample, name in zip([data[0], data[1]], ["one.png", "two.JPG"], strict=True):
        sample = complete(sample, tasks)
        content = (photographs / name).read_bytes()
        found: dict[str, torch.Tensor] = {}
        for teacher in teachers:
            image, predictions = predict_image(teacher, content, name, None)
            assert torch.equal(image, sample.inputs)
            found |= predictions
        best, classes = found["segmentation"].softmax(0).max(0)
        sure = best >= 0.3
        assert torch.equal(sample.valid["segmentation"], sure)
        assert torch.equal(sample.targets["segmentation"][sure], classes[sure])
        positive = found["depth"][0] > 0
        assert torch.equal(sample.valid["depth"], positive)
        assert torch.equal(sample.targets["depth"][0][positive], found["depth"][0][positive])
        torch.testing.assert_close(sample.targets["edges"], found["edges"].sigmoid())
        unit = torch.nn.functional.normalize(found["normals"], dim=0)
        torch.testing.assert_close(sample.targets["normals"], unit)
        assert sample.valid["edges"].all() and sample.valid["normals"].all()


def test_classes_that_are_not_probable_enough_are_no_labels() -> None:
    task = Task(name="classes", kind="segmentation", channels=3, ignored=(2,))
    raw = torch.tensor([[0.9, 0.1, 0.0], [0.4, 0.3, 0.3], [0.1, 0.2, 0.7]]).log().t()[:, None]
    assert _label(task, raw, 0.5).tolist() == [[0, 3, 3]]
    assert _label(task, raw, 0.0).tolist() == [[0, 0, 3]]


@pytest.mark.parametrize(
    ("kind", "raw", "expected"),
    [
        ("depth", [2.0, 0.0, -1.0], [2.0, np.nan, np.nan]),
        ("edges", [0.0, 100.0, -100.0], [0.5, 1.0, 0.0]),
        ("heat", [2.0, 0.0, -1.0], [2.0, 0.0, -1.0]),
    ],
)
def test_values_are_those_of_their_kind(kind: str, raw: Any, expected: Any) -> None:
    label = _label(Task(name="t", kind=kind, channels=1), torch.tensor([[raw]]), 0.5)
    np.testing.assert_allclose(label, [expected], atol=1e-6)


def test_more_classes_than_a_byte_holds(tmp_path: Path) -> None:
    """They are stored as whole numbers, and read again as such."""
    from mtlcore.runs.pseudo_labels import _file, _suffix

    task = Task(name="many", kind="segmentation", channels=300)
    raw = torch.zeros(300, 1, 2)
    raw[299, 0, 0] = 9
    assert _suffix(task) == "npy"
    (tmp_path / "label.npy").write_bytes(_file(task, _label(task, raw, 0.5)))
    assert np.load(tmp_path / "label.npy").tolist() == [[299, 300]]


def test_a_student_learns_from_them_beside_true_labels(
    labelled: tuple[Path, Result], tmp_path: Path, small: dict[str, Any]
) -> None:
    """Validation has true labels alone."""
    sources = [
        {"name": "folder", "root": str(labelled[0]), "splits": ["train"]},
        {"name": "rooms", "samples": 4, "size": [32, 32]},
    ]
    data = {"name": "several", "sources": sources, "size": [32, 32], "workers": 0}
    tasks = ["segmentation", "depth", "normals", "edges"]
    training = {**small["training"], "epochs": 1}
    summary = mtlcore.run(
        {**small, "data": data, "tasks": tasks, "training": training}, out=str(tmp_path / "student")
    )
    assert set(summary["final"]["val"]) >= set(tasks)


def test_sources_take_part_in_some_splits(labelled: tuple[Path, Result]) -> None:
    from mtlcore.datasets.concat import Concat

    rooms = {"name": "rooms", "samples": 4, "size": (32, 32)}
    pseudo = {"name": "folder", "root": str(labelled[0]), "splits": ["train"]}
    assert len(Concat(None, "train", sources=(pseudo, rooms))) == 6
    assert len(Concat(None, "val", sources=(pseudo, rooms))) == 4
    with pytest.raises(UsageError, match="none of them takes part in the split 'val'"):
        Concat(None, "val", sources=(pseudo,))
    for wrong in ("train", [], ["trian"]):
        with pytest.raises(ConfigError, match=r"data\.sources\[0\]\.splits: expected some of"):
            Concat(None, "train", sources=({**rooms, "splits": wrong},))


def test_what_cannot_be_labelled_is_refused(
    mtl: Command, runs: list[str], photographs: Path, labelled: tuple[Path, Result], tmp_path: Path
) -> None:
    def refused(*arguments: str) -> str:
        result = mtl("pseudo-label", *arguments, "--out", str(tmp_path / "out"))
        assert result.exit_code == 2, result.output
        return result.stderr

    data = ["--data", str(photographs)]
    assert "no run there" in refused("nowhere", *data)
    assert "holds no photograph" in refused(runs[0], "--data", str(photographs / "deeper"))
    assert "names a folder" in refused(runs[0], *data, "--split", "a/b")
    second = tmp_path / "second"
    second.symlink_to(runs[0])
    told = refused(runs[0], str(second), *data)
    assert f"{runs[0]} and {second} both predict segmentation" in told
    (tmp_path / "twice").mkdir()
    for name in ("a.png", "a.jpg"):
        (tmp_path / "twice" / name).write_bytes(b"")
    assert "would have the same labels" in refused(runs[0], "--data", str(tmp_path / "twice"))
    result = mtl("pseudo-label", runs[0], *data, "--out", str(labelled[0]))
    assert (result.exit_code, "describes other labels" in result.stderr) == (2, True)


def test_a_further_split_joins(
    mtl: Command, runs: list[str], photographs: Path, labelled: tuple[Path, Result]
) -> None:
    arguments = ["--data", str(photographs), "--out", str(labelled[0]), "--split", "val"]
    result = mtl("pseudo-label", *runs, *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    assert len(Folder(str(labelled[0]), "val")) == 2


def test_tasks_without_a_value_per_pixel_are_told(runs: list[str], photographs: Path) -> None:
    import attrs

    teacher = load_run(Plugins.from_environment(), runs[0], "best")
    scene = Task(name="scene", kind="classification", channels=3)
    config = attrs.evolve(teacher.config, tasks=(scene,))
    with pytest.raises(UsageError, match="predict no task with a value per pixel"):
        pseudo_label(
            {"run": attrs.evolve(teacher, config=config)}, str(photographs), "memory://x",
            split="train", threshold=0.5,
        )  # fmt: skip
