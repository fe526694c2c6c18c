"""Pictures, curves, tables and pages of runs, studies and data."""

from mtlcore.report.charts.front import save_front
from mtlcore.report.charts.heat_map import heat_map
from mtlcore.report.colours import colour
from mtlcore.report.data_table import data_tables
from mtlcore.report.html.data_page import data_page
from mtlcore.report.html.report import default_place, make_report
from mtlcore.report.metric_table import result_table
from mtlcore.report.writing import write_report

__all__ = [
    "colour",
    "data_page",
    "data_tables",
    "default_place",
    "heat_map",
    "make_report",
    "result_table",
    "save_front",
    "write_report",
]
