"""Keeping half-precision gradients from vanishing."""

from __future__ import annotations

from typing import Any, final


@final
class LossScale:
    """A dynamic loss scale.

    Halved whenever a gradient is not finite and doubled after 2000 finite steps, as in torch's
    `GradScaler`. That class divides `.grad`, but balancers need their rows divided before.

    Args:
        dynamic: False keeps the factor at 1.

    Attributes:
        factor: The factor on losses.
    """

    def __init__(self, dynamic: bool) -> None:
        self._dynamic = dynamic
        self.factor = 2.0**16 if dynamic else 1.0
        self._good = 0

    def update(self, finite: bool) -> None:
        """Count a step by whether its gradient was finite."""
        if not self._dynamic:
            return
        self._good = self._good + 1 if finite else 0
        if not finite:
            self.factor /= 2
        elif self._good == 2000:
            self.factor, self._good = self.factor * 2, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state as a JSON tree."""
        return {"factor": self.factor, "good": self._good}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.factor, self._good = state["factor"], state["good"]
