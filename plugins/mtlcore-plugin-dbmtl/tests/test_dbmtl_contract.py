"""DB-MTL keeps what mtlcore asks of a balancer of gradients."""

from __future__ import annotations

from mtlcore.testing import GradientBalancerContract
from mtlcore_dbmtl.balancer import DBMTL


class TestDBMTL(GradientBalancerContract):
    def make(self) -> DBMTL:
        return DBMTL()


class TestFallingPart(GradientBalancerContract):
    def make(self) -> DBMTL:
        return DBMTL(beta=0.5, sigma=0.5)
