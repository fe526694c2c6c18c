"""Picture panels: input, predictions and ground truth of the same samples beside each other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from mtlcore.report.html.page import paragraph
from mtlcore.report.markup import Markup, element, joined, scrolling
from mtlcore.storage import Pictures, SamplePictures

_COLOUR = re.compile(r"#[0-9a-f]{6}")  # anything else might be more than a colour

#: How pictures are to be read.
HATCHED = (
    "Hatched: no label there, or a prediction that is not finite. Depths go from violet (near) to "
    "yellow (far), predictions on the scale of their ground truth."
)


def run_panels(pictures: Pictures) -> Markup:
    """Return a row per sample: the input, and per task the prediction and the ground truth."""
    columns = [
        (f"{task}, {what}", f"{task}.{part}")
        for task in pictures.tasks
        for what, part in (("prediction", "prediction"), ("ground truth", "target"))
    ]
    rows = [
        (sample, pictures.tasks, [(title, sample.pictures.get(name)) for title, name in columns])
        for sample in pictures.samples
    ]
    panels = _panels("Samples of the validation split", rows, pictures.units)
    legends = [
        class_colours(task, colours) for task, colours in pictures.classes.items() if colours
    ]
    return joined([paragraph(HATCHED), panels, *legends])


def task_panels(task: str, variants: Mapping[str, Pictures], samples: int) -> Markup:
    """Return a row per sample: the input, the ground truth, and what each variant predicts.

    Args:
        task: The task whose maps are shown.
        variants: Name -> the pictures of a run that learned the task. Samples are matched by key.
        samples: The most samples that are shown.
    """
    first = next(iter(variants.values()))
    predictions = {
        name: {sample.key: sample.pictures.get(f"{task}.prediction") for sample in of.samples}
        for name, of in variants.items()
    }
    rows = [
        (
            sample,
            (task,),
            [
                ("ground truth", sample.pictures.get(f"{task}.target")),
                *((name, by_key.get(sample.key)) for name, by_key in predictions.items()),
            ],
        )
        for sample in first.samples[:samples]
    ]
    colours = first.classes[task]
    panels = _panels(f"{task} of the same samples", rows, first.units)
    return joined([panels, *([class_colours(task, colours)] if colours else [])])


def _panels(
    caption: str,
    rows: Sequence[tuple[SamplePictures, Iterable[str], Sequence[tuple[str, str | None]]]],
    units: Mapping[str, str],
) -> Markup:
    titles = ["input", *(title for title, _ in rows[0][2])]
    lines = []
    for sample, tasks, cells in rows:
        notes = [sample.key]
        for task in tasks:
            if task in sample.scales:
                low, high = sample.scales[task]
                notes.append(f"{task} {low:.3g} to {high:.3g} {units[task]}".rstrip())
        head = element(
            "th",
            picture(sample.pictures.get("input"), f"input of {sample.key}"),
            *(element("span", note, class_="key") for note in notes),
            scope="row",
        )
        pictures = [
            element("td", picture(uri, f"{title} for {sample.key}")) for title, uri in cells
        ]
        lines.append(element("tr", head, *pictures))
    content = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *(element("th", text, scope="col") for text in titles))),
        element("tbody", *lines),
        class_="pictures",
    )
    return scrolling(caption, content)


def picture(uri: str | None, alt: str) -> Markup:
    """Return a picture by its data URI; of None, the word "none"."""
    return element("span", "none") if uri is None else element("img", src=Markup(uri), alt=alt)


def class_colours(task: str, colours: Mapping[str, str]) -> Markup:
    """Return the names of a task's classes beside their colours."""
    swatches = [
        element(
            "li",
            element("span", class_="swatch", style=f"background:{colour}", aria_hidden="true"),
            name,
        )
        for name, colour in colours.items()
        if _COLOUR.fullmatch(colour)
    ]
    return element("ul", element("li", f"Classes of {task}:"), *swatches, class_="classes")
