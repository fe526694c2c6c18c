"""What a file tells of the program in it, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlcore._version import __version__
from mtlcore.deployment.model import DeployedModel
from mtlcore.deployment.tracing import Traced
from mtlcore.exporters import Program, TensorInfo
from mtlcore.tasks import Task

_FORMAT = 1


def described(
    model: DeployedModel,
    traced: Traced,
    sample: Mapping[str, Tensor],
    fixed: Mapping[str, str],
    dataset: str,
) -> Program:
    """Return a traced model with its description.

    Args:
        model: that was traced.
        traced: what came of it.
        sample: what it would be given for a sample of the dataset.
        fixed: name of an axis that does not vary -> why.
        dataset: name of the dataset that the run has learnt from.
    """
    inputs = [
        TensorInfo(name=name, dtype=_dtype(sample[name]), shape=shape)
        for name, shape in traced.shapes.items()
    ]
    with torch.no_grad():
        outputs = model(*sample.values())
    size = next((info.shape[2:] for info in inputs if len(info.shape) == 4), ())
    batch = inputs[0].shape[0]
    results = [
        TensorInfo(
            name=name,
            dtype=_dtype(value),
            shape=(batch, value.shape[1], *(size if value.dim() == 4 else ())),
        )
        for name, value in outputs.items()
    ]
    description = {
        "format": _FORMAT,
        "written_by": f"mtlcore {__version__}",
        "inputs": [_input(info, model, sample[info.name], dataset) for info in inputs],
        "outputs": [_output(info, model.model.tasks[info.name]) for info in results],
        "least": dict(traced.least),
        "most": dict(traced.most),
        "fixed": dict(fixed),
    }
    return Program(
        traced=traced.program,
        inputs=tuple(inputs),
        outputs=tuple(results),
        least=traced.least,
        most=traced.most,
        description=json.dumps(description, indent=1, ensure_ascii=False),
    )


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _facts(info: TensorInfo) -> dict[str, Any]:
    return {"name": info.name, "dtype": info.dtype, "shape": list(info.shape)}


def _input(info: TensorInfo, model: DeployedModel, sample: Tensor, dataset: str) -> dict[str, Any]:
    if model.reads_bytes:
        colours = "RGB" if sample.shape[1] == 3 else "as the dataset's"
        return {
            **_facts(info),
            "layout": "NCHW",
            "channels": colours,
            "range": [0, 255],
            "trained_size": list(sample.shape[2:]),
        }
    return {**_facts(info), "values": f"as the dataset {dataset} makes them"}


def _output(info: TensorInfo, task: Task) -> dict[str, Any]:
    values, extent = _values(task)
    return {
        **_facts(info),
        "kind": task.kind,
        "values": values,
        "range": extent,
        "unit": task.unit,
        "classes": list(task.class_names),
        "ignored": list(task.ignored),
    }


def _values(task: Task) -> tuple[str, Sequence[float | None]]:
    """Return what values of a task are, and between which bounds they lie; None: there is none."""
    if task.dtype == "int64":
        return "probability of each class", [0, 1]
    if task.values == "share":
        return "probability", [0, 1]
    if task.values == "direction":
        return "vector of length 1", [-1, 1]
    # What a label is, and not what a network must say.
    return "value", [0 if task.values == "positive" else None, None]
