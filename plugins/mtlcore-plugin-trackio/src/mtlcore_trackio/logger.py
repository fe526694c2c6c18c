"""The logger: rows of Trackio's local store, each with a name of its own.

What is there under such a name is not written again, so that a run may be told twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

import trackio
from trackio.sqlite_storage import SQLiteStorage

from mtlcore.ranges import Name
from mtlcore.storage import (
    Record,
    RunInfo,
    RunLogger,
    RunOutcome,
    flatten,
    result_values,
    tag_of,
    without_nan,
)


@final
class Trackio(RunLogger):
    """Runs in Trackio's local store, which `trackio show` shows.

    `rmse` of the task depth on the validation split is `val/depth/rmse`. The study of a run is its
    group. Nothing leaves the machine; `trackio sync` sends a project to a Space.

    Args:
        project: Name of the project.
    """

    # The store is locked while another run writes to it.
    in_background = True

    def __init__(self, *, project: Name = "mtlcore") -> None:
        SQLiteStorage.validate_project_name(project)
        self._project = project
        self._run: RunInfo
        self._config: dict[str, Any]
        self._lines = 0  # that were told, in all starts together
        self._step = 0  # of the last one

    def start(self, run: RunInfo) -> None:
        """Begin with a run; what the store lacks of its kept lines is written at once."""
        self._run = run
        began = datetime.fromtimestamp(run.began, UTC).isoformat()
        self._config = {
            **flatten(run.config),
            "origins": dict(run.origins),
            "run": dict(run.about),
            # As Trackio's own client names them.
            "_Group": run.group,
            "_Created": began,
        }
        self._write([{"epoch": 0}], [0], [run.began], ["start"])
        self.record(run.kept())

    def record(self, lines: Sequence[Record]) -> None:
        """Write a row for the lines of one step and split."""
        rows, steps, times, names = [], [], [], []
        for (step, _), group in itertools.groupby(lines, lambda x: (x["step"], x["split"])):
            of_step = list(group)
            first = of_step[0]
            values = {tag_of(line): line["value"] for line in of_step}
            rows.append({**values, "epoch": first["epoch"], "seconds": first["seconds"]})
            steps.append(step)
            times.append(self._run.began + first["seconds"])
            names.append(f"line-{self._lines}")
            self._lines += len(of_step)
            self._step = step
        self._write(rows, steps, times, names)

    def finish(self, outcome: RunOutcome) -> None:
        """Write how the run ended, its results and its pictures."""
        summary = outcome.summary
        self._config |= {
            "outcome": outcome.status,
            "reason": outcome.reason,
            "summary": without_nan(summary) if summary is not None else None,
        }
        results = result_values(summary or {})
        self._write([results], [self._step], [datetime.now(UTC).timestamp()], ["results"])
        name = "pictures"
        if outcome.pictures and not self._has(outcome.pictures[0]):
            shown = {self._tag(file): self._shown(file) for file in outcome.pictures}
            self._write([shown], [self._step], [datetime.now(UTC).timestamp()], [name])

    def _write(
        self,
        rows: Sequence[Mapping[str, Any]],
        steps: Sequence[int],
        times: Sequence[float],
        names: Sequence[str],
    ) -> None:
        SQLiteStorage.bulk_log(
            self._project,
            self._run.name,
            [dict(row) for row in rows],
            steps=list(steps),
            timestamps=[datetime.fromtimestamp(when, UTC).isoformat() for when in times],
            config=self._config,
            log_ids=[f"{self._run.id}-{name}" for name in names],
            run_id=self._run.id,
        )

    def _tag(self, picture: Path) -> str:
        return picture.relative_to(self._run.directory).with_suffix("").as_posix()

    def _has(self, picture: Path) -> bool:
        rows = SQLiteStorage.get_logs(self._project, self._run.name, run_id=self._run.id)
        return any(self._tag(picture) in row for row in rows)

    def _shown(self, picture: Path) -> dict[str, Any]:
        """Copy a picture into the store; return what a row has of it."""
        media = (
            trackio.Html(picture.read_text("utf-8"))
            if picture.suffix == ".svg"
            else (trackio.Image(picture))
        )
        media._save(self._project, self._run.name, self._step)
        shown: dict[str, Any] = media._to_dict()
        return shown
