"""The `report/` of a finished run: pictures of the validation split, curves, weights."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlcore.engine import Session, make_metrics
from mtlcore.episodes import in_order
from mtlcore.report.charts.files import save_curves, save_weights
from mtlcore.report.panels import PanelSample, save_panels, save_samples
from mtlcore.storage import RunDirectory

_PICTURES = 6


def write_report(session: Session, directory: RunDirectory) -> None:
    """Write `report/`.

    Raises:
        OSError: A file cannot be written.
    """
    folder = directory.path / "report"
    folder.mkdir(exist_ok=True)
    samples = panel_samples(session)
    if samples:
        save_panels(folder / "predictions.png", samples, session.config.tasks)
        save_samples(folder / "samples", samples, session.config.tasks)
    records = directory.metrics()
    metrics = make_metrics(session.config)
    save_curves(
        folder / "curves.svg",
        records,
        units={task.name: task.unit for task in session.config.tasks},
        higher_is_better={task: metric.higher_is_better for task, metric in metrics.items()},
        constants=session.progress.constants,
    )
    save_weights(folder / "weights.svg", records)


@torch.no_grad()
def panel_samples(session: Session) -> list[PanelSample]:
    """Return a few, evenly spread samples of the validation split with their predictions."""
    learner = session.learner
    tasks = tuple(learner.model.tasks)
    plans = in_order("val", len(session.splits["val"]), 1, _PICTURES)
    learner.eval()
    samples = []
    for batch in session.loader.batches(plans):
        if batch is None or not isinstance(batch.inputs, Tensor) or batch.inputs.dim() != 4:
            continue  # no image, so there is nothing to show
        here = batch.to(session.device)
        predictions = session.predict(here.inputs, tasks)
        samples.append(
            PanelSample(
                image=batch.inputs[0],
                predictions={task: predictions[task][0].cpu() for task in tasks},
                targets={task: batch.targets[task][0] for task in tasks},
                valid={task: batch.valid[task][0] for task in tasks},
                key=batch.keys[0],
            )
        )
    return samples
