"""A few samples of a dataset, with their labels drawn over them or in words."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from mtlcore.data import DataError, Sample, complete
from mtlcore.datacheck import SplitCheck, class_name
from mtlcore.report.colours import Pixels, colour, palette, rgb
from mtlcore.report.html.pictures import class_colours, picture
from mtlcore.report.markup import Markup, element, joined, scrolling
from mtlcore.report.panels import hex_of, small
from mtlcore.tasks import Task

_OVER = 0.7  # how much of a label is seen over its photograph
_NUMBERS = 8  # values of a vector that are written out


def data_panels(split: SplitCheck, tasks: Sequence[Task]) -> Markup:
    """Return a row per sample: the input, and the label of each task.

    A map is drawn over the grey photograph, so that one that belongs to another photograph, or lies
    on it turned, is seen; where there is no label it is hatched.
    """
    if not split.shown:
        return Markup()
    titles = ["input", *(task.name for task in tasks)]
    caption = f"Samples of {split.name}; hatched: no label there"
    content = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *(element("th", text, scope="col") for text in titles))),
        element("tbody", *(element("tr", *_row(sample, tasks)) for sample in split.shown)),
        class_="pictures",
    )
    legends = [
        class_colours(
            task.name, dict(zip(task.class_names, map(hex_of, palette(task.channels)), strict=True))
        )
        for task in tasks
        if task.class_names and task.layout == "map"
    ]
    return joined([scrolling(caption, content), *legends])


def _row(sample: Sample, tasks: Sequence[Task]) -> Iterator[Markup]:
    inputs = sample.inputs
    is_image = isinstance(inputs, Tensor) and inputs.dim() == 3 and len(inputs) == 3
    photograph = rgb(inputs) if is_image else None
    shown = (
        Markup()
        if photograph is None
        else picture(_uri(photograph, is_photograph=True), f"input of {sample.key}")
    )
    yield element("th", shown, element("span", sample.key, class_="key"), scope="row")
    for task in tasks:
        yield element("td", _label(sample, task, photograph))


def _label(sample: Sample, task: Task, photograph: Pixels | None) -> Markup:
    if task.name not in sample.targets:
        return _words("none")
    try:
        whole = complete(sample, (task,))
    except DataError:
        return _words("cannot be used")
    target, valid = whole.targets[task.name], whole.valid[task.name]
    if not bool(valid.any()):
        return _words("none")
    if task.layout == "label":
        return _words(class_name(task, int(target)) if task.dtype == "int64" else f"{target:.4g}")
    if task.layout == "vector":
        return _words(_vector(task, target, valid))
    pixels = colour(task, target, valid)
    if photograph is not None and photograph.shape == pixels.shape:
        grey = photograph.mean(-1, keepdims=True)
        pixels = np.round(_OVER * pixels + (1 - _OVER) * grey).astype(np.uint8)
    return picture(_uri(pixels, is_photograph=False), f"{task.name} of {sample.key}")


def _vector(task: Task, target: Tensor, valid: Tensor) -> str:
    names = task.class_names
    if task.kind == "multilabel" and names:
        yes = [name for name, value in zip(names, target.tolist(), strict=True) if value > 0.5]
        return (
            ", ".join(yes[:_NUMBERS]) + (", ..." if len(yes) > _NUMBERS else "") or "none of them"
        )
    texts = [
        f"{value:.4g}" if known else "-"
        for value, known in zip(target.tolist(), valid.tolist(), strict=True)
    ]
    more = ", ..." if len(texts) > _NUMBERS else ""
    return f"{', '.join(texts[:_NUMBERS])}{more} {task.unit}".rstrip()


def _words(text: str) -> Markup:
    return element("span", text, class_="key")


def _uri(pixels: Pixels, *, is_photograph: bool) -> str:
    file = io.BytesIO()  # JPEG: a label over a photograph is none to lossless compression
    small(pixels, is_photograph).save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
