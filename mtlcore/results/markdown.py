"""A comparison as Markdown that is read as it is, too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mtlcore.results.comparison import Comparison
from mtlcore.results.notes import failures, notes_of
from mtlcore.results.summary_tables import SummaryTable, tables_of


def as_markdown(comparison: Comparison) -> str:
    """Return the tables and notes of a comparison as Markdown with aligned columns."""
    parts = [f"# {comparison.title}"]
    for table in tables_of(comparison):
        parts += [f"## {table.title}", _table(table)]
    if lines := failures(comparison):
        parts += ["## Without a result", "\n".join(f"* {line}" for line in lines)]
    parts += ["## How to read this", "\n".join(f"* {line}" for line in notes_of(comparison))]
    return "\n\n".join(parts) + "\n"


def _table(table: SummaryTable) -> str:
    rows = [
        [f"**{entry.text}**" if entry.bold else entry.text for entry in row] for row in table.rows
    ]
    return markdown_table(table.head, rows)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table with aligned columns, all but the first to the right."""
    lines = [[text.replace("|", "\\|") for text in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(
        "| "
        + " | ".join(
            text.ljust(width) if number == 0 else text.rjust(width)
            for number, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in (lines[0], rule, *lines[1:])
    )
