"""Inner products of rows of gradients, read in pieces that stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement

import torch
from torch import Tensor

Row = Sequence[Tensor | None]

# On a CPU, pieces of this many elements stay in the cache while all pairs of rows are multiplied;
# elsewhere each call costs more than reading twice.
_PIECE = {"cpu": 2**17}
_ANYWHERE = 2**24

# Sums of more products than this are split, as they would lose digits.
_AT_ONCE, _STRETCH = 2**16, 2**14

WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def products_of(first: Tensor, second: Tensor) -> Tensor:
    """(K, L) float64 inner products of the rows of (K, P) and (L, P)."""
    columns = first.shape[1]
    end = columns - columns % _STRETCH if columns > _AT_ONCE else 0
    rest = (first[:, end:] @ second[:, end:].T).double()
    if not end:
        return rest
    one, other = (x[:, :end].view(len(x), -1, _STRETCH).transpose(0, 1) for x in (first, second))
    return rest + torch.bmm(one, other.mT).double().sum(0)


def gramian_of(rows: Row) -> Tensor:
    """(K, K) float64 inner products of the rows of one parameter, reading each row once."""
    numbers = [number for number, row in enumerate(rows) if row is not None]
    present = [row for row in rows if row is not None]
    pairs = list(combinations_with_replacement(range(len(present)), 2))
    sums: list[Tensor] = []
    for pieces in pieces_of(present):
        wide = [piece.to(WIDER.get(piece.dtype, piece.dtype)) for piece in pieces]
        sums += [torch.dot(wide[i], wide[j]) for i, j in pairs]
    found = torch.stack(sums).double().view(-1, len(pairs)).sum(0).unbind()
    products = {(numbers[i], numbers[j]): value for (i, j), value in zip(pairs, found, strict=True)}
    nothing = torch.zeros_like(found[0])
    ranks = range(len(rows))
    entries = [products.get((min(i, j), max(i, j)), nothing) for i in ranks for j in ranks]
    return torch.stack(entries).view(len(rows), len(rows))


def cross_products(rows: Row, others: Row) -> Tensor:
    """(K, L) float64 inner products of two lists of rows of one parameter."""
    nothing = next(row for row in rows if row is not None).new_zeros((), dtype=torch.float64)
    entries = [nothing if a is None or b is None else _dot(a, b) for a in rows for b in others]
    return torch.stack(entries).view(len(rows), len(others))


def _dot(first: Tensor, second: Tensor) -> Tensor:
    pair = [as_real(x).contiguous() for x in (first, second)]
    wide = WIDER.get(pair[0].dtype, pair[0].dtype)
    pieces = pieces_of(pair)
    return torch.stack([torch.dot(a.to(wide), b.to(wide)) for a, b in pieces]).double().sum()


def own_products(rows: Sequence[Row], others: Sequence[Row]) -> Tensor:
    """(K,) float64 on the CPU: the inner product of each row with the other one of its number."""
    found = torch.zeros(len(rows), dtype=torch.float64)
    for number, pair in enumerate(zip(rows, others, strict=True)):
        parts = [_dot(a, b) for a, b in zip(*pair, strict=True) if a is not None and b is not None]
        found[number] = total(parts, ())
    return found


def as_real(values: Tensor) -> Tensor:
    """Return a complex tensor (...) as a real one (..., 2), a real one as it is."""
    return torch.view_as_real(values.resolve_conj()) if values.is_complex() else values


def total(parts: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    """Return the sum on the CPU, with one transfer; zeros if there are none."""
    return total_there(parts, shape).cpu()


def total_there(parts: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
    """Return the sum on the device of the first part; zeros on the CPU if there are none."""
    if not parts:
        return torch.zeros(shape, dtype=torch.float64)
    totals: dict[torch.device, Tensor] = {}
    for part in parts:
        seen = totals.get(part.device)
        totals[part.device] = part if seen is None else seen + part
    first, *rest = totals.values()
    return sum((other.to(first.device) for other in rest), start=first)


def pieces_of(rows: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Stretches of all rows that one pass through the cache can take."""
    size = _PIECE.get(rows[0].device.type, _ANYWHERE)
    return zip(*(torch.split(row.view(-1), size) for row in rows), strict=True)
