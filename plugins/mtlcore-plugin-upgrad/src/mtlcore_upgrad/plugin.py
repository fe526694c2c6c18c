"""What this plugin adds: UPGrad, and methods that train with it, or DualProj."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BalancerSpec, MethodSpec, hookimpl

_PAPER = "Quinton & Rey, 2024, https://arxiv.org/abs/2406.16232"


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield UPGrad and the dual projection."""
    yield BalancerSpec(
        name="upgrad",
        target="mtlcore_upgrad.balancer:UPGrad",
        summary="The mean of the gradients, each projected so that it opposes no task.",
        paper=_PAPER,
    )
    yield BalancerSpec(
        name="dual-proj",
        target="mtlcore_upgrad.balancer:DualProj",
        summary="The mean gradient, projected so that it opposes no task.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the methods: any configuration, trained with UPGrad, or the dual projection."""
    yield MethodSpec(
        name="upgrad",
        preset={"balancer": {"name": "upgrad", "reduction": "mean"}},
        summary="Jacobian descent: unconflicting projections of gradients.",
        paper=_PAPER,
        requires=("balancers/upgrad",),
    )
    yield MethodSpec(
        name="dual-proj",
        preset={"balancer": {"name": "dual-proj", "reduction": "mean"}},
        summary="The mean gradient without what opposes a task.",
        paper=_PAPER,
        requires=("balancers/dual-proj",),
    )
