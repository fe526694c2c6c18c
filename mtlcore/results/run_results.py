"""The results of one finished run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, final

import attrs

from mtlcore.errors import MtlError, UsageError
from mtlcore.metrics import MetricValues
from mtlcore.results.targets import Reached, Target
from mtlcore.storage import Record, RunFiles, open_run, or_nan

#: The evaluations whose metrics count: the last ones, or that of the best epoch.
Epoch = Literal["last", "best"]


@final
@attrs.frozen(slots=False)
class RunResult:
    """A finished run, from its directory or from a file of kept results.

    Args:
        location: Path or URL of its directory, which need not be at hand.
        config: The complete configuration; of kept results `seed`, `method` and `tasks` only.
        summary: The content of `summary.json`, or what was kept of it; metrics that are null there
            are NaN.
        kept_records: The lines of `metrics.jsonl` that were kept; None: the directory has them.
    """

    location: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    kept_records: tuple[Record, ...] | None = None

    @property
    def files(self) -> RunFiles:
        """The files in its directory."""
        return RunFiles(self.location)

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """The lines of `metrics.jsonl`; values that are null there are NaN."""
        return self.files.records if self.kept_records is None else self.kept_records

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.config["seed"])

    @property
    def method(self) -> str:
        """The name of the method, such as "pcgrad"."""
        return str(self.config["method"])

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that the run learned, in order."""
        return tuple(self.config["tasks"])

    def metrics(self, epoch: Epoch) -> MetricValues:
        """Return the metrics on the validation split, "loss" among them.

        Args:
            epoch: "last" for the mean over the last `training.average_last` evaluations, "best"
                for the best evaluation (`best` of the summary).
        """
        values: MetricValues = self.summary["final" if epoch == "last" else "best"]["val"]
        return values

    @property
    def higher_is_better(self) -> Mapping[str, Mapping[str, bool]]:
        """Task -> metric -> whether higher is better; the first metric stands for the task."""
        table: Mapping[str, Mapping[str, bool]] = self.summary["higher_is_better"]
        return table

    @property
    def parameters(self) -> int:
        """The number of parameters of the model, heads included."""
        return int(self.summary["parameters"]["total"])

    @property
    def seconds_per_step(self) -> float:
        """Median time of a training step without evaluating and saving; NaN if not measured."""
        return or_nan(self.summary.get("seconds_per_step"))

    @property
    def stalled_seconds(self) -> float:
        """The seconds of steps in which the process stood still, as when a machine sleeps."""
        return float(self.summary.get("stalled_seconds") or 0)

    @property
    def peak_memory(self) -> float:
        """Peak memory in bytes, of the GPU if the run used one, else of the process; or NaN."""
        return or_nan(self.summary.get("peak_memory"))

    @property
    def best_epoch(self) -> float:
        """The epoch, from 1, of the best evaluation; NaN where there was none."""
        return or_nan(self.summary["best"]["epoch"])

    def reached(self, target: Target) -> Reached | None:
        """Return when the metric on the validation split first met the target; None: never."""
        higher = self.higher_is_better.get(target.task, {}).get(target.metric, False)
        wanted = ("val", target.task, target.metric)
        for record in self.records:
            if (record["split"], record["task"], record["metric"]) != wanted:
                continue
            value = record["value"]
            if value >= target.value if higher else value <= target.value:
                return Reached(int(record["epoch"]), float(record["seconds"]))
        return None


def read_run(location: str) -> RunResult:
    """Return the results of the run at a path or URL.

    Raises:
        UsageError: There is no run, or it is not finished; the message says why if the run does.
        MtlError: A file is damaged.
    """
    files = open_run(location)
    if files.summary is None:
        status = files.provenance.get("status", "has no run.json")
        reason = files.provenance.get("reason")
        raise UsageError(
            f"{files.location}: is not finished ({f'{status}: {reason}' if reason else status}); "
            f"go on with it by mtl run --resume --out {files.location}, or leave it out"
        )
    result = RunResult(files.location, files.config, files.summary)
    _refuse_gaps(result)
    return result


def _refuse_gaps(run: RunResult) -> None:
    """Check that the files of a run are about the same tasks and metrics."""
    summary, place = run.summary, f"{run.location}/summary.json"
    final, best = summary["final"].get("val", {}), summary["best"]["val"]
    for task in run.tasks:
        for key, table in (("final.val", final), ("best.val", best),
                           ("higher_is_better", summary["higher_is_better"])):  # fmt: skip
            if task not in table:
                raise MtlError(f"{place}: {key} has no {task!r}, which config.toml names a task")
        for metric in final[task]:
            if metric != "loss" and metric not in best[task]:
                raise MtlError(f"{place}: best.val.{task} has no {metric!r}, which final has")
