"""Rooms as a dataset: its samples, its splits and what they have in common (nothing)."""

import pickle

import pytest
import torch

from mtlcore.data import Dataset, collate
from mtlcore.datasets.rooms import Rooms
from mtlcore.errors import UsageError

SIZE = (24, 32)


def rooms(split="train", samples=4, **settings):
    return Rooms(None, split, samples=samples, size=SIZE, **settings)


def test_samples_fit_their_tasks():
    dataset = rooms()
    tasks = dataset.describe(None, seed=0)
    assert [task.name for task in tasks] == ["segmentation", "depth", "normals", "edges"]
    batch = collate([dataset[i] for i in range(len(dataset))], tasks)
    assert batch.inputs.shape == (4, 3, *SIZE)
    assert float(batch.inputs.min()) >= 0
    assert float(batch.inputs.max()) <= 1
    assert set(batch.count.values()) == {4 * SIZE[0] * SIZE[1]}
    assert batch.keys == tuple(f"rooms/train/{i}" for i in range(4))
    torch.testing.assert_close(
        batch.targets["normals"].norm(dim=1), torch.ones(4, *SIZE), atol=1e-5, rtol=0
    )
    assert float(batch.targets["depth"].min()) > 0
    assert set(batch.targets["edges"].unique().tolist()) == {0.0, 1.0}


def test_the_core_is_told_that_it_renders_any_number_at_any_size():
    assert issubclass(Rooms, Dataset)
    assert Rooms.renders_size
    assert Rooms.unlimited
    assert Rooms(None, "val", samples=1)[0].inputs.shape == (3, 64, 64)


def test_no_scene_is_in_two_splits_or_under_two_seeds():
    images = [
        rooms(split, seed=seed)[i].inputs
        for seed in (0, 1)
        for split in Rooms.splits
        for i in range(3)
    ]
    for i, one in enumerate(images):
        assert not any(torch.equal(one, other) for other in images[:i])


def test_a_scene_depends_on_its_split_seed_and_number_only():
    few, many = rooms(samples=2), pickle.loads(pickle.dumps(rooms(samples=100)))
    assert torch.equal(few[1].inputs, many[1].inputs)
    assert len(many) == 100
    with pytest.raises(IndexError):
        few[2]


def test_a_split_it_does_not_have():
    with pytest.raises(UsageError, match=r"no split 'tran'.*did you mean 'train'"):
        rooms("tran")


def test_ten_tasks_of_one_room():
    dataset = rooms(further=True)
    tasks = dataset.describe(None, further=True)
    assert len(tasks) == 10
    batch = collate([dataset[i] for i in range(len(dataset))], tasks)
    assert set(batch.count.values()) == {4 * SIZE[0] * SIZE[1]}
    usual = collate([rooms()[i] for i in range(4)], Rooms.describe(None))
    assert torch.equal(batch.targets["depth"], usual.targets["depth"])
