"""What this plugin adds: contexts between dense tasks over any encoder, and methods."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtlcore import BackboneSpec, MethodSpec, hookimpl
from mtlcore.standard.recipes import nyud_mt

_PAPER = "Bruggemann et al., ICCV 2021, https://arxiv.org/abs/2104.13874"
# The authors' 10 is for the sum over x, y and z; the loss here is their mean.
_NORMALS = 30.0


def _on_rooms() -> dict[str, Any]:
    """Return a small network over a U-Net on rendered rooms; one run searches, then trains."""
    unet = {"name": "unet", "width": 0.125, "decoder": "none", "output_stride": 2}
    return {
        "tasks": ["segmentation", "depth", "normals"],
        "data": {"name": "rooms", "augment": {"flip": True}},
        "model": {
            "backbone": {
                "name": "atrc",
                "backbone": unet,
                "search": 0.5,
                "channels": 32,
                "window": 5,
                "labels": 16,
            },
            "head": {"name": "pointwise"},
        },
        "balancer": {"name": "equal"},
        "optimizer": {"name": "adam", "lr": 3e-3, "schedule": {"name": "cosine"}},
        # Epochs bound the time on small data sets of larger images. The maps are too small for
        # more than one thread to pay.
        "training": {"batch_size": 8, "steps": 1200, "epochs": 70, "threads": 1},
    }


def _on_nyud(settings: dict[str, Any], optimizer: dict[str, Any]) -> dict[str, Any]:
    """Return the authors' network with HRNet-W18; a run that searches, or one that trains."""
    hrnet = {
        "name": "timm",
        "model": "hrnet_w18_small_v2.ms_in1k",
        "weights": "pretrained",
        # Without what its classifier has before pooling: 18, 36, 72 and 144 channels.
        "options": {"head": ""},
    }
    return {
        "data": {
            "name": "nyud-mt",
            "size": [425, 560],
            "augment": {"flip": True},
            "augmentations": [
                {"name": "rotate", "degrees": 0.0, "scales": [0.5, 2.0]},
                {"name": "photometric"},
            ],
        },
        "model": {
            "backbone": {
                "name": "atrc",
                "backbone": hrnet,
                **settings,
                "window": 9,
                "labels": 40,
                "dropout": 0.05,
            },
            "head": {"name": "pointwise"},
        },
        "optimizer": {
            **optimizer,
            "weight_decay": 5e-4,
            "schedule": {"name": "poly", "power": 0.9},
        },
        "training": {"batch_size": 8, "steps": 40_000},
    } | nyud_mt(normals=_NORMALS, positive=0.8)


@hookimpl
def mtl_backbones() -> Iterator[BackboneSpec]:
    """Yield contexts between tasks over any encoder."""
    yield BackboneSpec(
        name="atrc",
        target="mtlcore_atrc.backbone:ATRC",
        summary="What each task attends to in the maps of all: searched for, then trained.",
        paper=_PAPER,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield ATRC on rendered rooms, and its two phases, a run each, on NYUD."""
    searching = {
        "search": 1.0,
        "temperature": 1.0,
        "cold": 0.05,
        "entropy": [-0.02, 0.06],
        "margin": 0.3,
        "rate": 1.0,
    }
    adam, sgd = {"name": "adam", "lr": 5e-4}, {"name": "sgd", "lr": 0.01, "momentum": 0.9}
    for name, preset, summary in (
        ("atrc", _on_rooms(), "Search and training in one run; small, on rendered rooms."),
        (
            "atrc-search-nyud",
            _on_nyud(searching, adam),
            "The search for contexts; HRNet-W18, NYUD.",
        ),
        (
            "atrc-nyud",
            _on_nyud({"search": 0.0}, sgd),
            "The genotype that is given, from scratch; HRNet-W18, NYUD.",
        ),
    ):
        yield MethodSpec(
            name=name, preset=preset, summary=summary, paper=_PAPER, requires=("backbones/atrc",)
        )
