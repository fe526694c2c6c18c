"""What this plugin adds: GO4Align, and a method that trains anything under it."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BalancerSpec, MethodSpec, hookimpl

_PAPER = "Shen et al., NeurIPS 2024, https://arxiv.org/abs/2404.06486"


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield the balancer GO4Align."""
    yield BalancerSpec(
        name="go4align",
        target="mtlcore_go4align.balancer:GO4Align",
        summary="Tasks with losses alike form groups, and a group has one weight.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the method: any configuration, trained with GO4Align."""
    yield MethodSpec(
        name="go4align",
        preset={"balancer": {"name": "go4align", "groups": 2, "step_size": 1e-4}},
        summary="Losses on one scale, weighed by groups of tasks.",
        paper=_PAPER,
        requires=("balancers/go4align",),
    )
