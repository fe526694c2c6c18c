"""What this plugin adds: FairGrad, and a method that trains anything under it."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BalancerSpec, MethodSpec, hookimpl

_PAPER = "Ban & Ji, ICML 2024, https://arxiv.org/abs/2402.15638"


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield the balancer FairGrad."""
    yield BalancerSpec(
        name="fairgrad",
        target="mtlcore_fairgrad.balancer:FairGrad",
        summary="The update whose gains for the tasks are alpha-fair.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the method: any configuration, trained with FairGrad as in the authors' code."""
    yield MethodSpec(
        name="fairgrad",
        preset={"balancer": {"name": "fairgrad", "alpha": 2.0, "rescale": True, "max_norm": 1.0}},
        summary="Fair resource allocation among tasks.",
        paper=_PAPER,
        requires=("balancers/fairgrad",),
    )
