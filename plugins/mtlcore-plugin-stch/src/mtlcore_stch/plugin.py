"""What this plugin adds: STCH, and a method that trains anything under it."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BalancerSpec, MethodSpec, hookimpl

_PAPER = "Lin et al., ICML 2024, https://arxiv.org/abs/2402.19078"


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield the balancer STCH."""
    yield BalancerSpec(
        name="stch",
        target="mtlcore_stch.balancer:STCH",
        summary="A smooth maximum of the losses, in units of what they were early on.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the method: any configuration, trained with STCH as in the authors' code."""
    yield MethodSpec(
        name="stch",
        preset={"balancer": {"name": "stch", "form": "log", "mu": 1.0, "warmup": 4}},
        summary="The worst relative loss counts most, smoothly; a sum of logarithms at first.",
        paper=_PAPER,
        requires=("balancers/stch",),
    )
