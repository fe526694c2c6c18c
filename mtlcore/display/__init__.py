"""The displays of a run, a study or a check of data at work."""

from mtlcore.display.counting import CountingDisplay
from mtlcore.display.logging_display import LoggingDisplay
from mtlcore.display.run import Display, SilentDisplay, clock, make_display
from mtlcore.display.study import Outlook, StudyDisplay

__all__ = [
    "CountingDisplay",
    "Display",
    "LoggingDisplay",
    "Outlook",
    "SilentDisplay",
    "StudyDisplay",
    "clock",
    "make_display",
]
