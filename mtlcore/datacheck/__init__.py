"""A dataset looked at before it is learnt from: what it holds, and what looks wrong."""

from mtlcore.datacheck.checking import DataCheck, SplitCheck, check_data
from mtlcore.datacheck.counting import Example, InputCount, SplitCount, TaskCount
from mtlcore.datacheck.findings import Finding
from mtlcore.datacheck.histograms import Values
from mtlcore.datacheck.json_form import as_json
from mtlcore.datacheck.measuring import class_name
from mtlcore.datacheck.places import layer_of

__all__ = [
    "DataCheck",
    "Example",
    "Finding",
    "InputCount",
    "SplitCheck",
    "SplitCount",
    "TaskCount",
    "Values",
    "as_json",
    "check_data",
    "class_name",
    "layer_of",
]
