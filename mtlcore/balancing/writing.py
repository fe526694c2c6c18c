"""The end of a step: gradients that were summed or balanced become `.grad`."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from mtlcore.balancing.products import Row
from mtlcore.distributed import Distributed


def gathered(
    shared: Sequence[Parameter], direction: Row, sums: Mapping[int, Tensor]
) -> dict[int, Tensor]:
    """Return gradients by the `id` of their parameters, each in memory of its own.

    Args:
        shared: The shared parameters.
        direction: The balanced gradient of each, in memory of its own; empty if there is none.
        sums: Gradients that are added to it, by the `id` of their parameters.
    """
    found: dict[int, Tensor] = {}
    if direction:
        pairs = zip(shared, direction, strict=True)
        found = {id(p): gradient for p, gradient in pairs if gradient is not None}
    taken: set[int] = set()
    for key, gradient in sums.items():
        seen = found.get(key)
        if seen is not None:
            gradient = seen.add_(gradient)
        # Autograd may hand out one tensor twice, or an expanded or conjugated one; `.grad` is
        # edited in place later (clipping), so each parameter needs memory of its own.
        elif gradient.data_ptr() in taken or not gradient.is_contiguous() or gradient.is_conj():
            gradient = gradient.clone(memory_format=torch.contiguous_format).resolve_conj()
        taken.add(gradient.data_ptr())
        found[key] = gradient
    return found


def write(parameters: Sequence[Parameter], found: Mapping[int, Tensor], accumulate: bool) -> None:
    """Write gradients to `.grad`; None where there is none.

    Args:
        parameters: Of which each gets its gradient.
        found: As of `gathered`.
        accumulate: Add to what `.grad` holds, in place, and leave alone what has no gradient.
    """
    there, more = [], []
    for parameter in parameters:
        given = found.get(id(parameter))
        if not accumulate or parameter.grad is None:
            parameter.grad = given
        elif given is not None:
            there.append(parameter.grad)
            more.append(given)
    if there:
        with torch.no_grad():
            torch._foreach_add_(there, more)


def share_sums(
    parameters: Sequence[Parameter],
    sums: MutableMapping[int, Tensor],
    written: bool,
    distributed: Distributed,
) -> None:
    """Sum what every rank has collected beside the rows.

    Args:
        parameters: All there are.
        sums: Gradients by the `id` of the parameter; changed.
        written: Whether gradients are in `.grad` instead.
        distributed: The ranks.
    """
    held = [p.grad if written else sums.get(id(p)) for p in parameters]
    anywhere = distributed.any_of([gradient is not None for gradient in held])
    mine = []
    for parameter, gradient, found in zip(parameters, held, anywhere, strict=True):
        if not found:
            continue
        # In memory of its own, as it is written over.
        own = torch.zeros_like(parameter) if gradient is None else gradient.clone()
        mine.append(own)
        if written:
            parameter.grad = own
        else:
            sums[id(parameter)] = own
    distributed.all_reduce(mine)
