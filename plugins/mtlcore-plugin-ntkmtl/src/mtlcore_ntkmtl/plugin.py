"""What this plugin adds: NTKMTL, and a method that trains anything under it."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BalancerSpec, MethodSpec, hookimpl

_PAPER = "Qin et al., NeurIPS 2025, https://arxiv.org/abs/2510.18258"


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield the balancer NTKMTL."""
    yield BalancerSpec(
        name="ntkmtl",
        target="mtlcore_ntkmtl.balancer:NTKMTL",
        summary="Weights against how fast tasks learn, by their kernels.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the method: any configuration, trained with NTKMTL as in the authors' code."""
    yield MethodSpec(
        name="ntkmtl",
        preset={
            "balancer": {
                "name": "ntkmtl",
                "exponent": 0.5,
                "batches": 1,
                "rescale": True,
                "max_norm": 1.0,
            }
        },
        summary="Weights from the neural tangent kernel.",
        paper=_PAPER,
        requires=("balancers/ntkmtl",),
    )
