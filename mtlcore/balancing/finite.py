"""Looking for values that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor


def floats(*groups: Mapping[str, Tensor]) -> list[dict[str, float]]:
    """Return the values of several groups of scalars, with one transfer from their device."""
    values = iter(stacked(*groups).tolist())
    return [{name: next(values) for name in group} for group in groups]


def stacked(*groups: Mapping[str, Tensor]) -> Tensor:
    """Return the values of several groups of scalars on the device of the first, (N,)."""
    tensors = [value.detach() for group in groups for value in group.values()]
    if len({tensor.device for tensor in tensors}) > 1:  # a network that is spread over several
        tensors = [tensor.to(tensors[0].device) for tensor in tensors]
    return torch.stack(tensors) if tensors else torch.empty(0)


def not_finite(values: Mapping[str, Mapping[str, float]]) -> str | None:
    """Describe the first value that is not finite, by kind and name; None if all are finite."""
    for kind, named in values.items():
        for name, value in named.items():
            if not math.isfinite(value):
                return f"the {kind} of {name} is {value}"
    return None


def all_finite(gradients: Sequence[Tensor]) -> bool:
    """Return whether every value is finite, with one transfer from each device.

    Args:
        gradients: Dense or sparse, real or complex, of any devices.
    """
    found: dict[torch.device, list[Tensor]] = {}
    for gradient in gradients:
        values = gradient if gradient.layout == torch.strided else _stored(gradient)
        found.setdefault(values.device, []).append(torch.isfinite(values).all())
    return all(bool(torch.stack(flags).all()) for flags in found.values())


def cannot_overflow(parts: Iterable[tuple[float, float]], kinds: Iterable[torch.dtype]) -> bool:
    """Return whether a weighted sum, and each weight, stays within what its type can hold.

    Args:
        parts: Weight and length of each summand; the sum is no longer than these together.
        kinds: Types of the numbers.
    """
    found = [(abs(weight), length) for weight, length in parts]
    longest = sum(weight * length for weight, length in found)
    largest = max([longest, *(weight for weight, _ in found)])
    return largest < min(torch.finfo(kind).max for kind in {*kinds}) / 2


def _stored(gradient: Tensor) -> Tensor:
    return gradient._values() if gradient.is_sparse else gradient.values()
