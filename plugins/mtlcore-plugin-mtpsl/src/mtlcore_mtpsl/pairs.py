"""Pairs of an unlabelled and a labelled task, and their weights."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import attrs
import torch
from torch import Tensor

from mtlcore.data import Batch
from mtlcore.errors import UsageError
from mtlcore.tasks import Task

Normalisation = Literal["sum", "mean"]


@attrs.frozen
class Pair:
    """The prediction of one task and the label of another, for one sample.

    Args:
        row: of the sample in its batch.
        source: name of the task that is predicted.
        target: name of the task that is labelled.
    """

    row: int
    source: str
    target: str


def mapped_tasks(tasks: Sequence[Task], loss: str) -> dict[str, Task]:
    """Return the tasks that have a value per pixel; the others take no part.

    Raises:
        UsageError: there are fewer than two.
    """
    mapped = {task.name: task for task in tasks if task.layout == "map"}
    if len(mapped) < 2:
        raise UsageError(
            f"loss {loss!r} relates tasks that have a value per pixel, and of this run's "
            f"({', '.join(task.name for task in tasks)}) fewer than two have"
        )
    return mapped


def find_pairs(
    batch: Batch, tasks: Collection[str], view: int, running: Collection[str]
) -> list[Pair]:
    """Return the pairs of a batch: from every unlabelled task to every labelled one.

    A sample that has all labels gives all ordered pairs, as the paper has it for full supervision.

    Args:
        batch: with samples of several views.
        tasks: names of those that may take part.
        view: whose samples are meant.
        running: names of the tasks whose predictions there are (or may be).
    """
    pairs = []
    for row, number in enumerate(batch.view):
        if number != view:
            continue
        labelled = [task for task in tasks if batch.labelled[task][row]]
        sources = [task for task in tasks if task not in labelled] or labelled
        pairs += [
            Pair(row, source, target)
            for source in sources
            for target in labelled
            if source != target and source in running
        ]
    return pairs


def images(batch: Batch) -> int:
    """Return the number of samples, each counted once whatever its views."""
    return batch.view.count(0)


def weights(
    pairs: Sequence[Pair], batch: Batch, normalisation: Normalisation, like: Tensor
) -> Tensor:
    """Return the weight of each pair in a mean over the batch's samples, (P,).

    "sum" adds up a sample's pairs, as the released code does; "mean" divides by the number of the
    sample's predicted tasks, as the paper does (eq. 4, by that of its unlabelled tasks).
    """
    sources: dict[int, set[str]] = {}
    for pair in pairs:
        sources.setdefault(pair.row, set()).add(pair.source)
    shares = [1 / len(sources[pair.row]) if normalisation == "mean" else 1.0 for pair in pairs]
    return torch.tensor(shares, dtype=like.dtype, device=like.device) / images(batch)
