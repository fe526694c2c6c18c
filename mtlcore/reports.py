"""What a run leaves for people to look at: picture panels, curves and the table of results."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import attrs
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mtlcore.tasks import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

Pixels = NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
LegendEntry = tuple[float, str, tuple[int, ...] | None]  # left edge, text, colour of its square
Record = Mapping[str, Any]
Curve = tuple[list[float], list[float]]  # steps and values

_NO_PLOTS = "pip install mtlcore[plots] draws learning curves"

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

_TILE, _LARGEST_TILE = 160, 640  # pixels of a tile's longer side
_LARGEST_SMALL = 192  # the same of a picture that a page has many of
_GAP, _TITLE_SIZE, _CAPTION_SIZE = 8, 15, 13
_INK, _FAINT_INK = (20, 20, 20), (90, 90, 90)
_SIDES = ("prediction", "target")

_SPLITS = {"train": "training", "val": "validation"}
_FEW_POINTS = 30  # so many are shown as dots, of which one alone can be seen

_EXTENTS = ("global", "pixel")  # of the best constants


# Colours


@lru_cache
def palette(classes: int) -> Pixels:
    """A colour per class, (classes, 3): class k has the same one however many there are.

    Each is the one that differs most, as eyes see it, from all before it and from the grey of
    missing labels. Beyond 500 classes they repeat.
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
    """A picture (H, W, 3) of one sample's map.

    Classes get the colours of `palette`, depths a scale from dark violet (near) to yellow (far),
    normals (n + 1) / 2 as red, green and blue, edges their probability in grey; another map with
    three channels becomes a colour picture and any other one its first channel in grey. What is
    not valid or not finite is hatched.

    Args:
        task: its layout is "map".
        values: a target, shaped `task.target_shape((H, W))`, or a raw prediction (C, H, W).
        valid: the target's mask (H, W); None says that `values` is a raw prediction.
        vmin: the value at the scale's lower end; by default the smallest that is shown.
        vmax: the value at its upper end. With the limits of the target (`limits`) for both, a
            prediction can be compared with it.
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
        return _hatched(_rgb((F.normalize(values, dim=0) + 1) / 2), shown)
    if task.kind in ("edges", "saliency"):
        probability = values.sigmoid() if valid is None else values
        return _hatched(_rgb(probability[:1].expand(3, -1, -1)), shown)
    lowest, highest = limits(values, shown)
    scaled = _between(values, lowest if vmin is None else vmin, highest if vmax is None else vmax)
    if task.kind in ("depth", "inverse-depth"):
        return _hatched(_depth_colours(scaled[0]), shown)
    if task.channels == 3:
        return _hatched(_rgb(scaled), shown)
    return _hatched(_rgb(scaled[:1].expand(3, -1, -1)), shown)


def limits(target: Tensor, valid: Tensor) -> tuple[float, float]:
    """The smallest and largest valid value of a target (C, H, W); 0 and 1 where none is valid."""
    known = target[:, valid]
    return (float(known.min()), float(known.max())) if known.numel() else (0.0, 1.0)


def _between(values: Tensor, low: float, high: float) -> Tensor:
    """`values` on a scale from 0 to 1; of a scale without extent the middle."""
    if high <= low:
        return torch.full_like(values, 0.5)
    return ((values - low) / (high - low)).clamp(0, 1)


def _depth_colours(scaled: Tensor) -> Pixels:
    anchors = np.linspace(0, 1, len(_DEPTH_COLOURS))
    channels = [np.interp(scaled.numpy(), anchors, column) for column in _DEPTH_COLOURS.T]
    pixels: Pixels = np.stack(channels, -1).round().astype(np.uint8)
    return pixels


def _rgb(values: Tensor) -> Pixels:
    """(3, H, W) in [0, 1] as a picture."""
    pixels: Pixels = (values.clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()
    return pixels


def _hatched(pixels: Pixels, shown: Tensor) -> Pixels:
    result: Pixels = np.where(shown.numpy()[..., None], pixels, _hatch(*pixels.shape[:2]))
    return result


def _hatch(height: int, width: int) -> Pixels:
    diagonal = np.add.outer(np.arange(height), np.arange(width)) // _STRIPE % 2
    pixels: Pixels = np.array(_HATCH, dtype=np.uint8)[diagonal]
    return pixels


def _perceived(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """sRGB colours (N, 3), 0 to 255, in CIELAB, where distance is what eyes see."""
    share = rgb / 255
    light = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    matrix = np.array(
        [(0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505)]
    )
    xyz = light @ (matrix / matrix.sum(1, keepdims=True)).T
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


# Panels


@final
@attrs.frozen(kw_only=True)
class PanelSample:
    """A sample and what a model made of it.

    Args:
        image: (3, H, W) float in [0, 1].
        predictions: task -> raw prediction (C, H, W).
        targets: task -> target, shaped `task.target_shape((H, W))`.
        valid: task -> mask (H, W).
        key: where it comes from.
    """

    image: Tensor
    predictions: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]
    valid: Mapping[str, Tensor]
    key: str


def save_panels(path: Path, samples: Sequence[PanelSample], tasks: Sequence[Task]) -> None:
    """Write one PNG with a row per sample: the input, and per task prediction and target.

    Small maps are enlarged by a whole factor. Prediction and target share the target's scale. A
    missing map is hatched; tasks whose labels are no maps are left out.

    Raises:
        OSError: the file cannot be written; the one that was there before is left as it was.
    """
    maps = [task for task in tasks if task.layout == "map"]
    titles = ["input", *(f"{task.name}\n{what}" for task in maps for what in _SIDES)]
    rows = [[_tile(tile) for tile in _row(sample, maps)] for sample in samples]
    captions = [_caption(sample, maps) for sample in samples]
    picture = _laid_out(titles, rows, captions, [task for task in maps if task.class_names])
    _write_whole(path, _png(picture))


def save_samples(folder: Path, samples: Sequence[PanelSample], tasks: Sequence[Task]) -> None:
    """Write every picture of the panels as a small PNG of its own, and `index.json` about them.

    From these a page sets the predictions of several runs beside each other. The index holds, per
    sample, its key, its pictures ("input", "depth.prediction", "depth.target" -> file) and the
    scales that its maps are shown on; and per task its unit and the colours of its classes. Nothing
    is written where no task has maps.

    Raises:
        OSError: a file cannot be written.
    """
    maps = [task for task in tasks if task.layout == "map"]
    if not maps:
        return
    names = ["input", *(f"{task.name}.{what}" for task in maps for what in _SIDES)]
    listed = []
    for number, sample in enumerate(samples):
        files = {name: f"{number}.{name}.png" for name in names}
        for name, pixels in zip(names, _row(sample, maps), strict=True):
            _write_whole(folder / files[name], _png(_small(pixels, name == "input")))
        listed.append({"key": sample.key, "pictures": files, "scales": _scales(sample, maps)})
    about = {
        task.name: {
            "unit": task.unit,
            "classes": dict(zip(task.class_names, map(_hex, palette(task.channels)), strict=False)),
        }
        for task in maps
    }
    index = json.dumps({"samples": listed, "tasks": about}, indent=1)
    _write_whole(folder / "index.json", index.encode())


def _small(pixels: Pixels, is_photograph: bool) -> Image.Image:
    image = Image.fromarray(pixels)
    # Classes must not be mixed where a map is made smaller.
    way = Image.Resampling.LANCZOS if is_photograph else Image.Resampling.NEAREST
    image.thumbnail((_LARGEST_SMALL, _LARGEST_SMALL), way)
    return image


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return data.getvalue()


def _hex(colour: NDArray[np.uint8]) -> str:
    return f"#{bytes(colour.tolist()).hex()}"


def _row(sample: PanelSample, maps: Sequence[Task]) -> list[Pixels]:
    tiles = [_rgb(sample.image.detach().float().cpu())]
    for task in maps:
        low, high = _scale(sample, task)
        target, prediction = sample.targets.get(task.name), sample.predictions.get(task.name)
        missing = _hatch(*tiles[0].shape[:2])
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
    """The target's limits; none where nothing of it is valid."""
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
    """Per task whose colours mean values: what the lowest and the highest colour stand for."""
    scales = {}
    for task in maps:
        low, high = _scale(sample, task)
        if task.kind in ("segmentation", "normals", "edges", "saliency"):
            continue
        if low is not None and high is not None:
            scales[task.name] = (low, high)
    return scales


def _tile(pixels: Pixels) -> Image.Image:
    """A picture in a size that can be read: enlarged by a whole factor or made smaller."""
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
    """Titles above columns, a caption above each row, the colours of classes at the bottom."""
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
    """Left edges of the columns, each wide enough for its title, and the width of it all."""
    edges = [_GAP]
    for column, text in enumerate(titles):
        widest = max([math.ceil(_text_width(text, font)), *(row[column].width for row in rows)])
        edges.append(edges[-1] + widest + _GAP)
    return edges


def _legend(task: Task, width: float, font: Font) -> list[list[LegendEntry]]:
    """Lines of a task's name and of its classes, each with its colour, no line wider than that."""
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
    """`text` without as much of its beginning as does not fit: the end tells paths apart."""
    if _text_width(text, font) <= width:
        return text
    while text and _text_width("..." + text, font) > width:
        text = text[1:]
    return "..." + text


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


# Curves


def save_curves(path: Path, records: Iterable[Record]) -> str | None:
    """Write the learning curves of a run as a PNG: per task its losses and its first figure.

    Args:
        path: not written where there is nothing to draw.
        records: the lines of metrics.jsonl; a value that is null or NaN leaves a gap.

    Returns:
        What to install where matplotlib is missing, else None.

    Raises:
        OSError: the file cannot be written; the one that was there before is left as it was.
    """
    curves = _curves(records)
    losses = {key: curve for key, curve in curves.items() if key[2] == "loss"}
    figures: dict[str, tuple[str, str, str]] = {}
    for split, task, metric in curves:
        if split != "train" and metric != "loss":
            figures.setdefault(task, (split, task, metric))
    tasks = list(dict.fromkeys([*(task for _, task, _ in losses), *figures]))

    def draw(figure: Figure) -> None:
        figure.set_size_inches(11, 0.6 + 2.6 * len(tasks))
        for axes, task in zip(figure.subplots(len(tasks), 2, squeeze=False), tasks, strict=True):
            mine = {split: curve for (split, of, _), curve in losses.items() if of == task}
            _plot(axes[0], f"{task}: loss", {_SPLITS.get(s, s): c for s, c in mine.items()})
            if task in figures:
                split, _, metric = figures[task]
                title = f"{task}: {metric} ({_SPLITS.get(split, split)})"
                _plot(axes[1], title, {metric: curves[figures[task]]})
            else:
                axes[1].set_axis_off()

    return _save_figure(path, draw) if tasks else None


def save_weights(path: Path, records: Iterable[Record]) -> str | None:
    """Write the balancer's weights, and the cosines between tasks' gradients, as a PNG.

    Args:
        path: not written where there is neither.
        records: as for `save_curves`; the metrics "weight", "weight/<name>" (one of several of a
            task) and "cosine" (of a task "a|b") count.

    Returns:
        What to install where matplotlib is missing, else None.

    Raises:
        OSError: the file cannot be written; the one that was there before is left as it was.
    """
    curves = _curves(records)
    titles = {"weight": "weights of the tasks", "cosine": "cosines between gradients of tasks"}
    panels: dict[str, dict[str, Curve]] = {}
    for metric in titles:
        mine = {task: curve for (_, task, of), curve in curves.items() if of == metric}
        if mine:
            panels[titles[metric]] = {task.replace("|", " and "): c for task, c in mine.items()}
    for (_, task, of), curve in curves.items():
        if of.startswith("weight/"):
            panels.setdefault(f"weights within {task}", {})[of.removeprefix("weight/")] = curve

    def draw(figure: Figure) -> None:
        figure.set_size_inches(11, 0.6 + 3.4 * len(panels))
        rows = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        for axes, (title, lines) in zip(rows, panels.items(), strict=True):
            _plot(axes, title, lines)
            if title == titles["cosine"]:
                axes.axhline(0, color="0.4", linewidth=0.8)
                axes.set_ylim(-1.05, 1.05)

    return _save_figure(path, draw) if panels else None


def _curves(records: Iterable[Record]) -> dict[tuple[str, str, str], Curve]:
    """(split, task, metric) -> steps and values, of what has a task and any finite value."""
    curves: dict[tuple[str, str, str], Curve] = {}
    for record in records:
        if record["task"]:
            key = (record["split"], record["task"], record["metric"])
            steps, values = curves.setdefault(key, ([], []))
            steps.append(record["step"])
            values.append(_number(record["value"]))
    return {key: curve for key, curve in curves.items() if any(math.isfinite(v) for v in curve[1])}


def _plot(axes: Axes, title: str, lines: Mapping[str, Curve]) -> None:
    for number, (label, (steps, values)) in enumerate(lines.items()):
        axes.plot(
            steps,
            values,
            label=label,
            color=f"C{number % 10}",
            linestyle=("-", "--", ":")[number // 10 % 3],  # ten colours, then other strokes
            marker="o" if len(steps) <= _FEW_POINTS else None,
            markersize=3.5,
            linewidth=1.4,
        )
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("step")
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(left=0)
    if len(lines) > 1:
        columns = math.ceil(len(lines) / 16)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, ncols=columns)


def _save_figure(path: Path, draw: Callable[[Figure], None]) -> str | None:
    try:
        import matplotlib.style
        from matplotlib.figure import Figure
    except ImportError:
        return _NO_PLOTS
    data = io.BytesIO()
    # Whatever style a user has set up; and a figure by itself, as pyplot would choose a window.
    with matplotlib.style.context("default"):
        figure = Figure(dpi=110, layout="constrained", facecolor="white")
        draw(figure)
        figure.savefig(data, format="png")
    _write_whole(path, data.getvalue())
    return None


# Results


def result_table(summary: Mapping[str, Any]) -> Table:
    """The figures of a run beside those of the best constants, as a rich table.

    Args:
        summary: what summary.json holds; NaN or null is shown as "n/a".
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, caption_justify="left", caption_style="")
    for title in ("task", "figure", "model", "constant", "per pixel"):
        table.add_column(title, justify="left" if title in ("task", "figure") else "right")
    rows = result_rows(summary)
    for row in rows:
        star, style = ("* ", "bold green") if row.better else ("", "")
        model = Text(star + figure_text(row.model), style=style)
        constants = [figure_text(value) for value in row.constants]
        table.add_row(Text(row.task), Text(row.figure), model, *constants, end_section=row.last)
    table.caption = Text("\n".join(result_notes(summary, rows)))
    return table


@final
@attrs.frozen(kw_only=True)
class ResultRow:
    """One figure of one task; a constant that does not exist is None, one without value NaN.

    Args:
        task: its name and unit in the task's first row, else empty.
        figure: its name, and an arrow towards what is better.
        model: its value.
        constants: of the best constant and of the best one per pixel.
        better: whether the model beats every constant there is.
        last: of its task.
    """

    task: str
    figure: str
    model: float
    constants: tuple[float | None, ...]
    better: bool
    last: bool


def result_rows(summary: Mapping[str, Any]) -> list[ResultRow]:
    """The final figures of a run, beside those of the best constants."""
    final = summary["final"][summary["final_split"]]
    return [row for task, figures in final.items() for row in _task_rows(summary, task, figures)]


def _task_rows(
    summary: Mapping[str, Any], task: str, figures: Mapping[str, Any]
) -> list[ResultRow]:
    unit = summary.get("units", {}).get(task)
    rows: list[ResultRow] = []
    for metric, value in figures.items():
        higher = summary.get("directions", {}).get(task, {}).get(metric)
        arrow = {True: " ↑", False: " ↓", None: ""}[higher]
        constants = tuple(_constant(summary, extent, task, metric) for extent in _EXTENTS)
        rows.append(
            ResultRow(
                task=("" if rows else f"{task} ({unit})" if unit else task),
                figure=metric + arrow,
                model=_number(value),
                constants=constants,
                better=higher is not None and _beats(_number(value), constants, higher),
                last=len(rows) == len(figures) - 1,
            )
        )
    return rows


def _constant(summary: Mapping[str, Any], extent: str, task: str, metric: str) -> float | None:
    figures = summary.get("constants", {}).get(extent, {}).get(task, {})
    return _number(figures[metric]) if metric in figures else None


def _beats(value: float, constants: Sequence[float | None], higher: bool) -> bool:
    """Whether it is better than every constant there is, and there is one."""
    known = [c for c in constants if c is not None and not math.isnan(c)]
    return bool(known) and all(value > c if higher else value < c for c in known)


def result_notes(summary: Mapping[str, Any], rows: Sequence[ResultRow]) -> list[str]:
    """What must be known to read the figures, and what they cost."""
    notes = []
    if any(row.better for row in rows):
        notes.append("* better than the best constants, which look at no image")
    values = [value for row in rows for value in (row.model, *row.constants) if value is not None]
    if any(math.isnan(value) for value in values):
        notes.append("n/a: nothing to measure, no valid label or no finite value")
    number, split = summary.get("averaged_over", 1), summary["final_split"]
    over = "the last evaluation" if number == 1 else f"mean of the last {number} evaluations"
    notes.append(f"final figures: {over} on {split}")
    best = summary.get("best") or {}
    if best.get("epoch") is not None:
        notes.append(f"best epoch: {best['epoch']}, chosen on {best.get('chosen_on', split)}")
    notes.append(f"parameters: {summary['parameters']['total']:,}")
    notes.append(f"time: {timedelta(seconds=round(summary['seconds']))}")
    if summary.get("skipped_steps"):
        notes.append(f"skipped steps: {summary['skipped_steps']}")
    if summary.get("skipped_samples"):
        notes.append(f"samples left out: {len(summary['skipped_samples'])} (see summary.json)")
    return notes


def figure_text(value: float | None) -> str:
    """A figure as tables have it: "-" for one that there is not, "n/a" for NaN."""
    if value is None:
        return "-"
    return "n/a" if math.isnan(value) else f"{value:#.4g}".rstrip(".")


def _number(value: float | None) -> float:
    """JSON has no NaN: null stands for it."""
    return math.nan if value is None else float(value)
