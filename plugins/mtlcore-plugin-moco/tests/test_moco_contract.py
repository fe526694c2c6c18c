"""MoCo keeps what mtlcore asks of a balancer of gradients."""

from __future__ import annotations

from mtlcore.testing import GradientBalancerContract
from mtlcore_moco.balancer import MoCo


class TestMoCo(GradientBalancerContract):
    # How far lambda moves depends on the scale, as the paper's step size has it.
    scale_equivariant = False

    def make(self) -> MoCo:
        return MoCo()


class TestWithoutMemory(GradientBalancerContract):
    scale_equivariant = False

    def make(self) -> MoCo:
        return MoCo(beta=1.0, gamma=1.0, rho=0.0)
