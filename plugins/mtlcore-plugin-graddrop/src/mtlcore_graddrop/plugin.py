"""What this plugin adds: GradDrop, and methods that train anything under it."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BalancerSpec, MethodSpec, hookimpl

_PAPER = "Chen et al., NeurIPS 2020, https://arxiv.org/abs/2010.06808"


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield the balancer GradDrop."""
    yield BalancerSpec(
        name="graddrop",
        target="mtlcore_graddrop.balancer:GradDrop",
        summary="Gradients of one drawn sign, by coordinate.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the method: any configuration, trained with GradDrop at the features."""
    yield MethodSpec(
        name="graddrop",
        preset={"balancer": {"name": "graddrop", "leak": 0.0, "scope": "features"}},
        summary="Gradient sign dropout, at the features.",
        paper=_PAPER,
        requires=("balancers/graddrop",),
    )
