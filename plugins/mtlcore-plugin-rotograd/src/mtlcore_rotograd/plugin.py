"""What this plugin adds: RotoGrad's rotations and lengths, and a method that has both."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import BackboneSpec, BalancerSpec, MethodSpec, hookimpl

_PAPER = "Javaloy & Valera, ICLR 2022, https://arxiv.org/abs/2103.02631"


@hookimpl
def mtl_backbones() -> Iterator[BackboneSpec]:
    """Yield the backbone that turns another one's features, for each task by itself."""
    yield BackboneSpec(
        name="rotograd",
        target="mtlcore_rotograd.backbone:RotatedBackbone",
        summary="Another backbone, whose features each task sees turned by a rotation of its own.",
        paper=_PAPER,
    )


@hookimpl
def mtl_balancers() -> Iterator[BalancerSpec]:
    """Yield the balancer that gives the tasks' gradients one length."""
    yield BalancerSpec(
        name="rotograd",
        target="mtlcore_rotograd.balancer:OneLength",
        summary="Gradients of one length: that of those that fell least.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the method: the core's default network with rotations, trained under both."""
    yield MethodSpec(
        name="rotograd",
        preset={
            "model": {
                "backbone": {
                    "name": "rotograd",
                    "backbone": {"name": "segnet", "width": 0.0625},
                    "rotation_lr": 5e-4,
                }
            },
            "balancer": {"name": "rotograd", "burn_in": 20},
        },
        summary="Gradients of the features, turned towards one another and of one length.",
        paper=_PAPER,
        requires=("backbones/rotograd", "balancers/rotograd"),
    )
