"""What this plugin adds: AdaLoss, and a method that trains anything under it."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BalancerSpec, MethodSpec, hookimpl

_PAPER = "Hu et al., AAAI 2019, https://arxiv.org/abs/1708.06832"


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield the balancer AdaLoss."""
    yield BalancerSpec(
        name="adaloss",
        target="mtlcore_adaloss.balancer:AdaLoss",
        summary="Each loss in units of its running mean.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the method: any configuration, trained with AdaLoss."""
    yield MethodSpec(
        name="adaloss",
        preset={"balancer": {"name": "adaloss", "momentum": 0.99, "normalise": False}},
        summary="Losses in units of their running means.",
        paper=_PAPER,
        requires=("balancers/adaloss",),
    )
