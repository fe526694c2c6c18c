"""GradDrop keeps what mtlcore asks of balancers of gradients, in both scopes."""

from __future__ import annotations

from mtlcore.testing import GradientBalancerContract
from mtlcore_graddrop.balancer import GradDrop


class TestAtParameters(GradientBalancerContract):
    permutation_equivariant = True

    def make(self) -> GradDrop:
        return GradDrop()


class TestLeaking(GradientBalancerContract):
    def make(self) -> GradDrop:
        return GradDrop(leak=0.3)


class TestAtFeatures(GradientBalancerContract):
    # Tasks that agree in each sample need not agree in the sum over the batch.
    non_conflicting_when_agreeing = False

    def make(self) -> GradDrop:
        return GradDrop(scope="features")
