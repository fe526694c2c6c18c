"""A learning rate and a schedule for some of the parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
from torch.nn import Parameter

from mtlcore.optimizers import Schedule
from mtlcore.ranges import LearningRate


@attrs.frozen(kw_only=True)
class Rates:
    """Learning rate and schedule of some parameters.

    Args:
        lr: base learning rate; unset: the run's.
        schedule: of this rate; unset: the run's.
    """

    lr: LearningRate | None = None
    schedule: Schedule | None = None

    def group(self, parameters: Iterable[Parameter]) -> dict[str, Any]:
        """Return a parameter group for the optimizer."""
        own = {"lr": self.lr, "schedule": self.schedule}
        chosen = {key: value for key, value in own.items() if value is not None}
        return {"params": list(parameters), **chosen}
