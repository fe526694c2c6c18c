"""GO4Align keeps what mtlcore asks of a balancer of losses."""

from __future__ import annotations

from mtlcore.testing import LossBalancerContract
from mtlcore_go4align.balancer import GO4Align


class TestGO4Align(LossBalancerContract):
    def make(self) -> GO4Align:
        return GO4Align()


class TestFastAndUngrouped(LossBalancerContract):
    def make(self) -> GO4Align:
        return GO4Align(groups=40, step_size=0.1)
