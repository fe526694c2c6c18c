"""MetricValues over a split: pooled over its labels, whatever the batches, in evaluation mode."""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs
import pytest
import torch

from mtlcore.data import Batch
from mtlcore.engine import evaluate
from mtlcore.learner import Learner
from mtlcore.losses import Loss
from mtlcore.metrics import Metric, MetricValues
from mtlcore.standard.losses import Cosine, CrossEntropy, HuDepth
from mtlcore.standard.metrics import DepthMetric, NormalsMetric, SegmentationMetric
from mtlcore.testing import TINY_TASKS, tiny_batch, tiny_learner
from mtlcore.testing.base import same, state_of


class Weighted(Loss):
    """Elements count as much as their labels."""

    def elementwise(self, prediction, target):
        weight = target.abs().sum(1)
        return (prediction - target).abs().sum(1) * weight, weight


LOSSES = {
    "mean": lambda: None,
    "weighted": lambda: {
        "segmentation": CrossEntropy(
            TINY_TASKS[0], class_weights=(0.1, 5.0, 1.0, 2.0)[: TINY_TASKS[0].channels]
        ),
        "depth": Weighted(),
        "normals": Cosine(TINY_TASKS[2]),
    },
    "scalar": lambda: {
        "segmentation": CrossEntropy(TINY_TASKS[0]),
        "depth": HuDepth(TINY_TASKS[1]),
        "normals": Cosine(TINY_TASKS[2]),
    },
}


def figures(learner: Learner, batches: Sequence[Batch | None]) -> MetricValues:
    metrics: dict[str, Metric] = {
        "segmentation": SegmentationMetric(TINY_TASKS[0]),
        "depth": DepthMetric(TINY_TASKS[1]),
        "normals": NormalsMetric(TINY_TASKS[2]),
    }
    return evaluate(learner, batches, metrics, torch.device("cpu"))


def part(batch: Batch, begin: int, end: int) -> Batch:
    """Some of the samples."""
    valid = {name: mask[begin:end] for name, mask in batch.valid.items()}
    return attrs.evolve(
        batch,
        inputs=batch.inputs[begin:end],
        targets={name: target[begin:end] for name, target in batch.targets.items()},
        valid=valid,
        labelled={name: flags[begin:end] for name, flags in batch.labelled.items()},
        count={name: int(mask.sum()) for name, mask in valid.items()},
        keys=batch.keys[begin:end],
        view=batch.view[begin:end],
        meta=batch.meta[begin:end],
    )


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_and_metrics_are_over_the_split_not_over_batches(kind: str) -> None:
    """Batches of other sizes, one of them unreadable: the same figures."""
    learner, whole = tiny_learner(losses=LOSSES[kind]()), tiny_batch(5)
    whole.valid["depth"][1:4] = False
    whole.valid["depth"][0, 1:] = False  # a few pixels of the first sample, many of the last
    whole.labelled["depth"] = (True, False, False, False, True)
    whole = part(whole, 0, 5)
    expected = figures(learner, [whole])
    found = figures(learner, [part(whole, 0, 4), None, part(whole, 4, 5)])
    for task, values in expected.items():
        assert found[task] == pytest.approx(values, rel=1e-5), task


def test_a_loss_is_its_mean_over_valid_pixels() -> None:
    learner, batches = tiny_learner().eval(), [tiny_batch(4, seed=1), tiny_batch(2, seed=2)]
    errors = []
    for batch in batches:
        prediction = learner.predict(batch.inputs, ["depth"])["depth"].detach()
        errors.append(
            (prediction - batch.targets["depth"]).abs()[batch.valid["depth"].unsqueeze(1)]
        )
    loss = figures(learner, batches)["depth"]["loss"]
    assert loss == pytest.approx(float(torch.cat(errors).mean()), rel=1e-5)


def test_a_task_without_a_label_has_no_figure() -> None:
    found = figures(
        tiny_learner(), [tiny_batch(2, absent=["depth"]), tiny_batch(2, absent=["depth"])]
    )
    assert all(math.isnan(value) for value in found["depth"].values())
    assert math.isfinite(found["normals"]["loss"])
    later = figures(tiny_learner(), [tiny_batch(2, absent=["depth"]), tiny_batch(2)])
    assert later["depth"]["loss"] == pytest.approx(
        figures(tiny_learner(), [tiny_batch(2)])["depth"]["loss"]
    )


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training: bool) -> None:
    learner = tiny_learner().train(training)
    before = state_of(learner)
    figures(learner, [tiny_batch(4)])
    assert same(state_of(learner), before)
    assert all(module.training == training for module in learner.modules())
