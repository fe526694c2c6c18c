"""What a study does before its first cell runs: its folders, its cells and their configurations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tomli_w

from mtlcore.plugins import Plugins
from mtlcore.studies.cells import Cell, cells_of
from mtlcore.studies.directory import (
    TUNING,
    StudyState,
    directory_lock,
    is_finished,
    make_directory,
    open_directory,
    pruned_because,
    refuse_changed,
    threads_per_cell,
    write_text,
)
from mtlcore.studies.pilot import announce
from mtlcore.studies.searching import check_ranges, earlier_trials, with_trials
from mtlcore.studies.spec import Study, read_study
from mtlcore.studies.tuning import tuned_study, tuning_study


def prepare_study(
    plugins: Plugins, file: str, out: str, jobs: int, note: Callable[[str], None]
) -> list[str]:
    """Write the folders and configurations of a study's cells, and run none.

    `mtl run --resume --out CELL` then runs a cell, on whatever machine sees its folder. Where
    variants are tuned these are the tuning cells first, and the study's own once those have ended.

    Args:
        plugins: The plugins whose components the configurations may name.
        file: Path of the study's file.
        out: A local directory: new, empty, or that of an earlier start of this study.
        jobs: How many cells will run at a time; see `threads_per_cell`.
        note: Receives what a person should know.

    Returns:
        The directories of the cells without a result, those that others start from first.

    Raises:
        UsageError: As `run_study`.
        ConfigError: The file or a variant's configuration has mistakes.
    """
    study, _ = announce(read_study(file), note)
    folder = open_directory(out)
    with directory_lock(folder, note):
        if study.tuning is not None:
            tuning = folder / TUNING
            waiting = _prepared(tuning_study(study, study.tuning), tuning, plugins, jobs)
            if waiting:
                note(f"{file}: these cells tune the variants; prepare again when they have ended")
                return waiting
            study = tuned_study(study, study.tuning, tuning)
        if study.search is not None:
            check_ranges(study, folder, plugins)
            note(f"{file}: its trials are chosen one after the other, while it runs")
        return _prepared(study, folder, plugins, jobs)


def _prepared(study: Study, folder: Path, plugins: Plugins, jobs: int) -> list[str]:
    state = open_cells(study, folder, plugins, jobs)
    make_directory(folder)
    state.write()
    waiting = [cell for cell in state.cells if cell.status == "waiting"]
    for cell in waiting:
        write_configuration(folder, cell)
    return [str(folder / cell.location) for cell in waiting]


def open_cells(study: Study, folder: Path, plugins: Plugins, jobs: int) -> StudyState:
    """Return the cells of a study and of its trials, with what earlier starts made of them.

    Raises:
        UsageError: A cell was begun with other settings.
        ConfigError: A configuration has mistakes.
    """
    threads = threads_per_cell(folder, jobs)
    trials = earlier_trials(study, folder)
    cells = cells_of(with_trials(study, trials), folder, plugins, threads)
    refuse_changed(folder, cells)
    for cell in cells:
        if is_finished(folder, cell):
            cell.status = "finished"
        elif reason := pruned_because(folder, cell):
            cell.status, cell.reason = "pruned", reason
    return StudyState(study, folder, cells, jobs, threads, list(trials))


def write_configuration(folder: Path, cell: Cell) -> Path:
    """Write a cell's `config.toml` into its directory; return its path."""
    file = folder / cell.location / "config.toml"
    make_directory(file.parent)
    write_text(file, tomli_w.dumps(dict(cell.config.tree)))
    return file
