"""The trials of a study: asking for them, watching them, and saying which is best."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, final

import attrs
import tomli_w

from mtlcore.config import Chosen
from mtlcore.errors import ConfigError, MtlError, UsageError, describe, shown
from mtlcore.plugins import Plugins, structure
from mtlcore.report import save_front
from mtlcore.results import (
    DELTA,
    Comparison,
    compare_study,
    direction,
    evaluations,
    objectives,
    search_result,
)
from mtlcore.searchers import Choices, Searcher, Trial
from mtlcore.storage import RunFiles, StoredStudy, StoredTrial, request_stop, stored_study
from mtlcore.studies.cells import Cell, cells_of
from mtlcore.studies.directory import StudyState, make_directory, write_text
from mtlcore.studies.search_table import Search, trial_name
from mtlcore.studies.spec import Study, StudyVariant

#: The file of the best trial's configuration, and the folder of those on the Pareto front.
BEST, FRONT = "best.toml", "front"
_SECONDS = 1.0  # between two looks at the trials that run


def with_trials(study: Study, trials: Sequence[StoredTrial]) -> Study:
    """Return a study with a variant for each trial of earlier starts."""
    if study.search is None:
        return study
    variants = [_variant_of(study, trial.name, trial.parameters) for trial in trials]
    return attrs.evolve(study, variants=(*study.variants, *variants))


def earlier_trials(study: Study, folder: Path) -> tuple[StoredTrial, ...]:
    """Return the trials of earlier starts, which the study's directory holds."""
    if study.search is None:
        return ()
    before = stored_study(str(folder))
    return () if before is None or before.search is None else before.search.trials


def check_ranges(study: Study, folder: Path, plugins: Plugins) -> int:
    """Check that configurations take both ends of each range; return the cells of a trial.

    Raises:
        ConfigError: They do not.
    """
    assert study.search is not None
    space = study.search.space
    first = {path: setting.at(0.0) for path, setting in space.items()}
    trials = [first]
    for path, setting in space.items():
        ends = setting.values[1:] if isinstance(setting, Choices) else (setting.high,)
        trials += [{**first, path: value} for value in ends]
    count = 0
    for parameters in trials:
        variant = attrs.evolve(_variant_of(study, "trial", parameters), starts_from=None)
        try:
            cells = cells_of(attrs.evolve(study, variants=(variant,)), folder, plugins, threads=1)
        except ConfigError as error:
            told = ", ".join(f"{path} = {shown(value)}" for path, value in parameters.items())
            raise ConfigError(
                [*error.problems, f"{study.path}: that is a trial with {told}"]
            ) from None
        tasks = dict.fromkeys(task for cell in cells for task in cell.config.tree["tasks"])
        for objective in study.search.objectives:
            task = objective.split(".")[0]
            if objective != DELTA and task not in tasks:
                raise ConfigError(
                    [f"{study.path}: search.objectives: {objective}: the tasks are "
                     f"{', '.join(tasks)}"]
                )  # fmt: skip
        count = len(cells)
    return count


def make_searcher(plugins: Plugins, study: Study) -> Searcher:
    """Return the searcher that a study's file names.

    Raises:
        UsageError: There is none of that name, or it does not take this search.
        ConfigError: The file names none, or settings that it does not take.
    """
    search = study.search
    assert search is not None
    table = dict(search.searcher)
    if not isinstance(table.get("name"), str):
        raise ConfigError([f"{study.path}: search.searcher.name: name one of mtl list searchers"])
    component = plugins.get("searchers", table.pop("name"))
    problems: list[str] = []
    settings = structure(component.load(), table, "search.searcher", problems)
    if problems:
        raise ConfigError(f"{study.path}: {problem}" for problem in problems)
    made: Searcher = Chosen(component, settings).make(
        search.space, len(search.objectives), search.seed
    )
    return made


@final
class Trials:
    """The trials of a study that runs.

    Args:
        state: The study's cells.
        study: The study, without its trials.
        searcher: What chooses the trials' settings.
        plugins: The plugins whose components the configurations may name.
        cells_per_trial: How many cells each trial has.
    """

    def __init__(
        self,
        state: StudyState,
        study: Study,
        searcher: Searcher,
        plugins: Plugins,
        cells_per_trial: int,
    ) -> None:
        assert study.search is not None
        self._state, self._study, self._plugins = state, study, plugins
        self._search: Search = study.search
        self._searcher = searcher
        self._cells_per_trial = cells_per_trial
        self._ended: dict[str, Trial] = {}
        self._known_signs: list[int] = []
        self._looked_at = 0.0
        self._seen: dict[str, int] = {}  # trial -> its last epoch that the searcher was told of

    @property
    def cells_left(self) -> int:
        """How many cells the trials have that were not asked for yet."""
        return max(0, self._search.trials - len(self._state.trials)) * self._cells_per_trial

    def is_trial(self, cell: Cell) -> bool:
        """Return whether a cell is one of a trial."""
        return any(trial.name == cell.variant for trial in self._state.trials)

    def may_begin(self) -> bool:
        """Return whether the study's other variants have ended, which trials are compared with.

        Raises:
            MtlError: The baseline has no result, and the trials are to be compared with it.
        """
        own = [cell for cell in self._state.cells if not self.is_trial(cell)]
        if any(cell.status in ("waiting", "running") for cell in own):
            return False
        lost = [c for c in own if c.variant == self._study.baseline and c.status != "finished"]
        if lost and DELTA in self._search.objectives:
            raise MtlError(
                f"{self._study.path}: search.objectives: delta_m compares with "
                f"{self._study.baseline}, and {lost[0]} has no result: {lost[0].reason}"
            )
        return True

    def ask(self) -> list[Cell]:
        """Return the cells of the next trial.

        Raises:
            MtlError: The searcher gave values that are in no range, or raised an error.
        """
        number = len(self._state.trials)
        chosen = dict(self._searcher.ask(number, self._fitting(self._all())))
        if not self._search.fits(chosen):
            raise MtlError(
                f"search.searcher.name: {self._search.searcher['name']} chose {shown(chosen)}, "
                "which is not in search.ranges"
            )
        trial = StoredTrial(name=trial_name(number), parameters=chosen)
        variant = _variant_of(self._study, trial.name, trial.parameters)
        part = attrs.evolve(self._study, variants=(variant,))
        cells = cells_of(part, self._state.folder, self._plugins, self._state.threads)
        self._state.trials.append(trial)
        self._state.cells.extend(cells)
        self._state.write()
        return cells

    def look(self) -> None:
        """Ask the searcher about trials with a new evaluation, and stop those that it prunes."""
        if len(self._search.objectives) > 1 or time.monotonic() - self._looked_at < _SECONDS:
            return
        self._looked_at = time.monotonic()
        running = {c.variant for c in self._state.cells if c.status == "running"}
        for trial in self._state.trials:
            if trial.name in running:
                self._look_at(trial.name)

    def given_up(self, waiting: Sequence[Cell]) -> Iterator[Cell]:
        """Yield the waiting cells of trials that were pruned, each marked so."""
        pruned = {c.variant for c in self._state.cells if c.status == "pruned" and self.is_trial(c)}
        for cell in waiting:
            if cell.variant in pruned:
                cell.status, cell.reason = "pruned", "its trial was pruned"
                make_directory(self._state.folder / cell.location)
                yield cell

    def write_best(self) -> str | None:
        """Write the configurations of the best trials; return what to say of them."""
        result = search_result(compare_study(self._stored()))
        front = () if result is None else result.front
        if result is None or not front:
            return None
        if len(result.objectives) == 1:
            self._write(front[0].name, Path(BEST))
            value = f"{result.objectives[0]} {front[0].values[0]:.4g}"
            place = self._state.folder / BEST
            return f"best: {front[0].name} with {value}; mtl run {place} trains with its settings"
        for one in front:
            self._write(one.name, Path(FRONT) / f"{one.name}.toml")
        picture = self._state.folder / f"{FRONT}.svg"
        try:
            drawn = save_front(picture, result)
        except OSError as error:
            raise MtlError(f"{picture}: cannot be written ({describe(error)})") from error
        names = ", ".join(one.name for one in front)
        places = f"{self._state.folder / FRONT}{f', the picture is {picture}' if drawn else ''}"
        return f"Pareto front: {names}; their settings are in {places}"

    def _write(self, trial: str, file: Path) -> None:
        cell = next(c for c in self._state.cells if c.variant == trial)
        place = self._state.folder / file
        make_directory(place.parent)
        note = f"# {trial} of {self._study.settings.name}\n"
        write_text(place, note + tomli_w.dumps(dict(cell.config.tree)))

    def _look_at(self, name: str) -> None:
        running = self._trial(name)
        last = max(running.intermediate, default=0)
        if last <= self._seen.get(name, 0):
            return
        self._seen[name] = last
        others = [trial for trial in self._all() if trial.number != running.number]
        if not self._searcher.prunes(running, self._fitting(others)):
            return
        reason = f"{self._search.objectives[0]} leads nowhere, as the searcher thinks"
        for cell in self._cells(name):
            with suppress(UsageError):  # it may have ended just now
                request_stop(str(self._state.folder / cell.location), reason)

    def _fitting(self, trials: Sequence[Trial]) -> list[Trial]:
        return [trial for trial in trials if self._search.fits(trial.parameters)]

    def _all(self) -> list[Trial]:
        return [self._trial(trial.name) for trial in self._state.trials]

    def _trial(self, name: str) -> Trial:
        if name in self._ended:
            return self._ended[name]
        cells = self._cells(name)
        statuses = {str(cell.status) for cell in cells}
        comparison = compare_study(self._stored((name, self._study.baseline)))
        trial = Trial(
            number=[one.name for one in self._state.trials].index(name),
            parameters=next(t.parameters for t in self._state.trials if t.name == name),
            status="running",
            intermediate=self._intermediate(comparison, cells),
        )
        if not statuses & {"waiting", "running"}:
            trial = self._ended[name] = self._judged(trial, comparison, statuses)
        return trial

    def _judged(self, trial: Trial, comparison: Comparison, statuses: set[str]) -> Trial:
        if "pruned" in statuses:
            return attrs.evolve(trial, status="pruned")
        if statuses != {"finished"}:
            return attrs.evolve(trial, status="failed")
        assert comparison.search is not None
        values = objectives(comparison, comparison.variant(trial_name(trial.number)),
                            comparison.search)  # fmt: skip
        signs = self._signs()
        if not all(map(math.isfinite, values)):
            return attrs.evolve(trial, status="failed")
        costs = tuple(sign * value for sign, value in zip(signs, values, strict=True))
        return attrs.evolve(trial, status="finished", values=costs)

    def _intermediate(self, comparison: Comparison, cells: Sequence[Cell]) -> Mapping[int, float]:
        signs = self._signs()
        if len(self._search.objectives) > 1 or not signs:
            return {}
        (objective,) = self._search.objectives
        by_seed: dict[int, list[RunFiles]] = {}
        for cell in cells:
            files = RunFiles(str(self._state.folder / cell.location))
            by_seed.setdefault(cell.seed, []).append(files)
        found = evaluations(comparison, by_seed, objective)
        return {epoch: signs[0] * value for epoch, value in found.items() if math.isfinite(value)}

    def _signs(self) -> Sequence[int]:
        """Return what makes lower better of each objective; nothing before a run tells that."""
        if not self._known_signs:
            comparison = compare_study(self._stored())
            if comparison.runs:
                better = [direction(comparison, one) for one in self._search.objectives]
                self._known_signs = [-1 if higher else 1 for higher in better]
        return self._known_signs

    def _cells(self, name: str) -> list[Cell]:
        return [cell for cell in self._state.cells if cell.variant == name]

    def _stored(self, names: Sequence[str] | None = None) -> StoredStudy:
        """Return the study as its directory has it, or its cells of these variants alone."""
        stored = stored_study(str(self._state.folder))
        assert stored is not None
        if names is None:
            return stored
        return attrs.evolve(stored, cells=tuple(c for c in stored.cells if c.variant in names))


def _variant_of(study: Study, name: str, parameters: Mapping[str, Any]) -> StudyVariant:
    assert study.search is not None
    searched = study.search.variant
    under = next(
        (variant for variant in study.variants if variant.name == searched),
        StudyVariant(name=name, plugins=(), settings={}, single_task=False),
    )
    return attrs.evolve(under, name=name, tuned=_tables_of(parameters))


def _tables_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in parameters.items():
        *parents, last = path.split(".")
        table = tree
        for parent in parents:
            table = table.setdefault(parent, {})
        table[last] = value
    return tree
