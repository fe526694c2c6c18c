"""STCH keeps what mtlcore asks of a balancer of losses."""

from __future__ import annotations

from mtlcore.testing import LossBalancerContract
from mtlcore_stch.balancer import STCH


class TestLog(LossBalancerContract):
    def make(self) -> STCH:
        return STCH(warmup=1, mu=0.5)


class TestWarmingUp(LossBalancerContract):
    def make(self) -> STCH:
        return STCH()


class TestPlain(LossBalancerContract):
    # A maximum that is a billion times the other losses leaves them nothing in float32.
    names_tasks = True

    def make(self) -> STCH:
        return STCH(form="plain", preferences={"depth": 2.0}, references={"normals": 0.1})
