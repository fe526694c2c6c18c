"""What this plugin adds: losses between tasks, and MTPSL on three data sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtlcore import CrossTaskLossSpec, MethodSpec, hookimpl

_PAPER = "Li, Liu and Bilen, CVPR 2022, https://arxiv.org/abs/2111.14893"
_ZAMIR = "Zamir et al., CVPR 2020, https://arxiv.org/abs/2006.04096"


@hookimpl
def mtl_losses() -> Iterator[CrossTaskLossSpec]:
    """Yield MTPSL and the losses that its paper compares it with."""
    yield CrossTaskLossSpec(
        name="mtpsl",
        target="mtlcore_mtpsl.mtpsl:MTPSL",
        summary="Predictions and labels of two tasks agree in a joint space of the pair.",
        paper=_PAPER,
    )
    yield CrossTaskLossSpec(
        name="consistency",
        target="mtlcore_mtpsl.consistency:Consistency",
        summary="Predictions on a crop are the crop of the predictions.",
        paper=_PAPER,
    )
    yield CrossTaskLossSpec(
        name="direct-map",
        target="mtlcore_mtpsl.maps:DirectMap",
        summary="A prediction, mapped to another task, meets that task's label.",
        paper=_PAPER,
    )
    yield CrossTaskLossSpec(
        name="perceptual-map",
        target="mtlcore_mtpsl.maps:PerceptualMap",
        summary="Prediction and label of a task look alike when mapped to another task.",
        paper=_ZAMIR,
    )
    yield CrossTaskLossSpec(
        name="contrastive",
        target="mtlcore_mtpsl.contrast:Contrastive",
        summary="In the joint space, images are told from one another.",
        paper=_PAPER,
    )
    yield CrossTaskLossSpec(
        name="discriminator",
        target="mtlcore_mtpsl.contrast:Discriminator",
        summary="In the joint space, a learnt judge accepts the pairs of one image.",
        paper=_PAPER,
    )


def _halved(every: int, epochs: int) -> dict[str, Any]:
    """Return the learning rate halved every so many epochs."""
    points = [round(epoch / epochs, 6) for epoch in range(every, epochs, every)]
    return {"name": "step", "at": points, "gamma": 0.5}


def _published(weight: float, film: float, flip: bool, batch_size: int) -> dict[str, Any]:
    """Return the released code's settings; labels are drawn as its files were."""
    epochs = 200
    return {
        "data": {"labels": "one", "augment": {"scales": [1.0, 1.2, 1.5], "flip": flip}},
        "model": {"backbone": {"name": "segnet", "width": 1.0}, "head": {"name": "conv"}},
        "cross_task": [
            {
                "name": "mtpsl",
                "weight": weight,
                "regulariser": 0.5,
                "normalisation": "sum",
                "code": "same",
                "views": 2,
                "mapping": {"lr": 1e-4, "schedule": _halved(100, epochs)},
                "film": {"lr": film, "schedule": _halved(30, epochs)},
            }
        ],
        "balancer": {"name": "equal"},
        "optimizer": {"name": "adam", "lr": 1e-4, "schedule": _halved(100, epochs)},
        "training": {
            "batch_size": batch_size,
            "epochs": epochs,
            "normalisation": "sample",
            "evaluate_every": 1,
        },
    }


def _nyuv2() -> dict[str, Any]:
    preset = _published(weight=2.0, film=1e-3, flip=False, batch_size=2)
    preset["tasks"] = ["segmentation", "depth", "normals"]
    preset["data"]["name"] = "nyuv2"
    preset["losses"] = {
        "segmentation": {"name": "cross-entropy"},
        "depth": {"name": "l1"},
        "normals": {"name": "cosine"},
    }
    return preset


def _cityscapes() -> dict[str, Any]:
    preset = _published(weight=1.0, film=1e-5, flip=True, batch_size=8)
    preset["tasks"] = ["segmentation", "inverse_depth"]
    preset["data"] |= {"name": "cityscapes", "classes": 7}
    preset["losses"] = {
        "segmentation": {"name": "cross-entropy"},
        "inverse_depth": {"name": "l1"},
    }
    return preset


def _rooms() -> dict[str, Any]:
    """Small enough for a CPU.

    In so few steps SegNet hardly learns to tell more than floor from wall, and the published weight
    holds the tasks back: U-Net, a tenth of the weight, and rates that suit so small a network.
    """
    return {
        "tasks": ["segmentation", "depth", "normals"],
        "data": {
            "name": "rooms",
            "labels": "one",
            "augment": {"scales": [1.0, 1.2, 1.5], "flip": True},
        },
        "model": {"backbone": {"name": "unet", "width": 0.0625}, "head": {"name": "conv"}},
        "cross_task": [
            {
                "name": "mtpsl",
                "weight": 0.1,
                "regulariser": 0.5,
                "normalisation": "sum",
                "code": "same",
                "views": 2,
                "mapping": {"lr": 5e-3},
                "film": {"lr": 5e-3},
            }
        ],
        "balancer": {"name": "equal"},
        "optimizer": {
            "name": "adam",
            "lr": 5e-3,
            "schedule": {"name": "step", "at": [0.5], "gamma": 0.5},
        },
        # Epochs bound the time on small data sets of larger images. The maps are too small for
        # more than one thread to pay.
        "training": {
            "batch_size": 8,
            "steps": 600,
            "epochs": 70,
            "threads": 1,
            "normalisation": "sample",
        },
    }


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield MTPSL, small on rendered rooms and as published on NYUv2 and Cityscapes."""
    for name, preset, summary in (
        ("mtpsl", _rooms(), "MTPSL, one label per image; small, on rendered rooms."),
        ("mtpsl-nyuv2", _nyuv2(), "MTPSL, one label per image; as published, on NYUv2."),
        ("mtpsl-cityscapes", _cityscapes(), "MTPSL, one label per image; on Cityscapes."),
    ):
        yield MethodSpec(
            name=name, preset=preset, summary=summary, paper=_PAPER, requires=("losses/mtpsl",)
        )
