"""The page about a dataset: what it holds, and what looks wrong."""

from __future__ import annotations

from collections.abc import Iterable

from mtlcore.datacheck import DataCheck, Finding, TaskCount, Values, class_name
from mtlcore.report.charts.histogram import histogram
from mtlcore.report.data_table import (
    LABELS,
    SPLITS,
    VALUES,
    channel_name,
    label_rows,
    split_row,
    value_rows,
)
from mtlcore.report.html.data_panels import data_panels
from mtlcore.report.html.page import Section, alert, page, paragraph, remarks
from mtlcore.report.markup import Markup, element, items, joined, table
from mtlcore.tasks import Task

_CHARTS = 4  # channels of a task that are drawn
_ROWS = 200  # channels of a task, or sizes of images, that a table lists


def data_page(check: DataCheck) -> str:
    """Return the page as the text of one HTML file that refers to no other."""
    panels = [data_panels(split, check.tasks) for split in check.splits]
    return page(
        f"Data: {check.dataset}",
        _lead(check),
        [
            Section("wrong", "What is wrong", _findings(check, "wrong")),
            Section("odd", "What is odd, and perhaps meant", _findings(check, "odd")),
            Section("notes", "What the reader told", remarks(check.notes)),
            Section("counts", "Samples and labels", _counts(check)),
            Section("classes", "Classes", _classes(check)),
            Section("values", "Values", _values(check)),
            Section("inputs", "Inputs", _inputs(check)),
            Section("samples", "Samples", joined(panels)),
        ],
    )


def _lead(check: DataCheck) -> Markup:
    wrong = sum(finding.level == "wrong" for finding in check.findings)
    splits = ", ".join(f"{split.count.read:,} samples of {split.name}" for split in check.splits)
    where = f" at {check.root}" if check.root else ""
    said = paragraph(f"{check.dataset}{where}: {splits}.")
    if wrong:
        return joined([said, alert(f"{wrong} thing(s) are wrong; they come first.")])
    return joined([said, paragraph("Nothing wrong was found.")])


def _findings(check: DataCheck, level: str) -> Markup:
    return joined(_finding(finding) for finding in check.findings if finding.level == level)


def _finding(finding: Finding) -> Markup:
    where = finding.split + (f", {finding.task}" if finding.task else "")
    number = f" ({finding.samples:,} samples)" if finding.samples else ""
    parts = [element("h3", f"{where}: {finding.text}{number}")]
    if finding.files:
        shown = items([example.told() for example in finding.files], class_="note")
        more = finding.samples - len(finding.files)
        parts.append(shown)
        if more > 0:
            parts.append(paragraph(f"And {more:,} more."))
    return joined(parts)


def _counts(check: DataCheck) -> Markup:
    absent = [f"There is no split {name}: {why}" for name, why in check.absent.items()]
    return joined(
        [
            table("Splits", SPLITS, [split_row(split) for split in check.splits]),
            table("Labels of each task", LABELS, label_rows(check), numbers_from=2),
            remarks(absent),
        ]
    )


def _classes(check: DataCheck) -> Markup:
    parts = []
    for task in check.tasks:
        counts = {split.name: split.count.tasks[task.name] for split in check.splits}
        if task.dtype != "int64" or not any(count.valid for count in counts.values()):
            continue
        what = "pixels" if task.layout == "map" else "samples"
        columns = ["class"]
        for name in counts:
            columns += [f"{what} of {name}", "share"]
            columns += ["in samples"] if task.layout == "map" else []
        rows = [_class_row(task, number, counts.values()) for number in range(task.channels)]
        parts.append(table(f"Classes of {task.name}", columns, rows))
    return joined(parts)


def _class_row(task: Task, number: int, counts: Iterable[TaskCount]) -> list[str]:
    row = [class_name(task, number)]
    for count in counts:
        assert count.classes is not None
        seen = int(count.classes[number])
        row += [f"{seen:,}" if seen else "never", f"{seen / max(1, count.valid):.3%}"]
        row += [f"{int(count.samples_of[number]):,}"] if task.layout == "map" else []
    return row


def _values(check: DataCheck) -> Markup:
    parts = []
    for task in check.tasks:
        if task.dtype == "int64":
            continue
        rows, charts = [], []
        for look, split in enumerate(check.splits):
            count = split.count.tasks[task.name]
            rows += [[f"{split.name}, {name}", *row] for name, *row in value_rows(count)]
            charts += [
                _chart(f"{channel_name(count, number)}, {split.name}", task.unit, values, look)
                for number, values in enumerate(count.channels[:_CHARTS])
                if values.count
            ]
        unit = f" in {task.unit}" if task.unit else ""
        heading = table(f"Values of {task.name}{unit}", VALUES, rows[:_ROWS])
        parts += [heading, element("div", *charts, class_="charts")]
    return joined(parts)


def _chart(title: str, unit: str, values: Values, look: int) -> Markup:
    edges, counts = values.histogram
    return histogram(title, unit, edges, counts, look % 8)


def _inputs(check: DataCheck) -> Markup:
    rows = [
        [split.name, shape, f"{number:,}"]
        for split in check.splits
        for shape, number in split.count.inputs.shapes.most_common(_ROWS)
    ]
    charts, figures = [], []
    for look, split in enumerate(check.splits):
        names = ("red", "green", "blue") if len(split.count.inputs.channels) == 3 else ()
        for number, values in enumerate(split.count.inputs.channels[:_CHARTS]):
            name = names[number] if names else f"channel {number}"
            figures.append(
                [f"{split.name}, {name}", f"{values.mean:.4f}", f"{values.deviation:.4f}"]
            )
            charts.append(_chart(f"{name}, {split.name}", "", values, look))
        if split.count.inputs.lengths.count:
            charts.append(
                _chart(f"length, {split.name}", "tokens", split.count.inputs.lengths, look)
            )
    parts = [table("Shapes of inputs (height x width)", ("split", "shape", "samples"), rows,
                   numbers_from=2)]  # fmt: skip
    if figures:
        parts.append(table("Values of images", ("channel", "mean", "deviation"), figures))
    return joined([*parts, element("div", *charts, class_="charts")])
