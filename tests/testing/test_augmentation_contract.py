"""Augmentations that are wrong on purpose, and the contract that catches them."""

from __future__ import annotations

import attrs
import pytest
import torch

from mtlcore.loading import Augmentation, BatchAugmentation, SampleAugmentation
from mtlcore.standard.augmentations import CutMix, Photometric
from mtlcore.testing import AugmentationContract


class Changed(SampleAugmentation):
    """A photometric change that is right."""

    def __init__(self, tasks):
        self.tasks, self.inner = tasks, Photometric(tasks)

    def __call__(self, sample, generator):
        return self.inner(sample, generator)


class GlobalStream(Changed):
    def __call__(self, sample, generator):
        return self.inner(sample, torch.default_generator)


class AlwaysTheSame(Changed):
    def __call__(self, sample, generator):
        return self.inner(sample, torch.Generator().manual_seed(0))


class RemembersTheLast(Changed):
    last = 0.0

    def __call__(self, sample, generator):
        result = self.inner(sample, generator)
        mixed = (result.inputs + self.last) / 2
        self.last = result.inputs.mean()
        return attrs.evolve(result, inputs=mixed)


class InPlace(Changed):
    def __call__(self, sample, generator):
        sample.inputs.mul_(torch.rand((), generator=generator))
        return sample


class ForgetsMeta(Changed):
    def __call__(self, sample, generator):
        return attrs.evolve(self.inner(sample, generator), meta={})


class TooBright(Changed):
    def __call__(self, sample, generator):
        return attrs.evolve(sample, inputs=sample.inputs + torch.rand((), generator=generator))


class SmootherClasses(Changed):
    def __call__(self, sample, generator):
        labels = {**sample.targets, "segmentation": sample.targets["segmentation"].float()}
        return attrs.evolve(self.inner(sample, generator), targets=labels)


class EverythingIsValid(Changed):
    def __call__(self, sample, generator):
        valid = {name: torch.ones_like(mask) for name, mask in sample.valid.items()}
        return attrs.evolve(self.inner(sample, generator), valid=valid)


class FlipsThePictureOnly(Changed):
    def __call__(self, sample, generator):
        return attrs.evolve(self.inner(sample, generator), inputs=sample.inputs.flip(-1))


class TakesAnything(Changed):
    def __call__(self, sample, generator):
        return self.inner(sample, generator) if sample.inputs.dim() == 3 else sample


class LosesHalf(BatchAugmentation):
    def __init__(self, tasks):
        self.tasks = tasks

    def __call__(self, samples, generator):
        return [s for s in samples if torch.rand((), generator=generator) < 0.5]


class MasksStay(BatchAugmentation):
    """Pastes labels without their masks."""

    def __init__(self, tasks):
        self.inner = CutMix(tasks)

    def __call__(self, samples, generator):
        mixed = self.inner(samples, generator)
        return [attrs.evolve(m, valid=s.valid) for m, s in zip(mixed, samples, strict=True)]


class RightFlip(Changed):
    def __call__(self, sample, generator):
        return Augmentation(scales=(1.0, 1.5), flip=True)(sample, self.tasks, generator)


AUGMENTATIONS = [
    (GlobalStream, "test_the_seed_decides", "global generator|same generator state"),
    (RemembersTheLast, "test_the_seed_decides", "gives another result"),
    (AlwaysTheSame, "test_seeds_differ", "all seeds"),
    (InPlace, "test_what_is_given_stays", "are changed"),
    (ForgetsMeta, "test_every_sample_comes_back", "meta of contract/0"),
    (LosesHalf, "test_every_sample_comes_back", "shorter"),
    (TooBright, "test_inputs_stay_images", "not in .0, 1."),
    (SmootherClasses, "test_labels_fit_their_tasks", "segmentation has"),
    (EverythingIsValid, "test_what_is_missing_stays_missing", "no sample has|was not valid"),
    (MasksStay, "test_what_is_missing_stays_missing", "was not valid"),
    (FlipsThePictureOnly, "test_pixels_and_labels_move_together", "lie elsewhere"),
    (TakesAnything, "test_what_is_no_image_is_refused", "not refused"),
]


@pytest.mark.parametrize(("component", "test", "message"), AUGMENTATIONS)
def test_augmentations(component, test, message, held_to, catches):
    catches(held_to(AugmentationContract, component), test, message)


@pytest.mark.parametrize("component", [Changed, CutMix])
def test_good_augmentations_pass(component, held_to, passes):
    passes(held_to(AugmentationContract, component))


def test_one_that_moves_pixels_and_labels_passes(held_to):
    contract = held_to(AugmentationContract, RightFlip)
    contract.test_pixels_and_labels_move_together()
    contract.test_what_is_missing_stays_missing()


def test_every_check_catches_something(catch_all):
    catch_all(AugmentationContract, AUGMENTATIONS)
