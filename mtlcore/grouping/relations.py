"""What tasks do to one another, as a table of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import final

import attrs

from mtlcore.errors import UsageError
from mtlcore.results import Difference, RunResult, read_run
from mtlcore.storage import stored_study

#: A task, and the one that it does something to.
Pair = tuple[str, str]


@final
@attrs.frozen(kw_only=True)
class Relations:
    """A table of K x K numbers, each over the runs that measured it.

    Args:
        measure: What the numbers are, as a heading.
        tasks: The K tasks, in order.
        values: (source, target) -> what the source does to the target, higher is better: its mean
            over runs, with Student's 95 % interval.
        directed: Whether the two directions of a pair differ.
    """

    measure: str
    tasks: tuple[str, ...]
    values: Mapping[Pair, Difference]
    directed: bool

    def __attrs_post_init__(self) -> None:
        missing = [
            f"{source} -> {target}" if self.directed else f"{source} and {target}"
            for number, source in enumerate(self.tasks)
            for target in (self.tasks if self.directed else self.tasks[number:])
            if source != target and not math.isfinite(self.mean(source, target))
        ]
        if len(self.tasks) < 2:
            raise UsageError(f"{self.measure}: there is one task only, {', '.join(self.tasks)}")
        if missing:
            raise UsageError(f"{self.measure}: nothing was measured of {', '.join(missing)}")

    def mean(self, source: str, target: str) -> float:
        """Return the mean over runs; NaN where nothing was measured."""
        value = self.values.get((source, target))
        return math.nan if value is None else value.mean


def over_runs(
    measure: str,
    tasks: Sequence[str],
    measured: Iterable[tuple[Pair, int, float]],
    *,
    directed: bool,
) -> Relations:
    """Return a table of what single runs measured.

    Args:
        measure: What the numbers are.
        tasks: All tasks.
        measured: Pair, number of the run, and value.
        directed: Whether the directions of a pair differ; if not, a value counts for both.

    Raises:
        UsageError: There are fewer than two tasks, or nothing was measured of a pair.
    """
    values: dict[Pair, dict[int, float]] = {}
    for (source, target), run, value in measured:
        values.setdefault((source, target), {})[run] = value
        if not directed:
            values.setdefault((target, source), {})[run] = value
    return Relations(
        measure=measure,
        tasks=tuple(tasks),
        values={pair: Difference(of_runs) for pair, of_runs in values.items()},
        directed=directed,
    )


def finished_runs(locations: Iterable[str]) -> list[RunResult]:
    """Return the runs at these places; of a study, all that are finished.

    Raises:
        UsageError: There is no run, or it is not finished; a study has none that is.
        MtlError: A file is damaged.
    """
    runs = []
    for location in locations:
        study = stored_study(location)
        if study is None:
            runs.append(read_run(location))
            continue
        cells = [cell.location for cell in study.cells if cell.status == "finished"]
        if not cells:
            raise UsageError(f"{location}: no run of this study is finished")
        runs += map(read_run, cells)
    return runs
