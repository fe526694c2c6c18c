"""What this plugin adds: Auto-Lambda, and a method that trains anything under it."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BalancerSpec, MethodSpec, hookimpl

_PAPER = "Liu et al., TMLR 2022, https://arxiv.org/abs/2202.03091"


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield the balancer Auto-Lambda."""
    yield BalancerSpec(
        name="auto-lambda",
        target="mtlcore_autolambda.balancer:AutoLambda",
        summary="Weights learnt by what they do for the primary tasks on other samples.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the method: any configuration, trained under Auto-Lambda, as on NYUv2."""
    yield MethodSpec(
        name="auto-lambda",
        preset={"balancer": {"name": "auto-lambda", "lr": 1e-4, "initial": 0.1, "split": "train"}},
        summary="Weights of tasks learnt beside the network, one step ahead.",
        paper=_PAPER,
        requires=("balancers/auto-lambda",),
    )
