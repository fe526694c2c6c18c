"""Errors of memory that is used up are known by all their names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from mtlcore.engine.checks import check_model
from mtlcore.features import Features
from mtlcore.system import out_of_memory
from mtlcore.testing import TinyBackbone, tiny_batch, tiny_learner


def too_much_for_torch() -> object:
    return torch.empty(2**50)


def too_much_for_numpy() -> object:
    return np.empty(2**50)


def too_much_for_python() -> object:
    return bytearray(2**60)


@pytest.mark.parametrize("allocate", [too_much_for_torch, too_much_for_numpy, too_much_for_python])
def test_more_than_there_is(allocate) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        allocate()
    said = out_of_memory(caught.value)
    assert said and "\n" not in said
    assert "enforce fail" not in said  # a place in torch's own code


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes cannot be multiplied"), ValueError("memory"), OSError(2, "gone")]
)
def test_other_errors_are_about_something_else(error: Exception) -> None:
    assert out_of_memory(error) is None


class Greedy(TinyBackbone):
    """Asks for more memory than there is."""

    def forward(self, inputs: torch.Tensor, tasks: Sequence[str]) -> Features:
        torch.empty(2**50)
        raise AssertionError


def test_a_model_without_memory_is_not_put_down_to_its_inputs() -> None:
    learner = tiny_learner(backbone=Greedy)
    with pytest.raises(RuntimeError, match="tried to allocate") as caught:
        check_model(learner, tiny_batch().inputs)
    assert out_of_memory(caught.value)
