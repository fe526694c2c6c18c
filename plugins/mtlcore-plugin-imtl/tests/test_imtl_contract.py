"""Both halves keep what mtlcore asks of balancers."""

from __future__ import annotations

from mtlcore.testing import GramianBalancerContract, LossBalancerContract
from mtlcore_imtl.balancer import IMTLG, IMTLL


class TestIMTLG(GramianBalancerContract):
    # The paper's equation lets the update point against all tasks, see the page.
    non_conflicting_when_agreeing = False

    def make(self) -> IMTLG:
        return IMTLG()


class TestIMTLL(LossBalancerContract):
    def make(self) -> IMTLL:
        return IMTLL(initial=0.3)
