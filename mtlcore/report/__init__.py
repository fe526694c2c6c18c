"""What a run or a study leaves for people to look at."""

from mtlcore.report.colours import colour
from mtlcore.report.html.report import default_place, make_report
from mtlcore.report.tables import result_table
from mtlcore.report.writing import write_report

__all__ = [
    "colour",
    "default_place",
    "make_report",
    "result_table",
    "write_report",
]
