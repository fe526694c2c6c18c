"""What a check has found, as JSON has it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtlcore.datacheck.checking import DataCheck, SplitCheck
from mtlcore.datacheck.counting import TaskCount
from mtlcore.datacheck.findings import Finding
from mtlcore.datacheck.histograms import Values


def as_json(check: DataCheck) -> dict[str, Any]:
    """Return a tree of plain values."""
    return {
        "dataset": check.dataset,
        "root": check.root,
        "inputs": check.input_kind,
        "size": None if check.size is None else list(check.size),
        "wrong": check.wrong,
        "findings": [_finding(finding) for finding in check.findings],
        "notes": list(check.notes),
        "splits": {split.name: _split(split) for split in check.splits},
        "absent": check.absent,
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "level": finding.level,
        "kind": finding.kind,
        "split": finding.split,
        "task": finding.task,
        "text": finding.text,
        "samples": finding.samples,
        "values": finding.values,
        "files": [
            {"file": example.file, "count": example.count, "message": example.message}
            for example in finding.files
        ],
    }


def _split(split: SplitCheck) -> dict[str, Any]:
    inputs = split.count.inputs
    return {
        "samples": split.samples,
        "available": split.available,
        "read": split.count.read,
        "unreadable": split.count.unreadable.samples,
        "inputs": {
            "shapes": dict(inputs.shapes.most_common()),
            "channels": [_values(values) for values in inputs.channels],
            **({"lengths": _values(inputs.lengths)} if inputs.lengths.count else {}),
        },
        "tasks": {name: dict(_task(count)) for name, count in split.count.tasks.items()},
    }


def _task(count: TaskCount) -> Iterator[tuple[str, Any]]:
    task = count.task
    yield "kind", task.kind
    yield "unit", task.unit
    yield "labelled", count.labelled
    yield "valid", count.valid
    yield "elements", count.elements
    if count.classes is not None:
        yield (
            "classes",
            [
                {
                    "number": number,
                    "name": task.class_names[number] if task.class_names else "",
                    "count": int(count.classes[number]),
                    "samples": int(count.samples_of[number]),
                }
                for number in range(task.channels)
            ],
        )
    else:
        yield "channels", [_values(values) for values in count.channels]


def _values(values: Values) -> dict[str, Any]:
    if not values.count:
        return {"count": 0}
    edges, counts = values.histogram
    return {
        "count": values.count,
        "min": values.low,
        "max": values.high,
        "mean": values.mean,
        "deviation": values.deviation,
        "histogram": {"edges": edges, "counts": counts},
    }
