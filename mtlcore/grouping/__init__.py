"""Which tasks are trained together: how tasks relate, by several measures, and the best groups."""

from mtlcore.grouping.checking import Check, check_relations
from mtlcore.grouping.likeness import representation_similarities
from mtlcore.grouping.recorded import recorded_relations
from mtlcore.grouping.relations import Relations, finished_runs
from mtlcore.grouping.search import Grouping, best_grouping, score_of
from mtlcore.grouping.transfer import Missing, transfer_gains
from mtlcore.grouping.writing import as_data, as_text, write_grouping, write_pairs

__all__ = [
    "Check",
    "Grouping",
    "Missing",
    "Relations",
    "as_data",
    "as_text",
    "best_grouping",
    "check_relations",
    "finished_runs",
    "recorded_relations",
    "representation_similarities",
    "score_of",
    "transfer_gains",
    "write_grouping",
    "write_pairs",
]
