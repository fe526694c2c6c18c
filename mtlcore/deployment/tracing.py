"""Tracing a deployed model: with lengths that vary where it can, and naming the part that cannot."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, final

import attrs
import torch
from torch import Tensor

from mtlcore.deployment.checking import difference
from mtlcore.deployment.model import DeployedModel
from mtlcore.errors import MtlError, describe
from mtlcore.system import out_of_memory

if TYPE_CHECKING:  # it imports torch's compiler
    from torch.export import ExportedProgram

_BATCH = "batch"
# Sides of the images of a trace, in multiples of what the backbone needs, and of those that it is
# tried on: each other than a multiple, so that padding is traced too. Those of the trace differ, so
# that none is taken for the other, and no deepest map has a side of 1, which would be a constant.
_SIDES, _OTHER_SIDES, _ROUND = (5, 7), (3, 2), 32


@final
@attrs.frozen(eq=False)
class Traced:
    """A model that was traced.

    Args:
        program: what was traced.
        shapes: name of an input -> its shape, with the name of an axis that varies.
        least: name of an axis that varies -> the least length that the program takes.
        fixed: name of an axis that does not vary -> why.
    """

    program: ExportedProgram
    shapes: Mapping[str, tuple[int | str, ...]]
    least: Mapping[str, int]
    fixed: Mapping[str, str]


def trace(
    model: DeployedModel, sample: Mapping[str, Tensor], parts: Mapping[str, str]
) -> Traced:
    """Trace a model with as much that varies as it allows.

    Tried are: every axis, the number of samples alone, none. Of what varies it is tested that the
    program computes what the model does at other lengths, too.

    Args:
        model: on the CPU, in evaluation mode.
        sample: what it would be given for a sample of the dataset, as a batch of one. An axis that
            does not vary has its length there.
        parts: "backbone" and name of each task -> what the user calls the backbone and the head.

    Raises:
        MtlError: a part of the model cannot be traced; the message names it.
    """
    shapes = _named_axes(model, sample)
    axes = [axis for shape in shapes.values() for axis in shape if isinstance(axis, str)]
    fixed: dict[str, str] = {}
    for varying in dict.fromkeys([(*dict.fromkeys(axes),), (_BATCH,)]):
        try:
            program, least = _trace_varying(model, sample, shapes, varying)
        except Exception as error:
            if out_of_memory(error):
                raise
            fixed |= {axis: _reason(error) for axis in varying if axis != _BATCH}
            if varying == (_BATCH,):
                fixed[_BATCH] = _reason(error)
            continue
        return Traced(program, _only(shapes, varying, sample), least, fixed)
    try:
        program, least = _trace_varying(model, sample, shapes, ())
    except Exception as error:
        if out_of_memory(error):
            raise
        raise MtlError(_blame(model, sample, parts, error)) from error
    return Traced(program, _only(shapes, (), sample), least, fixed)


def _named_axes(
    model: DeployedModel, sample: Mapping[str, Tensor]
) -> dict[str, tuple[int | str, ...]]:
    """Return the shape of each input with a name for each axis that may vary.

    Those are the number of samples, the sides of images that are all of one size, and the length of
    texts.
    """
    images = {x.shape[2:] for x in sample.values() if x.dim() == 4}
    texts = {x.shape[1:] for x in sample.values()} if model.kind == "tokens" else set()
    named: dict[str, tuple[int | str, ...]] = {}
    for name, x in sample.items():
        rest: tuple[int | str, ...] = tuple(x.shape[1:])
        if x.dim() == 4 and len(images) == 1:
            rest = (x.shape[1], "height", "width")
        elif x.dim() == 2 and len(texts) == 1:
            rest = ("length",)
        named[name] = (_BATCH, *rest)
    return named


def _only(
    shapes: Mapping[str, tuple[int | str, ...]],
    varying: tuple[str, ...],
    sample: Mapping[str, Tensor],
) -> dict[str, tuple[int | str, ...]]:
    """Return the shapes with names for some axes only, and lengths of the sample for the others."""
    return {
        name: tuple(
            axis if axis in varying else length
            for axis, length in zip(shape, sample[name].shape, strict=True)
        )
        for name, shape in shapes.items()
    }


def _trace_varying(
    model: DeployedModel,
    sample: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int | str, ...]],
    varying: tuple[str, ...],
) -> tuple[ExportedProgram, dict[str, int]]:
    """Return the traced program, and the least length of each axis that varies.

    Raises:
        Exception: anything that torch, or code of the model that it runs, raises.
        ValueError: the program computes something else than the model.
    """
    from torch.export import Dim, export

    multiple = model.model.backbone.input_multiple
    # Padded to the least multiple, an image has a deepest map of 1, which torch takes as special.
    side = multiple + 1 if multiple > 1 else 2
    least = {axis: {"height": side, "width": side, "length": 2}.get(axis, 1) for axis in varying}
    dimensions = {axis: Dim(axis, min=number) for axis, number in least.items()}
    given = {
        name: {place: dimensions[axis] for place, axis in enumerate(shape) if axis in varying}
        for name, shape in shapes.items()
    }
    example = _with_lengths(sample, shapes, varying, multiple, _SIDES)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about itself
        program = export(model, (*example.values(),), dynamic_shapes=given, strict=False)
        for tried in (sample, _with_lengths(sample, shapes, varying, multiple, _OTHER_SIDES)):
            found = program.module()(*tried.values())
            if wrong := difference(found, model(*tried.values())):
                lengths = ", ".join(str(list(x.shape)) for x in tried.values())
                raise ValueError(f"for inputs of {lengths} the traced program is another: {wrong}")
    return program, least


def _with_lengths(
    sample: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int | str, ...]],
    varying: tuple[str, ...],
    multiple: int,
    sides: tuple[int, int],
) -> dict[str, Tensor]:
    """Return inputs like those of a sample, of other lengths where they vary.

    Images and texts are repeated as often as it takes. The number of samples is 3.
    """
    step = multiple * math.ceil(_ROUND / multiple)
    lengths = {
        _BATCH: 3,
        "height": sides[0] * step - 3,
        "width": sides[1] * step - 5,
        "length": 2 * sides[0] + 1,
    }
    changed = {}
    for name, x in sample.items():
        wanted = [
            lengths[axis] if axis in varying else length
            for axis, length in zip(shapes[name], x.shape, strict=True)
        ]
        times = [math.ceil(new / old) for new, old in zip(wanted, x.shape, strict=True)]
        changed[name] = x.repeat(times)[tuple(slice(length) for length in wanted)].contiguous()
    return changed


def _blame(
    model: DeployedModel,
    sample: Mapping[str, Tensor],
    parts: Mapping[str, str],
    error: Exception,
) -> str:
    """Return which part of a model cannot be traced, and what to do."""
    reason = _reason(error)
    for tasks in ((), *((task,) for task in model.tasks)):
        alone = model.of_tasks(tasks)
        try:
            _trace_varying(alone, sample, _named_axes(alone, sample), ())
        except Exception as part_error:
            if out_of_memory(part_error):
                raise
            if not tasks:
                return (
                    f"the backbone {parts['backbone']} cannot be traced by torch.export "
                    f"({_reason(part_error)}); export a run with another backbone. Whoever wrote it "
                    "can mend it: in evaluation mode, its forward must neither branch on values of "
                    "tensors nor leave torch"
                )
            rest = [task for task in model.tasks if task not in tasks]
            other = f"leave it out (--tasks {','.join(rest)}), or " if rest else ""
            return (
                f"the head {parts[tasks[0]]} of {tasks[0]} cannot be traced by torch.export "
                f"({_reason(part_error)}); {other}export a run with another head"
            )
    return f"the model cannot be traced by torch.export ({reason})"


def _reason(error: Exception) -> str:
    """Return the reason in a message of torch, without its advice to its own users."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return describe(error)
    first = re.sub(r"[!.]? *For more information, run with TORCH_LOGS.*", "", lines[0])
    more = next((line.removeprefix("- ") for line in lines[1:] if line.startswith("- ")), "")
    return f"{first}: {more}" if more else first
