"""What this plugin adds: Pareto MTL, and a method that trains anything under it."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BalancerSpec, MethodSpec, hookimpl

_PAPER = "Lin et al., NeurIPS 2019, https://arxiv.org/abs/1912.12854"


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield the balancer Pareto MTL."""
    yield BalancerSpec(
        name="pareto-mtl",
        target="mtlcore_paretomtl.balancer:ParetoMTL",
        summary="A trade-off between tasks in a chosen part of the Pareto front.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the method: any configuration, trained with Pareto MTL with the authors' values."""
    yield MethodSpec(
        name="paretomtl",
        preset={
            "balancer": {
                "name": "pareto-mtl",
                "preferences": 5,
                "initial": 0.02,
                "weigh_heads": True,
            }
        },
        summary="One of several trade-offs along the Pareto front.",
        paper=_PAPER,
        requires=("balancers/pareto-mtl",),
    )
