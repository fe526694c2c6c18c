"""What this plugin adds: MTFormer with its head and its contrast, and a method on each data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mtlcore import BackboneSpec, CrossTaskLossSpec, HeadSpec, MethodSpec, hookimpl
from mtlcore.standard.recipes import nyud_mt, pascal_context

_PAPER = "Xu et al., ECCV 2022, https://doi.org/10.1007/978-3-031-19812-0_18"
#: Of NYUD and of PASCAL-Context: training images, and those that an image is told from.
_NYUD, _PASCAL = (795, 700), (4998, 2000)


def _on_rooms() -> dict[str, Any]:
    """Return a small network over a U-Net that learns in minutes, on rendered rooms."""
    unet = {"name": "unet", "width": 0.125, "decoder": "none", "output_stride": 2}
    mtformer = {
        "name": "mtformer", "backbone": unet, "channels": 32, "heads": 4, "window": 7, "stride": 4,
    }  # fmt: skip
    return {
        "tasks": ["segmentation", "depth", "normals"],
        "data": {"name": "rooms", "augment": {"flip": True}},
        "model": {"backbone": mtformer, "head": {"name": "mtformer"}},
        "cross_task": [_contrast(1600, 256)],
        "balancer": {"name": "equal"},
        "optimizer": {"name": "adam", "lr": 3e-3, "schedule": {"name": "cosine"}},
        # Epochs bound the time on small data sets of larger images. The maps are too small for
        # more than one thread to pay.
        "training": {"batch_size": 8, "steps": 800, "epochs": 70, "threads": 1},
    }


def _contrast(samples: int, negatives: int) -> dict[str, Any]:
    return {
        "name": "task-contrast",
        "weight": 0.01,
        "negatives": negatives,
        "temperature": 0.07,
        "momentum": 0.5,
        "outputs": 128,
        "samples": samples,
    }


def _published(
    recipe: Mapping[str, Any],
    weights: Mapping[str, float],
    data: Mapping[str, Any],
    memory: tuple[int, int],
    lr: float,
) -> dict[str, Any]:
    """Return the authors' recipe for some of the tasks of a data set, over Swin-S.

    Args:
        recipe: of the data set, with more tasks.
        weights: of the losses.
        data: name, size and augmentation.
        memory: training images, and how many of them an image is told from.
        lr: rate.
    """
    swin = {
        "name": "timm",
        "model": "swin_small_patch4_window7_224.ms_in1k",
        "weights": "pretrained",
        "drop_path": 0.3,
    }
    mtformer = {
        "name": "mtformer", "backbone": swin, "channels": 256, "heads": 4, "window": 7, "stride": 8,
    }  # fmt: skip
    return {
        "tasks": list(weights),
        "data": dict(data),
        "model": {"backbone": mtformer, "head": {"name": "mtformer"}},
        "losses": {task: recipe["losses"][task] for task in weights},
        "metrics": {t: how for t, how in recipe["metrics"].items() if t in weights},
        "cross_task": [_contrast(*memory)],
        # The published objective is 10 w exp(-s) L + s.
        "balancer": {
            "chain": [
                {"name": "fixed", "weights": {task: 10 * w for task, w in weights.items()}},
                {"name": "uncertainty", "form": "mtml"},
            ]
        },
        "optimizer": {
            "name": "adamw",
            "lr": lr,
            "weight_decay": 1e-4,
            "schedule": {"name": "poly", "power": 0.9},
        },
        "training": {"batch_size": 4, "epochs": 100},
    }


def _on_nyud() -> dict[str, Any]:
    data = {
        "name": "nyud-mt",
        "size": [480, 640],
        "augment": {"flip": True, "scales": [1.0, 1.2, 1.5]},
    }
    weights = {"segmentation": 1.0, "depth": 1.0}
    return _published(nyud_mt(), weights, data, _NYUD, 5e-5)


def _on_pascal() -> dict[str, Any]:
    data = {
        "name": "pascal-context",
        "size": [512, 512],
        "augment": {"flip": True},
        "augmentations": [{"name": "rotate", "degrees": 20.0, "scales": [0.75, 1.25]}],
    }
    weights = {"segmentation": 1.0, "human_parts": 2.0, "saliency": 30.0}
    return _published(pascal_context(), weights, data, _PASCAL, 2.5e-5)


@hookimpl
def mtl_backbones() -> Iterator[BackboneSpec]:
    """Yield MTFormer over any encoder."""
    yield BackboneSpec(
        name="mtformer",
        target="mtlcore_mtformer.backbone:MTFormer",
        summary="A transformer decoder that tasks share; each attends by the scores of all tasks.",
        paper=_PAPER,
    )


@hookimpl
def mtl_heads() -> Iterator[HeadSpec]:
    """Yield the published head."""
    yield HeadSpec(
        name="mtformer",
        target="mtlcore_mtformer.head:MTFormerHead",
        task_kinds=("*",),
        layouts=("map",),
        summary="Two 1x1 convolutions with batch norm and ReLU between them.",
        paper=_PAPER,
    )


@hookimpl
def mtl_losses() -> Iterator[CrossTaskLossSpec]:
    """Yield the contrast between tasks."""
    yield CrossTaskLossSpec(
        name="task-contrast",
        target="mtlcore_mtformer.contrast:TaskContrast",
        summary="What two tasks make of an image is alike, and unlike what they make of others.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield MTFormer, small on rendered rooms, and at its size on NYUD and PASCAL-Context."""
    for name, preset, summary in (
        ("mtformer", _on_rooms(), "MTFormer, three tasks; small, on rooms."),
        ("mtformer-nyud", _on_nyud(), "MTFormer, two tasks; Swin-S, NYUD."),
        ("mtformer-pascal", _on_pascal(), "MTFormer, three tasks; Swin-S, PASCAL-Context."),
    ):
        yield MethodSpec(
            name=name,
            preset=preset,
            summary=summary,
            paper=_PAPER,
            requires=("backbones/mtformer", "losses/task-contrast"),
        )
