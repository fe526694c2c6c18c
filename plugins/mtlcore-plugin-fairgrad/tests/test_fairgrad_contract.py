"""FairGrad keeps what mtlcore asks of a balancer of Gramians."""

from __future__ import annotations

from mtlcore.testing import GramianBalancerContract
from mtlcore_fairgrad.balancer import FairGrad


class TestFairGrad(GramianBalancerContract):
    def make(self) -> FairGrad:
        return FairGrad()


class TestAsPublished(GramianBalancerContract):
    def make(self) -> FairGrad:
        return FairGrad(alpha=2.0, rescale=True, max_norm=1.0)


class TestNash(GramianBalancerContract):
    def make(self) -> FairGrad:
        return FairGrad(alpha=1.0)
