"""Encodings of predictions and labels, as inputs of networks that map one task to another.

Li, Liu and Bilen (MTPSL, CVPR 2022) encode three kinds, as their released code does:

| kind | prediction | label |
| --- | --- | --- |
| classes | straight-through Gumbel-softmax, temperature 1 | one-hot, invalid pixels 0 |
| depth, inverse depth | divided by its largest value in the sample | the same, invalid pixels 0 |
| normals | (n + 1) / 2 with n at unit length | the same, invalid pixels 1/2 |

For other kinds this is ours:

| kind | prediction | label |
| --- | --- | --- |
| edges, saliency | sigmoid of the logit | as it is, invalid pixels 0 |
| any other map | divided by its largest absolute value in the sample | the same, invalid pixels 0 |

All of it looks at one sample at a time. Tasks without a value per pixel have no encoding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlcore.standard.losses import SHORTEST_NORMAL, unit_vectors
from mtlcore.tasks import Task

_LOGITS = ("edges", "saliency")
_POSITIVE = ("depth", "inverse-depth")
_TINY = 1e-12  # what the released code adds to a divisor


def has_classes(task: Task) -> bool:
    """Return whether a prediction is encoded by drawing a class, anew each time."""
    return task.dtype == "int64"


def of_prediction(task: Task, raw: Tensor) -> Tensor:
    """Encode a head's output (N, C, H, W) in the same shape; gradients pass."""
    if has_classes(task):
        return _drawn(raw)
    if task.kind == "normals":
        return (_unit(raw) + 1) / 2
    if task.kind in _LOGITS:
        return raw.sigmoid()
    return _relative(task, raw)


def of_label(task: Task, target: Tensor, valid: Tensor) -> Tensor:
    """Encode labels (N, *target_shape) with masks (N, H, W) as (N, C, H, W) float.

    What is not valid has no influence.
    """
    mask = valid.unsqueeze(1)
    if has_classes(task):
        return F.one_hot(target, task.channels).movedim(-1, 1).float() * mask
    known = torch.where(mask, target, 0)
    if task.kind == "normals":
        return (known + 1) / 2
    return known if task.kind in _LOGITS else _relative(task, known)


def values(task: Task, raw: Tensor) -> Tensor:
    """Return a head's output (N, C, ...) as probabilities, unit normals, or as it is."""
    if has_classes(task):
        return raw.softmax(1)
    if task.kind == "normals":
        return _unit(raw)
    return raw.sigmoid() if task.kind in (*_LOGITS, "multilabel") else raw


def _drawn(logits: Tensor) -> Tensor:
    """One class per pixel, drawn by its probability; the gradient is that of a softmax.

    The released code draws again while it finds NaN; here the noise is kept finite instead.
    """
    waiting = torch.empty_like(logits).exponential_()
    soft = (logits - waiting.clamp_min(torch.finfo(logits.dtype).tiny).log()).softmax(1)
    hard = torch.zeros_like(soft).scatter_(1, soft.argmax(1, keepdim=True), 1.0)
    return hard - soft.detach() + soft


def _unit(vectors: Tensor) -> Tensor:
    return unit_vectors(vectors, SHORTEST_NORMAL)


def _relative(task: Task, maps: Tensor) -> Tensor:
    sizes = maps if task.kind in _POSITIVE else maps.abs()
    return maps / (sizes.amax((1, 2, 3), keepdim=True) + _TINY)
