"""From finished runs to answers: variants over seeds, intervals, tables."""

from mtlcore.results.comparison import Comparison, compare, compare_study, find_definition
from mtlcore.results.csv_json import as_csv, as_data
from mtlcore.results.latex import as_latex
from mtlcore.results.markdown import as_markdown, markdown_table
from mtlcore.results.notes import notes_of
from mtlcore.results.run_results import Epoch, RunResult, read_run
from mtlcore.results.search import (
    DELTA,
    SearchResult,
    TrialResult,
    direction,
    evaluations,
    objectives,
    search_result,
)
from mtlcore.results.statistics import Difference
from mtlcore.results.summary_tables import SummaryTable, tables_of
from mtlcore.results.table_files import write_tables
from mtlcore.results.targets import Reached, Target
from mtlcore.results.variants import SINGLE_TASK, Variant

__all__ = [
    "DELTA",
    "SINGLE_TASK",
    "Comparison",
    "Difference",
    "Epoch",
    "Reached",
    "RunResult",
    "SearchResult",
    "SummaryTable",
    "Target",
    "TrialResult",
    "Variant",
    "as_csv",
    "as_data",
    "as_latex",
    "as_markdown",
    "compare",
    "compare_study",
    "direction",
    "evaluations",
    "find_definition",
    "markdown_table",
    "notes_of",
    "objectives",
    "read_run",
    "search_result",
    "tables_of",
    "write_tables",
]
