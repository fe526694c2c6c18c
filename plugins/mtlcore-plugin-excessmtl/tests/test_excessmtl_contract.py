"""ExcessMTL keeps what mtlcore asks of a balancer of gradients."""

from __future__ import annotations

from mtlcore.testing import GradientBalancerContract
from mtlcore_excessmtl.balancer import ExcessMTL


class TestExcessMTL(GradientBalancerContract):
    def make(self) -> ExcessMTL:
        return ExcessMTL()


class TestFast(GradientBalancerContract):
    def make(self) -> ExcessMTL:
        return ExcessMTL(eta=1.0)
