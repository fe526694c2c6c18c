"""What this plugin adds: terms of two views of each image beside the losses of tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtlcore import CrossTaskLossSpec, MethodSpec, hookimpl

_PAPERS = {
    "simclr": "Chen et al., ICML 2020, https://arxiv.org/abs/2002.05709",
    "byol": "Grill et al., NeurIPS 2020, https://arxiv.org/abs/2006.07733",
    "mtss": "Li et al., AIID 2021, https://doi.org/10.1109/AIID51893.2021.9456562",
}
_SUMMARIES = {
    "simclr": "Two views of an image find each other among all views of a batch.",
    "byol": "A view predicts what an average of the network makes of another one.",
    "mtss": "What the network makes of two views of an image is alike.",
}
_TARGETS = {"simclr": "SimCLR", "byol": "BYOL", "mtss": "MTSS"}
_SETTINGS: dict[str, dict[str, Any]] = {
    "simclr": {"temperature": 0.1, "outputs": 128},
    "byol": {"decay": 0.996, "hidden": 4096, "outputs": 256},
    "mtss": {},
}


@hookimpl
def mtl_losses() -> Iterator[CrossTaskLossSpec]:
    """Yield the terms."""
    for name, target in _TARGETS.items():
        yield CrossTaskLossSpec(
            name=name,
            target=f"mtlcore_views.agreement:{target}",
            summary=_SUMMARIES[name],
            paper=_PAPERS[name],
        )


@hookimpl
def mtl_methods() -> Iterator[MethodSpec]:
    """Yield a method for each: any configuration, with two views and this term."""
    for name, settings in _SETTINGS.items():
        preset: dict[str, Any] = {
            "data": {"augment": {"scales": [1.0, 1.2, 1.5], "flip": True}},
            "cross_task": [{"name": name, "weight": 0.1, **settings}],
        }
        if name == "byol":
            preset["training"] = {"ema": 0.996}
        yield MethodSpec(
            name=name,
            preset=preset,
            summary=_SUMMARIES[name],
            paper=_PAPERS[name],
            requires=(f"losses/{name}",),
        )
