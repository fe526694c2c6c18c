"""GradCos keeps what mtlcore asks of a balancer of Gramians."""

from __future__ import annotations

from mtlcore.testing import GramianBalancerContract
from mtlcore_gradcos.balancer import GradCos


class TestGradCos(GramianBalancerContract):
    def make(self) -> GradCos:
        return GradCos()


class TestOfNamedTask(GramianBalancerContract):
    def make(self) -> GradCos:
        return GradCos(main="task0")

    def test_tasks_may_have_any_name(self) -> None:
        """Its main task is none of those."""


class TestUnweighted(GramianBalancerContract):
    def make(self) -> GradCos:
        return GradCos(weighted=False)
