"""Inputs that are no image: trees of tensors, padded by their dataset, with a kind of their own.

One file: its runs share the datasets and backbones that it defines.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import mtlcore
from mtlcore.config import Layer, RunConfig, resolve
from mtlcore.data import DataError, Dataset, Sample, collate
from mtlcore.display import SilentDisplay
from mtlcore.engine import Session, Training, check
from mtlcore.errors import ConfigError, UsageError
from mtlcore.loading import Augmentation
from mtlcore.loading.transforms import flip, resize
from mtlcore.plugins import Plugins
from mtlcore.runs import load_run, predict_image
from mtlcore.storage import RunDirectory, load_checkpoint
from mtlcore.tasks import Task
from mtlcore.testing.base import same

PLUGIN = '''
import torch
from torch import nn
from torch.nn import functional as F

from mtlcore import BackboneSpec, DatasetSpec, hookimpl
from mtlcore.data import Dataset, Sample
from mtlcore.loading import check_split
from mtlcore.models import Backbone
from mtlcore.features import Features
from mtlcore.tasks import Task

KIND = Task(name="kind", kind="classification", channels=3)
SIZE = Task(name="size", kind="regression", channels=1)
DEPTH = Task(name="depth", kind="depth", channels=1)


class Drawn(Dataset):
    described = (KIND, SIZE)

    def __init__(self, root, split):
        check_split("drawn", split, self.splits)
        self.split = split

    @classmethod
    def describe(cls, root):
        return cls.described

    def __len__(self):
        return 8

    def __getitem__(self, index):
        random = torch.Generator().manual_seed(100 * self.splits.index(self.split) + index)
        inputs, targets = self.draw(index, random)
        masks = {name: torch.ones(t.shape, dtype=torch.bool) for name, t in targets.items()}
        masks = {n: m[0] if n == "depth" else m for n, m in masks.items()}
        key = f"{self.split}/{index}"
        return Sample(inputs=inputs, targets=targets, valid=masks, key=key)


class Sentences(Drawn):
    """Words of different numbers, as integers."""

    input_kind = "tokens"

    def draw(self, index, random):
        words = torch.randint(0, 20, (2 + index % 5,), generator=random)
        return words, {"kind": words[0] % 3, "size": torch.tensor([len(words) / 5])}

    @classmethod
    def collate_inputs(cls, inputs):
        words = nn.utils.rnn.pad_sequence(inputs, batch_first=True)
        lengths = torch.tensor([len(each) for each in inputs])
        return {"words": words, "mask": torch.arange(words.shape[1]) < lengths[:, None]}


class Reader(Backbone):
    """The mean of the words that are there."""

    input_kind = "tokens"
    out_channels, strides = (8,), (1,)

    def __init__(self, tasks):
        super().__init__()
        self.words, self.drop = nn.Embedding(20, 8), nn.Dropout(0.2)

    def forward(self, inputs, tasks):
        assert inputs["words"].dtype == torch.int64 and inputs["mask"].dtype == torch.bool
        mask = inputs["mask"].unsqueeze(-1)
        shared = self.drop((self.words(inputs["words"]) * mask).sum(1) / mask.sum(1))
        return Features(shared=(shared,), cut=(shared,))


class Scenes(Drawn):
    """A picture, a second one from another sensor, and a few numbers; stacked as they are."""

    input_kind = "rgb-heat"
    described = (DEPTH,)

    def draw(self, index, random):
        colour, heat = torch.rand(3, 10, 7, generator=random), torch.rand(1, 10, 7)
        heat = torch.rand(1, 10, 7, generator=random)
        place = torch.tensor([index], dtype=torch.int32)
        return {"colour": colour, "others": [heat, (place,)]}, {"depth": heat + 1}


class Fused(Backbone):
    input_kind = "rgb-heat"
    out_channels, strides, input_multiple = (6,), (2,), 4

    def __init__(self, tasks):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU()
        )
        self.places = nn.Embedding(8, 6)

    def forward(self, inputs, tasks):
        heat, (place,) = inputs["others"]
        assert heat.shape[2:] == (12, 8) and place.dtype == torch.int32
        maps = self.layers(torch.cat([inputs["colour"], heat], 1))
        shared = maps + self.places(place[:, 0].long())[..., None, None]
        return Features(shared=(shared,), cut=(shared,))


class Clouds(Drawn):
    """Sets of points, of different sizes."""

    input_kind = "points"

    def draw(self, index, random):
        points = torch.randn(3 + index % 4, 2, generator=random)
        size = points.norm(dim=1).mean()[None]
        return points, {"kind": torch.tensor(len(points) % 3), "size": size}

    def collate_inputs(self, inputs):
        points = nn.utils.rnn.pad_sequence(inputs, batch_first=True)
        return points, torch.tensor([len(each) for each in inputs])


class DeepSet(Backbone):
    input_kind = "points"
    out_channels, strides = (8,), (1,)

    def __init__(self, tasks):
        super().__init__()
        self.each = nn.Sequential(nn.Linear(2, 8), nn.Tanh())

    def forward(self, inputs, tasks):
        points, numbers = inputs
        there = torch.arange(points.shape[1]) < numbers[:, None]
        shared = (self.each(points) * there[..., None]).sum(1) / numbers[:, None]
        return Features(shared=(shared,), cut=(shared,))


@hookimpl
def mtl_datasets():
    for target in (Sentences, Scenes, Clouds):
        yield DatasetSpec(name=target.__name__.lower(), target=target)


@hookimpl
def mtl_backbones():
    for target in (Reader, Fused, DeepSet):
        yield BackboneSpec(name=target.__name__.lower(), target=target)
'''
PAIRS = [("sentences", "reader"), ("scenes", "fused"), ("clouds", "deepset")]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inputs") / "no_images.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture
def config(plugin: Path) -> Callable[..., dict[str, Any]]:
    def of(dataset: str, backbone: str, **data: Any) -> dict[str, Any]:
        return {
            "plugins": [str(plugin)],
            "device": "cpu",
            "data": {"name": dataset, "workers": 0, **data},
            "model": {"backbone": {"name": backbone}},
            "training": {
                "epochs": 2,
                "batch_size": 2,
                "accumulate": 2,
                "threads": 1,
                "evaluate_every": 1,
            },
        }

    return of


def resolved(config: dict[str, Any]) -> RunConfig:
    return resolve(Plugins(allow=()), (), [Layer("test", config)])


def session_of(config: dict[str, Any], folder: Path) -> Session:
    return Session(resolved(config), RunDirectory(str(folder), True), SilentDisplay())


@pytest.mark.parametrize(("dataset", "backbone"), PAIRS)
def test_they_are_trained_evaluated_and_resumed_bit_for_bit(
    dataset: str,
    backbone: str,
    config: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = config(dataset, backbone)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    summary = mtlcore.run(values, out=str(whole))
    assert (summary["steps"], summary["skipped_steps"]) == (4, 0)
    losses = [metrics["loss"] for metrics in summary["final"]["val"].values()]
    assert all(0 < loss < 100 for loss in losses)

    finish = Training.finish_step

    def fail(self: Training, report: Any) -> None:
        finish(self, report)
        if self.session.progress.step == 3:
            raise RuntimeError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(Training, "finish_step", fail)
        with pytest.raises(RuntimeError, match="cut off"):
            mtlcore.run(values, out=str(cut))
    mtlcore.run(values, out=str(cut), resume=True)
    states = [load_checkpoint(out / "checkpoints/last.safetensors") for out in (whole, cut)]
    for part in ("learner", "optimizer", "random"):
        assert same(states[0][part], states[1][part]), part
    lines = [(out / "metrics.jsonl").read_text().splitlines() for out in (whole, cut)]
    values_of = [[json.loads(line)["value"] for line in each] for each in lines]
    assert values_of[0] == values_of[1]


@pytest.mark.parametrize(("dataset", "backbone"), PAIRS)
def test_accumulating_is_one_large_batch(
    dataset: str, backbone: str, config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Whatever padding a batch needs; without dropout and batch norm, which see the batch."""
    after = []
    for size, parts in ((2, 2), (4, 1)):
        values = config(dataset, backbone)
        values["training"] |= {"batch_size": size, "accumulate": parts, "epochs": 1}
        values["optimizer"] = {"name": "sgd", "lr": 0.1, "momentum": 0.0}
        session = session_of(values, tmp_path / f"{size}")
        model = session.learner.model
        model.freeze([n for n, m in model.named_modules() if "Norm" in type(m).__name__])
        model.freeze([n for n, m in model.named_modules() if "Dropout" in type(m).__name__])
        Training(session).first_step()
        after.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(after[0], after[1], atol=1e-6)


def test_workers_carry_trees(config: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    batches = []
    for workers in (0, 1):
        session = session_of(
            config("sentences", "reader", workers=workers), tmp_path / f"{workers}"
        )
        check(session)
        batches.append([b for b in session.loader.batches(session.fitting_plans()[0]) if b])
    for one, other in zip(*batches, strict=True):
        assert same(one.inputs, other.inputs)
        assert one.keys == other.keys


def refusals(config: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        resolved(config)
    return str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "backbone", "words"),
    [
        ("sentences", "segnet", ["'segnet' reads image", "'sentences' gives tokens", "reader"]),
        (
            "rooms",
            "reader",
            ["'reader' reads tokens", "'rooms' gives image", "segnet", "sentences"],
        ),
        ("clouds", "reader", ["'reader' reads tokens", "'clouds' gives points", "deepset"]),
    ],
)
def test_a_pair_that_cannot_work_is_refused_by_name(
    dataset: str, backbone: str, words: list[str], config: Callable[..., dict[str, Any]]
) -> None:
    values = config(dataset, backbone)
    # Nothing is read or built for it.
    said = refusals(values)
    assert "model.backbone.name" in said
    for word in words:
        assert word in said


def test_rooms_are_no_vectors() -> None:
    said = refusals({"model": {"backbone": {"name": "mlp", "inputs": 3}}})
    for word in ("'mlp' reads vector", "'rooms' gives image", "tabular"):
        assert word in said


def test_what_says_no_kind_may_be_vectors(tmp_path: Path) -> None:
    """As plugins that are older than the word."""
    file = tmp_path / "older.py"
    file.write_text(
        PLUGIN.replace('    input_kind = "points"\n', "").replace(
            "torch.randn(3 + index % 4, 2", "torch.randn(5, 2"
        )
    )
    data = {"name": "clouds"}
    mlp = {"backbone": {"name": "mlp", "inputs": 2}}
    resolved({"plugins": [str(file)], "data": data, "model": mlp})
    said = refusals(
        {"plugins": [str(file)], "data": data, "model": {"backbone": {"name": "reader"}}}
    )
    assert "'clouds' gives image" in said


def test_what_changes_images_is_refused(config: Callable[..., dict[str, Any]]) -> None:
    said = refusals(config("sentences", "reader", size=[8, 8], augment={"flip": True}))
    assert "data.augment: changes images, and the dataset 'sentences' gives tokens" in said
    assert "data.size: changes images" in said


def test_transforms_refuse_what_is_no_image() -> None:
    sample = Sample(inputs={"words": torch.arange(4)}, targets={}, valid={}, key="text/1")
    with pytest.raises(DataError, match=r"text/1: data\.augment changes images .* words \[4\]"):
        Augmentation(scales=(1.5,))(sample, (), torch.Generator())
    with pytest.raises(DataError, match=r"text/1: data\.augment"):
        flip(sample, ())
    with pytest.raises(DataError, match=r"text/1: data\.size"):
        resize(sample, (), (4, 4))


def test_predict_reads_images(config: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    values = config("sentences", "reader")
    values["training"]["epochs"] = 1
    mtlcore.run(values, out=str(tmp_path / "run"))
    plugins = Plugins(allow=())
    plugins.trust_runs()
    trained = load_run(plugins, str(tmp_path / "run"), "last")
    with pytest.raises(UsageError, match=r"predict: reads images.*tokens.*sentences"):
        predict_image(trained, b"", "x.png", None)


LABEL = Task(name="kind", kind="classification", channels=3)


def samples(*inputs: Any) -> list[Sample]:
    return [
        Sample(inputs=each, targets={}, valid={}, key=f"s/{number}", view=number % 2)
        for number, each in enumerate(inputs)
    ]


def test_stacking_says_what_differs() -> None:
    with pytest.raises(DataError, match=r"s/1: input shape \(3,\) differs .*collate_inputs"):
        collate(samples(torch.zeros(2), torch.zeros(3)), [LABEL])
    with pytest.raises(DataError, match=r"s/1: .*b \[1\].* differs from .*a \[1\].*\(s/0\)"):
        collate(samples({"a": torch.zeros(1)}, {"b": torch.zeros(1)}), [LABEL])
    with pytest.raises(DataError, match=r"s/1: .*data\.size"):
        collate(samples(torch.zeros(3, 4, 4), torch.zeros(3, 4, 5)), [LABEL])


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"a": [torch.zeros(2), 3]}, r"s/0: .*a\.1 is a int"),
        ({}, "s/0: the input holds no tensor"),
        ({"a": torch.tensor([float("nan")])}, "s/0: .*NaN"),
    ],
)
def test_what_is_no_tree_of_finite_tensors_is_refused(inputs: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        collate(samples(inputs), [LABEL])


def test_samples_are_the_first_dimension() -> None:
    with pytest.raises(DataError, match=r"collate_inputs returns .*\[5\] for 2 samples"):
        collate(samples(torch.zeros(2), torch.zeros(3)), [LABEL], lambda x: torch.cat([*x]))


def trees() -> Iterator[Any]:
    for number in range(4):
        yield {"a": torch.full((2,), number), "b": (torch.tensor(number), [torch.zeros(1)])}


def test_a_batch_goes_through_its_tree() -> None:
    batch = collate(samples(*trees()), [LABEL])
    assert batch.inputs["a"].dtype == batch.inputs["b"][0].dtype == torch.int64
    first = batch.first_views()
    assert first.inputs["b"][0].tolist() == [0, 2]
    assert first.inputs["a"].tolist() == [[0, 0], [2, 2]]
    moved = batch.to(torch.device("meta"))
    assert moved.inputs["b"][1][0].device.type == "meta"
    assert moved.inputs["a"].dtype == torch.int64
    assert batch.to(torch.device("cpu")) is batch


def test_stacking_is_what_a_dataset_inherits() -> None:
    class Plain(Dataset):
        @classmethod
        def describe(cls, root: str | None, **settings: Any) -> tuple[Task, ...]:
            return (LABEL,)

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Sample:
            raise NotImplementedError

    with pytest.raises(DataError, match="differs"):
        collate(samples(torch.zeros(2), torch.zeros(3)), [LABEL], Plain().collate_inputs)
    stacked = Plain().collate_inputs([*trees()])
    assert stacked["b"][0].tolist() == [0, 1, 2, 3]
