"""What a task is: its name, its kind, and the shape of its labels and predictions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, get_args

import attrs

from mtlcore.errors import UsageError, did_you_mean

__all__ = [
    "KINDS",
    "LAYOUTS",
    "Layout",
    "Task",
    "Values",
    "refuse_unknown_tasks",
    "task_key",
]

Layout = Literal["map", "sequence", "vector", "label"]
LAYOUTS: tuple[str, ...] = get_args(Layout)

#: What the values of a kind may be: any finite number, a number above 0, a number from 0 to 1, or
#: a vector of length 1.
Values = Literal["finite", "positive", "share", "direction"]


@attrs.frozen
class _Kind:
    """What is known of a kind of task.

    `safe` stands where a label is missing. It must be harmless in every loss of the kind: masking
    comes after the arithmetic, and a NaN times zero is NaN.
    """

    layout: Layout
    dtype: str
    safe: tuple[float, ...] = (0.0,)
    values: Values = "finite"


_KINDS = {
    "segmentation": _Kind("map", "int64", (0,)),
    "depth": _Kind("map", "float32", (1.0,), "positive"),
    "inverse-depth": _Kind("map", "float32", (1.0,), "positive"),
    "normals": _Kind("map", "float32", (0.0, 0.0, -1.0), "direction"),
    "edges": _Kind("map", "float32", values="share"),
    "saliency": _Kind("map", "float32", values="share"),
    "classification": _Kind("label", "int64", (0,)),
    "tagging": _Kind("sequence", "int64", (0,)),
    "multilabel": _Kind("vector", "float32", values="share"),
    "regression": _Kind("vector", "float32"),
}
_UNKNOWN = _Kind("map", "float32")
#: The kinds of which something is known; any other name may be a kind too.
KINDS: tuple[str, ...] = tuple(_KINDS)


def refuse_unknown_tasks(setting: str, named: Iterable[str], tasks: Iterable[Task | str]) -> None:
    """Refuse a setting that names a task which the run does not have.

    Args:
        setting: its path, such as "balancer.main".
        named: the names in it.
        tasks: of the run, or their names.

    Raises:
        UsageError: there is such a name; the message tells the first.
    """
    names = [task if isinstance(task, str) else task.name for task in tasks]
    for name in sorted(set(named) - set(names)):
        raise UsageError(
            f"{setting}: no task named {name!r}; the run has {', '.join(names)}"
            + did_you_mean(name, names)
        )


def task_key(name: str) -> str:
    """Return the key of a task in `nn.ModuleDict` and `nn.ParameterDict`.

    These containers refuse some names (`type`, `keys`, `half`), so the name gets a prefix.

    Args:
        name: of the task.
    """
    return f"task_{name}"


def _check_name(_instance: Task, _attribute: object, value: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", value):
        raise ValueError(
            f"task name {value!r}: use lower-case letters, digits and underscores, "
            "beginning with a letter"
        )


@attrs.frozen(kw_only=True)
class Task:
    """One thing that a model predicts.

    Args:
        name: its name in configurations, metrics and files, unique in a run.
        kind: such as "depth" or "segmentation"; any name is allowed. Heads, losses and metrics say
            which kinds they serve.
        channels: number of outputs of its head; for classes, their number.
        class_names: one name per class; empty where there are no classes or no names.
        unit: of its values, such as "m"; empty where they have none.
        layout: of a target: "map" (values per pixel), "sequence" (values per place of a sequence,
            such as a token), "vector" (values per sample) or "label" (one class per sample). By
            default that of the kind.
        dtype: of a target, "int64" or "float32". By default that of the kind.
        safe_value: what `collate` writes where a label is missing: one number, or one per channel.
            By default that of the kind.
        standardise: whether its loss is computed in standard deviations from the mean of the
            training labels; predictions and metrics stay in its unit. By default for regression.
        ignored: numbers of classes that do not count, such as a background's: `collate` treats
            them as missing labels, and means over classes leave them out.

    Raises:
        ValueError: the name is not lower-case letters, digits and underscores, the numbers of
            channels and class names differ, or `ignored` names what is no class, or all of them.
    """

    name: str = attrs.field(validator=_check_name)
    kind: str
    channels: int = attrs.field(validator=attrs.validators.ge(1))
    class_names: tuple[str, ...] = attrs.field(default=())
    unit: str = ""
    layout: Layout = attrs.field(
        default=attrs.Factory(lambda self: _KINDS.get(self.kind, _UNKNOWN).layout, takes_self=True)
    )
    dtype: str = attrs.field(
        default=attrs.Factory(lambda self: _KINDS.get(self.kind, _UNKNOWN).dtype, takes_self=True),
        validator=attrs.validators.in_(("int64", "float32")),
    )
    safe_value: tuple[float, ...] = attrs.field(
        default=attrs.Factory(lambda self: _KINDS.get(self.kind, _UNKNOWN).safe, takes_self=True)
    )

    standardise: bool = attrs.field(
        default=attrs.Factory(lambda self: self.kind == "regression", takes_self=True)
    )

    @class_names.validator
    def _one_name_per_class(self, _attribute: object, value: tuple[str, ...]) -> None:
        if value and len(value) != self.channels:
            raise ValueError(
                f"task {self.name!r} has {self.channels} channels but {len(value)} class names"
            )

    ignored: tuple[int, ...] = attrs.field(default=())

    @ignored.validator
    def _some_class_is_left(self, _attribute: object, value: tuple[int, ...]) -> None:
        if not value:
            return
        if self.dtype != "int64":
            raise ValueError(f"task {self.name!r} has no classes to ignore")
        if wrong := [number for number in value if not 0 <= number < self.channels]:
            raise ValueError(f"task {self.name!r} has no class {wrong[0]} to ignore")
        if len(set(value)) == self.channels:
            raise ValueError(f"task {self.name!r} would ignore all of its classes")

    @property
    def counted(self) -> tuple[int, ...]:
        """Numbers of the channels that count: all but the classes that are ignored."""
        return tuple(number for number in range(self.channels) if number not in self.ignored)

    @property
    def key(self) -> str:
        """The task's key in `nn.ModuleDict` and `nn.ParameterDict`; see `task_key`."""
        return task_key(self.name)

    @property
    def values(self) -> Values:
        """What its values may be, where they are no classes: a matter of its kind."""
        return _KINDS.get(self.kind, _UNKNOWN).values

    @property
    def is_dense(self) -> bool:
        """Whether its labels have places, each with one flag whatever its channels."""
        return self.layout in ("map", "sequence")

    def target_shape(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one sample's target.

        Args:
            size: height and width of the sample's image for a map, `(length,)` for a sequence;
                ignored otherwise.

        Returns:
            `()` for a label, `(channels,)` for a vector, `size` for a map or sequence of classes
            and `(channels, *size)` for any other.
        """
        if self.layout == "label":
            return ()
        if self.layout == "vector":
            return (self.channels,)
        return size if self.dtype == "int64" else (self.channels, *size)

    def valid_shape(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one sample's mask.

        A vector has one flag per value; a map has one flag per pixel, a sequence one per place,
        whatever its channels.

        Args:
            size: as of `target_shape`.
        """
        if self.is_dense:
            return size
        return (self.channels,) if self.layout == "vector" else ()
