"""Rows of gradients, one per task, stored and combined at the price of reading them.

One file: rows and the buffers in which they lie share every assumption about memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import accumulate
from operator import add
from typing import final

import torch
from torch import Tensor
from torch._utils import _unflatten_dense_tensors

from mtlcore.balancing.products import (
    WIDER,
    Row,
    as_real,
    cross_products,
    gramian_of,
    pieces_of,
    products_of,
    total,
    total_there,
)
from mtlcore.distributed import Distributed

Key = tuple[str, int]
"""Whose row it is: a task, and the number of the independent batch (0 where there is one)."""

# On a processor, copying a small gradient is cheaper than another call per parameter; a large one
# is read from memory, where each copy counts.
SMALL = 2**16
"""Number of elements up to which a parameter counts as small on a processor."""

_STRETCH = 2**22  # columns of half precision that are made wider at a time


@final
class SharedRows:
    """A row of gradients per task, and per independent batch, over the same parameters.

    Small parameters of one dtype and device share a buffer (K, P) that outlives the step. Of large
    ones the tensors that autograd returned are kept, and copied only where they are not alone in
    their memory. So K rows take K times the memory of the parameters, and the direction takes that
    of the small ones besides: for large ones it is written over the first row. On a GPU, where a
    call costs more than reading twice, all parameters share buffers, and K rows and the direction
    take K + 1 times their memory.

    A complex number counts as two real ones, so that inner products are real.

    Args:
        parameters: what the rows are gradients of; leaves or not.
        capacity: the largest number of rows.
        optional: places of parameters of which all rows may be kept elsewhere; their buffer takes
            memory when it gets a row.
    """

    def __init__(
        self, parameters: Sequence[Tensor], capacity: int, optional: Collection[int] = ()
    ) -> None:
        self._parameters = list(parameters)
        self._lasting = len(self._parameters)
        self._capacity, self._optional = capacity, frozenset(optional)
        self._buffers: list[_Buffer] | None = None
        self._large = [n for n, p in enumerate(self._parameters) if _is_large(p)]
        self._complex = any(p.is_complex() for p in self._parameters)
        self._numbers: dict[Key, int] = {}
        self._columns: dict[int, dict[int, Tensor]] = {}
        self._reached: set[int] = set()
        self._held: set[int] = set()

    @property
    def keys(self) -> tuple[Key, ...]:
        """Whose rows there are, in the order in which they came."""
        return tuple(self._numbers)

    def extend(self, tensors: Sequence[Tensor]) -> None:
        """Rows go on over these, which count as large whatever their size, until `clear`."""
        first = len(self._parameters)
        self._parameters += tensors
        self._complex = self._complex or any(x.is_complex() for x in tensors)
        self._large += range(first, first + len(tensors))

    def add(self, key: Key, row: Row, others: Row = ()) -> None:
        """Add to the row of that key, in place if there is one.

        Args:
            key: Whose row it is.
            row: A gradient per parameter, None where the task does not reach it; a shorter row
                belongs to the last parameters.
            others: Gradients of the same backward pass that the caller keeps.
        """
        if len(row) < len(self._parameters):
            row = [*[None] * (len(self._parameters) - len(row)), *row]
        if self._complex:
            row = [None if gradient is None else as_real(gradient) for gradient in row]
        fresh = key not in self._numbers
        number = self._numbers.setdefault(key, len(self._numbers))
        for buffer in self._small():
            buffer.write(number, row, fresh)
        if self._large:
            self._held.update(g.data_ptr() for g in others if g is not None)
        for place in self._large:
            gradient = row[place]
            if gradient is not None:
                self._keep(self._columns.setdefault(place, {}), number, gradient)
        if len(self._reached) < len(row):
            self._reached.update(n for n, g in enumerate(row) if g is not None)

    def arrange(self, keys: Sequence[Key]) -> None:
        """Let the rows be those of these keys, in this order; zero for one that has none yet.

        Args:
            keys: all that have a row, and maybe more.
        """
        if tuple(keys) == self.keys:
            return
        before = self._numbers
        self._numbers = {key: number for number, key in enumerate(keys)}
        for buffer in self._small():
            buffer.arrange([before.get(key) for key in keys])
        moved = {number: self._numbers[key] for key, number in before.items()}
        for place, column in self._columns.items():
            self._columns[place] = {moved[number]: row for number, row in column.items()}

    def sum_over(self, distributed: Distributed) -> None:
        """Add up the rows of all ranks, which are of the same parameters and tasks."""
        count = len(self._numbers)
        places = range(len(self._parameters))
        cells = [(place, number) for place in self._large for number in range(count)]
        here = [place in self._reached for place in places]
        here += [number in self._columns.get(place, {}) for place, number in cells]
        anywhere = distributed.any_of(here)
        self._reached = {place for place in places if anywhere[place]}
        summed = [buffer.rows(count) for buffer in self._filled()]
        for (place, number), found in zip(cells, anywhere[len(places) :], strict=True):
            if found:
                column = self._columns.setdefault(place, {})
                if number not in column:
                    column[number] = torch.zeros_like(self._like(place))
                summed.append(column[number])
        distributed.all_reduce(summed)

    def scale(self, factor: float) -> None:
        """Multiply every row."""
        for buffer in self._filled():
            buffer.rows(len(self._numbers)).mul_(factor)
        kept = [gradient for column in self._columns.values() for gradient in column.values()]
        if kept:
            torch._foreach_mul_(kept, factor)

    def not_finite_there(self) -> Tensor:
        """(K,) where the rows are: of each row, in how many parts a value is not finite."""
        count = len(self._numbers)
        rows = [buffer.rows(count) for buffer in self._filled()]
        parts = [_largest(x, 1) for x in rows if x.numel()]
        for place in self._columns:
            column = [None if x is None else _largest(x, None) for x in self._rows_at(place)]
            nothing = next(x for x in column if x is not None).new_zeros(())
            parts.append(torch.stack([nothing if x is None else x for x in column]))
        return total_there([(~part.isfinite()).double() for part in parts], (count,))

    def gramian(self) -> Tensor:
        """(K, K) float64 inner products on the CPU, in one transfer.

        Products of half-precision rows are summed in float32. On GPUs they follow
        `torch.set_float32_matmul_precision`.
        """
        return self.gramian_there().cpu()

    def gramian_there(self) -> Tensor:
        """(K, K) float64 inner products, where the rows are."""
        count = len(self._numbers)
        parts = [buffer.gramian(count) for buffer in self._filled()]
        parts += [gramian_of(self._rows_at(place)) for place in self._columns]
        return total_there(parts, (count, count))

    def products(self, other: SharedRows) -> Tensor:
        """(K, L) float64 inner products with L rows of the same parameters, on the CPU."""
        shape = (len(self._numbers), len(other._numbers))
        pairs = zip(self._small(), other._small(), strict=True)
        filled = [
            pair for pair in pairs if pair[0] in self._filled() and pair[1] in other._filled()
        ]
        parts = [mine.products(theirs, shape) for mine, theirs in filled]
        parts += [
            cross_products(self._rows_at(place), other._rows_at(place))
            for place in sorted(self._columns.keys() & other._columns.keys())
        ]
        return total(parts, shape)

    def direction(self, weights: Sequence[float], keep: bool = False) -> list[Tensor | None]:
        """Return the weighted sum of the rows, None where no task reached.

        Args:
            weights: One per row.
            keep: Whether the rows are needed again; they are used up otherwise.
        """
        result: list[Tensor | None] = [None] * len(self._parameters)
        for buffer in self._filled():
            parts = buffer.views_of(buffer.direction(weights))
            for place, part in zip(buffer.spans, parts, strict=True):
                if place in self._reached:
                    result[place] = self._restored(place, part) if self._complex else part
        for place in list(self._columns):
            rows = self._rows_at(place)
            pairs = [(w, row) for w, row in zip(weights, rows, strict=True) if row is not None]
            if keep:
                pairs[0] = (pairs[0][0], pairs[0][1].clone())
            else:
                del self._columns[place]
            result[place] = self._restored(place, _weighted(pairs))
        return result

    def combined(self, combine: Callable[[Tensor], Tensor]) -> list[Tensor | None]:
        """Return what a function from (K, P) to (P,) makes of all rows; None where no task reached.

        Args:
            combine: Called once, unless no task reaches any parameter.
        """
        places = sorted(self._reached)
        if not places:  # all parameters belong to single tasks
            return [None] * len(self._parameters)
        sizes = [self._like(place).numel() for place in places]
        parts = combine(self._whole(places)).split_with_sizes(sizes)
        return self._placed(dict(zip(places, parts, strict=True)))

    def combined_each(
        self, combine: Callable[[Tensor, Tensor, int], Tensor]
    ) -> list[Tensor | None]:
        """Return what a function makes of the rows of each parameter; None where no task reached.

        Args:
            combine: Gets (K, P) rows of a parameter, the parameter and its number among those that
                rows are of; returns (P,). Nothing need be concatenated.
        """
        return self._placed(
            {
                place: combine(self._matrix(place), self._parameters[place], place)
                for place in sorted(self._reached)
            }
        )

    def combined_over(
        self, parameters: Sequence[Tensor], combine: Callable[[Tensor], Tensor]
    ) -> list[Tensor | None]:
        """Return what a function makes of rows that have the same columns in every step.

        Args:
            parameters: Of which the columns are, in this order; zeros where no task reached, or
                which rows are not of.
            combine: From (K, P) to (P,). What it answers where no task reached counts too, unless
                it is all zeros or rows are not of it.
        """
        if not parameters:
            return [None] * len(self._parameters)
        mine = {id(p): place for place, p in enumerate(self._parameters)}
        places = [mine.get(id(p)) for p in parameters]
        like = [as_real(p.detach()) for p in parameters]
        known = [place for place in places if place is not None]
        if len(known) == len(places):
            rows = self._whole(known)
        else:
            count = len(self._numbers)
            blocks = [
                x.new_zeros(count, x.numel()) if place is None else self._matrix(place)
                for x, place in zip(like, places, strict=True)
            ]
            rows = torch.cat(blocks, dim=1)
        parts = combine(rows).split_with_sizes([x.numel() for x in like])
        return self._placed(
            {
                place: part
                for place, part in zip(places, parts, strict=True)
                if place is not None and (place in self._reached or bool(part.any()))
            }
        )

    def _placed(self, parts: Mapping[int, Tensor]) -> list[Tensor | None]:
        """Return answers, flat and by place, as gradients of the parameters."""
        result: list[Tensor | None] = [None] * len(self._parameters)
        ours = {buffer.memory for buffer in self._small()}
        for place, part in parts.items():
            like = self._like(place)
            # An answer may be one of the rows.
            part = part.clone() if part.untyped_storage().data_ptr() in ours else part
            result[place] = self._restored(place, part.to(like.dtype).view(like.shape))
        return result

    def clear(self) -> None:
        """Forget all rows and what `extend` added."""
        self._numbers, self._columns, self._reached, self._held = {}, {}, set(), set()
        del self._parameters[self._lasting :]
        self._large = [place for place in self._large if place < self._lasting]

    def _small(self) -> list[_Buffer]:
        # Made with the first row, when parameters are where they will stay.
        if self._buffers is None:
            large = set(self._large)
            groups: dict[tuple[torch.dtype, torch.device, bool], list[int]] = {}
            for place, p in enumerate(map(self._like, range(len(self._parameters)))):
                if place not in large:
                    kind = (p.dtype, p.device, place in self._optional)
                    groups.setdefault(kind, []).append(place)
            self._buffers = [
                _Buffer(places, [self._like(place) for place in places], self._capacity)
                for places in groups.values()
            ]
        return self._buffers

    def _filled(self) -> list[_Buffer]:
        """Return the buffers that hold a gradient."""
        return [b for b in self._small() if not self._reached.isdisjoint(b.spans)]

    def _like(self, place: int) -> Tensor:
        """Return a tensor as its rows have it: real, and no leaf."""
        return as_real(self._parameters[place].detach())

    def _restored(self, place: int, values: Tensor) -> Tensor:
        """Return values as those of the parameter, which may be complex."""
        if not self._parameters[place].is_complex():
            return values
        # Its values may begin at an odd place of the buffer, where no complex number can.
        return torch.complex(*values.unbind(-1))

    def _keep(self, column: dict[int, Tensor], number: int, gradient: Tensor) -> None:
        if number in column:
            column[number].add_(gradient)
            return
        # Autograd may hand out one tensor twice, an expanded one, or a part of another; rows are
        # edited in place.
        alone = gradient.untyped_storage().nbytes() == gradient.nbytes
        if not (alone and gradient.is_contiguous()) or gradient.data_ptr() in self._held:
            gradient = gradient.clone(memory_format=torch.contiguous_format)
        self._held.add(gradient.data_ptr())
        column[number] = gradient

    def _rows_at(self, place: int) -> list[Tensor | None]:
        return [self._columns[place].get(number) for number in range(len(self._numbers))]

    def _matrix(self, place: int) -> Tensor:
        """(K, P) of one parameter."""
        if place in self._columns:
            empty = torch.zeros_like(self._like(place))
            rows = [empty if row is None else row for row in self._rows_at(place)]
            return torch.stack([row.flatten() for row in rows])
        if place in self._large:
            like = self._like(place)
            return like.new_zeros(len(self._numbers), like.numel())
        buffer = next(b for b in self._small() if place in b.spans)
        return buffer.rows(len(self._numbers))[:, buffer.spans[place]]

    def _whole(self, places: Sequence[int]) -> Tensor:
        buffers = self._small()
        if len(buffers) == 1 and len(places) == len(buffers[0].spans) and not self._columns:
            return buffers[0].rows(len(self._numbers))
        return torch.cat([self._matrix(place) for place in places], dim=1)


def _is_large(parameter: Tensor) -> bool:
    return parameter.device.type == "cpu" and parameter.numel() > SMALL


def _largest(values: Tensor, dim: int | None) -> Tensor:
    """Return the largest absolute value; NaN if there is one."""
    largest: Tensor = torch.linalg.vector_norm(values, math.inf, dim=dim)
    return largest


def added(first: Row, second: Row) -> Row:
    """Return the sum of two rows; None where both have none."""
    return [
        b if a is None else a if b is None else a + b for a, b in zip(first, second, strict=True)
    ]


def scaled(row: Row, weight: float) -> Row:
    """Return a row times a number."""
    if weight == 1:
        return row
    return [None if gradient is None else gradient * weight for gradient in row]


class _Buffer:
    """The rows of small parameters of one dtype and device.

    Args:
        places: where among the parameters they stand.
        mine: tensors like them, as rows have them.
        capacity: the largest number of rows.
    """

    def __init__(self, places: Sequence[int], mine: Sequence[Tensor], capacity: int) -> None:
        sizes = [p.numel() for p in mine]
        ends = list(accumulate(sizes))
        spans = (slice(end - size, end) for end, size in zip(ends, sizes, strict=True))
        self.spans = dict(zip(places, spans, strict=True))
        self._parameters = mine
        self._shape = (capacity, ends[-1])
        self._made: Tensor | None = None
        self._views: dict[int, list[Tensor]] = {}

    @property
    def memory(self) -> int | None:
        """Where its values lie; None before there are any."""
        return None if self._made is None else self._made.untyped_storage().data_ptr()

    @property
    def _values(self) -> Tensor:
        """All rows, (capacity, P); zeros at first."""
        if self._made is None:
            self._made = self._parameters[0].new_zeros(self._shape)
        return self._made

    def rows(self, count: int) -> Tensor:
        """Return the first rows, (count, P)."""
        return self._values[:count]

    def arrange(self, numbers: Sequence[int | None]) -> None:
        """Let row `i` be what row `numbers[i]` was; zero for None."""
        if self._made is None:
            return
        before = self._values.clone()
        self._values.zero_()
        for number, old in enumerate(numbers):
            if old is not None:
                self._values[number].copy_(before[old])

    def write(self, number: int, row: Row, fresh: bool) -> None:
        """Copy gradients into a row, or add them to it; zero where a new row has none."""
        found = [row[place] for place in self.spans]
        given = [gradient for gradient in found if gradient is not None]
        if self._made is None and not given:
            return
        if number not in self._views:
            self._views[number] = self.views_of(self._values[number])
        views = self._views[number]
        if len(given) < len(found):
            if fresh:
                self._values[number].zero_()
            views = [v for v, g in zip(views, found, strict=True) if g is not None]
        if given:
            write = torch._foreach_copy_ if fresh else torch._foreach_add_
            write(views, given)

    def gramian(self, count: int) -> Tensor:
        """(count, count) float64."""
        return _sum_of(products_of(x, x) for x in self._wide(count))

    def products(self, other: _Buffer, shape: tuple[int, int]) -> Tensor:
        """(K, L) float64 with the rows of another buffer of the same parameters."""
        pairs = zip(self._wide(shape[0]), other._wide(shape[1]), strict=True)
        return _sum_of(products_of(x, y) for x, y in pairs)

    def direction(self, weights: Sequence[float]) -> Tensor:
        """(P,), in memory of its own."""
        kind = self._values.dtype
        parts = [(x.new_tensor(weights) @ x).to(kind) for x in self._wide(len(weights))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def views_of(self, flat: Tensor) -> list[Tensor]:
        """(P,) seen as the parameters, in the order of `spans`."""
        return list(_unflatten_dense_tensors(flat, self._parameters))  # type: ignore[no-untyped-call]

    def _wide(self, count: int) -> Iterator[Tensor]:
        """Yield stretches of the first rows as they are multiplied: of half precision, copies."""
        rows = self.rows(count)
        wider = WIDER.get(rows.dtype)
        if wider is None:
            yield rows
        else:
            yield from (piece.to(wider) for piece in torch.split(rows, _STRETCH, dim=1))


def _sum_of(parts: Iterable[Tensor]) -> Tensor:
    return reduce(add, parts)


def _weighted(pairs: Sequence[tuple[float, Tensor]]) -> Tensor:
    """Return the weighted sum of the rows of one parameter, written over the first."""
    (first, result), *rest = pairs
    for target, *pieces in pieces_of([result, *(row for _, row in rest)]):
        if first != 1:
            target.mul_(first)
        for (weight, _), piece in zip(rest, pieces, strict=True):
            target.add_(piece, alpha=weight)
    return result
