"""What this plugin adds: GradCos, and a method that trains anything under it."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BalancerSpec, MethodSpec, hookimpl

_PAPER = "Du et al., 2018, https://arxiv.org/abs/1812.02224"


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield the balancer GradCos."""
    yield BalancerSpec(
        name="gradcos",
        target="mtlcore_gradcos.balancer:GradCos",
        summary="Auxiliary tasks, as far as they agree with the main one.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the method: any configuration, its first task helped by the others."""
    yield MethodSpec(
        name="gradcos",
        preset={"balancer": {"name": "gradcos", "weighted": True}},
        summary="Auxiliary tasks gated by the cosine of gradients.",
        paper=_PAPER,
        requires=("balancers/gradcos",),
    )
