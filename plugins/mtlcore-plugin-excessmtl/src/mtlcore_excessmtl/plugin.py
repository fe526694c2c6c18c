"""What this plugin adds: ExcessMTL, and a method that trains anything under it."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BalancerSpec, MethodSpec, hookimpl

_PAPER = "He et al., ICML 2024, https://arxiv.org/abs/2402.02009"


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield the balancer ExcessMTL."""
    yield BalancerSpec(
        name="excessmtl",
        target="mtlcore_excessmtl.balancer:ExcessMTL",
        summary="Weights by estimated excess risks.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the method: any configuration, trained with ExcessMTL as in the authors' code."""
    yield MethodSpec(
        name="excessmtl",
        preset={"balancer": {"name": "excessmtl", "eta": 0.01}},
        summary="Robust weights by excess risks.",
        paper=_PAPER,
        requires=("balancers/excessmtl",),
    )
