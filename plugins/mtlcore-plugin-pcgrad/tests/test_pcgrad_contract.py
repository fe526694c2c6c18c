"""PCGrad keeps what mtlcore asks of a balancer of Gramians."""

from __future__ import annotations

from mtlcore.testing import GramianBalancerContract
from mtlcore_pcgrad.balancer import PCGrad


class TestPCGrad(GramianBalancerContract):
    # The generator draws an order for the first, the second, ... task, whichever that is.
    permutation_equivariant = False

    def make(self) -> PCGrad:
        return PCGrad()


class TestMean(GramianBalancerContract):
    permutation_equivariant = False

    def make(self) -> PCGrad:
        return PCGrad(reduction="mean")


class TestFixed(GramianBalancerContract):
    permutation_equivariant = False  # tasks are visited as they are listed

    def make(self) -> PCGrad:
        return PCGrad(order="fixed")
