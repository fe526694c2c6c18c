"""What this plugin adds: GradNorm, and a method that trains anything under it."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BalancerSpec, MethodSpec, hookimpl

_PAPER = "Chen et al., ICML 2018, https://arxiv.org/abs/1711.02257"


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield the balancer GradNorm."""
    yield BalancerSpec(
        name="gradnorm",
        target="mtlcore_gradnorm.balancer:GradNorm",
        summary="Learnt weights that equalise gradients of the last shared layer.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the method: any configuration, trained with GradNorm as for NYUv2 in the paper."""
    yield MethodSpec(
        name="gradnorm",
        preset={"balancer": {"name": "gradnorm", "alpha": 1.5, "lr": 0.025}},
        summary="Gradient normalisation at the last shared layer.",
        paper=_PAPER,
        requires=("balancers/gradnorm",),
    )
