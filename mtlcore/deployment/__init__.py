"""A trained model as one program from raw inputs to final values: traced, described, compared."""

from mtlcore.deployment.checking import TOLERANCE, difference
from mtlcore.deployment.describing import described
from mtlcore.deployment.model import DeployedModel, activated
from mtlcore.deployment.tracing import (
    Traced,
    attempts,
    blame,
    named_axes,
    reason_of,
    trace,
    with_lengths,
)

__all__ = [
    "TOLERANCE",
    "DeployedModel",
    "Traced",
    "activated",
    "attempts",
    "blame",
    "described",
    "difference",
    "named_axes",
    "reason_of",
    "trace",
    "with_lengths",
]
