"""Inputs of a network: a tensor, or a tree of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

__all__ = [
    "Inputs",
    "describe_inputs",
    "image_size",
    "input_form",
    "input_tensors",
    "map_inputs",
    "sequence_length",
    "stack_inputs",
]

#: What a network reads: a tensor, or a tree of tensors in dictionaries, lists and tuples. The type
#: is open, so that a backbone may say which of these it takes.
Inputs: TypeAlias = Any


def map_inputs(change: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """Return a tree like `inputs`, with `change` of every tensor."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, Mapping):
        return {key: map_inputs(change, value) for key, value in inputs.items()}
    values = [map_inputs(change, value) for value in inputs]
    if isinstance(inputs, tuple):
        return type(inputs)(*values) if hasattr(inputs, "_fields") else tuple(values)
    return values


def input_tensors(inputs: Inputs) -> list[Tensor]:
    """Return the tensors of a tree, in order.

    Raises:
        TypeError: it holds something else.
    """
    if isinstance(inputs, Tensor):
        return [inputs]
    return [tensor for _, tensor in _leaves(inputs, "")]


def describe_inputs(inputs: Inputs) -> str:
    """Return the shape of a tensor, or of each in a tree by its path, for messages."""
    if isinstance(inputs, Tensor):
        return str(list(inputs.shape))
    return ", ".join(f"{path} {list(tensor.shape)}" for path, tensor in _leaves(inputs, ""))


def image_size(inputs: Inputs, *, samples: bool = True) -> tuple[int, ...]:
    """Return height and width of inputs, or whatever a tensor has instead.

    Those of a tree are its images', where it has images and all agree in size; otherwise it has
    none, ().

    Args:
        inputs: of a batch, or of a single sample.
        samples: whether the first dimension counts samples.
    """
    channels = 1 if samples else 0
    if isinstance(inputs, Tensor):
        return tuple(inputs.shape[channels + 1 :])
    images = [x for x in input_tensors(inputs) if x.dim() == channels + 3]
    sizes = {tuple(image.shape[-2:]) for image in images}
    return sizes.pop() if len(sizes) == 1 else ()


def sequence_length(inputs: Inputs, *, samples: bool = True) -> int | None:
    """Return the length of inputs that are sequences, such as token ids and their mask.

    It is the first dimension of a sample's tensors, where all that have one agree; None where they
    do not, or none has one.

    Args:
        inputs: of a batch, or of a single sample.
        samples: whether the first dimension counts samples.
    """
    at = 1 if samples else 0
    lengths = {tensor.shape[at] for tensor in input_tensors(inputs) if tensor.dim() > at}
    return lengths.pop() if len(lengths) == 1 else None


def stack_inputs(inputs: Sequence[Inputs]) -> Inputs:
    """Stack the inputs of samples, tensor by tensor.

    Args:
        inputs: at least one, all trees of the same form and shapes.

    Raises:
        ValueError: they differ.
    """
    first = inputs[0]
    forms = [input_form(each) for each in inputs]
    if any(form != forms[0] for form in forms):
        raise ValueError("the inputs differ in form or shape")
    columns = [torch.stack(same) for same in zip(*map(input_tensors, inputs), strict=True)]
    stacked = iter(columns)
    return map_inputs(lambda _: next(stacked), first)


def input_form(inputs: Inputs) -> list[tuple[str, tuple[int, ...]]]:
    """Return the path and the shape of every tensor of a tree, in order."""
    return [(path, tuple(tensor.shape)) for path, tensor in _leaves(inputs, "")]


def _leaves(inputs: Inputs, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(inputs, Tensor):
        yield path, inputs
    elif isinstance(inputs, Mapping | list | tuple):
        pairs = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
        for key, value in pairs:
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        raise TypeError(
            f"{path or 'it'} is a {type(inputs).__name__}; inputs are tensors, in dictionaries, "
            "lists and tuples"
        )
