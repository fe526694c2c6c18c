"""COCO's masks as pixels: polygons and runs of a length, as its own library draws them.

Lin et al., Microsoft COCO, ECCV 2014. The functions follow `maskApi.c` of pycocotools 2.0 to the
pixel (`rleFrPoly`, `rleFrString`, `rleDecode`), so that nothing has to be compiled for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SCALE = 5  # a pixel's side is drawn in so many steps
_FARTHEST = 100_000.0  # pixels; what lies farther is no coordinate of a photograph


def mask_of(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """Return the pixels (height, width) of an annotation's `segmentation`.

    Args:
        segmentation: a list of polygons [x, y, x, y, ...], or runs {"size": ..., "counts": ...}.
        height: of the image.
        width: of the image.

    Raises:
        ValueError: it is neither, or does not fit the image.
    """
    if isinstance(segmentation, dict):
        return _of_runs(segmentation, height, width)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("is neither a list of polygons nor runs of a length; boxes are no masks")
    mask = np.zeros((height, width), dtype=np.bool_)
    for polygon in segmentation:
        mask |= _of_polygon(_numbers(polygon), height, width)
    return mask


def _numbers(polygon: Any) -> NDArray[np.float64]:
    fits = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
    if not fits or not all(type(x) in (int, float) for x in polygon):
        raise ValueError("has a polygon that is no list of x and y of three points or more")
    if not all(math.isfinite(x) and abs(x) <= _FARTHEST for x in polygon):
        raise ValueError(f"has a coordinate that is no number up to {_FARTHEST:g}")
    return np.array(polygon, dtype=np.float64).reshape(-1, 2)


def _of_polygon(points: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    """Draw a polygon of (x, y): `rleFrPoly`."""
    # C's conversion cuts decimals off.
    corners = np.trunc(_SCALE * points + 0.5).astype(np.int64)
    steps = [_edge(*a, *b) for a, b in zip(corners, np.roll(corners, -1, 0), strict=True)]
    u, v = np.concatenate(steps, 1)
    before_u, before_v, u, v = u[:-1], v[:-1], u[1:], v[1:]
    crossed = u != before_u
    columns = (np.where(u < before_u, u, u - 1) + 0.5) / _SCALE - 0.5
    inside = crossed & (columns == np.floor(columns)) & (columns >= 0) & (columns <= width - 1)
    rows = (np.minimum(v, before_v) + 0.5) / _SCALE - 0.5
    rows = np.ceil(rows.clip(0, height))
    # Along a column the mask turns at each crossing.
    places = (columns[inside] * height + rows[inside]).astype(np.int64)
    turns = np.bincount(places, minlength=height * width + 1)[: height * width]
    mask: NDArray[np.bool_] = (turns.cumsum() % 2 == 1).reshape(width, height).T
    return mask


def _edge(x0: int, y0: int, x1: int, y1: int) -> NDArray[np.int64]:
    """Return the points (2, N) of an edge, one per step along its longer side."""
    dx, dy = abs(x1 - x0), abs(y1 - y0)
    flat = dx >= dy
    turned = x0 > x1 if flat else y0 > y1
    if turned:
        x0, y0, x1, y1 = x1, y1, x0, y0
    longer = int(max(dx, dy))
    slope = ((y1 - y0) if flat else (x1 - x0)) / longer if longer else 0.0
    along = np.arange(longer + 1)
    along = along[::-1] if turned else along
    across = np.trunc((y0 if flat else x0) + slope * along + 0.5).astype(np.int64)
    return np.stack([along + x0, across] if flat else [across, along + y0])


def _of_runs(runs: dict[str, Any], height: int, width: int) -> NDArray[np.bool_]:
    size, given = runs.get("size"), runs.get("counts")
    if size != [height, width]:
        raise ValueError(f"has runs of the size {size!r}, and the image is {height}x{width}")
    counts: list[Any] = counts_of(given) if isinstance(given, str) else given or []
    whole = isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts)
    if not whole or sum(counts) != height * width:
        raise ValueError(f"has runs that do not add up to the {height * width} pixels of its size")
    turns = np.arange(len(counts)) % 2 == 1
    mask: NDArray[np.bool_] = np.repeat(turns, counts).reshape(width, height).T
    return mask


def counts_of(text: str) -> list[int]:
    """Return the lengths of the runs in COCO's compressed text: `rleFrString`.

    Raises:
        ValueError: it is no such text.
    """
    counts: list[int] = []
    value, bits = 0, 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or bits > 60:
            raise ValueError("has counts that are no compressed runs")
        value |= (code & 0x1F) << bits
        bits += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value |= -1 << bits
        if len(counts) > 2:
            value += counts[-2]
        counts.append(value)
        value, bits = 0, 0
    if bits:
        raise ValueError("has counts that end in the middle of a number")
    return counts


def painted(
    masks: Sequence[tuple[int, NDArray[np.bool_]]],
    crowds: Sequence[NDArray[np.bool_]],
    background: int,
    size: tuple[int, int],
) -> NDArray[np.int64]:
    """Return a class per pixel, -1 where there is no label.

    The larger an instance, the earlier it is painted, so that what lies on something is seen. Where
    a crowd is and no instance, there is no label.

    Args:
        masks: class and pixels of each instance.
        crowds: pixels of each crowd.
        background: the class of all other pixels; -1: they have no label.
        size: height and width.
    """
    classes = np.full(size, background, dtype=np.int64)
    for crowd in crowds:
        classes[crowd] = -1
    for number, mask in sorted(masks, key=lambda pair: -int(pair[1].sum())):
        classes[mask] = number
    return classes
