"""What this plugin adds: AdaShare over residual networks, its sampler, and methods."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtlcore import BackboneSpec, EpisodeSamplerSpec, MethodSpec, hookimpl

_PAPER = "Sun, Panda, Feris and Saenko, NeurIPS 2020, https://arxiv.org/abs/1911.12423"


def _on_rooms() -> dict[str, Any]:
    """Return a small ResNet on rendered rooms; one run searches, then trains."""
    resnet = {"name": "resnet", "depth": 18, "width": 0.25, "output_stride": 8}
    return {
        "tasks": ["segmentation", "depth", "normals"],
        "data": {"name": "rooms", "augment": {"flip": True}},
        "model": {
            "backbone": {"name": "adashare", "encoder": resnet, "search": 0.5},
            "head": {"name": "conv"},
        },
        "balancer": {"name": "equal"},
        "episodes": {"name": "halves"},
        "optimizer": {"name": "adam", "lr": 5e-3, "schedule": {"name": "cosine"}},
        # The maps are too small for more than one thread to pay.
        "training": {"batch_size": 8, "steps": 1200, "epochs": 70, "threads": 1},
    }


def _on_nyuv2(search: float, episodes: str) -> dict[str, Any]:
    """Return two tasks on ResNet-18; a run that searches, or one that trains what it found."""
    resnet = {"name": "resnet", "depth": 18, "output_stride": 8, "width": 1.0}
    return {
        "tasks": ["segmentation", "normals"],
        "data": {"name": "nyuv2"},
        "model": {
            "backbone": {
                "name": "adashare",
                "encoder": resnet,
                "search": search,
                "warmup": 0.2,
                "curriculum": 0.07,
                "temperature": 5.0,
                "cold": 0.02,
                "sparsity": 0.05,
                "sharing": 0.05,
                "rate": 10.0,
                "decay": 5e-4,
            },
            "head": {"name": "deeplab"},
        },
        "losses": {
            "segmentation": {"name": "cross-entropy"},
            "normals": {"name": "cosine"},
        },
        "balancer": {"name": "fixed", "weights": {"segmentation": 1.0, "normals": 20.0}},
        "episodes": {"name": episodes},
        "optimizer": {
            "name": "adam",
            "lr": 1e-3,
            "betas": [0.5, 0.999],
            "weight_decay": 1e-4,
            "schedule": {"name": "step", "at": [0.2, 0.4, 0.6, 0.8], "gamma": 0.5},
        },
        "training": {"batch_size": 16, "steps": 20_000, "epochs": 1000},
    }


@hookimpl
def mtl_backbones() -> Iterator[BackboneSpec]:
    """Yield the network of which tasks run parts."""
    yield BackboneSpec(
        name="adashare",
        target="mtlcore_adashare.backbone:AdaShare",
        summary="Each task learns which residual blocks of one network it runs.",
        paper=_PAPER,
    )


@hookimpl
def mtl_episode_samplers() -> Iterator[EpisodeSamplerSpec]:
    """Yield the sampler of two halves."""
    yield EpisodeSamplerSpec(
        name="halves",
        target="mtlcore_adashare.halves:Halves",
        summary="Batches of one half of the training samples, and of the other, in turn.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield AdaShare on rendered rooms, and its two phases, a run each, on NYUv2."""
    for name, preset, summary in (
        ("adashare", _on_rooms(), "Search and training in one run; small, on rendered rooms."),
        ("adashare-nyuv2", _on_nyuv2(1.0, "halves"), "The search; ResNet-18, two tasks of NYUv2."),
        (
            "adashare-retrain-nyuv2",
            _on_nyuv2(0.0, "joint"),
            "What initial.run found, from scratch; ResNet-18, two tasks of NYUv2.",
        ),
    ):
        yield MethodSpec(
            name=name,
            preset=preset,
            summary=summary,
            paper=_PAPER,
            requires=("backbones/adashare",),
        )
