"""Optimizers: a plan in, one update out; a step that is not finite is taken back."""

from mtlcore.balancing import floats, not_finite
from mtlcore.optimizers.contract import Optimizer, StepReport
from mtlcore.optimizers.gradient_descent import GradientDescent, shares_of
from mtlcore.optimizers.schedules import Schedule
from mtlcore.optimizers.update import Update, copy_all

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
