"""Pareto MTL keeps what mtlcore asks of a balancer of Gramians."""

from __future__ import annotations

from mtlcore.testing import GramianBalancerContract
from mtlcore_paretomtl.balancer import ParetoMTL


class TestWithoutInitialPhase(GramianBalancerContract):
    def make(self) -> ParetoMTL:
        return ParetoMTL(initial=0.0)


class TestInitialPhase(GramianBalancerContract):
    # What is descended first are constraints, not losses.
    non_conflicting_when_agreeing = False

    def make(self) -> ParetoMTL:
        return ParetoMTL(preferences=2, preference=0, initial=1.0)


class TestAsPublished(GramianBalancerContract):
    non_conflicting_when_agreeing = False

    def make(self) -> ParetoMTL:
        return ParetoMTL(initial=0.02, weigh_heads=True)
