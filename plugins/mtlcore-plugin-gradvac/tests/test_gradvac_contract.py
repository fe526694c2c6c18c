"""GradVac keeps what mtlcore asks of balancers, whole and per parameter."""

from __future__ import annotations

from typing import Any

from mtlcore.testing import GradientBalancerContract, GramianBalancerContract
from mtlcore_gradvac.balancer import gradvac


class TestWhole(GramianBalancerContract):
    permutation_equivariant = False  # orders are drawn

    def make(self) -> Any:
        return gradvac()


class TestFastTargets(GramianBalancerContract):
    permutation_equivariant = False

    def make(self) -> Any:
        return gradvac(beta=1.0)


class TestPerParameter(GradientBalancerContract):
    permutation_equivariant = False

    def make(self) -> Any:
        return gradvac(granularity="parameter")
