"""Recipes that many papers share: the tasks of a data set with their losses, metrics and weights.

Presets of methods are made of them. Light: nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def nyud_mt(*, normals: float = 10.0, positive: float = 0.95) -> dict[str, Any]:
    """Return the four tasks of NYUD-MT as Vandenhende et al. weigh them (TPAMI 2021).

    Args:
        normals: The weight of normals.
        positive: The weight of edges' positives beside 1 - positive of all others.
    """
    losses = {
        "segmentation": {"name": "cross-entropy"},
        "depth": {"name": "l1"},
        "normals": {"name": "normals-l1"},
        "edges": _binary(positive),
    }
    weights = {"segmentation": 1.0, "depth": 1.0, "normals": normals, "edges": 50.0}
    return _recipe(losses, weights, {"edges": {"name": "edges-ods"}})


def pascal_context(
    *, normals: float = 10.0, saliency: str = "saliency-iou", positive: float = 0.95
) -> dict[str, Any]:
    """Return the five tasks of PASCAL-Context as Vandenhende et al. weigh them (TPAMI 2021).

    Args:
        normals: The weight of normals.
        saliency: The metric of saliency.
        positive: As for `nyud_mt`.
    """
    losses = {
        "segmentation": {"name": "cross-entropy"},
        "human_parts": {"name": "cross-entropy"},
        "normals": {"name": "normals-l1"},
        "saliency": _binary(0.5),
        "edges": _binary(positive),
    }
    weights = {
        "segmentation": 1.0,
        "human_parts": 2.0,
        "normals": normals,
        "saliency": 5.0,
        "edges": 50.0,
    }
    return _recipe(
        losses, weights, {"saliency": {"name": saliency}, "edges": {"name": "edges-ods"}}
    )


def _recipe(
    losses: Mapping[str, Any], weights: Mapping[str, float], metrics: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "tasks": list(losses),
        "losses": dict(losses),
        "metrics": dict(metrics),
        "balancer": {"name": "fixed", "weights": dict(weights)},
    }


def _binary(positive: float) -> dict[str, Any]:
    """Return the loss of a map of probabilities, positives weighing so much and others the rest."""
    return {"name": "binary-cross-entropy", "positive_weight": positive, "divide_by": "number"}
