"""NTKMTL keeps what mtlcore asks of a balancer of Gramians."""

from __future__ import annotations

from mtlcore.testing import GramianBalancerContract
from mtlcore_ntkmtl.balancer import NTKMTL


class TestNTKMTL(GramianBalancerContract):
    def make(self) -> NTKMTL:
        return NTKMTL()


class TestAsPublished(GramianBalancerContract):
    def make(self) -> NTKMTL:
        return NTKMTL(exponent=0.75, rescale=True, max_norm=1.0)


class TestBatches(GramianBalancerContract):
    def make(self) -> NTKMTL:
        return NTKMTL(batches=2)
