"""State that is used in the step that makes it, and kept only if the step is taken."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor, nn


@final
class Tentative(nn.Module):
    """Tensors by name: proposed in a step, committed in `after_step`.

    A running mean that must hold the current gradients before they are weighted is proposed in
    `weights` or `combine`. If the step is skipped, nothing commits it, and the next proposal starts
    from the last committed tensor::

        old = self.state.get("mean", like=rows)
        mean = rows if old is None else 0.9 * old + 0.1 * rows
        self.state.propose("mean", mean)

        def after_step(self, context):
            self.state.commit()

    As a submodule of a balancer it is part of every checkpoint; no tensor need be made beforehand.
    """

    def __init__(self) -> None:
        super().__init__()
        self._committed: dict[str, Tensor] = {}
        self._proposed: dict[str, Tensor] = {}

    def get(self, name: str, like: Tensor) -> Tensor | None:
        """Return the committed tensor, or None.

        Args:
            name: Of the tensor.
            like: A tensor whose device and dtype it takes.
        """
        committed = self._committed.get(name)
        return None if committed is None else committed.to(like)

    def propose(self, name: str, value: Tensor) -> None:
        """Keep a detached copy of a tensor until `commit`; a later proposal replaces it."""
        self._proposed[name] = value.detach().clone()

    def commit(self) -> None:
        """Keep what was proposed since the last step that was taken."""
        self._committed.update(self._proposed)
        self._proposed = {}

    def discard(self) -> None:
        """Drop what was proposed and not committed."""
        self._proposed = {}

    def reset(self) -> None:
        """Drop everything."""
        self._committed, self._proposed = {}, {}

    def get_extra_state(self) -> dict[str, Any]:
        return dict(self._committed)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._committed, self._proposed = dict(state), {}
