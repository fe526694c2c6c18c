"""MGDA keeps what mtlcore asks of a balancer of Gramians."""

from __future__ import annotations

from mtlcore.testing import GramianBalancerContract
from mtlcore_mgda.balancer import MGDA


class TestMGDA(GramianBalancerContract):
    def make(self) -> MGDA:
        return MGDA()


class TestNormalised(GramianBalancerContract):
    def make(self) -> MGDA:
        return MGDA(normalise="loss+", scope="features", weigh_heads=True)
