"""The displays of a run or a study at work."""

from mtlcore.display.logging_display import LoggingDisplay
from mtlcore.display.run import Display, SilentDisplay, clock, make_display
from mtlcore.display.study import Outlook, StudyDisplay

__all__ = [
    "Display",
    "LoggingDisplay",
    "Outlook",
    "SilentDisplay",
    "StudyDisplay",
    "clock",
    "make_display",
]
