"""AdaLoss keeps what mtlcore asks of a balancer of losses."""

from __future__ import annotations

from mtlcore.testing import LossBalancerContract
from mtlcore_adaloss.balancer import AdaLoss


class TestAdaLoss(LossBalancerContract):
    def make(self) -> AdaLoss:
        return AdaLoss()


class TestNormalised(LossBalancerContract):
    def make(self) -> AdaLoss:
        return AdaLoss(momentum=0.5, normalise=True)
