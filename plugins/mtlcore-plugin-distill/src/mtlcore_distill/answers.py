"""What predictions say, and how far one is from another, by the kind of the task."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mtlcore.standard.losses import SHORTEST_NORMAL, unit_vectors
from mtlcore.tasks import Task

#: Kinds whose predictions are a logit for each value.
_LOGITS = ("edges", "saliency", "multilabel")


def values(task: Task, raw: Tensor) -> Tensor:
    """Return a head's output (N, C, ...) as probabilities, unit normals, or as it is."""
    if task.dtype == "int64":
        return raw.softmax(1)
    if task.kind in _LOGITS:
        return raw.sigmoid()
    return unit_vectors(raw, SHORTEST_NORMAL) if task.kind == "normals" else raw


def distilled(task: Task, found: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Return the loss of predictions whose targets are those of a teacher.

    Of classes it is the cross entropy of both probabilities, softened by the temperature T,
    `-sum_c p_c log q_c` with p = softmax(taught / T) and q = softmax(found / T) (Hinton et al.,
    2015, without their factor T^2); of logits the same for two classes each; of normals
    `1 - cosine`; of all else the absolute difference, in the task's unit.

    Args:
        task: whose predictions they are.
        found: (N, C, ...), raw output of a head.
        taught: the same of the teacher, without a graph.
        temperature: T.

    Returns:
        The mean over samples and pixels, or values of a vector.
    """
    if task.dtype == "int64":
        return F.cross_entropy(found / temperature, (taught / temperature).softmax(1))
    if task.kind in _LOGITS:
        target = (taught / temperature).sigmoid()
        return F.binary_cross_entropy_with_logits(found / temperature, target)
    if task.kind == "normals":
        return (1 - (values(task, found) * values(task, taught)).sum(1)).mean()
    return F.l1_loss(found, taught)
