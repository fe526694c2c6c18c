"""What this plugin adds: losses whose teacher is the network itself, as it was or on average."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import CrossTaskLossSpec, MethodSpec, hookimpl

_LWF = "Li and Hoiem, TPAMI 2018, https://arxiv.org/abs/1606.09282"
_MEAN_TEACHER = "Tarvainen and Valpola, NeurIPS 2017, https://arxiv.org/abs/1703.01780"


@hookimpl
def mtl_losses() -> Iterator[CrossTaskLossSpec]:
    """Yield learning without forgetting and mean teacher."""
    yield CrossTaskLossSpec(
        name="lwf",
        target="mtlcore_distill.forgetting:LwF",
        summary="Old tasks are predicted as they were before new ones joined.",
        paper=_LWF,
    )
    yield CrossTaskLossSpec(
        name="mean-teacher",
        target="mtlcore_distill.average:MeanTeacher",
        summary="Predictions on a view come near those of the averaged model on another.",
        paper=_MEAN_TEACHER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield mean teacher: any configuration, with its average and two views of each image."""
    yield MethodSpec(
        name="mean-teacher",
        preset={
            "data": {"augment": {"scales": [1.0, 1.2, 1.5], "flip": True}},
            "cross_task": [{"name": "mean-teacher", "weight": 1.0, "ramp": 0.25}],
            "training": {"ema": 0.999, "evaluate_ema": True},
        },
        summary="Labelled or not, images are predicted as an average of the network does.",
        paper=_MEAN_TEACHER,
        requires=("losses/mean-teacher",),
    )
