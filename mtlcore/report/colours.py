"""Labels and predictions as colours."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mtlcore.tasks import Task

Pixels = NDArray[np.uint8]

# Dark violet over teal to yellow, ever brighter and evenly so: the anchors of viridis.
_DEPTH_COLOURS = np.array(
    [
        (68, 1, 84), (72, 40, 120), (62, 74, 137), (49, 104, 142), (38, 130, 142),
        (31, 158, 137), (53, 183, 121), (110, 206, 88), (181, 222, 43), (253, 231, 37),
    ],
    dtype=np.float64,
)  # fmt: skip
_HATCH = ((96, 96, 96), (176, 176, 176))  # stripes of two greys: no class, depth or normal has them
_STRIPE = 4  # pixels of a stripe


@lru_cache
def palette(classes: int) -> Pixels:
    """Return a colour per class, (classes, 3); class k has the same one for any number of classes.

    Each colour is the one that, as perceived, differs most from all before it and from the grey of
    missing labels. Beyond 500 classes colours repeat.
    """
    levels = np.linspace(0, 255, 16)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    seen = _perceived(candidates)
    light, chroma = seen[:, 0], np.hypot(seen[:, 1], seen[:, 2])
    # Neither nearly black or white, nor nearly grey, nor glaring.
    usable = (light > 25) & (light < 92) & (chroma > 25) & (chroma < 80)
    candidates, seen = candidates[usable], seen[usable]
    distance = np.full(len(seen), np.inf)
    latest, chosen = _perceived(np.array([_HATCH[0]], dtype=np.float64))[0], []
    for _ in range(min(classes, 500)):
        distance = np.minimum(distance, ((seen - latest) ** 2).sum(1))
        chosen.append(int(distance.argmax()))
        latest = seen[chosen[-1]]
    repeated = np.resize(np.array(chosen), classes)
    colours: Pixels = candidates[repeated].round().astype(np.uint8)
    return colours


def colour(
    task: Task,
    values: Tensor,
    valid: Tensor | None,
    *,
    vmin: float | None = None,
    vmax: float | None = None,
) -> Pixels:
    """Return a picture (H, W, 3) of one sample's map.

    Classes have the colours of `palette`, depths a scale from dark violet (near) to yellow (far),
    normals (n + 1) / 2 as red, green and blue, edges their probability in grey. Any other map with
    three channels is a colour picture, else its first channel in grey. Pixels that are not valid or
    not finite are hatched.

    Args:
        task: A task with layout "map".
        values: A target, shaped `task.target_shape((H, W))`, or a raw prediction (C, H, W).
        valid: Mask of the target (H, W); None if `values` is a raw prediction.
        vmin: Value at the lower end of the scale; by default the smallest shown.
        vmax: Value at the upper end of the scale; by default the largest shown. With the `limits`
            of the target for both, a prediction can be compared with it.
    """
    values = values.detach().cpu()
    if task.dtype == "int64":
        classes = values.argmax(0) if valid is None else values.long()
        shown = torch.isfinite(values).all(0) if valid is None else valid.cpu()
        return _hatched(palette(task.channels)[classes.numpy()], shown)
    values = values.float()
    shown = torch.isfinite(values).all(0) & (True if valid is None else valid.cpu())
    values = values.nan_to_num(0.0, 0.0, 0.0)
    if task.kind == "normals" and task.channels == 3:
        return _hatched(rgb((F.normalize(values, dim=0) + 1) / 2), shown)
    if task.kind in ("edges", "saliency"):
        probability = values.sigmoid() if valid is None else values
        return _hatched(rgb(probability[:1].expand(3, -1, -1)), shown)
    lowest, highest = limits(values, shown)
    scaled = _between(values, lowest if vmin is None else vmin, highest if vmax is None else vmax)
    if task.kind in ("depth", "inverse-depth"):
        return _hatched(_depth_colours(scaled[0]), shown)
    if task.channels == 3:
        return _hatched(rgb(scaled), shown)
    return _hatched(rgb(scaled[:1].expand(3, -1, -1)), shown)


def limits(target: Tensor, valid: Tensor) -> tuple[float, float]:
    """Return the smallest and largest valid value of a target (C, H, W); (0, 1) without any."""
    known = target[:, valid]
    return (float(known.min()), float(known.max())) if known.numel() else (0.0, 1.0)


def _between(values: Tensor, low: float, high: float) -> Tensor:
    """Return values on a scale from 0 to 1; 0.5 on a scale without extent."""
    if high <= low:
        return torch.full_like(values, 0.5)
    return ((values - low) / (high - low)).clamp(0, 1)


def _depth_colours(scaled: Tensor) -> Pixels:
    anchors = np.linspace(0, 1, len(_DEPTH_COLOURS))
    channels = [np.interp(scaled.numpy(), anchors, column) for column in _DEPTH_COLOURS.T]
    pixels: Pixels = np.stack(channels, -1).round().astype(np.uint8)
    return pixels


def rgb(values: Tensor) -> Pixels:
    """Return an image (3, H, W) in [0, 1] as a picture (H, W, 3)."""
    pixels: Pixels = (values.clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()
    return pixels


def _hatched(pixels: Pixels, shown: Tensor) -> Pixels:
    result: Pixels = np.where(shown.numpy()[..., None], pixels, hatch(*pixels.shape[:2]))
    return result


def hatch(height: int, width: int) -> Pixels:
    """Return the picture of missing values: stripes that no class, depth or normal has."""
    diagonal = np.add.outer(np.arange(height), np.arange(width)) // _STRIPE % 2
    pixels: Pixels = np.array(_HATCH, dtype=np.uint8)[diagonal]
    return pixels


def _perceived(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert sRGB colours (N, 3), 0 to 255, to CIELAB, where distance is perceived difference."""
    share = rgb / 255
    light = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    matrix = np.array(
        [(0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505)]
    )
    xyz = light @ (matrix / matrix.sum(1, keepdims=True)).T
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)
