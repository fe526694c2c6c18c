"""Datasets that are wrong on purpose, and the contract that catches them."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import nn

from mtlcore.data import Dataset, Sample
from mtlcore.loading import check_split
from mtlcore.tasks import Task
from mtlcore.testing import DatasetContract

DEPTH = Task(name="depth", kind="depth", channels=1)
LENGTH = Task(name="length", kind="regression", channels=1)


class Ramps(Dataset):
    """Four samples of a depth that is the image's brightness."""

    largest = 1.0

    def __init__(self, split):
        check_split("ramps", split, self.splits)
        self._split = split

    @classmethod
    def describe(cls, root, **settings):
        return (DEPTH,)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        dark = 0.1 + 0.1 * index + 0.05 * self.splits.index(self._split)
        image = torch.linspace(dark, self.largest, 24).reshape(1, 4, 6).repeat(3, 1, 1)
        return Sample(
            inputs=image,
            targets={"depth": self.depth(image)},
            valid={"depth": torch.ones(4, 6, dtype=torch.bool)},
            key=f"ramps/{self._split}/{index}",
        )

    def depth(self, image):
        return image[:1] + 1


class BytesForFloats(Ramps):
    largest = 255.0


class DropsTheChannel(Ramps):
    def depth(self, image):
        return image[0]


class NegativeDepth(Ramps):
    def depth(self, image):
        return -image[:1]


class AnotherEachTime(Ramps):
    def depth(self, image):
        return torch.rand(1, 4, 6) + 1


class OneTensorForAll(Ramps):
    kept = torch.ones(1, 4, 6)

    def depth(self, image):
        return self.kept


class DoublePrecision(Ramps):
    def depth(self, image):
        return image[:1].double() + 1


class TooLong(Ramps):
    def __getitem__(self, index):
        if index >= 3:
            raise AssertionError("there are only three")
        return super().__getitem__(index)


class LosesItsSplit(Ramps):
    def __getstate__(self):
        return {"_split": "train"}


class OpensAnySplit(Ramps):
    def __init__(self, split):
        self._split = "train" if split not in self.splits else split


class OneForBothSplits(Ramps):
    def __getitem__(self, index):
        self._split, kept = "train", self._split
        sample = super().__getitem__(index)
        self._split = kept
        return attrs.evolve(sample, key=f"ramps/{kept}/{index}")


class OneKeyForAll(Ramps):
    def __getitem__(self, index):
        return attrs.evolve(super().__getitem__(index), key="ramps")


class NamesAnother(Ramps):
    def name_of(self, index):
        return str(index + 1)


class RepeatsEverything(Ramps):
    repeats = 1


class RepeatsAPart(Ramps):
    repeats = 2


class MakesWhatIsNotDescribed(Ramps):
    self_labelled = ("rotation",)


class NotANumber(Ramps):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return attrs.evolve(sample, inputs=sample.inputs / (sample.inputs > 0.2))


class DescribesTooMuch(Ramps):
    """What it says it has labels for is given to the contract as its `tasks`."""

    described = (DEPTH, Task(name="normals", kind="normals", channels=3))


class DescribesTooLittle(Ramps):
    described = ()


class MasksWithNumbers(Ramps):
    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return attrs.evolve(sample, valid={"depth": sample.valid["depth"].float()})


class Draws(Ramps):
    """Draws from a generator of its own, so that the second sight is of something else."""

    def __init__(self, split):
        super().__init__(split)
        self.generator = torch.Generator().manual_seed(0)

    def depth(self, image):
        return 1 + torch.rand(1, 4, 6, generator=self.generator)


class Words(Ramps):
    """Sentences of different lengths, padded by the dataset."""

    input_kind = "tokens"

    @classmethod
    def describe(cls, root, **settings):
        return (LENGTH,)

    def __getitem__(self, index):
        length = 2 + index + 4 * self.splits.index(self._split)
        return Sample(
            inputs=torch.arange(length),
            targets={"length": torch.tensor([float(length)])},
            valid={"length": torch.ones(1, dtype=torch.bool)},
            key=f"words/{self._split}/{index}",
        )

    def collate_inputs(self, inputs):
        words = nn.utils.rnn.pad_sequence(inputs, batch_first=True)
        lengths = torch.tensor([len(each) for each in inputs])
        return {"words": words, "mask": torch.arange(words.shape[1]) < lengths[:, None]}


class SortsByLength(Words):
    def collate_inputs(self, inputs):
        return super().collate_inputs(sorted(inputs, key=len))


class PadsWithFloats(Words):
    def collate_inputs(self, inputs):
        return super().collate_inputs([each.float() for each in inputs])["words"]


class PutsTimeFirst(Words):
    def collate_inputs(self, inputs):
        return super().collate_inputs(inputs)["words"].T


class CallsAMatrixAVector(Ramps):
    input_kind = "vector"


DATASETS = [
    (CallsAMatrixAVector, "test_inputs", "a vector of shape"),
    (SortsByLength, "test_inputs_are_collated_in_their_order", "when their order changes"),
    (PadsWithFloats, "test_inputs_are_collated_in_their_order", "integer inputs only"),
    (PutsTimeFirst, "test_inputs_are_collated_in_their_order", "its first dimension"),
    (BytesForFloats, "test_inputs", "expected 0 to 1"),
    (DropsTheChannel, "test_labels_are_as_described", "has shape"),
    (NegativeDepth, "test_labels_are_as_described", "a depth of"),
    (DoublePrecision, "test_labels_are_as_described", "torch.float64"),
    (AnotherEachTime, "test_reading_twice_gives_the_same", "second sight"),
    (OneTensorForAll, "test_reading_twice_gives_the_same", "second sight"),
    (TooLong, "test_has_the_splits_and_samples_it_says", "only three"),
    (LosesItsSplit, "test_travels_to_workers", "other samples"),
    (OpensAnySplit, "test_unknown_splits_are_refused", "no-such-split"),
    (OneForBothSplits, "test_splits_share_no_sample", "are the same"),
    (OneKeyForAll, "test_samples_differ", "not unique"),
    (NamesAnother, "test_names_are_those_of_the_samples", "name_of says '1', not '0'"),
    (RepeatsEverything, "test_repeated_samples_have_labels_that_it_makes", "has labels of"),
    (RepeatsAPart, "test_repeated_samples_have_labels_that_it_makes", "no whole number"),
    (
        MakesWhatIsNotDescribed,
        "test_repeated_samples_have_labels_that_it_makes",
        "not described",
    ),
    (NotANumber, "test_samples_collate", "NaN or infinite"),
    (DescribesTooMuch, "test_labels_are_as_described", "no valid label of"),
    (DescribesTooLittle, "test_labels_are_as_described", "not described"),
    (MasksWithNumbers, "test_labels_are_as_described", "torch.float32"),
    (Draws, "test_reading_twice_gives_the_same", "second sight"),
]


@pytest.mark.parametrize(("component", "test", "message"), DATASETS)
def test_datasets(component, test, message, held_to, catches):
    described = getattr(component, "described", (DEPTH,))
    catches(held_to(DatasetContract, component, tasks=lambda self: described), test, message)


def test_a_good_dataset_passes(held_to, passes):
    passes(held_to(DatasetContract, Ramps, tasks=lambda self: (DEPTH,)))


def test_a_good_dataset_of_tokens_passes(held_to, passes):
    passes(held_to(DatasetContract, Words, tasks=lambda self: (LENGTH,)))


def test_every_check_catches_something(catch_all):
    catch_all(DatasetContract, DATASETS)
