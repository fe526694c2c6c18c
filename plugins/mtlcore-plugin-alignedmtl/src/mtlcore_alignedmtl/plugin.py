"""What this plugin adds: Aligned-MTL, and methods that train with it, or Aligned-MTL-UB."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BalancerSpec, MethodSpec, hookimpl

_PAPER = "Senushkin et al., CVPR 2023, https://arxiv.org/abs/2305.19000"


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield the balancer Aligned-MTL."""
    yield BalancerSpec(
        name="aligned-mtl",
        target="mtlcore_alignedmtl.balancer:AlignedMTL",
        summary="Principal components of the task gradients get one length.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the methods: any configuration, trained with Aligned-MTL, or Aligned-MTL-UB."""
    yield MethodSpec(
        name="alignedmtl",
        preset={
            "balancer": {
                "name": "aligned-mtl",
                "scale": "min",
                "reduction": "sum",
                "scope": "shared",
            }
        },
        summary="Aligned principal components of the gradients.",
        paper=_PAPER,
        requires=("balancers/aligned-mtl",),
    )
    yield MethodSpec(
        name="alignedmtl-ub",
        preset={
            "balancer": {
                "name": "aligned-mtl",
                "scale": "min",
                "reduction": "sum",
                "scope": "features",
            }
        },
        summary="Aligned principal components of the gradients at the features.",
        paper=_PAPER,
        requires=("balancers/aligned-mtl",),
    )
