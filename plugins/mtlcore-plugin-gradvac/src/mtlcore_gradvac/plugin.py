"""What this plugin adds: GradVac, and a method that trains anything under it."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BalancerSpec, MethodSpec, hookimpl

_PAPER = "Wang et al., ICLR 2021, https://arxiv.org/abs/2010.05874"


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield the balancer GradVac."""
    yield BalancerSpec(
        name="gradvac",
        target="mtlcore_gradvac.balancer:gradvac",
        summary="Gradients pulled to running target cosines.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the method: any configuration, trained with GradVac per parameter."""
    yield MethodSpec(
        name="gradvac",
        preset={"balancer": {"name": "gradvac", "beta": 0.01, "granularity": "parameter"}},
        summary="Gradient vaccine: target cosines between tasks.",
        paper=_PAPER,
        requires=("balancers/gradvac",),
    )
