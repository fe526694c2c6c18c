"""What this plugin adds: PCGrad, and a method that trains anything under it."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BalancerSpec, MethodSpec, hookimpl

_PAPER = "Yu et al., NeurIPS 2020, https://arxiv.org/abs/2001.06782"


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield the balancer PCGrad."""
    yield BalancerSpec(
        name="pcgrad",
        target="mtlcore_pcgrad.balancer:PCGrad",
        summary="Projects each task's gradient away from those it conflicts with.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the method: any configuration, trained with PCGrad as in the paper."""
    yield MethodSpec(
        name="pcgrad",
        preset={"balancer": {"name": "pcgrad", "reduction": "sum", "order": "random"}},
        summary="Gradient surgery: conflicting task gradients are projected.",
        paper=_PAPER,
        requires=("balancers/pcgrad",),
    )
