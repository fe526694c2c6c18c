"""What this plugin adds: losses between tasks, and MTPSL on four data sets."""

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


def _pascal() -> dict[str, Any]:
    """Return what the paper says of its third data set, for which nothing was released.

    Network, losses and their weights, optimizer and augmentation are those of Vandenhende et al.,
    whose code the authors say they used; the cross-task loss is the paper's.
    """
    return {
        "tasks": ["segmentation", "human_parts", "normals", "saliency", "edges"],
        "data": {
            "name": "pascal-context",
            "size": [512, 512],
            "labels": "one",
            "augment": {"flip": True},
            "augmentations": [{"name": "rotate", "degrees": 20.0, "scales": [0.75, 1.25]}],
        },
        "model": {
            "backbone": {"name": "resnet", "depth": 18, "output_stride": 8, "width": 1.0},
            "head": {"name": "deeplab", "rates": [12, 24, 36], "channels": 256},
        },
        "losses": {
            "segmentation": {"name": "cross-entropy"},
            "human_parts": {"name": "cross-entropy"},
            "normals": {"name": "normals-l1"},
            "saliency": {
                "name": "binary-cross-entropy", "positive_weight": 0.5, "divide_by": "number",
            },
            "edges": {
                "name": "binary-cross-entropy", "positive_weight": 0.95, "divide_by": "number",
            },
        },
        "metrics": {"saliency": {"name": "saliency-iou"}, "edges": {"name": "edges-ods"}},
        "cross_task": [
            {
                "name": "mtpsl",
                "weight": 1.0,
                "regulariser": 1.0,
                "normalisation": "mean",
                "code": "different",
                "encoder": "resnet-18",
                "views": 1,
            }
        ],
        "balancer": {
            "name": "fixed",
            "weights": {
                "segmentation": 1.0,
                "human_parts": 2.0,
                "normals": 10.0,
                "saliency": 5.0,
                "edges": 50.0,
            },
        },
        "optimizer": {
            "name": "adam",
            "lr": 1e-4,
            "weight_decay": 1e-4,
            "schedule": {"name": "poly", "power": 0.9},
        },
        "training": {"batch_size": 6, "epochs": 100, "normalisation": "labelled"},
    }  # fmt: skip


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
    """Yield MTPSL, small on rendered rooms and as published on three data sets."""
    for name, preset, summary in (
        ("mtpsl", _rooms(), "MTPSL, one label per image; small, on rendered rooms."),
        ("mtpsl-nyuv2", _nyuv2(), "MTPSL, one label per image; as published, on NYUv2."),
        ("mtpsl-cityscapes", _cityscapes(), "MTPSL, one label per image; on Cityscapes."),
        ("mtpsl-pascal", _pascal(), "MTPSL, one label per image; five tasks on PASCAL-Context."),
    ):
        yield MethodSpec(
            name=name, preset=preset, summary=summary, paper=_PAPER, requires=("losses/mtpsl",)
        )
