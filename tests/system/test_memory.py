"""Errors of memory that is used up are known by all their names."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mtlcore.system import out_of_memory


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


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes cannot be multiplied"), ValueError("memory"), OSError(2, "gone")]
)
def test_other_errors_are_about_something_else(error: Exception) -> None:
    assert out_of_memory(error) is None
