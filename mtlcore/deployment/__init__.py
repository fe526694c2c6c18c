"""A trained model as one program from raw inputs to final values: traced, described, compared."""

from mtlcore.deployment.checking import TOLERANCE, difference
from mtlcore.deployment.describing import described
from mtlcore.deployment.model import DeployedModel, activated
from mtlcore.deployment.tracing import Traced, trace

__all__ = [
    "TOLERANCE",
    "DeployedModel",
    "Traced",
    "activated",
    "described",
    "difference",
    "trace",
]
