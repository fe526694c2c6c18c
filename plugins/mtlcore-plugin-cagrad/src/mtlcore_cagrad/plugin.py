"""What this plugin adds: CAGrad, and a method that trains anything under it."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BalancerSpec, MethodSpec, hookimpl

_PAPER = "Liu et al., NeurIPS 2021, https://arxiv.org/abs/2110.14048"


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield the balancer CAGrad."""
    yield BalancerSpec(
        name="cagrad",
        target="mtlcore_cagrad.balancer:CAGrad",
        summary="Near the mean gradient, the update whose worst task gains most.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the method: any configuration, trained with CAGrad as in the authors' code."""
    yield MethodSpec(
        name="cagrad",
        preset={"balancer": {"name": "cagrad", "c": 0.4, "rescale": True}},
        summary="Conflict-averse gradient descent.",
        paper=_PAPER,
        requires=("balancers/cagrad",),
    )
