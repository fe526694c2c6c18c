"""SDMGrad and MoDo keep what mtlcore asks of a balancer of Gramians."""

from __future__ import annotations

from mtlcore.testing import GramianBalancerContract
from mtlcore_sdmgrad.balancer import MoDo, SDMGrad


class TestSDMGrad(GramianBalancerContract):
    def make(self) -> SDMGrad:
        return SDMGrad()


class TestOneBatch(GramianBalancerContract):
    def make(self) -> SDMGrad:
        return SDMGrad(batches=1)


class TestMoDo(GramianBalancerContract):
    # How far lambda moves depends on the scale, as the paper's step size has it.
    scale_equivariant = False

    def make(self) -> MoDo:
        return MoDo()
