"""Samples kept in memory: the same bits, read once, never shared between their readers."""

from __future__ import annotations

import multiprocessing

import attrs
import pytest
import torch
from torch import Tensor

from mtlcore.config import Layer, resolve
from mtlcore.data import DataError, Dataset, Sample
from mtlcore.engine import make_loader
from mtlcore.engine.building import open_splits
from mtlcore.episodes import BatchPlan
from mtlcore.errors import UsageError
from mtlcore.loading import SampleCache, Split
from mtlcore.plugins import Plugins
from mtlcore.tasks import Task
from mtlcore.testing.base import same

DEPTH = Task(name="depth", kind="depth", channels=1)


class Counting(Dataset):
    """Samples stored as photographs are decoded, channels last; counts what is read."""

    def __init__(self, broken: int = -1) -> None:
        self.read: list[int] = []
        self.broken = broken

    @classmethod
    def describe(cls, root: str | None, **settings: object) -> tuple[Task, ...]:
        return (DEPTH,)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Sample:
        self.read.append(index)
        if index == self.broken:
            raise DataError(f"counting/{index}: broken")
        generator = torch.Generator().manual_seed(index)
        image = torch.rand(6, 8, 3, generator=generator).permute(2, 0, 1)
        return Sample(
            inputs=image,
            targets={"depth": 1 + torch.rand(1, 6, 8, generator=generator)},
            valid={"depth": torch.rand(6, 8, generator=generator) > 0.5},
            key=str(index),
        )


def _split(dataset: Dataset, cache: SampleCache | None) -> Split:
    split = Split(dataset, (DEPTH,), None, None)
    split.cache = None if cache is None else (cache, 0)
    return split


def test_a_sample_is_read_once_and_comes_back_as_it_was() -> None:
    dataset = Counting()
    kept, anew = _split(dataset, SampleCache(1, 4)), _split(Counting(), None)
    for _ in range(3):
        for index in range(4):
            assert same(attrs.asdict(kept.sample(index)), attrs.asdict(anew.sample(index)))
            strides = [s.sample(index).inputs.stride() for s in (kept, anew)]
            assert strides[0] == strides[1]
    assert sorted(dataset.read) == [0, 1, 2, 3]


def test_what_a_reader_does_to_a_sample_no_other_sees() -> None:
    split = _split(Counting(), SampleCache(1, 4))
    expected = split.sample(2).inputs.clone()
    split.sample(2).inputs.zero_()
    assert torch.equal(split.sample(2).inputs, expected)


def test_a_full_cache_reads_the_others_anew() -> None:
    large = Counting()
    cache = SampleCache(1, 4)
    cache._size = 3000  # bytes: two samples
    split = _split(large, cache)
    for _ in range(3):
        for index in range(4):
            split.sample(index)
    assert [large.read.count(index) for index in range(4)] == [1, 1, 3, 3]


def test_a_sample_that_cannot_be_read_is_tried_again() -> None:
    dataset = Counting(broken=1)
    split = _split(dataset, SampleCache(1, 4))
    for _ in range(2):
        with pytest.raises(DataError, match="counting/1"):
            split.sample(1)
    dataset.broken = -1
    assert split.sample(1).key == "1"


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_every_type_of_number_is_kept(kind: torch.dtype) -> None:
    values = torch.arange(6).reshape(2, 3).to(kind)
    odd = {"expanded": values[:1].expand(4, 3), "scalar": values[0, 0], "part": values[:, 1:]}
    cache = SampleCache(1, 1)
    sample = Sample(inputs=odd, targets={}, valid={}, key="0")
    cache.get(0, lambda: sample)
    found = cache.get(0, lambda: pytest.fail("read twice"))
    assert same(found.inputs, odd)


def _batches(cache: int, workers: int) -> list[list[Tensor]]:
    data = {"train": 4, "val": 2, "size": [16, 16], "labels": "one"}
    data |= {"augment": {"scales": [1.0, 1.5], "flip": True}, "cache": cache, "workers": workers}
    values = {"data": data, "model": {"backbone": {"width": 1 / 16}}}
    config = resolve(Plugins.from_environment(), [], [Layer("test", values)])
    splits = open_splits(config)
    loader = make_loader(config, splits)
    plans = [
        BatchPlan(split=split, indices=(0, 1), augment=split == "train", seed=seed)
        for seed in range(3)
        for split in ("train", "val")
    ]
    return [
        [batch.inputs, *batch.targets.values(), *batch.valid.values()]
        for _ in range(2)
        for batch in loader.batches(plans)
        if batch is not None
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_bits(workers: int) -> None:
    without, kept = (_batches(megabytes, workers) for megabytes in (0, 8))
    assert len(kept) == 12
    assert same(without, kept)


def test_workers_share_what_one_has_read() -> None:
    cache = SampleCache(1, 4)
    split = _split(Counting(), cache)
    reader = multiprocessing.get_context("fork").Process(target=split.sample, args=(3,))
    reader.start()
    reader.join()
    dataset = Counting()
    _split(dataset, cache).sample(3)
    assert dataset.read == []


def test_workers_that_share_no_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")
    with pytest.raises(UsageError, match=r"data\.cache.*data\.workers=0"):
        _batches(8, 1)
    assert _batches(8, 0)


def test_memory_that_the_system_has_not_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("mmap.mmap", refused)
    with pytest.raises(UsageError, match=r"data\.cache = 7: .*Cannot allocate"):
        SampleCache(7, 4)
