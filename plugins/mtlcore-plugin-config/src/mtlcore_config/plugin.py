"""What this plugin adds: ConFIG, and a method that trains anything under it."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BalancerSpec, MethodSpec, hookimpl

_PAPER = "Liu, Chu & Thuerey, ICLR 2025, https://arxiv.org/abs/2408.11104"


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield the balancer ConFIG."""
    yield BalancerSpec(
        name="config",
        target="mtlcore_config.balancer:ConFIG",
        summary="The update with the same positive cosine with every task gradient.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the method: any configuration, trained with ConFIG as in the paper."""
    yield MethodSpec(
        name="config",
        preset={"balancer": {"name": "config"}},
        summary="Conflict-free inverse gradients.",
        paper=_PAPER,
        requires=("balancers/config",),
    )
