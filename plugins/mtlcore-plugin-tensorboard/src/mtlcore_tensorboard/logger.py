"""The logger: event files, in which every start of a run has one of its own.

A start writes at which step it goes on, and TensorBoard leaves out what earlier files have of that
step and of later ones. So lines that come again replace those of before.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import final

import tomli_w
from PIL import Image
from tensorboard.compat import tf
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from mtlcore.config import annotated
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

_ENDS = {
    "finished": api_pb2.STATUS_SUCCESS,
    "interrupted": api_pb2.STATUS_UNKNOWN,
    "pruned": api_pb2.STATUS_UNKNOWN,
    "failed": api_pb2.STATUS_FAILURE,
}
# Settings that are no hyperparameters: where things are, and who is told.
_NO_HYPERPARAMETERS = ("plugins", "loggers", "data.root", "data.workers", "data.cache")


@final
class TensorBoard(RunLogger):
    """Event files that TensorBoard shows.

    `rmse` of the task depth on the validation split is the scalar `val/depth/rmse`. Configuration
    and results are texts, settings hyperparameters, the PNG files of the report images. Values have
    the single precision of event files.

    Args:
        folder: Folder or URL in which each run has a folder, inside that of its study; unset:
            `tensorboard` in the run's own directory.
    """

    def __init__(self, *, folder: str | None = None) -> None:
        self._folder = folder
        self._run: RunInfo
        self._writer: EventFileWriter
        self._step = -1  # of the last line

    def start(self, run: RunInfo) -> None:
        """Begin an event file; what no earlier one has of the run is written at once."""
        place = self._place(run)
        known = bool(tf.io.gfile.glob(f"{place}/events.out.tfevents.*"))
        self._run, self._writer = run, EventFileWriter(place)
        missing = run.kept()
        if known:
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=run.step, session_log=start))
            # The step at which it goes on is left out whole, and some of its lines may be kept.
            missing = tuple(line for line in missing if line["step"] >= run.step)
        if not known or run.step == 0:
            self._describe()
        self.record(missing)

    def record(self, lines: Sequence[Record]) -> None:
        """Write a scalar for each line, and the epoch of each step."""
        for line in lines:
            seconds = line["seconds"]
            if line["step"] != self._step:
                self._step = line["step"]
                self._scalar("epoch", line["epoch"], seconds)
            self._scalar(tag_of(line), line["value"], seconds)
        self._writer.flush()

    def finish(self, outcome: RunOutcome) -> None:
        """Write how the run ended, its results and its pictures."""
        why = f": {outcome.reason}" if outcome.reason else ""
        self._add(text_pb("outcome", f"{outcome.status}{why}"))
        if outcome.summary is not None:
            self._add(text_pb("summary", _code(json.dumps(without_nan(outcome.summary), indent=2))))
            for tag, value in result_values(outcome.summary).items():
                self._scalar(tag, value)
        for file in outcome.pictures:
            if file.suffix != ".svg":  # TensorBoard shows none; its charts are the curves
                self._picture(file)
        self._add(_end_of_session(_ENDS[outcome.status]))
        self._writer.close()

    def _place(self, run: RunInfo) -> str:
        if self._folder is None:
            return str(run.directory / "tensorboard")
        # Two runs may have a name in common.
        names = (run.group, f"{run.name}-{run.id[:8]}")
        return "/".join((self._folder, *(name.replace("/", "-") for name in names if name)))

    def _describe(self) -> None:
        """Write the configuration, for people and as hyperparameters."""
        run = self._run
        config = annotated(tomli_w.dumps(dict(run.config)), run.origins)
        self._add(text_pb("config", _code(config)), step=0)
        self._add(text_pb("run", _code(json.dumps(run.about, indent=2))), step=0)
        settings = {
            path: value if isinstance(value, bool | int | float | str) else str(value)
            for path, value in flatten(run.config).items()
            if path not in _NO_HYPERPARAMETERS
        }
        self._add(summary_v2.hparams_pb(settings, trial_id=run.id), step=0)

    def _scalar(self, tag: str, value: float, seconds: float | None = None) -> None:
        at = None if seconds is None else self._run.began + seconds
        self._add(Summary(value=[Summary.Value(tag=tag, simple_value=value)]), at=at)

    def _picture(self, file: Path) -> None:
        with Image.open(file) as image:
            width, height = image.size
            bands = len(image.getbands())
        content = Summary.Image(
            width=width, height=height, colorspace=bands, encoded_image_string=file.read_bytes()
        )
        tag = file.relative_to(self._run.directory).with_suffix("").as_posix()
        self._add(Summary(value=[Summary.Value(tag=tag, image=content)]))

    def _add(self, summary: Summary, step: int | None = None, at: float | None = None) -> None:
        step = max(self._step, 0) if step is None else step
        when = time.time() if at is None else at
        self._writer.add_event(Event(wall_time=when, step=step, summary=summary))


def _end_of_session(status: int) -> Summary:
    """Return what tells TensorBoard's table of hyperparameters how a run ended."""
    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    about = metadata.create_summary_metadata(
        plugin_data_pb2.HParamsPluginData(session_end_info=end)
    )
    tag, tensor = metadata.SESSION_END_INFO_TAG, metadata.NULL_TENSOR
    return Summary(value=[Summary.Value(tag=tag, metadata=about, tensor=tensor)])


def _code(text: str) -> str:
    """Return a text as a block of code in Markdown."""
    return "\n".join(f"    {line}" for line in text.splitlines())
