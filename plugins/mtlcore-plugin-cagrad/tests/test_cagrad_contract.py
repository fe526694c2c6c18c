"""CAGrad keeps what mtlcore asks of a balancer of Gramians."""

from __future__ import annotations

from mtlcore.testing import GramianBalancerContract
from mtlcore_cagrad.balancer import CAGrad


class TestCAGrad(GramianBalancerContract):
    def make(self) -> CAGrad:
        return CAGrad()


class TestAsPublished(GramianBalancerContract):
    def make(self) -> CAGrad:
        return CAGrad(c=0.2, rescale=True)
