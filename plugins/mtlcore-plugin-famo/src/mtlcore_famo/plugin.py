"""What this plugin adds: FAMO, and a method that trains anything under it."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BalancerSpec, MethodSpec, hookimpl

_PAPER = "Liu et al., NeurIPS 2023, https://arxiv.org/abs/2306.03792"


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield the balancer FAMO."""
    yield BalancerSpec(
        name="famo",
        target="mtlcore_famo.balancer:FAMO",
        summary="All losses fall at one rate, without a gradient per task.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the method: any configuration, trained with FAMO as in the authors' code."""
    yield MethodSpec(
        name="famo",
        preset={"balancer": {"name": "famo", "lr": 0.025, "weight_decay": 0.001}},
        summary="Losses fall at equal rates, at the cost of one more forward pass.",
        paper=_PAPER,
        requires=("balancers/famo",),
    )
