"""What this plugin adds: MoCo, and a method that trains anything under it."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BalancerSpec, MethodSpec, hookimpl

_PAPER = "Fernando et al., ICLR 2023, https://arxiv.org/abs/2210.12624"


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield the balancer MoCo."""
    yield BalancerSpec(
        name="moco",
        target="mtlcore_moco.balancer:MoCo",
        summary="MGDA's weights, followed by running means of gradients.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the method: any configuration, trained with MoCo as in the authors' code."""
    yield MethodSpec(
        name="moco",
        preset={"balancer": {"name": "moco", "beta": 0.1, "gamma": 0.1, "rho": 0.1}},
        summary="Multi-objective gradient correction.",
        paper=_PAPER,
        requires=("balancers/moco",),
    )
