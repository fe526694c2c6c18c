"""What summary.json tells of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtlcore.engine import Session, count_flops, make_metrics, parameter_table
from mtlcore.inputs import Inputs
from mtlcore.metrics import MetricValues


def summarise(session: Session, example: Inputs) -> dict[str, Any]:
    """Return what summary.json holds.

    Args:
        session: Of the run, at its end.
        example: Inputs of a batch of one sample, for which a prediction is counted.
    """
    progress, config = session.progress, session.config
    last = progress.evaluations[-config.training.average_last :]
    metrics = make_metrics(config)
    best = progress.best or {}
    return {
        "method": config.method,
        "final": {"val": mean_metrics([values for _, values in last])},
        "final_split": "val",
        "averaged_over": len(last),
        "best": {"epoch": best.get("epoch"), "chosen_on": best.get("split"),
                 "chosen_by": best.get("by"), "val": best.get("metrics", {})},
        "constants": progress.constants or {},
        "higher_is_better": {
            task: {**metrics[task].higher_is_better, "loss": False} for task in metrics
        },
        "units": {task.name: task.unit for task in config.tasks if task.unit},
        "parameters": parameter_table(session.learner),
        "flops": count_flops(session.learner, example),
        "epochs": progress.epoch,
        "steps": progress.step,
        "stopped": {"tasks": progress.stopping.stopped, "run": progress.stopping.ended},
        "seconds": session.seconds,
        "seconds_per_step": progress.step_times.median,
        "stalled_seconds": progress.step_times.stalled,
        "peak_memory": progress.peak_memory or None,
        "skipped_steps": progress.skipped,
        "skipped_samples": sorted(set(session.loader.skipped)),
    }  # fmt: skip


def mean_metrics(evaluations: Sequence[MetricValues]) -> MetricValues:
    """Return the mean of each metric; NaN where one of its values is."""
    return {
        task: {
            metric: sum(values[task][metric] for values in evaluations) / len(evaluations)
            for metric in evaluations[0][task]
        }
        for task in evaluations[0]
    }
