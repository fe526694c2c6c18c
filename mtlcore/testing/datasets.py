"""What holds for every dataset."""

from __future__ import annotations

import pickle
from itertools import combinations, product
from pathlib import PurePosixPath

import torch
from torch import Tensor

from mtlcore.data import Dataset, Sample, collate, place_size
from mtlcore.errors import MtlError
from mtlcore.inputs import input_tensors, map_inputs
from mtlcore.tasks import Task
from mtlcore.testing.base import same, spread


class DatasetContract:
    """Subclass it, write `make` and `tasks`, and pytest checks the dataset.

    Attributes:
        splits: that it has.
        samples: how many of each are looked at.
    """

    splits: tuple[str, ...] = ("train", "val")
    samples: int = 3

    def make(self, split: str) -> Dataset:
        """Return the dataset, opened on a split of test data."""
        raise NotImplementedError

    def tasks(self) -> tuple[Task, ...]:
        """Return what its `describe` returns for the root and settings of `make`."""
        raise NotImplementedError

    def test_has_the_splits_and_samples_it_says(self) -> None:
        """Otherwise an epoch ends in an error, or leaves samples out."""
        for split in self.splits:
            dataset = self.make(split)
            assert split in dataset.splits, f"{split!r} is not among its {dataset.splits}"
            assert len(dataset) > 0, f"{split} is empty"
            assert dataset[len(dataset) - 1].key, "a sample without a key"

    def test_inputs(self) -> None:
        """Otherwise the network sees other values than the ones it was trained on."""
        for split in self.splits:
            kind = self.make(split).input_kind
            for sample in self._of(split):
                tensors = input_tensors(sample.inputs)
                assert tensors, f"{sample.key}: inputs without a tensor"
                if kind in ("image", "vector"):
                    self._check_floats(kind, sample)

    def test_inputs_are_collated_in_their_order(self) -> None:
        """Otherwise samples get one another's labels, or change with those beside them."""
        for split in self.splits:
            dataset, samples = self.make(split), self._of(split)
            together = _inherits_collating(dataset)
            # Without a word of its own, samples of different shapes are no batch.
            groups = [[sample, sample] for sample in samples] if together else [samples]
            for group in groups:
                inputs = [sample.inputs for sample in group]
                forwards, backwards = (
                    dataset.collate_inputs(order) for order in (inputs, inputs[::-1])
                )
                for tensor in input_tensors(forwards):
                    assert tensor.dim() and len(tensor) == len(group), (
                        f"{len(group)} samples give a tensor of shape {list(tensor.shape)}; the "
                        "samples must be its first dimension"
                    )
                assert same(map_inputs(lambda x: x.flip(0), backwards), forwards), (
                    "collate_inputs gives a sample something else when their order changes"
                )
                known = {_number(x) for each in inputs for x in input_tensors(each)}
                made = {_number(x) for x in input_tensors(forwards)}
                assert known <= made, f"of {' and '.join(known)} inputs only {made} are left"

    def test_labels_are_as_described(self) -> None:
        """Otherwise heads have the wrong size, or a loss reads classes that do not exist."""
        described = {task.name: task for task in self.tasks()}
        seen: set[str] = set()
        for sample in self._samples():
            assert sample.targets.keys() == sample.valid.keys(), (
                f"{sample.key}: labels of {list(sample.targets)}, masks of {list(sample.valid)}"
            )
            for name, target in sample.targets.items():
                where = f"{sample.key}: {name}"
                assert name in described, f"{where} is not described"
                task, valid = described[name], sample.valid[name]
                size = place_size(task, sample.inputs, samples=False)
                assert tuple(target.shape) == task.target_shape(size), (
                    f"{where} has shape {tuple(target.shape)}, not {task.target_shape(size)}"
                )
                assert tuple(valid.shape) == task.valid_shape(size), (
                    f"the mask of {where} has shape {tuple(valid.shape)}, "
                    f"not {task.valid_shape(size)}"
                )
                assert valid.dtype == torch.bool, f"the mask of {where} is {valid.dtype}"
                assert str(target.dtype) == f"torch.{task.dtype}", f"{where} is {target.dtype}"
                seen |= {name} if bool(valid.any()) else set()
                self._check_values(task, sample, where)
        missing = sorted(set(described) - seen)
        assert not missing, f"no valid label of {missing} in any sample looked at"

    def test_samples_collate(self) -> None:
        """Otherwise the first step fails."""
        for split in self.splits:
            together = self.make(split).collate_inputs
            for sample in self._of(split):
                collate([sample, sample], self.tasks(), together)

    def test_reading_twice_gives_the_same(self) -> None:
        """Otherwise a resumed run, or a second worker, sees other data."""
        for split in self.splits:
            dataset = self.make(split)
            torch.manual_seed(1)
            first = dataset[0]
            kept = _parts(first)
            for tensor in (*input_tensors(first.inputs), *first.targets.values()):
                tensor.zero_()  # what a reader does to its sample must not reach the next one
            torch.manual_seed(2)
            assert same(_parts(dataset[0]), kept), f"{first.key} is another at second sight"

    def test_travels_to_workers(self) -> None:
        """Otherwise data cannot be loaded ahead."""
        for split in self.splits:
            dataset = self.make(split)
            copy = pickle.loads(pickle.dumps(dataset))
            assert len(copy) == len(dataset), "a pickled copy has another length"
            assert same(_parts(copy[0]), _parts(dataset[0])), "a pickled copy has other samples"

    def test_unknown_splits_are_refused(self) -> None:
        """Otherwise a misspelt split is some other one, perhaps the one that was trained on."""
        try:
            self.make("no-such-split")
        except MtlError as error:
            assert "no-such-split" in str(error), f"the message does not name the split: {error}"
        else:
            raise AssertionError("it opens a split 'no-such-split' that it does not have")

    def test_splits_share_no_sample(self) -> None:
        """Otherwise validation judges what was trained on."""
        parts = {split: self._of(split) for split in self.splits}
        for one, other in combinations(self.splits, 2):
            for a, b in product(parts[one], parts[other]):
                content = [(x.inputs, dict(x.targets)) for x in (a, b)]
                assert not same(*content), f"{a.key} and {b.key} are the same"

    def test_names_are_those_of_the_samples(self) -> None:
        """Otherwise a list of labels is told to miss samples that it names."""
        for split in self.splits:
            dataset = self.make(split)
            for i, sample in enumerate(self._of(split)):
                name, stem = dataset.name_of(i), PurePosixPath(sample.key).stem
                assert name in (None, stem), f"{sample.key}: name_of says {name!r}, not {stem!r}"

    def test_repeated_samples_have_labels_that_it_makes(self) -> None:
        """Otherwise `data.labels` shares out labels that no sample has, or leaves some in sight."""
        described = {task.name for task in self.tasks()}
        for split in self.splits:
            dataset = self.make(split)
            made = set(dataset.self_labelled)
            assert made <= described, f"{sorted(made - described)} are not described"
            examples, rest = divmod(len(dataset), 1 + dataset.repeats)
            assert not rest, (
                f"{len(dataset)} samples are no whole number of examples, repeated "
                f"{dataset.repeats} times"
            )
            for index in range(examples, min(examples + self.samples, len(dataset))):
                sample = dataset[index]
                others = sorted(sample.targets.keys() - made)
                assert not others, f"{sample.key} repeats an example, and has labels of {others}"

    def test_samples_differ(self) -> None:
        """Otherwise messages and pictures name one sample and mean another."""
        keys = [sample.key for sample in self._samples()]
        assert len(set(keys)) == len(keys), f"keys are not unique: {keys}"

    def _samples(self) -> list[Sample]:
        return [sample for split in self.splits for sample in self._of(split)]

    def _of(self, split: str) -> list[Sample]:
        dataset = self.make(split)
        return [dataset[i] for i in range(min(self.samples, len(dataset)))]

    @staticmethod
    def _check_floats(kind: str, sample: Sample) -> None:
        inputs = sample.inputs
        assert isinstance(inputs, Tensor) and inputs.dtype == torch.float32, (
            f"{sample.key}: inputs are {getattr(inputs, 'dtype', type(inputs).__name__)}; those of "
            f"the kind {kind} are one tensor of torch.float32"
        )
        assert kind == "image" or inputs.dim() == 1, (
            f"{sample.key}: a vector of shape {list(inputs.shape)}"
        )
        if inputs.dim() == 3:
            assert float(inputs.min()) >= 0 and float(inputs.max()) <= 1, (
                f"{sample.key}: an image from {float(inputs.min())} to {float(inputs.max())}, "
                "expected 0 to 1"
            )

    @staticmethod
    def _check_values(task: Task, sample: Sample, where: str) -> None:
        target, valid = sample.targets[task.name], sample.valid[task.name]
        values = target[spread(valid[None], target[None])[0]]
        if not len(values):
            return
        low, high = float(values.min()), float(values.max())
        assert bool(values.isfinite().all()), f"{where} is not finite where it is valid"
        if task.dtype == "int64":
            assert low >= 0 and high < task.channels, f"{where} has classes {low} to {high}"
        if task.kind in ("depth", "inverse-depth"):
            assert low > 0, f"{where} has a depth of {low} where it is valid"
        if task.kind in ("edges", "saliency", "multilabel"):
            assert low >= 0 and high <= 1, f"{where} has values from {low} to {high}"
        if task.kind == "normals":
            lengths = torch.linalg.vector_norm(target, dim=0)[valid]
            worst = float((lengths - 1).abs().max())
            assert worst < 0.02, f"{where}: a normal's length is off by {worst}"


def _parts(sample: Sample) -> dict[str, object]:
    return {
        "inputs": map_inputs(torch.clone, sample.inputs),
        "targets": {name: target.clone() for name, target in sample.targets.items()},
        "valid": {name: mask.clone() for name, mask in sample.valid.items()},
        "key": sample.key,
        "view": sample.view,
    }


def _number(tensor: Tensor) -> str:
    if tensor.is_floating_point() or tensor.is_complex():
        return "real"
    return "boolean" if tensor.dtype == torch.bool else "integer"


def _inherits_collating(dataset: Dataset) -> bool:
    return getattr(dataset.collate_inputs, "__func__", None) is Dataset.collate_inputs
