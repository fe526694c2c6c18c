"""A learning rate of its own for a part of what is learnt."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
from torch.nn import Parameter

from mtlcore.optimizers import Schedule


@attrs.frozen(kw_only=True)
class Rates:
    """How fast something learns.

    Args:
        lr: base learning rate; unset: the run's.
        schedule: of this rate; unset: the run's.
    """

    lr: float | None = None
    schedule: Schedule | None = None

    def group(self, parameters: Iterable[Parameter]) -> dict[str, Any]:
        """A group for an optimizer."""
        own = {"lr": self.lr, "schedule": self.schedule}
        chosen = {key: value for key, value in own.items() if value is not None}
        return {"params": list(parameters), **chosen}
