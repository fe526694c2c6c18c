"""Tracing a deployed model, with lengths that vary, and naming the part that cannot be traced."""

from __future__ import annotations

import inspect
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any, final

import attrs
import torch
from torch import Tensor, nn

from mtlcore.deployment.model import DeployedModel
from mtlcore.errors import describe
from mtlcore.system import out_of_memory

if TYPE_CHECKING:  # it imports torch's compiler
    from torch.export import ExportedProgram

#: Shape of an input: lengths, and names of those that vary.
Shape = tuple[int | str, ...]

_BATCH = "batch"
# Lengths of a trace. The two sides differ, so that none is taken for the other, and are so large
# that no deepest map has a side of 1, which would be a constant; none is a multiple of what the
# backbone needs, so that padding is traced. Sides are in multiples of at least so many pixels.
_SAMPLES, _SIDES, _TEXT, _LEAST_STEP = 3, (5, 7), 11, 32

_ASSERTING = "prefer_deferred_runtime_asserts_over_guards"

# How torch proposes other bounds of an axis.
_PROPOSAL = re.compile(r"(?P<axis>\w+) = Dim\('\w+'(, min=(?P<low>\d+))?(, max=(?P<high>\d+))?\)")


@final
@attrs.frozen(eq=False)
class Traced:
    """A model that was traced.

    Args:
        program: what was traced.
        shapes: name of an input -> its shape, with the name of each axis that varies.
        least: name of an axis that varies -> the least length that the program takes.
        most: name of an axis that varies -> the greatest length, where there is one.
    """

    program: ExportedProgram
    shapes: Mapping[str, Shape]
    least: Mapping[str, int]
    most: Mapping[str, int]


def named_axes(model: DeployedModel, sample: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Return the shape of each input with a name for each axis that may vary.

    Those are the number of samples, the sides of images that are all of one size, and the length of
    texts.

    Args:
        model: that reads the sample.
        sample: what it is given for a sample of the dataset, as a batch of one.
    """
    images = {x.shape[2:] for x in sample.values() if x.dim() == 4}
    texts = {x.shape[1:] for x in sample.values()} if model.kind == "tokens" else set()
    named: dict[str, Shape] = {}
    for name, x in sample.items():
        rest: Shape = tuple(x.shape[1:])
        if x.dim() == 4 and len(images) == 1:
            rest = (x.shape[1], "height", "width")
        elif x.dim() == 2 and len(texts) == 1:
            rest = ("length",)
        named[name] = (_BATCH, *rest)
    return named


def attempts(shapes: Mapping[str, Shape]) -> list[tuple[str, ...]]:
    """Return the axes that may vary: all of them, the number of samples alone, none; each once."""
    names = dict.fromkeys(axis for shape in shapes.values() for axis in shape)
    every = tuple(axis for axis in names if isinstance(axis, str))
    return [*dict.fromkeys([every, (_BATCH,), ()])]


def trace(model: DeployedModel, sample: Mapping[str, Tensor], varying: Sequence[str]) -> Traced:
    """Trace a model.

    Args:
        model: on the CPU, in evaluation mode.
        sample: what it is given for a sample of the dataset, as a batch of one. An axis that does
            not vary has its length there.
        varying: names of the axes that vary, among those of `named_axes`.

    Raises:
        ValueError: the sample is not what a program takes whose lengths vary.
        Exception: anything that torch, or code of the model that it runs, raises.
    """
    named = named_axes(model, sample)
    multiple = model.model.backbone.input_multiple
    # Padded to the least multiple, an image has a deepest map of 1, which torch takes as special.
    side = multiple + 1 if multiple > 1 else 2
    least = {axis: {"height": side, "width": side, "length": 2}.get(axis, 1) for axis in varying}
    most: dict[str, int] = {}
    shapes = {
        name: tuple(
            axis if axis in least else length
            for axis, length in zip(shape, sample[name].shape, strict=True)
        )
        for name, shape in named.items()
    }
    step = multiple * math.ceil(_LEAST_STEP / multiple)
    height, width = (number * step - 3 for number in _SIDES)
    wanted = {_BATCH: _SAMPLES, "height": height, "width": width, "length": _TEXT}
    example = with_lengths(sample, shapes, wanted)
    _check_lengths(sample, shapes, least, most)
    program = _exported(model, sample, example, shapes, least, most)
    _forget_places(program.graph_module)
    return Traced(program, shapes, least, most)


def _exported(
    model: DeployedModel,
    sample: Mapping[str, Tensor],
    example: Mapping[str, Tensor],
    shapes: Mapping[str, Shape],
    least: dict[str, int],
    most: dict[str, int],
) -> ExportedProgram:
    """Return the program, after torch has been told what it asks for; bounds are changed."""
    narrowed = asserted = False
    while True:
        try:
            return _export(model, example, shapes, least, most, asserted)
        except Exception as error:
            # What the model says by itself of its lengths: positions of a text are 512, say.
            if not narrowed and _narrow(str(error), least, most):
                narrowed = True
                _check_lengths(sample, shapes, least, most)
            # What torch cannot prove of all lengths, though it may hold, such as that one stride is
            # no multiple of another: the program asks at run time, and is tried with others.
            elif not asserted and "generated guard" in str(error) and _can_assert():
                asserted = True
            else:
                raise


def _can_assert() -> bool:
    """Return whether this torch can leave to a program what it cannot prove."""
    from torch.export import export

    return _ASSERTING in inspect.signature(export).parameters


def _export(
    model: DeployedModel,
    example: Mapping[str, Tensor],
    shapes: Mapping[str, Shape],
    least: Mapping[str, int],
    most: Mapping[str, int],
    asserted: bool,
) -> ExportedProgram:
    from torch.export import Dim, export

    axes = {axis: Dim(axis, min=low, max=most.get(axis)) for axis, low in least.items()}
    given = {
        name: {place: axes[axis] for place, axis in enumerate(shape) if isinstance(axis, str)}
        for name, shape in shapes.items()
    }
    with torch.no_grad(), _quietly():
        more: dict[str, Any] = {_ASSERTING: True} if asserted else {}
        return export(model, (*example.values(),), dynamic_shapes=given, strict=False, **more)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep from users what torch prints, warns of and logs while it traces: graphs, and itself."""
    log = logging.getLogger("torch")
    level = log.level
    log.setLevel(logging.CRITICAL)
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            log.setLevel(level)


def _narrow(message: str, least: dict[str, int], most: dict[str, int]) -> bool:
    """Take over the bounds of lengths that torch proposes; return whether it proposes only such."""
    _, found, proposals = message.partition("Suggested fixes:\n")
    lines = [line.strip() for line in proposals.partition("\n\n")[0].splitlines() if line.strip()]
    read = [_PROPOSAL.fullmatch(line) for line in lines]
    if not found or not all(proposal and proposal["axis"] in least for proposal in read):
        return False
    for proposal in read:
        assert proposal is not None
        axis, low, high = proposal["axis"], proposal["low"], proposal["high"]
        least[axis] = max(least[axis], int(low or 0))
        if high:
            most[axis] = int(high)
    return True


def _check_lengths(
    sample: Mapping[str, Tensor],
    shapes: Mapping[str, Shape],
    least: Mapping[str, int],
    most: Mapping[str, int],
) -> None:
    """Refuse a sample that a program does not take whose lengths vary.

    Raises:
        ValueError: a length is too small, or too large.
    """
    for name, shape in shapes.items():
        for axis, length in zip(shape, sample[name].shape, strict=True):
            if not isinstance(axis, str):
                continue
            high = most.get(axis, math.inf)
            if not least[axis] <= length <= high:
                bounds = f"{least[axis]} and more" if high == math.inf else f"up to {high}"
                raise ValueError(
                    f"it is {length} in the run's data, and a program in which it varies takes "
                    f"{bounds}"
                )


def with_lengths(
    sample: Mapping[str, Tensor], shapes: Mapping[str, Shape], lengths: Mapping[str, int]
) -> dict[str, Tensor]:
    """Return a sample with other lengths: repeated as often as it takes, and cut.

    Args:
        sample: name of an input -> its tensor.
        shapes: name of an input -> its shape, with the name of each axis that varies.
        lengths: name of an axis -> its length; those of others stay.
    """
    changed = {}
    for name, x in sample.items():
        wanted = [
            lengths.get(axis, length) if isinstance(axis, str) else length
            for axis, length in zip(shapes[name], x.shape, strict=True)
        ]
        times = [math.ceil(new / old) for new, old in zip(wanted, x.shape, strict=True)]
        changed[name] = x.repeat(times)[tuple(slice(length) for length in wanted)].contiguous()
    return changed


def blame(
    model: DeployedModel,
    sample: Mapping[str, Tensor],
    parts: Mapping[str, str],
    error: Exception,
) -> str:
    """Return which part of a model cannot be traced whatever its lengths, and what to do.

    Args:
        model: that could not be traced.
        sample: what it is given for a sample of the dataset.
        parts: "backbone" and name of each task -> what the user calls the backbone and the head.
        error: what was raised.
    """
    for tasks in ((), *((task,) for task in model.tasks)):
        try:
            trace(model.of_tasks(tasks), sample, ())
        except Exception as part_error:
            if out_of_memory(part_error):
                raise
            reason = reason_of(part_error)
            if not tasks:
                return (
                    f"the backbone {parts['backbone']} cannot be traced by torch.export "
                    f"({reason}); export a run with another backbone. Who wrote it can mend it: in "
                    "evaluation mode, its forward must neither branch on values of tensors (see "
                    "mtlcore.models.is_exporting) nor leave torch"
                )
            rest = [task for task in model.tasks if task not in tasks]
            other = f"leave it out (--tasks {','.join(rest)}), or " if rest else ""
            return (
                f"the head {parts[tasks[0]]} of {tasks[0]} cannot be traced by torch.export "
                f"({reason}); {other}export a run with another head"
            )
    return f"the model cannot be traced by torch.export ({reason_of(error)})"


def reason_of(error: Exception) -> str:
    """Return the reason in a message of torch, without its advice to its own users."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return describe(error)
    first = re.sub(r"[!.]? *For more information, run with TORCH_LOGS.*", "", lines[0])
    more = next((line.removeprefix("- ") for line in lines[1:] if line.startswith("- ")), "")
    return f"{first}: {more}" if more else first


def _forget_places(module: nn.Module) -> None:
    """Leave out where in the code of this machine each operation was called."""
    for graph in _graphs(module):
        for node in graph.nodes:
            node.meta.pop("stack_trace", None)


def _graphs(module: nn.Module) -> Iterator[torch.fx.Graph]:
    yield from (part.graph for part in module.modules() if isinstance(part, torch.fx.GraphModule))
