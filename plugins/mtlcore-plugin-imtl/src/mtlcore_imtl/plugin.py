"""What this plugin adds: IMTL, and methods that train anything under it or one of its halves."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BalancerSpec, MethodSpec, hookimpl

_PAPER = "Liu et al., ICLR 2021, https://openreview.net/forum?id=IMPnRXEWpvr"


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield both halves of IMTL."""
    yield BalancerSpec(
        name="imtl-g",
        target="mtlcore_imtl.balancer:IMTLG",
        summary="The update with equal projections on all task gradients.",
        paper=_PAPER,
    )
    yield BalancerSpec(
        name="imtl-l",
        target="mtlcore_imtl.balancer:IMTLL",
        summary="Learnt scales of the losses, without assumptions.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the methods: any configuration, trained with IMTL or one of its halves."""
    yield MethodSpec(
        name="imtl",
        preset={
            "balancer": {"chain": [{"name": "imtl-l"}, {"name": "imtl-g", "scope": "features"}]}
        },
        summary="Impartial learning: scaled losses, equal projections of gradients.",
        paper=_PAPER,
        requires=(
            "balancers/imtl-l",
            "balancers/imtl-g",
        ),
    )
    yield MethodSpec(
        name="imtl-g",
        preset={"balancer": {"name": "imtl-g", "scope": "features"}},
        summary="Impartial learning of gradients alone.",
        paper=_PAPER,
        requires=("balancers/imtl-g",),
    )
    yield MethodSpec(
        name="imtl-l",
        preset={"balancer": {"name": "imtl-l"}},
        summary="Impartial learning of losses alone.",
        paper=_PAPER,
        requires=("balancers/imtl-l",),
    )
