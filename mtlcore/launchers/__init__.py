"""What starts the cells of a study: the contract, and what launchers of clusters share."""

from mtlcore.launchers.contract import CellCommand, CellExit, Launcher
from mtlcore.launchers.jobs import CellJob, JobLauncher, JobState

__all__ = [
    "CellCommand",
    "CellExit",
    "CellJob",
    "JobLauncher",
    "JobState",
    "Launcher",
]
