"""Pictures of samples: the image, and each task's prediction beside its label."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import attrs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mtlcore.report.colours import Pixels, colour, hatch, limits, palette, rgb
from mtlcore.storage import written_whole
from mtlcore.tasks import Task

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
LegendEntry = tuple[float, str, tuple[int, ...] | None]  # left edge, text, colour of its square

_TILE, _LARGEST_TILE = 160, 640  # pixels of a tile's longer side
_LARGEST_SMALL = 192  # the same of a picture that a page has many of
_GAP, _TITLE_SIZE, _CAPTION_SIZE = 8, 15, 13
_INK, _FAINT_INK = (20, 20, 20), (90, 90, 90)
_SIDES = ("prediction", "target")


@final
@attrs.frozen(kw_only=True)
class PanelSample:
    """A sample and the predictions for it.

    Args:
        image: Image (3, H, W), float in [0, 1].
        predictions: Task -> raw prediction (C, H, W).
        targets: Task -> target, shaped `task.target_shape((H, W))`.
        valid: Task -> mask (H, W).
        key: Where the sample comes from.
    """

    image: Tensor
    predictions: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]
    valid: Mapping[str, Tensor]
    key: str


def save_panels(path: Path, samples: Sequence[PanelSample], tasks: Sequence[Task]) -> None:
    """Write one PNG with a row per sample: the input, and per task prediction and target.

    Small maps are enlarged by a whole factor. Predictions are on the scale of their target. A
    missing map is hatched. Tasks whose labels are no maps are left out.

    Raises:
        OSError: The file cannot be written. An earlier one is left as it was.
    """
    maps = [task for task in tasks if task.layout == "map"]
    titles = ["input", *(f"{task.name}\n{what}" for task in maps for what in _SIDES)]
    rows = [[_tile(tile) for tile in _row(sample, maps)] for sample in samples]
    captions = [_caption(sample, maps) for sample in samples]
    picture = _laid_out(titles, rows, captions, [task for task in maps if task.class_names])
    _write(path, _png(picture))


def save_samples(folder: Path, samples: Sequence[PanelSample], tasks: Sequence[Task]) -> None:
    """Write every picture of the panels as a small PNG of its own, and `index.json` about them.

    A page shows them, those of several runs beside each other. The index holds, per sample, its
    key, its pictures ("input", "depth.prediction", "depth.target" -> file) and the scales of its
    maps; and per task its unit and the colours of its classes. Nothing is written where no task has
    maps.

    Raises:
        OSError: A file cannot be written.
    """
    maps = [task for task in tasks if task.layout == "map"]
    if not maps:
        return
    names = ["input", *(f"{task.name}.{what}" for task in maps for what in _SIDES)]
    entries = []
    for number, sample in enumerate(samples):
        files = {name: f"{number}.{name}.png" for name in names}
        for name, pixels in zip(names, _row(sample, maps), strict=True):
            _write(folder / files[name], _png(small(pixels, name == "input")))
        entries.append({"key": sample.key, "pictures": files, "scales": _scales(sample, maps)})
    about = {
        task.name: {
            "unit": task.unit,
            "classes": dict(
                zip(task.class_names, map(hex_of, palette(task.channels)), strict=False)
            ),
        }
        for task in maps
    }
    index = json.dumps({"samples": entries, "tasks": about}, indent=1)
    _write(folder / "index.json", index.encode())


def small(pixels: Pixels, is_photograph: bool) -> Image.Image:
    """Return a picture of which a page has many."""
    image = Image.fromarray(pixels)
    # Classes must not be mixed where a map is made smaller.
    resampling = Image.Resampling.LANCZOS if is_photograph else Image.Resampling.NEAREST
    image.thumbnail((_LARGEST_SMALL, _LARGEST_SMALL), resampling)
    return image


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return data.getvalue()


def hex_of(colour: NDArray[np.uint8]) -> str:
    """Return a colour as pages write it."""
    return f"#{bytes(colour.tolist()).hex()}"


def _row(sample: PanelSample, maps: Sequence[Task]) -> list[Pixels]:
    tiles = [rgb(sample.image.detach().float().cpu())]
    for task in maps:
        low, high = _scale(sample, task)
        target, prediction = sample.targets.get(task.name), sample.predictions.get(task.name)
        missing = hatch(*tiles[0].shape[:2])
        tiles.append(
            missing if prediction is None else colour(task, prediction, None, vmin=low, vmax=high)
        )
        tiles.append(
            missing
            if target is None
            else colour(task, target, sample.valid[task.name], vmin=low, vmax=high)
        )
    return tiles


def _scale(sample: PanelSample, task: Task) -> tuple[float, float] | tuple[None, None]:
    """Return the target's limits, None for both where nothing is valid."""
    if task.name not in sample.targets or task.dtype == "int64":
        return None, None
    valid = sample.valid[task.name]
    return limits(sample.targets[task.name], valid) if bool(valid.any()) else (None, None)


def _caption(sample: PanelSample, maps: Sequence[Task]) -> str:
    parts = [sample.key]
    scales, units = _scales(sample, maps), {task.name: task.unit for task in maps}
    for task, (low, high) in scales.items():
        parts.append(f"{task} {low:.3g} to {high:.3g} {units[task]}".rstrip())
    return "    ".join(parts)


def _scales(sample: PanelSample, maps: Sequence[Task]) -> dict[str, tuple[float, float]]:
    """Return the values of the lowest and highest colour of each task whose colours are a scale."""
    scales = {}
    for task in maps:
        low, high = _scale(sample, task)
        if task.kind in ("segmentation", "normals", "edges", "saliency"):
            continue
        if low is not None and high is not None:
            scales[task.name] = (low, high)
    return scales


def _tile(pixels: Pixels) -> Image.Image:
    """Return a picture of readable size, enlarged by a whole factor or reduced."""
    image = Image.fromarray(pixels)
    longer = max(image.size)
    if longer > _LARGEST_TILE:
        image.thumbnail((_LARGEST_TILE, _LARGEST_TILE), Image.Resampling.NEAREST)
        return image
    factor = math.ceil(_TILE / longer)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _laid_out(
    titles: Sequence[str],
    rows: Sequence[Sequence[Image.Image]],
    captions: Sequence[str],
    classes: Sequence[Task],
) -> Image.Image:
    """Return the rows with titles above, a caption each, and the colours of classes at the end."""
    font, small = ImageFont.load_default(_TITLE_SIZE), ImageFont.load_default(_CAPTION_SIZE)
    lefts = _column_edges(titles, rows, font)
    width, line = lefts.pop(), _CAPTION_SIZE + 7
    legend = [entries for task in classes for entries in _legend(task, width - _GAP, small)]
    heights = [line + max(tile.height for tile in row) + _GAP for row in rows]
    top = 2 * _GAP + 2 * (_TITLE_SIZE + 5)
    size = (width, top + sum(heights) + line * len(legend) + _GAP)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for left, text in zip(lefts, titles, strict=True):
        draw.multiline_text((left, _GAP), text, fill=_INK, font=font)
    for row, caption, height in zip(rows, captions, heights, strict=True):
        draw.text((_GAP, top), _cut(caption, width - 2 * _GAP, small), _FAINT_INK, small)
        for left, tile in zip(lefts, row, strict=True):
            canvas.paste(tile, (left, top + line))
        top += height
    for entries in legend:
        _draw_legend(draw, top, entries, small)
        top += line
    return canvas


def _column_edges(
    titles: Sequence[str], rows: Sequence[Sequence[Image.Image]], font: Font
) -> list[int]:
    """Return left edges of columns that are wide enough for their titles, and the total width."""
    edges = [_GAP]
    for column, text in enumerate(titles):
        widest = max([math.ceil(_text_width(text, font)), *(row[column].width for row in rows)])
        edges.append(edges[-1] + widest + _GAP)
    return edges


def _legend(task: Task, width: float, font: Font) -> list[list[LegendEntry]]:
    """Return lines of a task's name and its classes with their colours, none wider than `width`."""
    left: float = _GAP
    lines: list[list[LegendEntry]] = [[]]
    colours = [None, *(tuple(int(part) for part in rgb) for rgb in palette(task.channels))]
    for text, square in zip((task.name, *task.class_names), colours, strict=True):
        needed = _text_width(text, font) + (0 if square is None else _CAPTION_SIZE + 5) + 16
        if lines[-1] and left + needed > width:
            left = _GAP
            lines.append([])
        lines[-1].append((left, text, square))
        left += needed
    return lines


def _draw_legend(
    draw: ImageDraw.ImageDraw, top: int, entries: Sequence[LegendEntry], font: Font
) -> None:
    for left, text, square in entries:
        if square is not None:
            draw.rectangle((left, top + 2, left + _CAPTION_SIZE, top + 2 + _CAPTION_SIZE), square)
            left += _CAPTION_SIZE + 5
        draw.text((left, top), text, _INK, font)


def _text_width(text: str, font: Font) -> float:
    return max(font.getlength(line) for line in text.split("\n"))


def _cut(text: str, width: float, font: Font) -> str:
    """Return the end of a text that fits, as the ends of paths tell them apart."""
    if _text_width(text, font) <= width:
        return text
    while text and _text_width("..." + text, font) > width:
        text = text[1:]
    return "..." + text


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial:
        partial.write_bytes(data)
