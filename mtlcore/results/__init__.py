"""From finished runs to answers: variants over seeds, intervals, tables."""

from mtlcore.results.comparing import compare, compare_study
from mtlcore.results.comparison import Comparison, find_definition
from mtlcore.results.csv_json import as_csv, as_data
from mtlcore.results.kept import VALUES, kept_results, read_kept
from mtlcore.results.latex import as_latex
from mtlcore.results.markdown import as_markdown, markdown_table
from mtlcore.results.notes import notes_of
from mtlcore.results.power import Detectable, detectable
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
from mtlcore.results.variants import SINGLE_TASK, FailedCell, Variant

__all__ = [
    "DELTA",
    "SINGLE_TASK",
    "VALUES",
    "Comparison",
    "Detectable",
    "Difference",
    "Epoch",
    "FailedCell",
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
    "detectable",
    "direction",
    "evaluations",
    "find_definition",
    "kept_results",
    "markdown_table",
    "notes_of",
    "objectives",
    "read_kept",
    "read_run",
    "search_result",
    "tables_of",
    "write_tables",
]
