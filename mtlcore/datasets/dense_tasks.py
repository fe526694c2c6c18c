"""The tasks that several datasets of images declare in the same way."""

from __future__ import annotations

from collections.abc import Sequence

from mtlcore.tasks import Task

DEPTH = Task(name="depth", kind="depth", channels=1, unit="m")
NORMALS = Task(name="normals", kind="normals", channels=3)
EDGES = Task(name="edges", kind="edges", channels=1)


def segmentation(class_names: Sequence[str], name: str = "segmentation") -> Task:
    """Return a segmentation task with these classes."""
    return Task(
        name=name, kind="segmentation", channels=len(class_names), class_names=tuple(class_names)
    )


def inverse_depth(unit: str = "") -> Task:
    """Return an inverse-depth task."""
    return Task(name="inverse_depth", kind="inverse-depth", channels=1, unit=unit)
