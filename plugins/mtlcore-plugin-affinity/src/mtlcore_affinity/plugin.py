"""What this plugin adds: an optimizer that measures affinities, and TAG as a method."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import MethodSpec, OptimizerSpec, hookimpl

_TAG = (
    "Fifty et al., Efficiently Identifying Task Groupings for Multi-Task Learning, NeurIPS 2021, "
    "arXiv:2109.04617"
)


@hookimpl
def mtl_optimizers() -> Iterator[OptimizerSpec]:
    """Yield the optimizer."""
    yield OptimizerSpec(
        name="affinity",
        target="mtlcore_affinity.optimizer:Affinity",
        summary="Another optimizer, and what a step for one task does to the losses of the others.",
        paper=_TAG,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield the method: any configuration, trained by Adam and measured every ten steps."""
    yield MethodSpec(
        name="tag",
        preset={
            "optimizer": {
                "name": "affinity",
                "every": 10,
                "optimizer": {"name": "adam", "lr": 1e-3},
            }
        },
        summary="Measures in one run which tasks help each other; mtl groups reads it.",
        paper=_TAG,
        requires=("optimizers/affinity",),
    )
