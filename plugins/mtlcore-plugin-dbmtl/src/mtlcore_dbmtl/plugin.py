"""What this plugin adds: DB-MTL, and a method that trains anything under it."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BalancerSpec, MethodSpec, hookimpl

_PAPER = "Lin et al., 2023, https://arxiv.org/abs/2308.12029"


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield the balancer DB-MTL."""
    yield BalancerSpec(
        name="db-mtl",
        target="mtlcore_dbmtl.balancer:DBMTL",
        summary="Log losses, and running gradients of one length.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the method: any configuration, trained with DB-MTL as in its first author's code."""
    yield MethodSpec(
        name="dbmtl",
        preset={"balancer": {"name": "db-mtl", "beta": 0.9, "sigma": 0.0}},
        summary="Dual balancing: log losses, and gradients of one length.",
        paper=_PAPER,
        requires=("balancers/db-mtl",),
    )
