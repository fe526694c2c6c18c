"""The logger: a run at Weights & Biases, whose identity is that of mtlcore's run.

A row's number, wandb's own step, is that of its first line in `metrics.jsonl`. It tells which rows
of a run that goes on wandb has already; charts show training steps instead.
"""

from __future__ import annotations

import atexit
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, final

import wandb
from wandb.sdk.lib.service.service_connection import ServiceConnection
from wandb.sdk.lib.wbauth import authenticate_session

from mtlcore.errors import MtlError
from mtlcore.ranges import Name
from mtlcore.storage import (
    Record,
    RunInfo,
    RunLogger,
    RunOutcome,
    result_values,
    tag_of,
    without_nan,
)

_START_SECONDS, _FINISH_SECONDS = 60.0, 600.0


@final
class WeightsAndBiases(RunLogger):
    """Runs at Weights & Biases, or in files that `wandb sync` sends there.

    `rmse` of the task depth on the validation split is `val/depth/rmse`. The study of a run is its
    group. Who is logged in, or the variable `WANDB_API_KEY`, says whose account it is.

    Args:
        project: Name of the project.
        entity: User or team that has the project; unset: the account's default.
        mode: "online" sends as the run goes on; "offline" writes files for `wandb sync`; unset:
            what the variable `WANDB_MODE` says, or else "online".
    """

    in_background = True

    def __init__(
        self,
        *,
        project: Name = "mtlcore",
        entity: str | None = None,
        mode: Literal["online", "offline"] | None = None,
    ) -> None:
        self._project, self._entity, self._mode = project, entity, mode
        self._told: RunInfo
        self._run: wandb.Run
        self._service: ServiceConnection
        self._lines = 0  # that were told, in all starts together
        self._ended = False

    def start(self, run: RunInfo) -> None:
        """Begin wandb's run, or go on with it; send what it lacks of the kept lines."""
        self._told = run
        settings = wandb.Settings(
            console="off",  # what a run prints is the core's
            silent=True,
            save_code=False,
            init_timeout=_START_SECONDS,
            finish_timeout=_FINISH_SECONDS,
            finish_timeout_raises=True,
        )
        known = wandb.setup().settings  # of files; of variables, as they once were
        mode = self._mode or os.environ.get("WANDB_MODE") or known.mode
        if mode == "online":
            _check_logged_in(known.base_url)
        self._service = wandb.setup().ensure_service()
        atexit.register(self._let_go)  # before what wandb does then
        self._run = wandb.init(
            entity=self._entity,
            project=self._project,
            group=run.group,
            name=run.name,
            id=run.id,
            config={**run.config, "origins": dict(run.origins), "run": dict(run.about)},
            allow_val_change=True,
            mode=mode,
            dir=os.environ.get("WANDB_DIR"),
            # Files of an earlier start say nothing here, and are replaced by these when synced.
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            settings=settings,
        )
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        self.record(run.kept())

    def record(self, lines: Sequence[Record]) -> None:
        """Send a row for the lines of one step and split."""
        for (step, _), group in itertools.groupby(lines, lambda x: (x["step"], x["split"])):
            of_step = list(group)
            values = {tag_of(line): line["value"] for line in of_step}
            first = of_step[0]
            self._send({**values, "step": step, "epoch": first["epoch"],
                        "seconds": first["seconds"]})  # fmt: skip
            self._lines += len(of_step)

    def finish(self, outcome: RunOutcome) -> None:
        """Send how the run ended, its results and its pictures; wait until all is sent."""
        if outcome.pictures:
            self._send({self._tag(file): _shown(file) for file in outcome.pictures})
        results = result_values(outcome.summary or {})
        self._run.summary.update({**results, "outcome": outcome.status, "reason": outcome.reason})
        if outcome.summary is not None:
            self._run.summary.update({"summary": without_nan(outcome.summary)})
        self._run.finish(exit_code=0 if outcome.status in ("finished", "pruned") else 1)
        self._ended = True
        atexit.unregister(self._let_go)

    def _let_go(self) -> None:
        """Let the program end, where wandb would go on trying to reach its server for hours.

        Its process, which has all that it was told in files, tries on by itself.
        """
        if not self._ended and self._service._cleanup is not None:
            self._service._cleanup()

    def _send(self, row: dict[str, Any]) -> None:
        if self._lines >= self._run.starting_step:  # wandb has those before
            self._run.log(row, step=self._lines, commit=True)

    def _tag(self, picture: Path) -> str:
        return picture.relative_to(self._told.directory).with_suffix("").as_posix()


def _check_logged_in(host: str) -> None:
    """Refuse to go on where wandb would ask for a key.

    Raises:
        MtlError: Nobody is logged in.
    """
    if authenticate_session(host=host, source="mtlcore", prompt=False) is None:
        raise MtlError(
            f"nobody is logged in at {host}: wandb login, or set WANDB_API_KEY, or "
            "WANDB_MODE=offline"
        )


def _shown(picture: Path) -> Any:
    """Return a picture as wandb shows it."""
    if picture.suffix == ".svg":
        return wandb.Html(picture.read_text("utf-8"))
    return wandb.Image(str(picture))
