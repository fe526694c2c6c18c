"""What summary.json tells of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mtlcore.engine import Figures, Training, make_metrics, parameter_table


def summarise(training: Training) -> dict[str, Any]:
    """What summary.json holds."""
    progress, config = training.progress, training.config
    last = progress.evaluations[-config.training.average_last :]
    metrics = make_metrics(config)
    best = progress.best or {}
    return {
        "method": config.method,
        "final": {"val": mean_figures([figures for _, figures in last])},
        "final_split": "val",
        "averaged_over": len(last),
        "best": {"epoch": best.get("epoch"), "chosen_on": best.get("split"),
                 "val": best.get("figures", {})},
        "constants": progress.constants or {},
        "higher_is_better": {
            task: {**metrics[task].higher_is_better, "loss": False} for task in metrics
        },
        "units": {task.name: task.unit for task in config.tasks if task.unit},
        "parameters": parameter_table(training.learner),
        "epochs": progress.epoch,
        "steps": progress.step,
        "stopped": {"tasks": progress.stopping.stopped, "run": progress.stopping.ended},
        "seconds": training.seconds(),
        "seconds_per_step": progress.step_seconds / (progress.timed_steps or math.nan),
        "peak_memory": progress.peak_memory,
        "skipped_steps": progress.skipped,
        "skipped_samples": sorted(set(training.loader.skipped)),
    }  # fmt: skip


def mean_figures(evaluations: Sequence[Figures]) -> Figures:
    """The mean of each figure; NaN where one of them is."""
    return {
        task: {
            metric: sum(figures[task][metric] for figures in evaluations) / len(evaluations)
            for metric in evaluations[0][task]
        }
        for task in evaluations[0]
    }
