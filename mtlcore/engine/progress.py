"""Where a run stands, and what it has measured since it last wrote a record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import attrs

from mtlcore.balancing import Balancer
from mtlcore.engine.step_times import StepTimes
from mtlcore.engine.stopping import Stopping
from mtlcore.metrics import MetricValues
from mtlcore.models import Backbone
from mtlcore.optimizers import StepReport


@final
@attrs.define(kw_only=True)
class Progress:
    """Where a run stands; all of it is in the checkpoint.

    Args:
        epoch: that is being worked on.
        step: steps taken so far.
        done: plans of this epoch that are done.
        seconds: of training before this process.
        step_times: of the steps, evaluations and saving apart, but for each process's first.
        peak_memory: in bytes, the most that any process of this run has needed.
        skipped: steps that were skipped, and how many of them were the last ones in a row.
        learnt: steps that had a loss to learn from.
        window: sums of what was measured since the last record, as metric -> task -> [sum, n].
        losses: the same of this epoch's losses.
        evaluations: epoch and metrics of each evaluation, in order.
        best: epoch and metrics of the best evaluation, and by which of them it was chosen.
        stopping: which tasks learn no more, and what that is decided by.
    """

    epoch: int = 0
    step: int = 0
    done: int = 0
    seconds: float = 0.0
    step_times: StepTimes = attrs.field(factory=StepTimes)
    peak_memory: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    learnt: int = 0
    window: dict[str, dict[str, list[float]]] = attrs.field(factory=dict)
    losses: dict[str, list[float]] = attrs.field(factory=dict)
    evaluations: list[tuple[int, MetricValues]] = attrs.field(factory=list)
    best: dict[str, Any] | None = None
    constants: dict[str, MetricValues] | None = None
    stopping: Stopping = attrs.field(factory=Stopping)

    def measure(self, metric: str, values: Mapping[str, float]) -> None:
        """Take values, by task, into the window."""
        _add(self.window.setdefault(metric, {}), values)

    def measure_step(self, report: StepReport) -> None:
        """Take in what a step that was taken has to say."""
        self.learnt += bool(report.losses or report.cross)
        self.measure("loss", report.losses)
        _add(self.losses, report.losses)
        if report.early:
            self.measure("early", report.early)
        if report.cross:
            self.measure("term", report.cross)
        if report.balancing.weights:
            self.measure("weight", report.balancing.weights)
            cosines = report.balancing.cosines.items()
            self.measure("cosine", {"|".join(pair): value for pair, value in cosines})
        if report.balancing.status == "degenerate":
            self.measure("degenerate", {"": 1.0})
        if report.balancing.error is not None:
            self.measure("estimate_cosine", {"": report.balancing.error.cosine})
            self.measure("gramian_error", {"": report.balancing.error.gramian})
        self.measure("learning_rate", {"": report.learning_rate})
        for metric, values in report.measured.items():
            self.measure(metric, values)

    def measure_weights(self, balancers: Sequence[Balancer]) -> None:
        """Take in the weights of balancers: one per task, the last balancer's, and all with names.

        Only called when a record is due, as it may wait for a device.
        """
        for balancer in reversed(balancers):
            given = balancer.current_weights()
            single = {task: w for task, w in given.items() if not isinstance(w, Mapping)}
            if single and not self.window.get("weight"):
                self.measure("weight", single)
            for task, several in given.items():
                for name, weight in several.items() if isinstance(several, Mapping) else ():
                    self.measure(f"weight/{name}", {task: weight})

    def measure_backbone(self, backbone: Backbone) -> None:
        """Take in what the backbone tells of itself; only called when a record is due."""
        for name, values in backbone.current_values().items():
            self.measure(f"backbone/{name}", values)

    def take_window(self) -> Iterator[tuple[str, str, float]]:
        """Task, metric and mean (of degenerate steps: number) of what was measured; empties it."""
        window, self.window = self.window, {}
        for metric, tasks in window.items():
            for task, (total, number) in tasks.items():
                yield task, metric, total if metric == "degenerate" else total / number

    def mean_losses(self) -> dict[str, float]:
        """Of this epoch so far, by task."""
        return {task: total / number for task, (total, number) in self.losses.items()}


def _add(sums: dict[str, list[float]], values: Mapping[str, float]) -> None:
    for name, value in values.items():
        total, number = sums.get(name, [0.0, 0])
        sums[name] = [total + value, number + 1]
