"""Reading a study's directory: what `study.json` tells of its cells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import attrs

from mtlcore.storage.run_files import place_inside, read_json
from mtlcore.storage.schemas import StudyFile

#: The file in which a study describes itself.
STUDY = "study.json"


@final
@attrs.frozen(kw_only=True)
class StoredCell:
    """One run of a study.

    Args:
        variant: Name of its variant.
        seed: Seed of the run.
        group: Its tasks where the variant has several runs per seed, else None.
        location: Directory or URL of the run.
        status: What became of it: "waiting", "running", "finished", "failed", "interrupted" or
            "pruned".
        reason: Why it has no result; None where it has one, or has not ended.
    """

    variant: str
    seed: int
    group: tuple[str, ...] | None
    location: str
    status: str
    reason: str | None


@final
@attrs.frozen(kw_only=True)
class StoredTrial:
    """A trial of a study.

    Args:
        name: Of its variant.
        parameters: Path of each setting that was chosen -> its value.
    """

    name: str
    parameters: Mapping[str, Any]


@final
@attrs.frozen(kw_only=True)
class StoredSearch:
    """The search of a study.

    Args:
        objectives: What is to become best: "delta_m", or metrics as "task.metric".
        trials: In the order in which they were begun.
    """

    objectives: tuple[str, ...]
    trials: tuple[StoredTrial, ...]


@final
@attrs.frozen(kw_only=True)
class StoredStudy:
    """A study, finished or not.

    Args:
        name: Title of its tables.
        baseline: Variant that the others are compared with.
        delta_m: Name of the definition of delta_m.
        epoch: "last" or "best": the evaluations whose metrics are compared.
        targets: Targets as `task.metric=value`.
        notes: What a reader of its tables should know, one sentence each.
        threads: Threads of a cell whose configuration does not say.
        cells: Its runs, in order.
        search: What its trials are; None: it has no search.
    """

    name: str
    baseline: str
    delta_m: str
    epoch: str
    targets: tuple[str, ...]
    notes: tuple[str, ...]
    threads: int
    cells: tuple[StoredCell, ...]
    search: StoredSearch | None = None


def study_of(location: str) -> tuple[StoredStudy, StoredCell] | None:
    """Return the study that a run is a cell of, and the cell; None where it is none.

    Args:
        location: Path of the run's directory; studies are local, so a URL is none's.

    Raises:
        MtlError: The study's file is damaged.
    """
    if "://" in location:
        return None
    run = Path(location).resolve()
    for folder in run.parents:
        if (folder / STUDY).is_file():
            study = stored_study(str(folder))
            for cell in study.cells if study else ():
                if study and Path(cell.location).resolve() == run:
                    return study, cell
    return None


def stored_study(location: str) -> StoredStudy | None:
    """Return the study in a directory, None where there is none.

    Args:
        location: Path or fsspec URL of the directory.

    Raises:
        UsageError: It cannot be read.
        MtlError: It is damaged.
    """
    location = location.rstrip("/")
    content = read_json(f"{location}/{STUDY}", StudyFile)
    if content is None:
        return None
    return StoredStudy(
        name=content["name"],
        baseline=content["baseline"],
        delta_m=content["delta_m"],
        epoch=content["epoch"],
        targets=tuple(content["targets"]),
        notes=tuple(content["notes"]),
        threads=content["threads"],
        cells=tuple(
            StoredCell(
                variant=cell["variant"],
                seed=cell["seed"],
                group=None if cell["group"] is None else tuple(cell["group"]),
                location=place_inside(location, cell["location"]),
                status=cell["status"],
                reason=cell["reason"],
            )
            for cell in content["cells"]
        ),
        search=_search_of(content),
    )


def _search_of(content: StudyFile) -> StoredSearch | None:
    search = content.get("search")
    if search is None:
        return None
    return StoredSearch(
        objectives=tuple(search["objectives"]),
        trials=tuple(
            StoredTrial(name=trial["name"], parameters=trial["parameters"])
            for trial in search["trials"]
        ),
    )
