"""Pictures and curves: what can be read from them is what was put in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import mtlcore.report.colours
from mtlcore.report import colour, panels
from mtlcore.report.charts.files import save_curves, save_weights
from mtlcore.report.colours import limits, palette
from mtlcore.report.panels import PanelSample, save_panels
from mtlcore.storage import or_nan
from mtlcore.tasks import Task

SEGMENTATION = Task(
    name="segmentation", kind="segmentation", channels=3, class_names=("wall", "floor", "chair")
)
DEPTH = Task(name="depth", kind="depth", channels=1, unit="m")
NORMALS = Task(name="normals", kind="normals", channels=3)
EDGES = Task(name="edges", kind="edges", channels=1)
SHADE = Task(name="shade", kind="shade", channels=2)
SCENE = Task(name="scene", kind="classification", channels=4)
EVERYWHERE = torch.ones(8, 8, dtype=torch.bool)


def is_hatched(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    hatched: np.ndarray[Any, Any] = np.isin(
        pixels[..., 0], [grey[0] for grey in mtlcore.report.colours._HATCH]
    )
    hatched &= np.ptp(pixels, axis=-1) == 0
    return hatched


# Colours


@pytest.mark.parametrize("classes", [1, 2, 19, 40, 150])
def test_palette_has_a_colour_of_its_own_for_every_class(classes: int) -> None:
    colours = palette(classes)
    assert colours.shape == (classes, 3)
    assert colours.dtype == np.uint8
    assert len(np.unique(colours, axis=0)) == classes
    assert (palette(150)[:classes] == colours).all()


def test_palette_colours_are_far_from_each_other_and_from_grey() -> None:
    colours = np.concatenate([palette(20), np.array(mtlcore.report.colours._HATCH, dtype=np.uint8)])
    seen = mtlcore.report.colours._perceived(colours.astype(np.float64))
    apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
    # A difference of 2.3 can just be seen.
    assert apart[~np.eye(len(apart), dtype=bool)].min() > 20


def test_palette_goes_on_beyond_its_last_colour() -> None:
    """It begins again with its first one after 500."""
    colours = palette(1200)
    assert colours.shape == (1200, 3)
    assert len(np.unique(colours[:500], axis=0)) == 500
    assert (colours[500:1000] == colours[:500]).all()


def test_prediction_and_target_of_a_class_look_alike() -> None:
    target = torch.randint(3, (8, 8))
    logits = torch.nn.functional.one_hot(target, 3).movedim(-1, 0).float()
    assert (colour(SEGMENTATION, logits, None) == colour(SEGMENTATION, target, EVERYWHERE)).all()


def test_farther_is_brighter() -> None:
    depth = torch.linspace(0.5, 9, 200).reshape(1, 1, 200)
    pixels = colour(DEPTH, depth, torch.ones(1, 200, dtype=torch.bool))[0].astype(float)
    brightness = pixels @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(brightness) >= -0.5).all()
    assert brightness[-1] - brightness[0] > 150
    assert len(np.unique(pixels, axis=0)) > 150


def test_depths_on_the_targets_scale_can_be_compared() -> None:
    target = torch.linspace(1, 5, 64).reshape(1, 8, 8)
    low, high = limits(target, EVERYWHERE)
    assert (low, high) == (1.0, 5.0)
    shown = colour(DEPTH, target, EVERYWHERE)
    assert (colour(DEPTH, target.clone(), None, vmin=low, vmax=high) == shown).all()
    wrong = colour(DEPTH, target * 3, None, vmin=low, vmax=high)
    assert (wrong[-1] == shown[-1, -1]).all()  # beyond the scale: its end
    assert (wrong[0, 1] != shown[0, 1]).any()


def test_limits_look_at_valid_values_only() -> None:
    target = torch.tensor([[[1.0, 2.0, 100.0]]])
    assert limits(target, torch.tensor([[True, True, False]])) == (1.0, 2.0)
    assert limits(target, torch.zeros(1, 3, dtype=torch.bool)) == (0.0, 1.0)


def test_normals_are_scaled_to_unit_length() -> None:
    towards = torch.tensor([0.0, 0.0, -7.0]).reshape(3, 1, 1).expand(3, 8, 8)
    assert (colour(NORMALS, towards, None) == (128, 128, 0)).all()


def test_edges_are_probabilities_in_grey() -> None:
    assert (colour(EDGES, torch.zeros(1, 8, 8), None) == 128).all()
    assert (colour(EDGES, torch.zeros(1, 8, 8), EVERYWHERE) == 0).all()
    assert (colour(EDGES, torch.ones(1, 8, 8), EVERYWHERE) == 255).all()


def test_unknown_kinds_are_shown_somehow() -> None:
    grey = colour(SHADE, torch.linspace(-3, 3, 128).reshape(2, 8, 8), None)
    assert (np.ptp(grey, axis=-1) == 0).all()
    assert (grey.min(), grey.max()) == (0, 126)  # the scale is that of both channels
    three = Task(name="albedo", kind="albedo", channels=3)
    values = torch.rand(3, 8, 8)
    assert np.ptp(colour(three, values, EVERYWHERE), axis=-1).max() > 0


TARGETS: dict[Task, Tensor] = {
    SEGMENTATION: torch.zeros(8, 8, dtype=torch.int64),
    DEPTH: torch.full((1, 8, 8), 2.0),
    NORMALS: torch.tensor([0.0, 0.0, -1.0]).reshape(3, 1, 1).expand(3, 8, 8),
    EDGES: torch.zeros(1, 8, 8),
    SHADE: torch.zeros(2, 8, 8),
}


@pytest.mark.parametrize("task", TARGETS, ids=lambda task: task.name)
def test_missing_labels_are_hatched_and_nothing_else(task: Task) -> None:
    valid = torch.arange(64).reshape(8, 8) % 5 > 0
    pixels = colour(task, TARGETS[task], valid)
    assert pixels.shape == (8, 8, 3)
    assert pixels.dtype == np.uint8
    assert (is_hatched(pixels) == ~valid.numpy()).all()


@pytest.mark.parametrize("task", TARGETS, ids=lambda task: task.name)
def test_what_is_not_finite_is_hatched(task: Task) -> None:
    prediction = torch.full((task.channels, 8, 8), 0.5)
    prediction[0, 2, 3], prediction[-1, 4, 4] = math.nan, math.inf
    hatched = is_hatched(colour(task, prediction, None))
    assert np.argwhere(hatched).tolist() == [[2, 3], [4, 4]]


# Panels


def panel_sample(height: int, width: int, key: str = "rooms/val/0") -> PanelSample:
    valid = torch.ones(height, width, dtype=torch.bool)
    tasks = (SEGMENTATION, DEPTH)
    return PanelSample(
        image=torch.rand(3, height, width),
        predictions={task.name: torch.randn(task.channels, height, width) for task in tasks},
        targets={
            "segmentation": torch.randint(3, (height, width)),
            "depth": torch.rand(1, height, width) + 1,
        },
        valid={task.name: valid for task in tasks},
        key=key,
    )


def opened(path: Path) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    ("size", "tile"), [((64, 64), (192, 192)), ((6, 9), (108, 162)), ((800, 1280), (400, 640))]
)
def test_tiles_can_be_read(tmp_path: Path, size: tuple[int, int], tile: tuple[int, int]) -> None:
    file = tmp_path / "report" / "panels.png"
    sample = panel_sample(*size)
    save_panels(file, [sample, sample], (SEGMENTATION, DEPTH, SCENE))
    height, width = opened(file).shape[:2]
    tiles, gaps = 5 * tile[1], 6 * panels._GAP  # the label of a whole picture has no tile
    assert tiles + gaps <= width <= tiles + gaps + 20
    assert 2 * tile[0] + 60 < height < 2 * tile[0] + 160
    assert [path.name for path in file.parent.iterdir()] == ["panels.png"]


def test_a_tile_shows_every_pixel_as_a_square(tmp_path: Path) -> None:
    sample = panel_sample(64, 64)
    save_panels(tmp_path / "panels.png", [sample], ())
    picture = opened(tmp_path / "panels.png")
    expected = (sample.image * 255).round().byte().movedim(0, -1).numpy()
    left, bottom = panels._GAP, picture.shape[0] - 2 * panels._GAP
    found = picture[bottom - 192 : bottom, left : left + 192]
    assert (found == np.kron(expected, np.ones((3, 3, 1), dtype=np.uint8))).all()


def test_what_is_missing_from_a_sample_is_hatched(tmp_path: Path) -> None:
    sample = panel_sample(64, 64)
    bare = PanelSample(image=sample.image, predictions={}, targets={}, valid={}, key="x" * 500)
    save_panels(tmp_path / "panels.png", [sample, bare], (DEPTH,))
    assert is_hatched(opened(tmp_path / "panels.png")).sum() >= 2 * 192 * 192


def test_samples_of_different_sizes_share_a_picture(tmp_path: Path) -> None:
    samples = [panel_sample(40, 60), panel_sample(90, 50)]
    save_panels(tmp_path / "panels.png", samples, (SEGMENTATION, DEPTH))
    assert opened(tmp_path / "panels.png").shape[0] > 120 + 180


def test_a_failed_write_leaves_the_old_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "panels.png"
    file.write_bytes(b"old")

    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        save_panels(file, [panel_sample(8, 8)], (DEPTH,))
    assert file.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


# Curves


def line(step: int, split: str, task: str | None, metric: str, value: float | None) -> Any:
    return {
        "step": step, "epoch": step // 10, "split": split, "task": task, "metric": metric,
        "value": or_nan(value), "seconds": float(step),
    }  # fmt: skip


def run_records() -> list[Any]:
    records = []
    for step in range(0, 100, 5):
        records.append(line(step, "train", None, "learning_rate", 0.1))
        for task in ("depth", "normals"):
            records.append(
                line(step, "train", task, "loss", None if step == 20 else 1 / (1 + step))
            )
            records.append(line(step, "train", task, "weight", 1 + step / 100))
        records.append(line(step, "train", "depth|normals", "cosine", math.cos(step)))
    records.append(line(100, "val", "depth", "abs_error", 0.3))
    records.append(line(100, "val", "depth", "rel_error", 0.1))
    records.append(line(100, "val", "depth", "loss", 0.2))
    records.append(line(100, "val", "normals", "mean_angle", None))
    return records


SVG = "{http://www.w3.org/2000/svg}"


class Sheet:
    """A picture of charts, read as XML."""

    def __init__(self, path: Path) -> None:
        self.root = ElementTree.parse(path).getroot()
        assert self.root.tag == f"{SVG}svg"

    def texts(self, kind: str) -> list[str]:
        return [
            "".join(text.itertext())
            for text in self.root.iter(f"{SVG}text")
            if text.get("class") == kind
        ]

    def chart(self, title: str) -> Any:
        """What a chart draws, by its description."""
        (found,) = (
            group for group in self.root.iter(f"{SVG}g")
            if group.get("aria-label", "").startswith(f"{title}: ")
        )  # fmt: skip
        return found

    def looks(self, title: str, tag: str = "path") -> list[str]:
        return [part.get("class", "") for part in self.chart(title).iter(f"{SVG}{tag}")]


def test_curves_show_losses_and_metrics(tmp_path: Path) -> None:
    save_curves(
        tmp_path / "report" / "curves.svg",
        run_records(),
        units={"depth": "m", "normals": ""},
        higher_is_better={"depth": {"abs_error": False}},
        constants={"global": {"depth": {"abs_error": 0.9}}, "pixel": {}},
    )
    sheet = Sheet(tmp_path / "report" / "curves.svg")
    assert sheet.texts("heading") == ["depth (m)", "normals"]
    assert sheet.texts("title") == [
        "loss (log scale)", "abs_error ↓, validation", "rel_error, validation", "loss (log scale)",
    ]  # fmt: skip
    assert "model from 0.3 to 0.3; constant at 0.9" in sheet.chart("abs_error ↓, validation").get(
        "aria-label"
    )
    losses = next(g for g in sheet.root.iter(f"{SVG}g") if "validation" in g.get("aria-label", ""))
    assert losses.get("aria-label").startswith("loss (log scale): training from 1 to 0.01")
    # The null at step 20 leaves a gap, and validation's only point is a dot.
    (training,) = losses.findall(f"{SVG}path")
    assert training.get("d").count("M") == 2
    dots = [dot.get("class") for dot in losses.iter(f"{SVG}circle")]
    assert dots.count("dot c1 s0") == 1
    assert dots.count("dot c0 s0") == 19


def test_weights_and_cosines(tmp_path: Path) -> None:
    save_weights(tmp_path / "weights.svg", run_records())
    sheet = Sheet(tmp_path / "weights.svg")
    assert sheet.texts("title") == ["Weights of the tasks", "Cosines between the tasks' gradients"]
    assert sheet.chart("Weights of the tasks").get("aria-label").endswith(
        "depth from 1 to 1.95; normals from 1 to 1.95"
    )  # fmt: skip
    assert "depth and normals from 1" in sheet.chart("Cosines between the tasks' gradients").get(
        "aria-label"
    )


def test_a_picture_stands_alone_in_both_themes(tmp_path: Path) -> None:
    save_curves(tmp_path / "curves.svg", run_records())
    sheet = Sheet(tmp_path / "curves.svg")
    style = sheet.root.findtext(f"{SVG}style") or ""
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    assert "var(" not in style
    assert ".paper { fill: #ffffff; }" in light
    assert ".paper { fill: #14171c; }" in dark
    # Every class that is drawn has a rule.
    drawn = {name for part in sheet.root.iter() for name in part.get("class", "").split()}
    assert {name for name in drawn if f".{name}" not in light} <= {"s0", "name"}
    width, height = (float(sheet.root.get(side, "")) for side in ("width", "height"))
    assert sheet.root.get("viewBox") == f"0 0 {width:g} {height:g}"


def test_names_of_others_stay_text(tmp_path: Path) -> None:
    name = "<b>&\"'"
    save_weights(tmp_path / "w.svg", [line(s, "train", name, "weight/x<", s) for s in (1, 2)])
    assert Sheet(tmp_path / "w.svg").texts("title") == [f"Weights of {name} by class"]


def test_many_lines_differ_from_each_other(tmp_path: Path) -> None:
    names = [f"task_{number}" for number in range(24)]
    save_weights(
        tmp_path / "w.svg", [line(s, "train", n, "weight", s) for n in names for s in (0, 1)]
    )
    sheet = Sheet(tmp_path / "w.svg")
    looks = sheet.looks("Weights of the tasks")
    assert len(set(looks)) == len(looks) == len(names)
    # Too many for labels at their ends: a legend below names all, within the picture.
    assert sorted(sheet.texts("name")) == sorted(names)
    for text in sheet.root.iter(f"{SVG}text"):
        assert float(text.get("y", 0)) < float(sheet.root.get("height", ""))


@pytest.mark.parametrize("save", [save_curves, save_weights])
@pytest.mark.parametrize(
    "records",
    [[], [line(0, "train", None, "loss", 1.0)], [line(0, "train", "depth", "loss", None),
                                               line(0, "train", "depth", "weight", math.nan)]],
)  # fmt: skip
def test_nothing_to_draw_makes_no_file(tmp_path: Path, save: Any, records: list[Any]) -> None:
    save(tmp_path / "plot.svg", records)
    assert not list(tmp_path.iterdir())
