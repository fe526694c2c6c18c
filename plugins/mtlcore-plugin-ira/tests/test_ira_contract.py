"""IRA keeps what mtlcore asks of a balancer of losses, in all its forms."""

from __future__ import annotations

import math

import attrs
import pytest

from mtlcore.errors import UsageError
from mtlcore.testing import TINY_TASKS, LossBalancerContract, tiny_batch
from mtlcore_ira.balancer import IRA


class TestIRA(LossBalancerContract):
    names_tasks = True

    def make(self) -> IRA:
        return IRA(main="depth", auxiliary=("segmentation",), alpha=0.1)


class TestBinsAndSeveralAuxiliaryTasks(LossBalancerContract):
    """The first of these tasks, which the contract lets be absent, is auxiliary here too."""

    names_tasks = True

    def make(self) -> IRA:
        return IRA(main="normals", alpha=0.1, bins=3)


class TestChangeOfRoles(LossBalancerContract):
    """The contract's steps run from progress 0 to 0.08."""

    names_tasks = True

    @pytest.fixture(params=[0.02, 0.045])
    def swap_at(self, request: pytest.FixtureRequest) -> float:
        found: float = request.param
        return found

    @pytest.fixture(autouse=True)
    def _when(self, swap_at: float) -> None:
        self._swap_at = swap_at

    def make(self) -> IRA:
        return IRA(main="depth", auxiliary=("segmentation",), alpha=0.1, swap_at=self._swap_at)


class TestAsPrinted(LossBalancerContract):
    names_tasks = True

    def make(self) -> IRA:
        return IRA(
            main="depth",
            auxiliary=("segmentation",),
            alpha=0.1,
            ratio_aux="weighted",
            clip=math.inf,
        )


def test_tasks_may_have_any_name() -> None:
    """Torch's containers refuse such names as keys."""
    names = ("type", "keys", "half")
    tasks = [attrs.evolve(task, name=n) for task, n in zip(TINY_TASKS, names, strict=True)]
    balancer = IRA(main="half", bins=2, swap_at=0.5, auxiliary=("keys", "type"))
    with pytest.raises(UsageError, match="half cannot be auxiliary to keys"):  # normals
        balancer.prepare(tasks)
    balancer = IRA(main="keys", bins=2, swap_at=0.5, auxiliary=("type",))
    balancer.prepare(tasks, [tiny_batch(tasks=tasks)])
    assert len(balancer.current_weights()["type"]) == 4


class TestTimeUnits(LossBalancerContract):
    names_tasks = True

    def make(self) -> IRA:
        return IRA(
            main="segmentation",
            auxiliary=("depth",),
            alpha=0.1,
            every=2,
            smoothing=0.5,
            eps_mode="clip",
            warmup=0.03,
            reference="start",
        )
