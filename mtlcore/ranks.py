"""Several processes that train one model: which of them this is, and what they tell one another.

`torchrun --nproc-per-node N -m mtlcore run ...` starts them. Each works on its share of every
batch; sums over all of them take the place of sums over one large batch. Everything that decides
(plans, weights, skipped steps, signals) is the same on every rank, and rank 0 alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, final

import torch
from torch import Tensor

from mtlcore.errors import MtlError, describe

_T = TypeVar("_T")
# Up to so many elements, tensors travel together.
_SMALL = 2**16


@final
class Ranks:
    """The processes of a run; every method is called by all of them, in the same order.

    Args:
        rank: number of this process.
        size: of how many.
        local: number of this process on its machine, which is that of its GPU.
    """

    def __init__(self, rank: int = 0, size: int = 1, local: int = 0) -> None:
        self.rank, self.size, self.local = rank, size, local

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, of equal shapes on every rank, by their sums over the ranks."""
        if self.size == 1:
            return
        groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in tensors:
            if tensor.numel() <= _SMALL or not tensor.is_contiguous():
                groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
            else:
                self._reduce(tensor)
        for small in groups.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in small])
            self._reduce(flat)
            parts = flat.split_with_sizes([tensor.numel() for tensor in small])
            torch._foreach_copy_(small, [p.view_as(t) for p, t in zip(parts, small, strict=True)])

    def sum_floats(self, values: Sequence[float]) -> list[float]:
        """The sums of numbers over the ranks."""
        if self.size == 1:
            return list(values)
        found = torch.tensor(values, dtype=torch.float64)
        self._reduce(found)
        return list(found.tolist())

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """Per flag whether it is up on any rank."""
        return [total > 0 for total in self.sum_floats([float(flag) for flag in flags])]

    def gather(self, value: _T) -> list[_T]:
        """Every rank's value, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with _others_alive():
            torch.distributed.all_gather_object(found, value)
        return found

    def from_first(self, make: Callable[[], _T]) -> _T:
        """What rank 0 makes, on every rank."""
        if self.size == 1:
            return make()
        box: list[Any] = [make() if self.first else None]
        with _others_alive():
            torch.distributed.broadcast_object_list(box, src=0)
        found: _T = box[0]
        return found

    def _reduce(self, tensor: Tensor) -> None:
        with _others_alive():
            torch.distributed.all_reduce(tensor)


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that torchrun started, connected meanwhile; `ALONE` where there is one process.

    Raises:
        MtlError: the processes do not find each other.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        torch.distributed.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise MtlError(
            f"the {size} processes of this run do not find each other ({describe(error)}); start "
            "them with torchrun --nproc-per-node N -m mtlcore run ..."
        ) from error
    rank = int(os.environ["RANK"])
    try:
        yield Ranks(rank, size, int(os.environ.get("LOCAL_RANK", rank)))
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
