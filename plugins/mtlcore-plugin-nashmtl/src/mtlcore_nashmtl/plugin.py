"""What this plugin adds: Nash-MTL, and a method that trains anything under it."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BalancerSpec, MethodSpec, hookimpl

_PAPER = "Navon et al., ICML 2022, https://arxiv.org/abs/2202.01017"


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield the balancer Nash-MTL."""
    yield BalancerSpec(
        name="nash-mtl",
        target="mtlcore_nashmtl.balancer:NashMTL",
        summary="The update that tasks agree on in Nash's bargaining game.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the method: any configuration, trained with Nash-MTL with the published values."""
    yield MethodSpec(
        name="nashmtl",
        preset={
            "balancer": {
                "name": "nash-mtl",
                "max_norm": 1.0,
                "weigh_heads": True,
                "update_every": 1,
            }
        },
        summary="Bargaining between tasks; the update's norm is at most 1.",
        paper=_PAPER,
        requires=("balancers/nash-mtl",),
    )
