"""Dynamic task prioritization keeps what mtlcore asks of a balancer of losses."""

from __future__ import annotations

from mtlcore.metrics import MetricValues
from mtlcore.testing import LossBalancerContract
from mtlcore_dtp.balancer import DTP


class TestDTP(LossBalancerContract):
    def make(self) -> DTP:
        return DTP()

    def metrics(self, number: int) -> MetricValues:
        return {
            "segmentation": {"loss": 1.0, "miou": 0.2 + number / 100},
            "depth": {"loss": 1.0, "delta1": 0.5},
            "normals": {"loss": 1.0, "within_11_25": 30.0 + number},
        }
