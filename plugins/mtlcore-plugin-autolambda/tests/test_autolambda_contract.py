"""Auto-Lambda keeps what mtlcore asks of a balancer of Gramians."""

from __future__ import annotations

from mtlcore.testing import GramianBalancerContract
from mtlcore_autolambda.balancer import AutoLambda


class TestAutoLambda(GramianBalancerContract):
    scale_equivariant = False  # weights move by steps of one length, whatever the slopes

    def make(self) -> AutoLambda:
        return AutoLambda()
