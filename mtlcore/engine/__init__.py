"""Training: from a configuration to a trained learner."""

from mtlcore.engine.building import (
    build_learner,
    make_loader,
    make_metrics,
    open_split,
    parameter_table,
    pick_device,
)
from mtlcore.engine.checks import check
from mtlcore.engine.evaluation import Figures, evaluate
from mtlcore.engine.training import Training

__all__ = [
    "Figures",
    "Training",
    "build_learner",
    "check",
    "evaluate",
    "make_loader",
    "make_metrics",
    "open_split",
    "parameter_table",
    "pick_device",
]
