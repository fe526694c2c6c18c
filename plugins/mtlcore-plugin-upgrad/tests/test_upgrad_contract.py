"""Both projections keep what mtlcore asks of a balancer of Gramians."""

from __future__ import annotations

from mtlcore.testing import GramianBalancerContract
from mtlcore_upgrad.balancer import DualProj, UPGrad


class TestUPGrad(GramianBalancerContract):
    def make(self) -> UPGrad:
        return UPGrad()


class TestDualProj(GramianBalancerContract):
    def make(self) -> DualProj:
        return DualProj(reduction="sum")
