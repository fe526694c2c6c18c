"""One step plan -> one update."""

from mtlcore.optimizers.update import (
    GradientDescent,
    Optimizer,
    Schedule,
    StepReport,
    Update,
    copy_all,
    floats,
    not_finite,
    shares_of,
)

__all__ = [
    "GradientDescent",
    "Optimizer",
    "Schedule",
    "StepReport",
    "Update",
    "copy_all",
    "floats",
    "not_finite",
    "shares_of",
]
