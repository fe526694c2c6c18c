"""Targets: metric values whose first reaching is looked for."""

from __future__ import annotations

import math
from typing import final

import attrs

from mtlcore.errors import UsageError


@final
@attrs.frozen
class Target:
    """A value that a task's metric may reach, such as `depth.abs_error=0.5`."""

    task: str
    metric: str
    value: float

    def __str__(self) -> str:
        return f"{self.task}.{self.metric}={self.value:g}"

    @classmethod
    def parse(cls, text: str) -> Target:
        """Return the target written as `task.metric=value`.

        Raises:
            UsageError: The text has another form.
        """
        path, _, number = text.partition("=")
        task, _, metric = path.strip().rpartition(".")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not (task and metric and math.isfinite(value)):
            raise UsageError(
                f"target {text!r}: write it as task.metric=value, such as depth.abs_error=0.5"
            )
        return cls(task, metric, value)


@final
@attrs.frozen
class Reached:
    """When a run first reached a target.

    Args:
        epoch: Epoch of the evaluation, from 1. Not every epoch need have one.
        seconds: Time since the run began, its evaluations included.
    """

    epoch: int
    seconds: float
