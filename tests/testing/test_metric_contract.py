"""Metrics that are wrong on purpose, and the contract that catches them."""

from __future__ import annotations

import pytest
import torch

from mtlcore.metrics import Metric
from mtlcore.standard.metrics import DepthMetric
from mtlcore.tasks import Task
from mtlcore.testing import MetricContract

DEPTH = Task(name="depth", kind="depth", channels=1)


class MeanOfBatches(Metric):
    higher_is_better = {"error": False}

    def __init__(self, task):
        self.values = []

    def update(self, prediction, target, valid):
        error = (prediction - target).abs().mean(1)
        if valid.any():
            self.values.append(float(error[valid].mean()))

    def compute(self):
        mean = sum(self.values) / len(self.values) if self.values else float("nan")
        return {"error": mean}

    def merge(self, other):
        self.values += other.values

    def reset(self):
        self.values = []


class ZeroForNothing(MeanOfBatches):
    def compute(self):
        return {"error": sum(self.values) / max(len(self.values), 1)}


class MetricWithoutMask(MeanOfBatches):
    def update(self, prediction, target, valid):
        super().update(prediction, target, torch.ones_like(valid))


class NeverResets(MeanOfBatches):
    def reset(self):
        pass


class ForgetsToMerge(MeanOfBatches):
    def merge(self, other):
        pass


class NoDirection(MeanOfBatches):
    higher_is_better = {"error": False, "accuracy": True}


class LastBatchOnly(MeanOfBatches):
    def compute(self):
        return {"error": self.values[-1] if self.values else float("nan")}


class ComputesAndForgets(MeanOfBatches):
    def compute(self):
        values = super().compute()
        self.values = []
        return values


class RoundsInPlace(MeanOfBatches):
    def update(self, prediction, target, valid):
        super().update(prediction.round_(), target, valid)


class TakesFromTheOther(MeanOfBatches):
    def merge(self, other):
        while other.values:
            self.values.append(other.values.pop())


class GivesATensor(MeanOfBatches):
    def compute(self):
        return {"error": torch.tensor(super().compute()["error"])}


METRICS = [
    (MeanOfBatches, "test_batches_do_not_matter", "changes error"),
    (ZeroForNothing, "test_nothing_valid_is_nan", "is 0"),
    (MetricWithoutMask, "test_masked_elements_leave_no_trace", "nothing is valid"),
    (NeverResets, "test_reset_forgets_everything", "before a reset"),
    (ForgetsToMerge, "test_merging_is_seeing_everything", "merging"),
    (NoDirection, "test_every_value_says_whether_higher_is_better", "higher_is_better has"),
    (LastBatchOnly, "test_order_does_not_matter", "another order changes"),
    (ComputesAndForgets, "test_computing_changes_nothing", "computing before"),
    (RoundsInPlace, "test_inputs_stay_as_they_were", "edited in place"),
    (TakesFromTheOther, "test_merging_is_seeing_everything", "mean|merg"),
    (GivesATensor, "test_every_value_says_whether_higher_is_better", "is a Tensor"),
]


@pytest.mark.parametrize(("component", "test", "message"), METRICS)
def test_metrics(component, test, message, held_to, catches):
    catches(held_to(MetricContract, component, task=DEPTH), test, message)


def test_a_good_metric_passes(held_to, passes):
    passes(held_to(MetricContract, DepthMetric, task=DEPTH))


def test_every_check_catches_something(catch_all):
    catch_all(MetricContract, METRICS)
