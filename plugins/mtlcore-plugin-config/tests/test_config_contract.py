"""ConFIG keeps what mtlcore asks of a balancer of Gramians."""

from __future__ import annotations

from mtlcore.testing import GramianBalancerContract
from mtlcore_config.balancer import ConFIG


class TestConFIG(GramianBalancerContract):
    def make(self) -> ConFIG:
        return ConFIG()
