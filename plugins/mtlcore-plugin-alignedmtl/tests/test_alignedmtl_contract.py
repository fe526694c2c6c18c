"""Aligned-MTL keeps what mtlcore asks of a balancer of Gramians."""

from __future__ import annotations

from mtlcore.testing import GramianBalancerContract
from mtlcore_alignedmtl.balancer import AlignedMTL


class TestAlignedMTL(GramianBalancerContract):
    def make(self) -> AlignedMTL:
        return AlignedMTL()


class TestOtherScale(GramianBalancerContract):
    def make(self) -> AlignedMTL:
        return AlignedMTL(scale="rmse", reduction="mean", scope="features")
