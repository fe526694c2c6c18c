"""What the host must know of a step, fetched from its device in one transfer."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import final

import torch
from torch import Tensor

__all__ = ["HostReads"]


@final
class HostReads:
    """Values that wait on a device until the host asks for something, and then come with it.

    To read a value is to wait for all that was launched before it. So what can wait is read
    together with what cannot.

    Args:
        at_once: Whether values are read when they are handed in, as where reading costs nothing.
    """

    def __init__(self, at_once: bool = True) -> None:
        self.at_once = at_once
        self._asked: list[tuple[Tensor, Callable[[list[float]], object]]] = []

    def ask(self, values: Tensor, then: Callable[[list[float]], object]) -> None:
        """Hand over values, (N,), when they are read.

        Args:
            values: On any device.
            then: Gets them, in the order in which they were asked for.
        """
        if self.at_once:
            then(values.tolist())
        else:
            self._asked.append((values.detach(), then))

    def read(self, *more: Tensor) -> list[Tensor]:
        """Wait for the device, hand over what was asked for, and return these tensors on the CPU.

        Args:
            more: Of any shape and device.
        """
        asked, self._asked = self._asked, []
        there = [values for values, _ in asked]
        there += [x.detach() for x in more if x.device.type != "cpu"]
        pieces = iter(_fetched(there))
        for _, then in asked:
            then(next(pieces).tolist())
        return [x.detach() if x.device.type == "cpu" else next(pieces) for x in more]

    def forget(self) -> None:
        """Drop what was asked for."""
        self._asked = []


def _fetched(tensors: list[Tensor]) -> list[Tensor]:
    if not tensors:
        return []
    device, kind = tensors[0].device, reduce(torch.promote_types, (x.dtype for x in tensors))
    flat = torch.cat([x.reshape(-1).to(device, kind) for x in tensors]).cpu()
    parts = torch.split(flat, [x.numel() for x in tensors])
    return [part.view(x.shape) for part, x in zip(parts, tensors, strict=True)]
