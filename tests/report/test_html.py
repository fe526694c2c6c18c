"""The page about a run or a study: what it shows, and that it asks nothing of a network.

One file: all of it reads pages about the runs and studies that are written here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image

from mtlcore.report import make_report
from mtlcore.report.charts.files import chart_style
from mtlcore.report.charts.lines import COLOURS
from mtlcore.report.markup import Markup, element, table
from mtlcore.report.panels import PanelSample, save_samples
from mtlcore.storage import open_run
from mtlcore.tasks import Task

Command = Callable[..., Result]

HOSTILE = '<script>alert("x")</script>&\'"'
ARGUMENTS = [
    "--set=tasks=['segmentation', 'depth']",
    "--set=data.train=6",
    "--set=data.val=3",
    "--set=data.size=32x32",
    "--set=data.workers=0",
    "--set=model.backbone.width=0.03125",
    "--set=training.epochs=2",
    "--set=training.batch_size=3",
]
DEPTH = Task(name="depth", kind="depth", channels=1, unit="m")
SEGMENTATION = Task(
    name="segmentation", kind="segmentation", channels=2, class_names=("wall", "<i>")
)


# A run as files


def lines_of(seed: int = 0, *, bad: bool = False) -> list[dict[str, Any]]:
    records = []

    def add(step: int, split: str, task: str | None, metric: str, value: float | None) -> None:
        records.append({"step": step, "epoch": 1 + step // 10, "split": split, "task": task,
                     "metric": metric, "value": value, "seconds": float(step)})  # fmt: skip

    for step in range(1, 60):
        add(step, "train", "depth", "loss", None if bad else 1 / step + 0.01 * seed)
        add(step, "train", "depth", "weight", 1 + step / 100)
        add(step, "train", "segmentation", "weight/chair", 0.5)
        add(step, "train", "segmentation", "weight/sofa", 0.5 + step / 60)
        add(step, "train", "depth|normals", "cosine", math.cos(step))
        add(step, "train", None, "learning_rate", 0.1)
    add(59, "train", None, "degenerate", 3.0)
    for epoch in range(1, 5):
        add(10 * epoch, "val", "depth", "loss", None if bad else 0.5 / epoch)
        add(10 * epoch, "val", "depth", "abs_error", None if bad else (0.4 + seed / 10) / epoch)
    return records


def summary(error: float | None) -> dict[str, Any]:
    metrics = {"depth": {"abs_error": error, "loss": error}}
    return {
        "method": "equal", "final": {"val": metrics}, "final_split": "val", "averaged_over": 1,
        "best": {"epoch": 4, "chosen_on": "val", "val": metrics},
        "constants": {"global": {"depth": {"abs_error": 0.9}}, "pixel": {}},
        "higher_is_better": {"depth": {"abs_error": False, "loss": False}}, "units": {"depth": "m"},
        "parameters": {"total": 12345, "modules": {"backbone": 12000, "heads.depth": 345}},
        "epochs": 4, "steps": 40, "seconds": 61.0, "skipped_steps": 2, "skipped_samples": ["a"],
        "seconds_per_step": 0.5, "peak_memory": 1e8,
    }  # fmt: skip


def write_run(
    place: Path,
    *,
    seed: int = 0,
    method: str = "equal",
    pictures: bool = True,
    finished: bool = True,
    bad: bool = False,
) -> Path:
    place.mkdir(parents=True)
    config = f'method = {json.dumps(method)}\nseed = {seed}\ntasks = ["depth"]\n'
    (place / "config.toml").write_text(config + '[data]\nname = "x"\n')
    about = {"argv": ["mtl", HOSTILE, f"{Path.home()}/out"], "plugins": {"standard": "mtlcore 1"},
             "device": "cpu", "status": "finished" if finished else "failed",
             "reason": None if finished else "the <disk> is full"}  # fmt: skip
    (place / "run.json").write_text(json.dumps(about))
    text = "".join(json.dumps(row) + "\n" for row in lines_of(seed, bad=bad))
    (place / "metrics.jsonl").write_text(text)
    if finished:
        error = None if bad else 0.1 + seed / 100
        (place / "summary.json").write_text(json.dumps(summary(error)))
    if pictures:
        folder = place / "report" / "samples"
        save_samples(folder, [panel_sample(n) for n in range(3)], [DEPTH, SEGMENTATION])
    return place


def panel_sample(number: int, size: int = 8) -> PanelSample:
    torch.manual_seed(number)
    valid = torch.ones(size, size, dtype=torch.bool)
    return PanelSample(
        image=torch.rand(3, size, size),
        predictions={"depth": torch.rand(1, size, size),
                     "segmentation": torch.rand(2, size, size)},
        targets={"depth": torch.rand(1, size, size),
                 "segmentation": torch.randint(2, (size, size))},
        valid={"depth": valid, "segmentation": valid},
        key=f"{HOSTILE}/{number}",
    )  # fmt: skip


def write_study(place: Path, lost: Sequence[tuple[str, int]] = (("pcgrad", 2),)) -> Path:
    cells = []
    for name in ("equal", "pcgrad"):
        for seed in (0, 1, 2):
            location = f"cells/{name}/seed-{seed}"
            failed = (name, seed) in lost
            if not failed:
                write_run(place / location, seed=seed, method=name)
            cells.append({"variant": name, "seed": seed, "group": None, "location": location,
                          "status": "failed" if failed else "finished",
                          "reason": f"ran out of {HOSTILE}" if failed else None})  # fmt: skip
    study = {"name": f"All {HOSTILE}", "baseline": "equal", "delta_m": "mtan", "epoch": "last",
             "targets": ["depth.abs_error=0.12"], "notes": ["Noted."],
             "threads": 1, "cells": cells}  # fmt: skip
    (place / "study.json").write_text(json.dumps(study))
    return place


# Reading a page


class Page(HTMLParser):
    """What a browser would see of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []  # every element was closed

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def all(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        return [
            found for name, found in self.elements
            if name == tag and all(found.get(key) == value for key, value in wanted.items())
        ]  # fmt: skip

    @property
    def text(self) -> str:
        return " ".join(self.words)


def check_alone(text: str) -> Page:
    """It refers to nothing outside itself, and no text of others became markup."""
    page = Page(text)
    assert {tag for tag, _ in page.elements}.isdisjoint(
        {"script", "link", "iframe", "object", "embed", "base", "form", "i"}
    )
    ids = {found["id"] for _, found in page.elements if "id" in found}
    for tag, found in page.elements:
        for name, value in found.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "data", "action", "srcset", "poster"):
                inside = value.startswith("#") and value[1:] in ids
                assert inside or value.startswith("data:image/png;base64,"), (tag, value[:80])
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "default-src 'none'" in text
    return page


def check_accessible(page: Page) -> None:
    assert page.all("html")[0]["lang"] == "en"
    assert "width=device-width" in page.all("meta", name="viewport")[0]["content"]
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(found.get("alt") for found in page.all("img"))
    charts = [found for found in page.all("svg") if found.get("aria-hidden") != "true"]
    assert all(found["role"] == "img" and found["aria-label"] for found in charts)
    assert len(page.all("table")) == len(page.all("caption"))
    assert len(page.all("div", role="region", tabindex="0")) == len(page.all("table"))


# A run


@pytest.fixture(scope="module")
def trained(mtl: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    result = mtl("run", "--plugin", "pcgrad", *ARGUMENTS, "--out", str(out))
    assert result.exit_code == 0, result.output
    return out


def test_a_real_run_has_a_page(mtl: Command, trained: Path) -> None:
    result = mtl("report", str(trained))
    assert result.exit_code == 0, result.output
    file = trained / "report" / "index.html"
    assert result.output == f"report: {file}\n"
    page = check_alone(file.read_text("utf-8"))
    check_accessible(page)
    for words in ("segmentation", "depth (m)", "miou ↑", "best per pixel", "Weights of the tasks",
                  "Cosines between the tasks' gradients", "Learning rate",
                  "degenerate in 0 of 4 steps", "model.backbone.width", "Provenance"):  # fmt: skip
        assert words in page.text
    assert len(page.all("img")) == 3 * (1 + 2 * 2)
    assert file.stat().st_size < 1_000_000
    assert not list(trained.glob("report/**/*.partial"))


def test_settings_are_shown_with_their_origins_even_after_a_resumption(
    mtl: Command, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert mtl("run", *ARGUMENTS, "--out", str(out)).exit_code == 0
    first = json.loads((out / "run.json").read_text())["origins"]
    assert (first["training.epochs"], first["optimizer.name"]) == ("--set", "core")
    # As after a kill: what is left is the last checkpoint, and the run goes on by itself.
    (out / "summary.json").unlink()
    assert mtl("run", "--resume", "--out", str(out)).exit_code == 0
    assert json.loads((out / "run.json").read_text())["origins"] == first
    words = Page(make_report([str(out)])).words
    place = words.index("training.epochs")
    assert words[place : place + 3] == ["training.epochs", "2", "--set"]


def test_the_metrics_are_those_of_the_summary(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    page = Page(make_report([str(trained)]))
    for value in summary["final"]["val"]["depth"].values():
        assert f"{value:#.4g}" in page.text
    assert f"{summary['constants']['pixel']['depth']['abs_error']:#.4g}" in page.text


def test_what_is_recorded_of_balancing_is_drawn(tmp_path: Path) -> None:
    page = check_alone(make_report([str(write_run(tmp_path / "run"))]))
    labels = [found["aria-label"] for found in page.all("svg") if "aria-label" in found]
    assert any(label.startswith("Weights of segmentation by class: chair from 0.5 to 0.5; sofa")
               for label in labels)  # fmt: skip
    assert any(label.startswith("Weights of the tasks: depth from 1.0") for label in labels)
    assert any("depth and normals from" in label for label in labels)
    assert any(label.startswith("Learning rate") for label in labels)
    assert "degenerate in 3 of 59 steps" in page.text
    assert "skipped steps: 2" in page.text
    assert "samples left out: a" in page.text


def test_text_of_others_stays_text(tmp_path: Path) -> None:
    place = write_run(tmp_path / "run", method=HOSTILE)
    page = check_alone(make_report([str(place)]))
    check_accessible(page)
    assert HOSTILE in page.text
    assert f"{HOSTILE}/0" in page.text
    assert f"depth, prediction for {HOSTILE}/0" in [found["alt"] for found in page.all("img")]


def test_the_home_directory_is_not_shown(tmp_path: Path) -> None:
    text = make_report([str(write_run(tmp_path / "run"))])
    assert "~/out" in text
    assert str(Path.home()) + "/out" not in text


def test_nan_is_shown_and_does_no_harm(tmp_path: Path) -> None:
    page = check_alone(make_report([str(write_run(tmp_path / "run", bad=True))]))
    assert "Nothing finite was recorded." in page.text
    assert "n/a" in page.text
    assert not re.search("nan", " ".join(str(found) for _, found in page.elements if "d" in found))


def test_a_run_without_pictures_has_no_panels(tmp_path: Path) -> None:
    page = check_alone(make_report([str(write_run(tmp_path / "run", pictures=False))]))
    assert not page.all("img")
    assert not page.all("section", id="pictures")
    assert page.all("section", id="curves")


def test_a_table_of_numbers_has_a_page(mtl: Command, tmp_path: Path) -> None:
    for split in ("train", "val"):
        rows = "".join(f"{n},{n % 3},{'no' if n % 2 else 'yes'},{n / 7}\n" for n in range(12))
        (tmp_path / f"{split}.csv").write_text("age,code,rich,size\n" + rows)
    (tmp_path / "config.toml").write_text(
        f"""
        [data]
        name = "tabular"
        root = {json.dumps(str(tmp_path))}
        file = "{{split}}.csv"
        workers = 0
        [data.targets]
        rich = {{kind = "classification", column = "rich", classes = ["no", "yes"]}}
        size = {{kind = "regression", column = "size", unit = "kg"}}
        [model.backbone]
        name = "mlp"
        inputs = 2
        hidden = [4]
        [model.head]
        name = "linear"
        [training]
        epochs = 2
        batch_size = 6
        """
    )
    out = str(tmp_path / "run")
    result = mtl("run", str(tmp_path / "config.toml"), "--out", out)
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "run" / "report" / "samples").exists()
    page = check_alone(make_report([out]))
    assert "size (kg)" in page.text
    assert not page.all("img")


def test_an_unfinished_run_has_a_page_that_says_so(tmp_path: Path) -> None:
    place = write_run(tmp_path / "run", finished=False, pictures=False)
    with (place / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "epo')  # a run that goes on is in the midst of a line
    page = check_alone(make_report([str(place)]))
    check_accessible(page)
    for part in ("not finished", "failed: the <disk> is full", "step 59"):
        assert part in page.text
    assert page.all("section", id="curves")


def test_a_run_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    place = write_run(tmp_path / "run", finished=False, pictures=False)
    (place / "metrics.jsonl").unlink()
    (place / "run.json").unlink()
    page = check_alone(make_report([str(place)]))
    assert "What follows goes to step 0." in page.text
    assert "Nothing was recorded yet." in page.text


def test_a_remote_run_has_a_page_beside_it(mtl: Command, tmp_path: Path) -> None:
    import fsspec

    place = write_run(tmp_path / "run")
    memory = fsspec.filesystem("memory")
    memory.put(str(place), "/reports/run", recursive=True)
    result = mtl("report", "memory://reports/run")
    assert result.exit_code == 0, result.output
    text = memory.cat_file("/reports/run/report/index.html").decode()
    assert text == make_report([str(place)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: is neither a run (it has no config.toml) nor a study"),
        (["a", "b"], "--out FILE: say where"),
        ([], "Missing argument"),
    ],
)
def test_what_cannot_be_shown_is_told(mtl: Command, arguments: list[str], message: str) -> None:
    result = mtl("report", *arguments)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    ("file", "content"),
    [("config.toml", "= 1"), ("run.json", "{"), ("metrics.jsonl", "{\n"), ("summary.json", "?"),
     ("report/samples/index.json", "[")],
)  # fmt: skip
def test_damaged_files_are_named(mtl: Command, tmp_path: Path, file: str, content: str) -> None:
    place = write_run(tmp_path / "run")
    (place / file).write_text(content)
    result = mtl("report", str(place))
    assert result.exit_code == 1
    assert str(place / file) in result.output


def test_a_missing_picture_is_named(mtl: Command, tmp_path: Path) -> None:
    place = write_run(tmp_path / "run")
    (place / "report/samples/1.depth.target.png").unlink()
    result = mtl("report", str(place))
    assert result.exit_code == 1
    assert "1.depth.target.png: is missing" in result.output


def test_a_page_that_cannot_be_written_leaves_the_old_one(mtl: Command, tmp_path: Path) -> None:
    place = write_run(tmp_path / "run")
    blocked = tmp_path / "file"
    blocked.write_text("")
    result = mtl("report", str(place), "--out", str(blocked / "page.html"))
    assert result.exit_code == 1
    assert "page.html: cannot be written" in result.output


# A study


def test_a_study_has_a_page(mtl: Command, tmp_path: Path) -> None:
    place = write_study(tmp_path / "study")
    result = mtl("report", str(place))
    assert result.exit_code == 0, result.output
    page = check_alone((place / "index.html").read_text("utf-8"))
    check_accessible(page)
    for words in (f"All {HOSTILE}", "These have no result:",
                  f"pcgrad, seed 2: ran out of {HOSTILE}", "Noted.", "equal (baseline)",
                  "95 % interval", "First reached", "abs_error ↓", "5 finished runs"):  # fmt: skip
        assert words in page.text
    # Both variants' predictions of the same samples beside input and ground truth.
    alts = [found["alt"] for found in page.all("img")]
    assert alts[:4] == [
        f"input of {HOSTILE}/0", f"ground truth for {HOSTILE}/0", f"equal for {HOSTILE}/0",
        f"pcgrad for {HOSTILE}/0",
    ]  # fmt: skip
    assert len(page.all("path", **{"class": "band c0 s0"})) >= 4


def test_a_study_without_any_result_says_why(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    lost = [(name, seed) for name in ("equal", "pcgrad") for seed in (0, 1, 2)]
    page = check_alone(make_report([str(write_study(tmp_path / "study", lost))]))
    assert "0 finished runs" in page.text
    assert page.text.count(f"ran out of {HOSTILE}") == 6


def test_a_study_of_runs_without_pictures(tmp_path: Path) -> None:
    place = write_study(tmp_path / "study")
    for index in place.glob("cells/*/*/report/samples/index.json"):
        index.unlink()
    assert not check_alone(make_report([str(place)])).all("img")


def test_several_runs_are_compared(mtl: Command, tmp_path: Path) -> None:
    places = [str(write_run(tmp_path / str(s), seed=s)) for s in (0, 1)]
    other = str(write_run(tmp_path / "other", method="pcgrad"))
    out = tmp_path / "new" / "page.html"
    result = mtl("report", *places, other, "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "2 variants over 2 seeds, 3 finished runs" in Page(out.read_text("utf-8")).text


# Pictures of a run


def test_small_pictures_keep_their_classes_apart(tmp_path: Path) -> None:
    save_samples(tmp_path, [panel_sample(0, 400)], [SEGMENTATION])
    index = json.loads((tmp_path / "index.json").read_text())
    pictures = index["samples"][0]["pictures"]
    with Image.open(tmp_path / pictures["segmentation.target"]) as picture:
        assert picture.size == (192, 192)
        found = {tuple(colour) for colour in np.unique(np.asarray(picture).reshape(-1, 3), axis=0)}
    colours = index["tasks"]["segmentation"]["classes"]
    assert list(colours) == ["wall", "<i>"]
    assert found == {tuple(bytes.fromhex(colour[1:])) for colour in colours.values()}


def test_samples_of_tasks_without_maps_are_not_written(tmp_path: Path) -> None:
    save_samples(tmp_path / "samples", [], [Task(name="a", kind="classification", channels=2)])
    assert not list(tmp_path.iterdir())


# Markup and style


def test_text_is_escaped_and_markup_is_not() -> None:
    found = element("p", "<b>", Markup("<b></b>"), title='"', class_="x", aria_label=None)
    assert found == '<p title="&quot;" class="x">&lt;b&gt;<b></b></p>'
    assert Page(table(HOSTILE, [HOSTILE], [[HOSTILE]])).words.count(HOSTILE) == 3


def themes() -> list[dict[str, str]]:
    page = resources.files("mtlcore.report.html").joinpath("page.css").read_text("utf-8")
    light: dict[str, str] = {}
    dark: dict[str, str] = {}
    for style in (chart_style(), page):
        blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
        for theme, block in zip((light, dark), blocks, strict=True):
            theme.update(re.findall(r"--([\w-]+): (#\w{6});", block))
    return [light, dark]


def contrast(one: str, other: str) -> float:
    def light(colour: str) -> float:
        shares = [part / 255 for part in bytes.fromhex(colour[1:])]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("number", [0, 1], ids=["light", "dark"])
def test_text_and_lines_stand_out_in_both_themes(number: int) -> None:
    theme = themes()[number]
    assert set(theme) == set(themes()[0])
    for name in ("ink", "soft", "link", "good"):
        assert contrast(theme[name], theme["paper"]) >= 4.5, name
    assert contrast(theme["alert"], theme["alert-paper"]) >= 4.5
    for look in range(COLOURS):
        assert contrast(theme[f"c{look}"], theme["paper"]) >= 3, look


def test_reading_again_gives_the_same_page(tmp_path: Path) -> None:
    place = str(write_run(tmp_path / "run"))
    assert make_report([place]) == make_report([place])
    assert open_run(place).pictures is not None
