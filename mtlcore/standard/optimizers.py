"""Plain training with Adam, AdamW or SGD."""

from __future__ import annotations

import torch

from mtlcore.learner import Learner
from mtlcore.optimizers import GradientDescent, Schedule
from mtlcore.ranges import Decay, LearningRate, NonNegative, Positive


def adam(
    learner: Learner,
    *,
    lr: LearningRate = 1e-3,
    betas: tuple[Decay, Decay] = (0.9, 0.999),
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.0,
    schedule: Schedule = Schedule(),
    clip: Positive | None = None,
) -> GradientDescent:
    """Train with Adam (Kingma & Ba 2015).

    Args:
        learner: The module to train.
        lr: base learning rate.
        betas: decay rates of the two running means.
        eps: added to the denominator.
        weight_decay: L2 penalty, added to the gradient.
        schedule: of the learning rate.
        clip: largest norm of the gradient of all parameters; unset: no limit.
    """

    def make(groups: list[dict[str, object]]) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True
        )

    return GradientDescent(learner, make, schedule, clip)


def adamw(
    learner: Learner,
    *,
    lr: LearningRate = 1e-3,
    betas: tuple[Decay, Decay] = (0.9, 0.999),
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 1e-2,
    schedule: Schedule = Schedule(),
    clip: Positive | None = None,
) -> GradientDescent:
    """Train with AdamW: weight decay apart from the gradient (Loshchilov & Hutter 2019).

    Args:
        learner: The module to train.
        lr: base learning rate.
        betas: decay rates of the two running means.
        eps: added to the denominator.
        weight_decay: fraction of a weight that is subtracted per step, times the learning rate.
        schedule: of the learning rate.
        clip: largest norm of the gradient of all parameters; unset: no limit.
    """

    def make(groups: list[dict[str, object]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True
        )

    return GradientDescent(learner, make, schedule, clip)


def sgd(
    learner: Learner,
    *,
    lr: LearningRate = 1e-2,
    momentum: Decay = 0.0,
    nesterov: bool = False,
    weight_decay: NonNegative = 0.0,
    schedule: Schedule = Schedule(),
    clip: Positive | None = None,
) -> GradientDescent:
    """Train with stochastic gradient descent.

    Args:
        learner: The module to train.
        lr: base learning rate.
        momentum: fraction of the last update that is kept.
        nesterov: whether to use Nesterov momentum.
        weight_decay: L2 penalty, added to the gradient.
        schedule: of the learning rate.
        clip: largest norm of the gradient of all parameters; unset: no limit.
    """

    def make(groups: list[dict[str, object]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            groups, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
        )

    return GradientDescent(learner, make, schedule, clip)
