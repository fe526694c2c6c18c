"""What this plugin adds: MGDA, and methods that train anything under it, or under MGDA-UB."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BalancerSpec, MethodSpec, hookimpl

_PAPER = "Sener & Koltun, NeurIPS 2018, https://arxiv.org/abs/1810.04650"


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield the balancer MGDA."""
    yield BalancerSpec(
        name="mgda",
        target="mtlcore_mgda.balancer:MGDA",
        summary="The shortest convex combination of the task gradients.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the methods: any configuration, trained with MGDA or MGDA-UB."""
    yield MethodSpec(
        name="mgda",
        preset={
            "balancer": {
                "name": "mgda",
                "scope": "shared",
                "normalise": "none",
                "weigh_heads": True,
            }
        },
        summary="A common descent direction of all tasks.",
        paper=_PAPER,
        requires=("balancers/mgda",),
    )
    yield MethodSpec(
        name="mgda-ub",
        preset={
            "balancer": {
                "name": "mgda",
                "scope": "features",
                "normalise": "none",
                "weigh_heads": True,
            }
        },
        summary="A common descent direction at the features, in one pass of the trunk.",
        paper=_PAPER,
        requires=("balancers/mgda",),
    )
