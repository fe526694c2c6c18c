"""What this plugin adds: SDMGrad and MoDo, and methods that train anything under them."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BalancerSpec, MethodSpec, hookimpl

_PAPER = "Xiao et al., NeurIPS 2023, https://arxiv.org/abs/2305.18409"
_PAPER_2 = "Chen et al., NeurIPS 2023, https://arxiv.org/abs/2305.20057"


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield the balancers SDMGrad and MoDo."""
    yield BalancerSpec(
        name="sdmgrad",
        target="mtlcore_sdmgrad.balancer:SDMGrad",
        summary="MGDA drawn to the mean, from independent batches.",
        paper=_PAPER,
    )
    yield BalancerSpec(
        name="modo",
        target="mtlcore_sdmgrad.balancer:MoDo",
        summary="Steps along MGDA's slope, from two batches.",
        paper=_PAPER_2,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the methods: any configuration, trained with SDMGrad or MoDo."""
    yield MethodSpec(
        name="sdmgrad",
        preset={"balancer": {"name": "sdmgrad", "lam": 0.3, "batches": 3}},
        summary="Direction-oriented MGDA of independent batches.",
        paper=_PAPER,
        requires=("balancers/sdmgrad",),
    )
    yield MethodSpec(
        name="modo",
        preset={"balancer": {"name": "modo", "gamma": 0.1, "rho": 0.1}},
        summary="MGDA with double sampling.",
        paper=_PAPER_2,
        requires=("balancers/modo",),
    )
