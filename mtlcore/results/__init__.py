"""From finished runs to answers: variants over seeds, intervals, tables."""

from mtlcore.results.comparison import (
    SINGLE_TASK,
    STUDY,
    Comparison,
    Epoch,
    RunResult,
    Target,
    Variant,
    compare,
    find_definition,
    read_run,
)
from mtlcore.results.tables import as_data, as_markdown, notes, sections, write_tables

__all__ = [
    "SINGLE_TASK",
    "STUDY",
    "Comparison",
    "Epoch",
    "RunResult",
    "Target",
    "Variant",
    "as_data",
    "as_markdown",
    "compare",
    "find_definition",
    "notes",
    "read_run",
    "sections",
    "write_tables",
]
