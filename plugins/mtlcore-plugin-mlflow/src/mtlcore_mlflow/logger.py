"""The logger: a run of MLflow, known by a tag that holds the identity of mtlcore's run."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar, final

import requests
import tomli_w
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import get_tracking_uri

from mtlcore.config import annotated
from mtlcore.errors import MtlError
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

#: The tag that holds the identity of a run.
TAG = "mtlcore.id"
_ENDS = {"finished": "FINISHED", "interrupted": "KILLED", "pruned": "KILLED", "failed": "FAILED"}
# What MLflow takes at once.
_METRICS, _PARAMS, _LONGEST = 1000, 100, 6000
_ANSWER_SECONDS = 10

_T = TypeVar("_T")


@final
class MLflow(RunLogger):
    """Runs on an MLflow server, or in a local store of MLflow.

    `rmse` of the task depth on the validation split is the metric `val/depth/rmse`. Settings are
    parameters; the configuration with origins, the results and the report's pictures are
    artifacts. The study of a run is its experiment.

    Args:
        uri: Of the server or store, such as `http://localhost:5000` or `sqlite:///runs.db`; unset:
            what the variable `MLFLOW_TRACKING_URI` says, or else MLflow's local default.
        experiment: Name of the experiment; unset: the study's name, or else what the variable
            `MLFLOW_EXPERIMENT_NAME` says, or else `mtlcore`.
    """

    in_background = True

    def __init__(self, *, uri: str | None = None, experiment: str | None = None) -> None:
        self._uri, self._experiment = uri, experiment
        self._run: RunInfo
        self._client: MlflowClient
        self._id = ""  # of MLflow's run
        self._known: set[tuple[str, int]] = set()  # name and step of values that MLflow has
        self._step = 0  # of the last line

    def start(self, run: RunInfo) -> None:
        """Begin MLflow's run, or go on with it; send what it lacks of the kept lines."""
        self._run, uri = run, self._uri or get_tracking_uri()
        _check_answers(uri)
        # Otherwise it prints at the end, into the output of mtl run --json.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        self._client = MlflowClient(tracking_uri=uri)
        found = self._found(self._experiment_id())
        self._id = found.info.run_id
        self._client.update_run(self._id, status="RUNNING")
        self._known = {
            (name, value.step)
            for name in found.data.metrics
            for value in self._client.get_metric_history(self._id, name)
        }
        self._describe(found)
        self.record(run.kept())

    def record(self, lines: Sequence[Record]) -> None:
        """Send each line that MLflow does not have, and the epoch of each step."""
        metrics: list[Metric] = []
        for line in lines:
            when = round(1000 * (self._run.began + line["seconds"]))
            self._step = line["step"]
            for name, value in ((tag_of(line), line["value"]), ("epoch", line["epoch"])):
                self._add(metrics, name, value, when)
        self._send(metrics)

    def finish(self, outcome: RunOutcome) -> None:
        """Send how the run ended, its results and its pictures."""
        metrics: list[Metric] = []
        if outcome.summary is not None:
            summary = json.dumps(without_nan(outcome.summary), indent=2)
            self._client.log_text(self._id, summary, "summary.json")
            for name, value in result_values(outcome.summary).items():
                self._add(metrics, name, value, round(1000 * time.time()))
        self._send(metrics)
        for file in outcome.pictures:
            folder = file.parent.relative_to(self._run.directory).as_posix()
            self._client.log_artifact(self._id, str(file), folder)
        self._client.set_tag(self._id, "mtlcore.outcome", outcome.status)
        if outcome.reason is not None:
            self._client.set_tag(self._id, "mtlcore.reason", outcome.reason[:_LONGEST])
        self._client.set_terminated(self._id, _ENDS[outcome.status])

    def _experiment_id(self) -> str:
        run = self._run
        default = os.environ.get("MLFLOW_EXPERIMENT_NAME", "mtlcore")
        name = self._experiment or run.group or default
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                created: str = self._client.create_experiment(name)
            except MlflowException:  # another cell of the study was faster
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
            else:
                return created
        identity: str = found.experiment_id
        return identity

    def _found(self, experiment: str) -> Run:
        run = self._run
        runs = self._client.search_runs([experiment], f"tags.`{TAG}` = '{run.id}'", max_results=1)
        if runs:
            return runs[0]
        return self._client.create_run(
            experiment,
            start_time=round(1000 * run.began),
            tags={TAG: run.id, "mtlcore.location": run.location},
            run_name=run.name,
        )

    def _describe(self, found: Run) -> None:
        """Send the configuration; parameters that MLflow has cannot be changed there."""
        run = self._run
        config = annotated(tomli_w.dumps(dict(run.config)), run.origins)
        self._client.log_text(self._id, config, "config.toml")
        self._client.log_text(self._id, json.dumps(dict(run.about), indent=2), "run.json")
        params = [
            Param(path, str(value)[:_LONGEST])
            for path, value in flatten(run.config).items()
            if path not in found.data.params
        ]
        for some in _in_parts(params, _PARAMS):
            self._client.log_batch(self._id, params=some)

    def _add(self, metrics: list[Metric], tag: str, value: float, when: int) -> None:
        name = re.sub(r"[^/\w.\- :]", "_", tag)  # what MLflow allows
        if (name, self._step) not in self._known:
            self._known.add((name, self._step))
            metrics.append(Metric(name, value, when, self._step))

    def _send(self, metrics: Sequence[Metric]) -> None:
        for some in _in_parts(metrics, _METRICS):
            self._client.log_batch(self._id, metrics=some)


def _check_answers(uri: str) -> None:
    """Refuse a server that does not answer, which MLflow's client would wait minutes for.

    Raises:
        MtlError: It does not.
    """
    if not uri.startswith(("http://", "https://")):
        return
    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=_ANSWER_SECONDS)
    except requests.RequestException as error:
        raise MtlError(f"no MLflow server answers at {uri} ({type(error).__name__})") from error


def _in_parts(items: Sequence[_T], size: int) -> Iterator[list[_T]]:
    for begin in range(0, len(items), size):
        yield list(items[begin : begin + size])
