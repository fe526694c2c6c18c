"""What a finished run leaves to look at: pictures of the validation split, curves, weights."""

from __future__ import annotations

import torch

from mtlcore.engine import Session
from mtlcore.episodes import in_order
from mtlcore.report.curves import save_curves, save_weights
from mtlcore.report.panels import PanelSample, save_panels, save_samples
from mtlcore.storage import RunDirectory

_PICTURES = 6


def write_report(session: Session, directory: RunDirectory) -> list[str]:
    """Write `report/`; returns notes for people, such as what could not be drawn."""
    folder = directory.path / "report"
    folder.mkdir(exist_ok=True)
    samples = panel_samples(session)
    if samples:
        save_panels(folder / "predictions.png", samples, session.config.tasks)
        save_samples(folder / "samples", samples, session.config.tasks)
    records = list(directory.metrics())
    notes = [
        save_curves(folder / "curves.png", records),
        save_weights(folder / "weights.png", records),
    ]
    return sorted({note for note in notes if note})


@torch.no_grad()
def panel_samples(session: Session) -> list[PanelSample]:
    """The same few, evenly spread samples of the validation split with their predictions."""
    learner = session.learner
    tasks = tuple(learner.model.tasks)
    plans = in_order("val", len(session.splits["val"]), 1, _PICTURES)
    learner.eval()
    samples = []
    for batch in session.loader.batches(plans):
        if batch is None or batch.inputs.dim() != 4:
            continue
        here = batch.to(session.device)
        predictions = learner.predict(here.inputs, tasks)
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
