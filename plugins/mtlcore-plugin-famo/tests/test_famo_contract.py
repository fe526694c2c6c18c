"""FAMO keeps what mtlcore asks of a balancer of losses."""

from __future__ import annotations

from mtlcore.testing import LossBalancerContract
from mtlcore_famo.balancer import FAMO


class TestFAMO(LossBalancerContract):
    def make(self) -> FAMO:
        return FAMO()
