"""Labelling photographs by what trained runs predict: `mtl pseudo-label`.

The first half of multi-task self-training (Ghiasi et al., MuST, ICCV 2021): runs that are each
trained for some tasks label the same photographs, and the dataset `folder` reads what comes of it.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import attrs
import numpy as np
import tomli_w
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mtlcore.errors import UsageError
from mtlcore.loading import Root
from mtlcore.runs.trained import Trained, predict_image
from mtlcore.storage import write_output
from mtlcore.tasks import Task

DESCRIPTION = "dataset.toml"
_SUFFIXES = ("png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "npy")
_MOST_OF_A_BYTE = 255


@attrs.frozen(kw_only=True)
class PseudoLabels:
    """What was labelled.

    Args:
        photographs: Their number.
        labelled_by: Task -> the run that predicted it.
        kept: Task with classes -> share of the pixels whose class is probable enough.
        left_out: Tasks of the runs that have no value per pixel.
    """

    photographs: int
    labelled_by: Mapping[str, str]
    kept: Mapping[str, float]
    left_out: tuple[str, ...]


def pseudo_label(
    teachers: Mapping[str, Trained], data: str, out: str, *, split: str, threshold: float
) -> PseudoLabels:
    """Write photographs with the labels that runs predict, as the dataset `folder` reads them.

    A photograph is copied as it is to `out/SPLIT/image`, its label of a task is written to
    `out/SPLIT/labels/TASK` at its size, and `out/dataset.toml` describes them. A pixel has no label
    where its most probable class is less probable than the threshold or is one that the task
    ignores, where a depth is not above 0, and where a normal has no length. Edges and saliency are
    probabilities.

    Args:
        teachers: Place of a run -> its model.
        data: Folder of the photographs, a path or URL; what lies deeper is not looked at.
        out: Folder or URL that is written to.
        split: Whose photographs they are, such as "train".
        threshold: Least probability of a class, 0 to 1.

    Raises:
        UsageError: Two runs predict one task, none has a task with a value per pixel, there is no
            photograph, two have one name, or `out` has labels of other tasks.
        DataError: A photograph cannot be read.
        MtlError: A file cannot be written.
    """
    tasks, labelled_by, left_out = _tasks(teachers)
    text = tomli_w.dumps(_description(tasks.values(), teachers))
    _refuse_others(out, text)
    root = Root(data)
    names = _photographs(root)
    shares: dict[str, list[float]] = {name: [] for name, task in tasks.items() if _classes(task)}
    for name in names:
        content, path = root.read_bytes(name), PurePosixPath(name)
        where = f"{out.rstrip('/')}/{split}"
        for place, teacher in teachers.items():
            _, predictions = predict_image(teacher, content, root.where(name), None)
            for task in (tasks[t] for t in predictions if labelled_by.get(t) == place):
                label = _label(task, predictions[task.name], threshold)
                if task.name in shares:
                    shares[task.name].append(float((label != task.channels).mean()))
                write_output(
                    f"{where}/labels/{task.name}/{path.stem}.{_suffix(task)}", _file(task, label)
                )
        write_output(f"{where}/image/{path.stem}{path.suffix.lower()}", content)
    write_output(f"{out.rstrip('/')}/{DESCRIPTION}", text.encode())
    return PseudoLabels(
        photographs=len(names),
        labelled_by=labelled_by,
        kept={task: sum(values) / len(values) for task, values in shares.items()},
        left_out=left_out,
    )


def _tasks(
    teachers: Mapping[str, Trained],
) -> tuple[dict[str, Task], dict[str, str], tuple[str, ...]]:
    """Return the tasks that are labelled, by whom, and the names of those that cannot be."""
    tasks: dict[str, Task] = {}
    labelled_by: dict[str, str] = {}
    left_out: list[str] = []
    for place, teacher in teachers.items():
        for task in teacher.config.tasks:
            if task.layout != "map":
                left_out.append(task.name)
                continue
            if task.name in tasks:
                raise UsageError(
                    f"{labelled_by[task.name]} and {place} both predict {task.name}, which gives "
                    "two labels; leave one of the runs out"
                )
            tasks[task.name], labelled_by[task.name] = task, place
    if not tasks:
        raise UsageError(
            f"{', '.join(teachers)}: predict no task with a value per pixel, and the dataset "
            "folder reads no other labels"
        )
    return tasks, labelled_by, tuple(left_out)


def _photographs(root: Root) -> list[str]:
    """Return the names of the photographs in a folder."""
    names = [
        name
        for name in root.list("")
        if not name.startswith(".") and name.rpartition(".")[2].lower() in _SUFFIXES
    ]
    if not names:
        raise UsageError(f"--data {root.root}: holds no photograph ({', '.join(_SUFFIXES)})")
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(PurePosixPath(name).stem, name)
        if other != name:
            raise UsageError(
                f"--data {root.root}: {other} and {name} would have the same labels; rename one"
            )
    return names


def _refuse_others(out: str, text: str) -> None:
    """Refuse a folder whose description is another one."""
    there = Root(out)
    if there.exists(DESCRIPTION) and there.read_bytes(DESCRIPTION) != text.encode():
        raise UsageError(
            f"--out {out}: its {DESCRIPTION} describes other labels; name another folder"
        )


def _description(tasks: Iterable[Task], teachers: Mapping[str, Trained]) -> dict[str, Any]:
    """Return what `dataset.toml` says."""
    sizes = {teacher.config.data.size for teacher in teachers.values()}
    agreed = sizes.pop() if len(sizes) == 1 else None
    return {
        **({"size": list(agreed)} if agreed else {}),
        "image": f"{{split}}/image/{{name}}.{{{','.join(_SUFFIXES)}}}",
        "tasks": {task.name: dict(_entry(task)) for task in tasks},
    }


def _entry(task: Task) -> Iterator[tuple[str, Any]]:
    yield "kind", task.kind
    yield "file", f"{{split}}/labels/{task.name}/{{name}}.{_suffix(task)}"
    if task.class_names:
        yield "classes", list(task.class_names)
    else:
        yield "channels", task.channels
    if task.unit:
        yield "unit", task.unit
    yield "invalid", task.channels if _classes(task) else "nan"


def _classes(task: Task) -> bool:
    return task.dtype == "int64"


def _suffix(task: Task) -> str:
    return "png" if _classes(task) and task.channels <= _MOST_OF_A_BYTE else "npy"


def _label(task: Task, raw: Tensor, threshold: float) -> NDArray[Any]:
    """Return a label (H, W) or (H, W, C) of a prediction (C, H, W).

    Where there is none, a class is the first number beyond the classes, and a value NaN.
    """
    if _classes(task):
        best, classes = raw.softmax(0).max(0)
        unsure = (best < threshold) | torch.isin(classes, torch.tensor(task.ignored))
        return classes.masked_fill(unsure, task.channels).numpy()
    if task.values == "share":
        raw = raw.sigmoid()
    elif task.values == "positive":
        raw = raw.masked_fill(raw <= 0, torch.nan)
    elif task.values == "direction":
        raw = raw / raw.norm(dim=0, keepdim=True)  # 0 / 0 is NaN
    values = raw.movedim(0, -1).contiguous().numpy()
    return values[..., 0] if task.channels == 1 else values


def _file(task: Task, label: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    if _suffix(task) == "png":
        Image.fromarray(label.astype(np.uint8)).save(buffer, "PNG")
    else:
        np.save(buffer, label.astype(np.int32) if _classes(task) else label)
    return buffer.getvalue()
