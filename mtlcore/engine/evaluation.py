"""Metrics over a split: of a model, and of the best constants that look at no image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from mtlcore.data import Batch, place_size
from mtlcore.distributed import SINGLE_PROCESS, Distributed
from mtlcore.engine.constant_baselines import ConstantFit, Extent
from mtlcore.inputs import Inputs
from mtlcore.learner import Learner
from mtlcore.losses import loss_sums
from mtlcore.metrics import Metric, MetricValues
from mtlcore.tasks import Task

_EXTENTS: tuple[Extent, ...] = ("global", "pixel")


@torch.no_grad()
def evaluate(
    learner: Learner,
    batches: Iterable[Batch | None],
    metrics: Mapping[str, Metric],
    device: torch.device,
    distributed: Distributed = SINGLE_PROCESS,
    predict: Callable[[Inputs, Sequence[str]], dict[str, Tensor]] | None = None,
) -> MetricValues:
    """Return per task its metrics, and as "loss" its raw loss pooled over the split.

    That is the mean over all valid elements by their weights, whatever the batches; of a loss that
    is no mean over elements, the mean over samples by their numbers of valid elements.

    Args:
        learner: In evaluation mode meanwhile, and afterwards in the state it had before.
        batches: Those of this rank; None for a batch of which no sample could be read.
        metrics: A fresh one per task.
        device: Where the learner is.
        distributed: The processes whose batches are judged together; all get the same values.
        predict: Gives predictions instead of the learner's model, such as those of an averaged
            copy.
    """
    tasks = tuple(learner.model.tasks)
    # Per task, the sum of losses and that of their weights.
    sums = {task: torch.zeros(2, dtype=torch.float64, device=device) for task in tasks}
    was_training = learner.training
    learner.eval()
    try:
        for batch in batches:
            if batch is None:
                continue
            here = batch.to(device)
            present = here.present(tasks)
            predictions = (predict or learner.predict)(here.inputs, present)
            for task in present:
                target, valid = here.targets[task], here.valid[task]
                loss, seen, true = learner.judged(task, predictions[task], target)
                found = loss_sums(loss, seen, true, valid, here.labelled[task])
                sums[task] += torch.stack(found)
                metrics[task].see(here)
                metrics[task].update(predictions[task], target, valid)
    finally:
        learner.train(was_training)
    # Merged in one order everywhere, so that every rank computes the same.
    merged, *others = distributed.all_gather(dict(metrics))
    for other in others:
        for task in tasks:
            merged[task].merge(other[task])
    values = {task: merged[task].compute() for task in tasks}
    pooled = distributed.all_reduce_floats([x for task in tasks for x in sums[task].tolist()])
    for task, total, mass in zip(tasks, pooled[::2], pooled[1::2], strict=True):
        values[task] = {**values[task], "loss": total / mass if mass else float("nan")}
    return values


def evaluate_constants(
    tasks: Sequence[Task],
    training: Iterable[Batch | None],
    validation: Callable[[], Iterable[Batch | None]],
    make_metrics: Callable[[], dict[str, Metric]],
) -> dict[str, MetricValues]:
    """Return what the best constants reach: "global" and "pixel", task -> metric -> value.

    Args:
        tasks: A task whose kind has no best constant is left out.
        training: The batches whose labels the constants are fitted on.
        validation: Called for the batches that they are judged on.
        make_metrics: Called for a fresh metric per task.
    """
    fit = ConstantFit(tasks)
    for batch in training:
        if batch is not None:
            fit.update(batch.targets, batch.valid)
    constants: dict[tuple[str, str, tuple[int, ...]], Tensor | None] = {}
    metrics: dict[str, dict[str, Metric]] = {"global": make_metrics(), "pixel": make_metrics()}
    used: dict[str, set[str]] = {"global": set(), "pixel": set()}
    for batch in validation():
        if batch is None:
            continue
        for task in tasks:
            for extent in _EXTENTS:
                size = place_size(task, batch.inputs)
                key = (extent, task.name, size)
                if key not in constants:
                    constants[key] = fit.predict(extent, task, size)
                prediction = constants[key]
                if prediction is None or not batch.count[task.name]:
                    continue
                used[extent].add(task.name)
                whole = _repeated(prediction, len(batch))
                metrics[extent][task.name].see(batch)
                metrics[extent][task.name].update(
                    whole, batch.targets[task.name], batch.valid[task.name]
                )
    return {
        extent: {name: metrics[extent][name].compute() for name in sorted(names)}
        for extent, names in used.items()
        if names
    }


def _repeated(prediction: Tensor, times: int) -> Tensor:
    return prediction.unsqueeze(0).expand(times, *prediction.shape)
