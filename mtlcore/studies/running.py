"""Running a study: which cell is next, and what becomes of each."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mtlcore.config import Chosen
from mtlcore.display import Outlook, StudyDisplay, clock
from mtlcore.errors import ConfigError, Interrupted, Pruned
from mtlcore.launchers import CellCommand, CellExit, Launcher
from mtlcore.plugins import Plugins, structure
from mtlcore.results import Comparison, compare, write_tables
from mtlcore.studies.cells import Cell
from mtlcore.studies.directory import (
    TUNING,
    StudyState,
    available_cores,
    directory_lock,
    is_finished,
    make_directory,
    open_directory,
    training_seconds,
)
from mtlcore.studies.pilot import announce
from mtlcore.studies.preparation import open_cells, write_configuration
from mtlcore.studies.searching import Trials, check_ranges, make_searcher
from mtlcore.studies.spec import Study, read_study
from mtlcore.studies.tuning import tuned_study, tuning_study

#: The file of a cell's output, in its directory.
LOG = "log.txt"
_OF_TRIALS = "trial"  # the kind of cells whose trials were not asked for yet


def run_study(
    plugins: Plugins,
    file: str,
    out: str,
    jobs: int,
    display: StudyDisplay,
    blocked: Sequence[str] = (),
    launcher: str | None = None,
) -> Comparison:
    """Run the unfinished cells of a study and write its tables.

    Args:
        plugins: The plugins whose components the configurations may name.
        file: Path of the study's file.
        out: A local directory: new, empty, or that of an earlier start of this study.
        jobs: How many cells run at a time.
        display: Shows the progress.
        blocked: Ids of plugins that the cells must not load either.
        launcher: Name of what starts the cells; None: that of the file.

    Returns:
        The comparison that the tables show.

    Raises:
        UsageError: The directory holds something else, or a cell begun with other settings; or
            the platform has no file locks.
        ConfigError: The file or a variant's configuration has mistakes.
        Interrupted: A signal asked to stop; the cells have saved.
    """
    study, pilot = announce(read_study(file), display.note)
    folder = open_directory(out)
    options = [word for plugin in blocked for word in ("--no-plugin", plugin)]
    command = (*options, "run", *(("--trust",) if plugins.trusts_runs else ()))

    def run(part: Study, directory: Path, lock: int) -> Comparison:
        searcher, cells_per_trial = None, 0
        if part.search is not None:
            cells_per_trial = check_ranges(part, directory, plugins)
            searcher = make_searcher(plugins, part)
        state = open_cells(part, directory, plugins, jobs)
        # Not before: the configurations of cells name plugin files, which may bring it.
        chosen = _chosen_launcher(plugins, part, launcher)
        make_directory(directory)
        state.write()
        _warn_of_threads(state.cells, jobs, display)
        waiting = sum(cell.status != "finished" for cell in state.cells)
        if pilot is not None and waiting:
            display.note(pilot.duration(waiting, jobs))
        trials = None
        if searcher is not None:
            trials = Trials(state, part, searcher, plugins, cells_per_trial)
        started = chosen.make(directory, lock)
        try:
            _run_cells(state, started, command, display, out, trials)
        finally:
            started.close()
        comparison = compare([str(directory)])
        write_tables(comparison, directory)
        return comparison

    with directory_lock(folder, display.note) as lock:
        if study.tuning is not None:
            run(tuning_study(study, study.tuning), folder / TUNING, lock)
            study = tuned_study(study, study.tuning, folder / TUNING)
        return run(study, folder, lock)


def _chosen_launcher(plugins: Plugins, study: Study, name: str | None) -> Chosen:
    """Return the launcher that is named here, or else in the study's file.

    Raises:
        UsageError: There is none of that name.
        ConfigError: The file names none, or settings that it does not take.
    """
    table = dict(study.settings.launcher)
    if name not in (None, table.get("name")):
        table = {"name": name}
    if not isinstance(table.get("name"), str):
        raise ConfigError([f"{study.path}: launcher.name: name one of mtl list launchers"])
    component = plugins.get("launchers", table.pop("name"))
    problems: list[str] = []
    settings = structure(component.load(), table, "launcher", problems)
    if problems:
        raise ConfigError(f"{study.path}: {problem}" for problem in problems)
    return Chosen(component, settings)


def _warn_of_threads(cells: Sequence[Cell], jobs: int, display: StudyDisplay) -> None:
    threads, cores = (
        jobs * max((cell.config.training.threads or 1 for cell in cells), default=1),
        available_cores(),
    )
    if threads > cores:
        display.note(
            f"{jobs} cells at a time have {threads} threads on {cores} cores: they will wait for "
            "each other; fewer --jobs, or a smaller training.threads, would not be slower"
        )


def _run_cells(
    state: StudyState,
    launcher: Launcher,
    command: Sequence[str],
    display: StudyDisplay,
    out: str,
    trials: Trials | None,
) -> None:
    by_location = {cell.location: cell for cell in state.cells}
    waiting = [cell for cell in state.cells if cell.status not in ("finished", "pruned")]
    running: set[str] = set()
    losses: Counter[str] = Counter()
    outlook = Outlook([cell.kind for cell in waiting], len(state.cells) - len(waiting), state.jobs)
    if trials is not None:
        outlook.expect([_OF_TRIALS] * trials.cells_left)
    for cell in state.cells:
        if cell.status == "finished":
            outlook.took(cell.kind, training_seconds(state.folder, cell))
    try:
        with display:
            display.start(state.study.settings.name, outlook)
            while True:
                for cell in _impossible(waiting, by_location):
                    waiting.remove(cell)
                    _fail_without_source(cell, by_location, state)
                    outlook.started(str(cell), cell.kind)
                    outlook.ended(str(cell))
                    display.ended(f"{cell}: failed: {cell.reason}")
                if trials is not None:
                    for cell in list(trials.given_up(waiting)):
                        waiting.remove(cell)
                        state.write()
                        outlook.started(str(cell), cell.kind)
                        outlook.ended(str(cell))
                    while _has_room(trials, len(waiting) + len(running), state.jobs):
                        asked = trials.ask()
                        waiting += asked
                        by_location |= {cell.location: cell for cell in asked}
                        outlook.named(_OF_TRIALS, [cell.kind for cell in asked])
                if not (waiting or running):
                    break
                for cell in _ready(waiting, by_location)[: state.jobs - len(running)]:
                    waiting.remove(cell)
                    _start(cell, state, launcher, command)
                    running.add(cell.location)  # not before: a signal may come while it starts
                    outlook.started(str(cell), cell.kind)
                for cell_exit in _wait(launcher, trials) if running else ():
                    running.remove(cell_exit.location)
                    cell = by_location[cell_exit.location]
                    losses[cell.location] += cell_exit.lost
                    if cell_exit.lost and losses[cell.location] <= state.study.settings.restarts:
                        _wait_again(cell, state)
                        waiting.insert(0, cell)
                        outlook.lost(str(cell))
                        display.note(f"{cell}: lost, and begun again: {cell_exit.reason}")
                        continue
                    _conclude(cell, cell_exit, state)
                    outlook.ended(str(cell))
                    if cell.status == "finished":
                        # Of a cell that went on, this process did the rest only.
                        seconds = training_seconds(state.folder, cell)
                        outlook.took(cell.kind, max(cell_exit.seconds, seconds))
                    display.ended(f"{cell}: {_outcome(cell, cell_exit, state)}")
            if trials is not None and (best := trials.write_best()):
                display.note(best)
    except KeyboardInterrupt as error:
        display.note("stopping: the cells finish their step and save; once more stops at once")
        for cell_exit in _stop(launcher, running):
            _conclude(by_location[cell_exit.location], cell_exit, state, asked=True)
        left = sum(cell.status != "finished" for cell in state.cells)
        left += 0 if trials is None else trials.cells_left
        total = len(state.cells) + (0 if trials is None else trials.cells_left)
        raise Interrupted(
            f"stopped with {left} of {total} cells to do; what was done is saved. Go "
            f"on with: mtl study {state.study.path} --out {out}"
        ) from error


def _has_room(trials: Trials, cells: int, jobs: int) -> bool:
    """Return whether the next trial may begin beside so many cells."""
    return trials.cells_left > 0 and cells < jobs and trials.may_begin()


def _wait(launcher: Launcher, trials: Trials | None = None) -> Sequence[CellExit]:
    """Wait until one of the running cells ends; look at trials meanwhile."""
    while not (exits := launcher.poll()):
        if trials is not None:
            trials.look()
        time.sleep(launcher.poll_seconds)
    return exits


def _stop(launcher: Launcher, running: set[str]) -> Iterator[CellExit]:
    """Let all cells finish their step and save; a signal meanwhile stops them at once."""
    launcher.stop()
    while running:
        try:
            exits = _wait(launcher)
        except KeyboardInterrupt:
            launcher.stop_at_once()
            continue
        for cell_exit in exits:
            running.remove(cell_exit.location)
            yield cell_exit


def _ready(waiting: Sequence[Cell], cells: Mapping[str, Cell]) -> list[Cell]:
    """Return the cells that start from no other, or from a finished one."""
    return [c for c in waiting if c.source is None or cells[c.source].status == "finished"]


def _impossible(waiting: Sequence[Cell], cells: Mapping[str, Cell]) -> list[Cell]:
    """Return the cells that start from one that ended without a result."""
    ended = ("failed", "interrupted", "pruned")
    return [c for c in waiting if c.source is not None and cells[c.source].status in ended]


def _fail_without_source(cell: Cell, cells: Mapping[str, Cell], state: StudyState) -> None:
    assert cell.source is not None
    cell.status, cell.reason = "failed", f"it starts from {cells[cell.source]}, which has no result"
    make_directory(state.folder / cell.location)
    state.write()


def _start(cell: Cell, state: StudyState, launcher: Launcher, command: Sequence[str]) -> None:
    directory = state.folder / cell.location
    config = write_configuration(state.folder, cell)
    cell.status, cell.reason = "running", None
    state.write()
    # Cells that are not to outlive the study, or a process beside them, heed their input's end.
    heeds_input = launcher.holds_input or not launcher.outlives
    module = "mtlcore.cli.study_cell" if heeds_input else "mtlcore"
    launcher.start(
        CellCommand(
            location=cell.location,
            arguments=(sys.executable, "-m", module, *command,
                       str(config), "--out", str(directory), "--resume"),
            log=directory / LOG,
            threads=cell.config.training.threads or 1,
        )
    )  # fmt: skip


def _wait_again(cell: Cell, state: StudyState) -> None:
    cell.status = "waiting"
    state.write()


def _conclude(cell: Cell, cell_exit: CellExit, state: StudyState, asked: bool = False) -> None:
    """Record how a cell ended; `asked` says that the study told it to stop."""
    if cell_exit.code == 0 and is_finished(state.folder, cell):
        cell.status = "finished"
    elif cell_exit.code == 0:
        cell.status, cell.reason = "failed", "it ended with status 0 and has no result"
    else:
        interrupted = asked or cell_exit.code == Interrupted.exit_code
        cell.status = "interrupted" if interrupted else "failed"
        if cell_exit.code == Pruned.exit_code:
            cell.status = "pruned"
        cell.reason = cell_exit.reason
    state.write()


def _outcome(cell: Cell, cell_exit: CellExit, state: StudyState) -> str:
    if cell.status == "finished":
        return f"finished in {clock(cell_exit.seconds)}"
    return f"{cell.status}: {cell.reason} (see {state.folder / cell.location / LOG})"
