"""What the contracts share: comparing states, drawing labels, watching torch's global stream."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlcore.data import safe_target
from mtlcore.metrics import MetricValues
from mtlcore.models import groups_of
from mtlcore.optimizers import Schedule
from mtlcore.storage import load_checkpoint, save_checkpoint
from mtlcore.tasks import Task


def same(one: Any, other: Any) -> bool:
    """Return whether two trees are equal bit for bit; NaN equals NaN."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return (
            one.shape == other.shape
            and one.dtype == other.dtype
            and bool(torch.eq(one, other).logical_or(one.isnan() & other.isnan()).all())
        )
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return bool(one == other)


def close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Return whether tensors are equal up to a fraction of their largest value."""
    largest = max(float(x.detach().abs().max()) if x.numel() else 0.0 for x in (one, other))
    return one.shape == other.shape and bool(((one - other).abs() <= tolerance * largest).all())


def leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every value of a nested state with the keys that lead to it."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, (*path, *str(key).split(".")))
    else:
        yield path, tree


def changes(before: Any, after: Any) -> list[str]:
    """Return the paths of the values in which two nested states differ, for messages."""
    old, new = dict(leaves(before)), dict(leaves(after))
    return [
        ".".join(path)
        for path in {**old, **new}
        if path not in old or path not in new or not same(old[path], new[path])
    ]


def state_of(module: nn.Module) -> dict[str, Any]:
    """Return a copy of a module's present state."""
    return copy.deepcopy(dict(module.state_dict()))


def through_checkpoint(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state after saving it to a checkpoint file and loading it."""
    with tempfile.TemporaryDirectory(prefix="mtl-contract-") as folder:
        path = Path(folder) / "state.safetensors"
        save_checkpoint(path, state)
        return load_checkpoint(path)


def some_metrics(tasks: Iterable[str], number: int) -> MetricValues:
    """Return what an evaluation might find: a loss that falls, another one for every task."""
    return {task: {"loss": 1 / (2 + place + number)} for place, task in enumerate(tasks)}


def lacking(metrics: MetricValues) -> list[MetricValues]:
    """Return metrics without values: of one task, of all tasks, without one task, of none."""
    nothing = {task: dict.fromkeys(values, math.nan) for task, values in metrics.items()}
    first, *others = metrics
    return [
        {**metrics, first: nothing[first]},
        nothing,
        {task: metrics[task] for task in others},
        {},
    ]


def scramble(tensors: Iterable[Tensor]) -> None:
    """Move every value away from where initialisation puts it."""
    with torch.no_grad():
        for tensor in tensors:
            tensor.add_(0.1 + 0.2 * torch.rand_like(tensor))


def check_groups(component: nn.Module) -> None:
    """Fail where groups of parameters that a component asks for do not reach an optimizer."""
    names = {id(p): name for name, p in component.named_parameters()}
    asked = [(module, getattr(module, "parameter_groups", None)) for module in component.modules()]
    owners: dict[int, str] = {}
    found = []
    for module, method in asked:
        kind = type(module).__name__
        if method is None:
            continue
        assert callable(method), f"{kind}.parameter_groups is no method, so that nobody asks it"
        once, again = ([{**g, "params": [*g["params"]]} for g in method()] for _ in range(2))
        for group in once:
            for number in map(id, group["params"]):
                assert number in names, f"a group of {kind} holds a parameter of somebody else"
                assert number not in owners, (
                    f"{names[number]} is in two groups, of {owners[number]} and {kind}"
                )
                owners[number] = kind
            rate = group.get("lr", 0.0)
            assert isinstance(rate, int | float) and 0 <= rate < math.inf, (
                f"a group of {kind} has a learning rate of {rate!r}"
            )
            schedule = group.get("schedule")
            assert schedule is None or isinstance(schedule, Schedule), (
                f"a group of {kind} has a schedule that is no mtlcore.optimizers.Schedule"
            )
        ids = [[[id(p) for p in g["params"]] for g in groups] for groups in (once, again)]
        assert ids[0] == ids[1], f"{kind}.parameter_groups gives other groups when asked again"
        found += once
    if not found:
        return
    learning = [p for p in component.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    groups = groups_of(component.modules())
    thawed = [names[id(p)] for p in learning if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(True)
    assert not groups and not thawed, (
        f"frozen parameters learn again once groups are asked: {thawed}"
    )


def gradients_of(
    outputs: Tensor | Sequence[Tensor],
    tensors: Sequence[Tensor],
    grad_outputs: Sequence[Tensor] | None = None,
) -> list[Tensor | None]:
    """Return the gradient of each tensor; None where it requires none, or no output reaches it."""
    whole = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    learning = [x for x in tensors if x.requires_grad]
    if not learning or not any(x.requires_grad for x in whole):
        return [None] * len(tensors)
    found = iter(
        torch.autograd.grad(whole, learning, grad_outputs, retain_graph=True, allow_unused=True)
    )
    return [next(found) if x.requires_grad else None for x in tensors]


@contextmanager
def global_stream_untouched(what: str) -> Iterator[None]:
    """Fail where the block draws from torch's global generator."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), (
        f"{what} draws from torch's global generator: pass the generator it is given to torch.rand "
        "and its like"
    )


def some_maps(
    channels: Sequence[int], strides: Sequence[int], batch: int, size: tuple[int, ...]
) -> tuple[Tensor, ...]:
    """Return random maps with these channels and strides (0: vectors), from torch's stream.

    A size of one number is the length of a sequence.
    """
    return tuple(
        torch.randn(batch, c, *(side // s for side in size)) if s else torch.randn(batch, c)
        for c, s in zip(channels, strides, strict=True)
    )


def draw_labels(
    task: Task,
    batch: int,
    size: tuple[int, ...],
    generator: torch.Generator,
    masked: float = 0.3,
) -> tuple[Tensor, Tensor]:
    """Return labels of a task, as in a `Batch`, and their masks.

    Args:
        task: by whose kind values are plausible: positive depths, unit normals.
        batch: number of samples.
        size: of a map, or of a sequence.
        generator: to draw from.
        masked: the part that is not valid; it holds the safe value.
    """
    shape = (batch, *task.target_shape(size))
    if task.dtype == "int64":
        target = torch.randint(task.channels, shape, generator=generator)
    else:
        target = torch.rand(shape, generator=generator) + 0.1
    if task.kind == "normals":
        target = F.normalize(target - 0.6, dim=1)
    elif task.kind in ("edges", "saliency", "multilabel"):
        target = (target > 0.6).float()
    valid = torch.rand(batch, *task.valid_shape(size), generator=generator) >= masked
    return mask_labels(task, target, valid, size), valid


def mask_labels(task: Task, target: Tensor, valid: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return labels with the safe value where they are not valid."""
    safe = safe_target(task, size).to(target.dtype)
    return torch.where(spread(valid, target), target, safe)


def spread(valid: Tensor, like: Tensor) -> Tensor:
    """Expand a mask to the shape of predictions or labels, over their channels."""
    return (valid if valid.dim() == like.dim() else valid.unsqueeze(1)).expand_as(like)


def prediction_shape(task: Task, batch: int, size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a head's output for a task."""
    return (batch, task.channels, *(size if task.is_dense else ()))
