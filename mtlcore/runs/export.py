"""Writing a trained run as a program that needs no mtlcore: `mtl export`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import attrs
import torch
from torch import Tensor, nn

from mtlcore.config import Layer
from mtlcore.deployment import (
    DeployedModel,
    Traced,
    activated,
    attempts,
    blame,
    described,
    difference,
    named_axes,
    reason_of,
    trace,
    with_lengths,
)
from mtlcore.engine import make_loader, open_split
from mtlcore.episodes import in_order
from mtlcore.errors import MtlError, UsageError
from mtlcore.exporters import Exporter, Program, ProgramFile, TensorInfo
from mtlcore.inputs import Inputs, map_inputs
from mtlcore.plugins import Component, Plugins
from mtlcore.runs.trained import Trained, kind_of_inputs, load_run
from mtlcore.storage import Which, write_output
from mtlcore.system import out_of_memory
from mtlcore.tasks import refuse_unknown_tasks

# Samples of the run's dataset that a file is held against the model on.
_COMPARED = 4


@final
@attrs.frozen(kw_only=True)
class Exported:
    """What was written.

    Args:
        place: of the file.
        inputs: of the program.
        outputs: of the program, one per task.
        description: what the file tells of itself, as JSON.
        least: name of an axis that varies -> the least length that the program takes.
        most: name of an axis that varies -> the greatest length, where there is one.
        fixed: name of an axis that does not vary -> why.
        compared: number of samples on which the file computed what the model predicts.
        notes: what a user should know besides.
    """

    place: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    description: str
    least: Mapping[str, int]
    most: Mapping[str, int]
    fixed: Mapping[str, str]
    compared: int
    notes: tuple[str, ...]


def export_model(
    run: str | Path,
    out: str | Path,
    *,
    to: str = "torch-export",
    tasks: Sequence[str] | None = None,
    checkpoint: Which = "best",
    data: Mapping[str, Any] | None = None,
    trust: bool = False,
) -> Exported:
    """Write the model of a trained run as one program that needs no mtlcore.

    The program takes what a camera gives: images (B, 3, H, W) uint8, RGB, 0 to 255. It scales and
    normalises them, pads them to what the backbone needs, and crops and finishes what the heads
    say: one output per task, of the size of the image, in the task's unit. Classes and shares are
    probabilities, directions have the length 1. A run on vectors, texts or a tree of tensors
    gives a program with an input for each tensor, as the dataset makes it.

    Args:
        run: directory or URL of the run.
        out: path or URL of the file. It is written only if it computes what the model predicts for
            samples of the run's dataset, up to 1e-4 (of values above 1: up to this part of them).
        to: format: "torch-export", or one that a plugin brings (`mtl list exporters`).
        tasks: names of the tasks to predict; None: all of them.
        checkpoint: the best epoch's weights, or the last ones.
        data: changes of `[data]`, such as `{"root": "/data/nyuv2"}` where the data lie elsewhere.
        trust: load the plugin files that the run's configuration names: they are programs.

    Returns:
        What was written. `fixed` says why a length does not vary, where one does not.

    Raises:
        UsageError: no run there, no such format or task, or a library is missing.
        MtlError: a part of the model cannot be traced, or the file computes something else; then
            nothing is written.
    """
    plugins = Plugins.from_environment()
    if trust:
        plugins.trust_runs()
    exporter = plugins.get("exporters", to)
    changes = [] if data is None else [Layer("data", {"data": dict(data)})]
    trained = load_run(plugins, str(run), checkpoint, changes, "cpu")
    return export_run(trained, exporter, str(out), tasks)


def export_run(
    trained: Trained, exporter: Component, out: str, tasks: Sequence[str] | None = None
) -> Exported:
    """Write the model of a run that was loaded; see `export_model`.

    Args:
        trained: the run, on the CPU.
        exporter: the format.
        out: path or URL of the file.
        tasks: names of the tasks to predict; None: all of them.
    """
    model = trained.learner.model
    writer: Exporter = exporter.load()()
    wanted = _wanted(trained, tasks)
    samples = list(_samples(trained))
    deployed = DeployedModel(model, wanted, samples[0], kind_of_inputs(trained.config)).eval()
    sample = deployed.tensors(samples[0])
    fixed: dict[str, str] = {}
    tried = attempts(named_axes(deployed, sample))
    with _no_gradients(model):
        for varying, following in zip(tried, [*tried[1:], ()], strict=True):
            try:
                traced = _traced(trained, deployed, sample, varying)
                program = described(deployed, traced, sample, fixed, trained.config.data.name)
                content = _content(writer, program, deployed, samples)
            except UsageError:
                raise
            except Exception as error:
                if out_of_memory(error) or (not varying and isinstance(error, MtlError)):
                    raise
                if not varying:
                    raise MtlError(
                        f"{exporter.spec.name} cannot write this model ({reason_of(error)})"
                    ) from error
                fixed |= {axis: reason_of(error) for axis in varying if axis not in following}
            else:
                break
    write_output(out, content)
    return Exported(
        place=out,
        inputs=program.inputs,
        outputs=program.outputs,
        description=program.description,
        least=traced.least,
        most=traced.most,
        fixed=fixed,
        compared=len(samples),
        notes=tuple(_notes(trained)),
    )


@contextmanager
def _no_gradients(model: nn.Module) -> Iterator[None]:
    """Let nothing require gradients: parameters of a file have from here whether they do."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _traced(
    trained: Trained, model: DeployedModel, sample: Mapping[str, Tensor], varying: Sequence[str]
) -> Traced:
    """Trace a model; where nothing varies, tell the part that cannot be traced."""
    try:
        return trace(model, sample, varying)
    except Exception as error:
        if varying or isinstance(error, UsageError) or out_of_memory(error):
            raise
        config = trained.config
        heads = {task: config.heads[task].component.spec.name for task in model.tasks}
        parts = {"backbone": config.backbone.component.spec.name, **heads}
        raise MtlError(blame(model, sample, parts, error)) from error


def _content(
    writer: Exporter, program: Program, model: DeployedModel, samples: Sequence[Inputs]
) -> bytes:
    """Return the content of a file that was held against the model.

    Raises:
        UsageError: A library is missing.
        Exception: The format cannot hold the program, or the file computes something else.
    """
    with tempfile.TemporaryDirectory(prefix="mtl-export-") as folder:
        path = Path(folder) / "program"
        writer.write(program, path)
        _compare(writer.read(path), program, model, samples)
        return path.read_bytes()


def _wanted(trained: Trained, tasks: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the tasks to predict, in the order of the run."""
    known = tuple(trained.learner.model.tasks)
    if tasks is None:
        return known
    refuse_unknown_tasks("--tasks", tasks, known)
    if not tasks:
        raise UsageError(f"--tasks: names no task; the run has {', '.join(known)}")
    return tuple(task for task in known if task in tasks)


def _samples(trained: Trained) -> Iterator[Inputs]:
    """Yield the inputs of the first validation samples, each as a batch of one.

    Raises:
        UsageError: there are none, or teachers are needed for them.
        MtlError: one cannot be read.
    """
    config = trained.config
    data = open_split(config, "val", config.data.val)
    if data.needs_teachers:
        raise UsageError(
            f"data: {config.data.name} asks for teachers to read its samples, and a program is "
            "compared on some; name other data with the same tasks (--set data.name=...)"
        )
    near = attrs.evolve(config, data=attrs.evolve(config.data, workers=0))
    plans = in_order("val", min(_COMPARED, len(data)), 1)
    batches = [batch for batch in make_loader(near, {"val": data}).batches(plans) if batch]
    if not batches:
        raise UsageError("data: no sample can be read, and a program is compared on some")
    for batch in batches:
        yield map_inputs(lambda x: x.cpu(), batch.inputs)


def _compare(
    file: ProgramFile, program: Program, model: DeployedModel, samples: Sequence[Inputs]
) -> None:
    """Hold a file against what the model predicts.

    Samples are given one by one, together where the number of samples varies, and smaller and
    larger where their lengths vary.

    Raises:
        MtlError: the file computes something else, or tells something else of itself.
    """
    if file.description != program.description:
        raise MtlError("the file does not hold its description; nothing was written")
    given = [model.tensors(sample) for sample in samples]
    for tensors in [*given, *_others(program, given)]:
        expected = _predicted(model, tensors)
        if wrong := difference(file.run(tensors), expected):
            sizes = ", ".join(f"{name} {list(x.shape)}" for name, x in tensors.items())
            raise MtlError(
                f"for samples of the run's dataset ({sizes}), the file does not compute what the "
                f"model predicts: {wrong}; nothing was written"
            )


@torch.no_grad()
def _predicted(model: DeployedModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the final values of what `mtl predict` computes, in the order of the tasks."""
    predictions = model.model(model.inputs(tensors), model.tasks)
    return {task: activated(model.model.tasks[task], predictions[task]) for task in model.tasks}


def _others(program: Program, given: Sequence[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Yield samples in other batches and of other lengths, where a program takes such."""
    shapes = {info.name: info.shape for info in program.inputs}
    first = given[0]
    lengths = {
        axis: length
        for name, x in first.items()
        for axis, length in zip(shapes[name], x.shape, strict=True)
        if isinstance(axis, str)
    }
    if "batch" in lengths:
        alike = [each for each in given if all(each[n].shape == first[n].shape for n in first)]
        together = {name: torch.cat([each[name] for each in alike]) for name in first}
        yield with_lengths(together, shapes, {"batch": max(2, len(alike))})
    if len(lengths) > 1:
        for change in (0.7, 1.3):
            sides = {
                axis: min(
                    max(low, round(change * lengths[axis])), program.most.get(axis, sys.maxsize)
                )
                for axis, low in program.least.items()
            }
            yield with_lengths(first, shapes, {**sides, "batch": 1})


def _notes(trained: Trained) -> Iterator[str]:
    precision = trained.learner.precision
    if precision != "fp32":
        yield (f"the run computes in {precision}, mtl predict too; the program computes in fp32")
