"""How many floating point operations a prediction takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mtlcore.inputs import Inputs, input_tensors
from mtlcore.learner import Learner, uncompiled


@contextmanager
def trial(learner: Learner, inputs: Inputs) -> Iterator[None]:
    """Let a learner predict from some inputs as in an evaluation, and leave it as it was.

    Modes of modules and random streams are what they were; nothing is compiled.

    Args:
        learner: In evaluation mode meanwhile.
        inputs: What it will predict from.
    """
    modes = [(module, module.training) for module in learner.modules()]
    devices = {x.device for x in input_tensors(inputs) if x.is_cuda}
    learner.eval()
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng([*devices]),
            uncompiled(learner.model.backbone),
        ):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def count_flops(learner: Learner, inputs: Inputs) -> int:
    """Return the floating point operations of predicting all tasks once.

    Convolutions, products of matrices and attention count, as torch counts them: a multiplication
    and an addition are two operations. (Many papers call such a pair one, and print half of this.)
    The rest, such as norms and resizing, does not count.

    Args:
        learner: Whose model predicts; it is left as it was.
        inputs: Those of a batch of one sample.
    """
    from torch.utils.flop_counter import FlopCounterMode  # late: it imports torch's compiler

    with trial(learner, inputs), FlopCounterMode(display=False) as counter:
        learner.model(inputs, list(learner.model.tasks))
    return int(counter.get_total_flops())
