"""What this plugin adds: three backbones of experts, and methods on rooms and on the census."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtlcore import BackboneSpec, MethodSpec, hookimpl

_MMOE = "Ma, Zhao, Yi, Chen, Hong and Chi, KDD 2018, https://dl.acm.org/doi/10.1145/3219819.3220007"
_PLE = "Tang, Liu, Zhao and Gong, RecSys 2020, https://dl.acm.org/doi/10.1145/3383313.3412236"

#: Over an encoder whose maps a decoder joins, for there are no towers that predict maps.
_ROOMS: dict[str, Any] = {
    "encoder": {"name": "unet", "width": 0.125, "output_stride": 2, "decoder": "none"},
}
#: Columns of the Census-Income (KDD) file, which has no names: industry, occupation, own business
#: and veterans are codes, and 24 is the weight of a row in the population.
_CENSUS_DATA: dict[str, Any] = {
    "name": "tabular",
    "file": "census-income.test.gz",
    "columns": "numbers",
    "categorical": [2, 3, 36, 38],
    "ignore": [24],
    "val_fraction": 0.2,
    "train": 100_000,
    "val": 100_000,
    "targets": {
        "income": {"kind": "classification", "column": 41, "classes": ["- 50000.", "50000+."]},
        "never_married": {
            "kind": "classification",
            "column": 7,
            "classes": ["ever married", "Never married"],
            "otherwise": "ever married",
        },
    },
}
# Experts as many as in MMoE, for the two tasks of the census.
_CENSUS: dict[str, Any] = {"inputs": 500, "hidden": [4], "tower": [8]}


def _on_rooms(backbone: dict[str, Any]) -> dict[str, Any]:
    """Return mixtures between a U-Net's encoder and its decoder, on rendered rooms."""
    return {
        "tasks": ["segmentation", "depth", "normals"],
        "data": {"name": "rooms", "augment": {"flip": True}},
        "model": {
            "backbone": {**backbone, **_ROOMS},
            "neck": {"name": "unet"},
            "head": {"name": "conv"},
        },
        "balancer": {"name": "equal"},
        "optimizer": {"name": "adam", "lr": 5e-3, "schedule": {"name": "cosine"}},
        "training": {"batch_size": 8, "steps": 1200, "epochs": 70, "threads": 1},
    }


def _on_census(backbone: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of a published program, keras-mmoe, on the first two tasks of the paper."""
    return {
        "tasks": ["income", "never_married"],
        "data": _CENSUS_DATA,
        "model": {"backbone": {**backbone, **_CENSUS}, "head": {"name": "linear"}},
        "balancer": {"name": "equal"},
        "optimizer": {"name": "adam", "lr": 1e-3},
        "training": {"batch_size": 32, "epochs": 100},
    }


@hookimpl
def mtl_backbones() -> Iterator[BackboneSpec]:
    """Yield MMoE, CGC and PLE."""
    yield BackboneSpec(
        name="mmoe",
        target="mtlcore_mmoe.backbones:MMoE",
        summary="Experts that all tasks share, and a gate of each task that mixes them.",
        paper=_MMOE,
    )
    yield BackboneSpec(
        name="cgc",
        target="mtlcore_mmoe.backbones:CGC",
        summary="Shared experts and experts of each task, mixed by a gate of each task.",
        paper=_PLE,
    )
    yield BackboneSpec(
        name="ple",
        target="mtlcore_mmoe.backbones:PLE",
        summary="Levels of shared experts and experts of each task, at which tasks part.",
        paper=_PLE,
    )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield MMoE and PLE, on rendered rooms and on the census."""
    # On rooms four experts per map and task, on the census the eight of the paper.
    for name, title, paper, rooms, census in (
        ("mmoe", "MMoE", _MMOE, {"experts": 4}, {"experts": 8}),
        ("ple", "PLE", _PLE, {"levels": 2, "shared": 2, "own": 1},
         {"levels": 2, "shared": 4, "own": 2}),
    ):  # fmt: skip
        yield MethodSpec(
            name=name,
            preset=_on_rooms({"name": name, **rooms}),
            summary=f"{title} between the encoder and the decoder of a U-Net, on rendered rooms.",
            paper=paper,
            requires=(f"backbones/{name}",),
        )
        yield MethodSpec(
            name=f"{name}-census",
            preset=_on_census({"name": name, **census}),
            summary=f"{title} on income and marriage of the Census-Income table.",
            paper=paper,
            requires=(f"backbones/{name}",),
        )
