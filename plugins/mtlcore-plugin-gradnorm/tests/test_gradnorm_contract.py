"""GradNorm keeps what mtlcore asks of a balancer of Gramians."""

from __future__ import annotations

from mtlcore.testing import GramianBalancerContract
from mtlcore_gradnorm.balancer import GradNorm


class TestGradNorm(GramianBalancerContract):
    def make(self) -> GradNorm:
        return GradNorm()


class TestFast(GramianBalancerContract):
    def make(self) -> GradNorm:
        return GradNorm(alpha=0.12, lr=1.0)
