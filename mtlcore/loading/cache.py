"""Decoded samples kept in memory that worker processes share."""

from __future__ import annotations

import io
import mmap
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from mtlcore.data import Sample
from mtlcore.errors import UsageError

_WORD = 8  # bytes of a place's offset, and of its length


@final
class SampleCache:
    """Samples by number, as they were first read; further ones are read anew once it is full.

    Workers inherit the memory from the process that forks them, so that what one has read all have.
    Memory is taken as samples come.

    Args:
        megabytes: of memory, 2^20 bytes each.
        samples: how many there are.

    Raises:
        UsageError: the system does not give that much memory.
    """

    def __init__(self, megabytes: int, samples: int) -> None:
        # First a table of offset and length for each sample, then the samples, one after another.
        self._size = megabytes * 2**20
        table = 2 * samples * _WORD
        try:
            self._memory = mmap.mmap(-1, table + _WORD + self._size)
        except (OSError, OverflowError, ValueError) as error:
            raise UsageError(
                f"data.cache = {megabytes}: the system does not give that many megabytes ({error})"
            ) from error
        words = np.frombuffer(self._memory, np.int64, 2 * samples + 1)
        self._places, self._used = words[:-1].reshape(samples, 2), words[-1:]
        self._start = table + _WORD
        self._lock = multiprocessing.Lock()

    def get(self, number: int, read: Callable[[], Sample]) -> Sample:
        """Return the sample of a number, a copy of its own.

        Args:
            number: of the sample.
            read: reads it, where it is not kept; what it raises leaves the cache as it was.
        """
        with self._lock:
            offset, length = self._places[number].tolist()
        if length:
            start = self._start + offset
            kept: Sample = pickle.loads(memoryview(self._memory)[start : start + length])
            return kept
        sample = read()
        self._keep(number, _pickled(sample))
        return sample

    def _keep(self, number: int, data: bytes) -> None:
        with self._lock:
            used = int(self._used[0])
            # Another worker may have read the same sample meanwhile.
            if self._places[number, 1] or used + len(data) > self._size:
                return
            start = self._start + used
            self._memory[start : start + len(data)] = data
            self._places[number] = used, len(data)
            self._used[0] = used + len(data)


def check_shared(workers: int) -> None:
    """Refuse workers that could not see a cache.

    Raises:
        UsageError: there are some, and they do not inherit memory.
    """
    method = multiprocessing.get_start_method()
    if workers and method != "fork":
        raise UsageError(
            f"data.cache: workers are started by {method!r} here and share no memory with the run; "
            "set data.workers=0, or leave data.cache at 0"
        )


def _pickled(sample: Sample) -> bytes:
    with io.BytesIO() as stream:
        _Pickler(stream, protocol=5).dump(sample)
        return stream.getvalue()


@final
class _Pickler(pickle.Pickler):
    """Writes tensors as arrays: torch writes each as an archive, which takes 50 times as long."""

    def reducer_override(self, value: object) -> Any:
        if type(value) is not Tensor or value.dtype == torch.bfloat16:
            return NotImplemented
        # In the order in memory, which tells interpolation which of its loops to take: a sample
        # from the cache must be augmented to the same bits.
        order = sorted(range(value.dim()), key=value.stride, reverse=True)
        return _tensor, (np.asarray(value.permute(order).numpy(), order="C"), order)


def _tensor(values: np.ndarray, order: list[int]) -> Tensor:
    return torch.from_numpy(values).permute([order.index(dim) for dim in range(len(order))])
