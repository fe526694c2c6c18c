"""What a study can find and how long it takes, told before it runs from an earlier one."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from datetime import timedelta
from typing import final

import attrs

from mtlcore.errors import ConfigError, MtlError
from mtlcore.results import Comparison, compare, detectable
from mtlcore.studies.spec import Study


@final
@attrs.frozen
class Pilot:
    """An earlier study, whose spread and times stand for those of the next.

    Args:
        place: Its directory, or its file of kept results.
        comparison: Its results.
    """

    place: str
    comparison: Comparison

    def told(self, study: Study) -> str:
        """Return which differences a study detects, as a sentence."""
        seeds = len(study.settings.seeds)
        tasks = study.base.settings.get("tasks")
        asked = tasks if isinstance(tasks, list) else None
        found = detectable(self.comparison, seeds, asked)
        if found is None:
            return (
                f"{self.place} does not say what difference {seeds} seed{'s' * (seeds != 1)} "
                "detect: it takes two of them, and two variants of these tasks with two "
                "common seeds"
            )
        return (
            f"{seeds} seeds find these true differences in four of five such studies, by the "
            f"spread of {self.place}: {found}."
        )

    def duration(self, cells: int, jobs: int) -> str:
        """Return how long so many cells take together, as a sentence."""
        seconds = statistics.median(float(run.summary["seconds"]) for run in self.comparison.runs)
        total = timedelta(seconds=round(seconds * cells / min(jobs, max(cells, 1))))
        return (
            f"{cells} cells, {jobs} at a time: about {total} if they take as long as those of "
            f"{self.place} ({seconds:.0f} s, the median)"
        )


def announce(study: Study, note: Callable[[str], None]) -> tuple[Study, Pilot | None]:
    """Tell what a study can detect; return it with that among its notes, and its pilot.

    Raises:
        ConfigError: Its pilot cannot be read, or has no finished run.
    """
    pilot = read_pilot(study)
    if pilot is None:
        note(f"{study.path}: names no pilot: its tables tell what difference its seeds detect")
        return study, None
    told = pilot.told(study)
    note(told)
    return attrs.evolve(study, notes=(*study.notes, f"Before it ran: {told}")), pilot


def read_pilot(study: Study) -> Pilot | None:
    """Return the pilot that a study's file names; None where it names none.

    Raises:
        ConfigError: It cannot be read, or has no finished run.
    """
    place = study.settings.pilot
    if place is None:
        return None
    try:
        comparison = compare([place], definition=study.settings.delta_m)
    except MtlError as error:
        raise ConfigError([f"{study.path}: pilot: {error}"]) from error
    if not comparison.runs:
        raise ConfigError([f"{study.path}: pilot: {place} has no finished run"])
    if study.baseline in [variant.name for variant in comparison.variants]:
        comparison = attrs.evolve(comparison, baseline=study.baseline)
    return Pilot(place, comparison)
