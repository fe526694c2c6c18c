"""Nash-MTL keeps what mtlcore asks of a balancer of Gramians."""

from __future__ import annotations

from mtlcore.testing import GramianBalancerContract
from mtlcore_nashmtl.balancer import NashMTL


class TestNashMTL(GramianBalancerContract):
    def make(self) -> NashMTL:
        return NashMTL()


class TestAsPublished(GramianBalancerContract):
    def make(self) -> NashMTL:
        return NashMTL(max_norm=1.0, weigh_heads=True)
