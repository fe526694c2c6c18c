"""Training: from a configuration to a trained learner."""

from mtlcore.engine.building import (
    build_learner,
    build_model,
    make_loader,
    make_metrics,
    open_dataset,
    open_split,
    parameter_table,
    pick_device,
    restoring,
)
from mtlcore.engine.checkpointing import restore
from mtlcore.engine.checks import check
from mtlcore.engine.evaluation import evaluate
from mtlcore.engine.flops import count_flops
from mtlcore.engine.length import changed_length
from mtlcore.engine.prices import price_told
from mtlcore.engine.session import Session
from mtlcore.engine.training import Training

__all__ = [
    "Session",
    "Training",
    "build_learner",
    "build_model",
    "changed_length",
    "check",
    "count_flops",
    "evaluate",
    "make_loader",
    "make_metrics",
    "open_dataset",
    "open_split",
    "parameter_table",
    "pick_device",
    "price_told",
    "restore",
    "restoring",
]
