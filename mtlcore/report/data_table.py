"""What a check of data has counted, as tables for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from mtlcore.datacheck import DataCheck, SplitCheck, TaskCount

Row = list[str]
SPLITS = ("split", "samples", "read", "inputs")
LABELS = ("task", "split", "samples with a label", "labelled", "values")
VALUES = ("values", "number", "least", "greatest", "mean", "deviation")
_SHAPES = 3


def data_tables(check: DataCheck) -> tuple[Table, Table]:
    """Return a table of the splits and one of the tasks' labels, for a terminal."""
    return (
        _table(SPLITS, [split_row(split) for split in check.splits]),
        _table(LABELS, label_rows(check)),
    )


def split_row(split: SplitCheck) -> Row:
    """Return what a split holds."""
    of = "" if split.samples == split.available else f" of {split.available:,}"
    return [split.name, f"{split.samples:,}{of}", f"{split.count.read:,}", shapes(split)]


def shapes(split: SplitCheck) -> str:
    """Return the most frequent shapes of inputs."""
    counted = split.count.inputs.shapes
    common = [f"{shape} ({number:,})" for shape, number in counted.most_common(_SHAPES)]
    more = len(counted) - _SHAPES
    lengths = split.count.inputs.lengths
    if lengths.count:
        return f"{lengths.low:g} to {lengths.high:g} tokens, {lengths.mean:.1f} on average"
    return ", ".join(common) + (f" and {more} more" if more > 0 else "")


def label_rows(check: DataCheck) -> list[Row]:
    """Return, for each task and split, how many labels there are and what they are."""
    rows = []
    for task in check.tasks:
        for split in check.splits:
            count = split.count.tasks[task.name]
            share = f"{count.valid / count.elements:.1%}" if count.elements else "-"
            rows.append([task.name, split.name, f"{count.labelled:,}", share, values(count)])
    return rows


def values(count: TaskCount) -> str:
    """Return what the labels of a task are, in a few words."""
    task = count.task
    if not count.valid:
        return "-"
    if count.classes is not None:
        seen = int((count.classes > 0).sum())
        largest = int(count.classes.argmax())
        name = task.class_names[largest] if task.class_names else str(largest)
        share = count.classes[largest] / count.valid
        return f"{seen} of {task.channels} classes, {share:.1%} {name}"
    known = [one for one in count.channels if one.count]
    low, high = min(one.low for one in known), max(one.high for one in known)
    if task.kind == "multilabel":
        shares = [one.mean for one in known]
        return (
            f"{min(shares):.1%} to {max(shares):.1%} yes"
            if len(known) > 1
            else (f"{shares[0]:.1%} yes")
        )
    mean = f", mean {known[0].mean:.4g}" if len(known) == 1 else ""
    return f"{low:.4g} to {high:.4g}{mean} {task.unit}".rstrip()


def value_rows(count: TaskCount) -> Iterator[Row]:
    """Return number, extent, mean and deviation of each channel's values."""
    for number, one in enumerate(count.channels):
        name = channel_name(count, number)
        if one.count:
            figures = (one.low, one.high, one.mean, one.deviation)
            yield [name, f"{one.count:,}", *(f"{figure:.4g}" for figure in figures)]
        else:
            yield [name, "0", "-", "-", "-", "-"]


def channel_name(count: TaskCount, number: int) -> str:
    """Return what a channel of a task is called."""
    task = count.task
    if task.class_names:
        return task.class_names[number]
    if task.kind == "normals" and task.channels == 3:
        return "xyz"[number]
    return task.name if task.channels == 1 else f"channel {number}"


def _table(columns: Sequence[str], rows: Sequence[Row]) -> Table:
    table = Table(show_edge=False, box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
