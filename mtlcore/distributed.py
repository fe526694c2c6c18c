"""The processes that train one model together: which one this is, and what they exchange.

`torchrun --nproc-per-node N -m mtlcore run ...` starts them. Each works on its share of every
batch; sums over all processes take the place of sums over one large batch. What is decided (plans,
weights, skipped steps, signals) is the same on every rank, and rank 0 alone writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, final

import torch
from torch import Tensor

from mtlcore.errors import MtlError, describe
from mtlcore.system import (
    launched_local_rank,
    launched_rank,
    launched_world_size,
    stop_from_outside,
)

__all__ = [
    "SINGLE_PROCESS",
    "Distributed",
    "init_distributed",
]

_T = TypeVar("_T")
# Up to so many elements, tensors travel together.
_SMALL = 2**16


@final
class Distributed:
    """The processes of a run. Every process calls each method, in the same order.

    Args:
        rank: number of this process.
        world_size: number of processes.
        local_rank: number of this process on its machine, which is the number of its GPU.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, local_rank: int = 0) -> None:
        self.rank, self.world_size, self.local_rank = rank, world_size, local_rank

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, the process that writes and speaks."""
        return self.rank == 0

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over all ranks, in place.

        Args:
            tensors: of the same shapes on every rank.
        """
        if self.world_size == 1:
            return
        groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in tensors:
            if tensor.numel() <= _SMALL or not tensor.is_contiguous():
                groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
            else:
                self._sum(tensor)
        for small in groups.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in small])
            self._sum(flat)
            parts = flat.split_with_sizes([tensor.numel() for tensor in small])
            torch._foreach_copy_(small, [p.view_as(t) for p, t in zip(parts, small, strict=True)])

    def all_reduce_floats(self, values: Sequence[float]) -> list[float]:
        """Return the sums of numbers over all ranks."""
        if self.world_size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        self._sum(sums)
        return list(sums.tolist())

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """Return, per flag, whether it is true on any rank."""
        return [total > 0 for total in self.all_reduce_floats([float(flag) for flag in flags])]

    def all_gather(self, value: _T) -> list[_T]:
        """Return every rank's value, ordered by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with _others_alive():
            torch.distributed.all_gather_object(values, value)
        return values

    def broadcast(self, make: Callable[[], _T]) -> _T:
        """Call a function on rank 0 and return its result on every rank."""
        if self.world_size == 1:
            return make()
        box: list[Any] = [make() if self.is_main_process else None]
        with _others_alive():
            torch.distributed.broadcast_object_list(box, src=0)
        value: _T = box[0]
        return value

    def _sum(self, tensor: Tensor) -> None:
        with _others_alive():
            torch.distributed.all_reduce(tensor)


SINGLE_PROCESS = Distributed()


@contextmanager
def init_distributed() -> Iterator[Distributed]:
    """Connect the processes that torchrun started; `SINGLE_PROCESS` where there is only one.

    Raises:
        MtlError: the processes do not find each other.
    """
    world_size = launched_world_size()
    if world_size == 1:
        yield SINGLE_PROCESS
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        # Until the others come, which may be never.
        with stop_from_outside():
            torch.distributed.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise MtlError(
            f"the {world_size} processes of this run do not find each other ({describe(error)}); "
            "start them with torchrun --nproc-per-node N -m mtlcore run ..."
        ) from error
    try:
        yield Distributed(launched_rank(), world_size, launched_local_rank())
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def _others_alive() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise MtlError(
            "another process of this run has ended, was killed or cannot be reached; what it wrote "
            "says why. What is saved is the last checkpoint: start all processes again with "
            "--resume (--traceback shows what failed here)"
        ) from error
