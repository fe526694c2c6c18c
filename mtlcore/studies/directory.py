"""A study's directory: the lock on it, what `study.json` says, and cells that may not change."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import attrs

from mtlcore.errors import MtlError, UsageError, describe
from mtlcore.storage import (
    LAST,
    STUDY,
    RunFiles,
    StoredTrial,
    changed_settings,
    stored_config,
    stored_study,
    written_whole,
)
from mtlcore.studies.cells import Cell
from mtlcore.studies.spec import Study
from mtlcore.system import locked

#: Folder of the cells by which variants are tuned: a study of its own in the study's directory.
TUNING = "tune"
_LOCK = "study.lock"
_SUMMARY = "summary.json"
_MOST_CHANGES = 5  # so many changed settings are listed per cell


def open_directory(out: str) -> Path:
    """Create a study's directory, or open that of an earlier start.

    Raises:
        UsageError: The directory is not local, holds something else, or cannot be written.
    """
    if "://" in out:
        raise UsageError(f"--out {out}: a study needs a local directory")
    folder = Path(out)
    # A study whose file was refused leaves its lock behind, one that still tunes its cells.
    used = folder.is_dir() and any(e.name not in (_LOCK, TUNING) for e in folder.iterdir())
    if used and not (folder / STUDY).exists():
        raise UsageError(f"{out}: is not empty and holds no study; choose another --out")
    make_directory(folder)
    return folder


@contextmanager
def directory_lock(folder: Path, note: Callable[[str], None]) -> Iterator[int]:
    """Lock a study's directory; yield the descriptor, which its cells hold too.

    Cells may outlive a study that was killed: the next start waits for them, and says so by
    calling `note`.
    """

    def on_wait() -> None:
        note(
            f"{folder}: another study, or the last step of a killed one, is at work there; "
            "waiting for its end"
        )

    with locked(folder / _LOCK, on_wait) as descriptor:
        yield descriptor


@final
@attrs.frozen
class StudyState:
    """The cells of a study with their states, which `study.json` keeps.

    Args:
        study: The study, as read from its file.
        folder: Its directory.
        cells: All of its cells.
        jobs: How many cells run at a time.
        threads: The number of threads of a cell whose configuration does not set it.
        trials: The trials among them, in the order in which they were begun.
    """

    study: Study
    folder: Path
    cells: list[Cell]
    jobs: int
    threads: int
    trials: list[StoredTrial]

    def write(self) -> None:
        """Write `study.json`, whole or not at all."""
        settings = self.study.settings
        used = sorted({cell.config.training.threads or 0 for cell in self.cells})
        content = {
            "name": settings.name,
            "seeds": settings.seeds,
            "baseline": self.study.baseline,
            "delta_m": settings.delta_m,
            "epoch": settings.epoch,
            "targets": settings.targets,
            "threads": self.threads,
            "notes": [
                f"Cells ran in processes of their own, up to {self.jobs} at a time with "
                f"{' or '.join(map(str, used))} compute threads; times hold for that.",
                *self.study.notes,
            ],
            "cells": [
                {
                    "variant": cell.variant,
                    "seed": cell.seed,
                    "group": cell.group,
                    "location": cell.location,
                    "status": cell.status,
                    "reason": cell.reason,
                }
                for cell in self.cells
            ],
            "search": self._search(),
        }
        write_text(self.folder / STUDY, json.dumps(content, indent=2) + "\n")

    def _search(self) -> dict[str, Any] | None:
        if self.study.search is None:
            return None
        return {
            "objectives": self.study.search.objectives,
            "trials": [
                {"name": trial.name, "parameters": trial.parameters} for trial in self.trials
            ],
        }


def threads_per_cell(folder: Path, jobs: int) -> int:
    """Return the threads of cells that set none: the first start decides for the whole study."""
    before = stored_study(str(folder))
    return max(1, available_cores() // jobs) if before is None else before.threads


def available_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def refuse_changed(folder: Path, cells: Sequence[Cell]) -> None:
    """Check that cells begun earlier still have the settings that they were begun with.

    Raises:
        UsageError: Some have others; the error lists them.
    """
    problems = []
    for cell in cells:
        directory = folder / cell.location
        if not any((directory / name).exists() for name in (LAST, _SUMMARY)):
            continue
        stored = stored_config(str(directory))
        # Who is told of a cell is no part of what it learns.
        changed = [c for c in changed_settings(stored or {}, cell.config.tree) if c != "loggers"]
        if changed:
            more = ", ..." if len(changed) > _MOST_CHANGES else ""
            problems.append(
                f"{directory}: was begun with other settings than the study now has for it "
                f"({', '.join(changed[:_MOST_CHANGES])}{more})"
            )
    if problems:
        raise UsageError(
            "\n".join(problems)
            + "\nA cell is never run twice: take the change back, remove these folders to run "
            "them anew, or choose another --out"
        )


def is_finished(folder: Path, cell: Cell) -> bool:
    """Return whether a cell has its result."""
    return (folder / cell.location / _SUMMARY).exists()


def pruned_because(folder: Path, cell: Cell) -> str | None:
    """Return why a cell was asked to stop; None where it was not, or has gone on since."""
    about = RunFiles(str(folder / cell.location)).provenance
    return str(about["reason"]) if about.get("status") == "pruned" else None


def training_seconds(folder: Path, cell: Cell) -> float:
    """Return how long a finished cell trained, in all of its starts together."""
    summary = RunFiles(str(folder / cell.location)).summary
    assert summary is not None
    return float(summary["seconds"])


def make_directory(folder: Path) -> None:
    """Create a directory, and its parents, if there is none.

    Raises:
        UsageError: It cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror})") from error


def write_text(file: Path, text: str) -> None:
    """Write a file, whole or not at all.

    Raises:
        MtlError: It cannot be written.
    """
    try:
        with written_whole(file) as partial:
            partial.write_text(text, "utf-8")
    except OSError as error:
        raise MtlError(f"{file}: cannot be written ({describe(error)})") from error
