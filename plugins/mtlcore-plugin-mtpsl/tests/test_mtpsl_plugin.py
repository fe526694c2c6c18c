"""The records, the presets, and whole runs: resumed, switched off, used."""

from __future__ import annotations

import json
import math
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mtlcore
from mtlcore.config import Layer, resolve
from mtlcore.display import SilentDisplay
from mtlcore.errors import ConfigError, Interrupted
from mtlcore.loading import draw_regime
from mtlcore.loading.regimes import LabelRegime
from mtlcore.plugins import Plugins
from mtlcore.runs import count_method_parameters, execute, load_run, try_step
from mtlcore.storage import load_checkpoint
from mtlcore.testing import MethodContract, assert_plugin_is_light
from mtlcore.testing.base import leaves, same
from mtlcore_mtpsl import plugin

LOSSES = ("mtpsl", "consistency", "direct-map", "perceptual-map", "contrastive", "discriminator")


def some_fast(*names: str) -> list[Any]:
    """All losses; those that are not named are left to the slow tests."""
    return [
        name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in LOSSES
    ]


def tiny(cross_task: list[dict[str, Any]], workers: int = 0) -> dict[str, Any]:
    """The preset of `mtpsl` with other losses between tasks, small."""
    (preset,) = (spec.read() for spec in plugin.mtl_methods() if spec.name == "mtpsl")
    preset["data"] |= {"train": 6, "val": 2, "size": [32, 32], "workers": workers}
    preset["model"]["backbone"]["width"] = 0.03
    preset["training"] = {
        "batch_size": 2, "epochs": 2, "threads": 1, "normalisation": "sample",
    }  # fmt: skip
    return {**preset, "device": "cpu", "cross_task": cross_task}


class TestMTPSL(MethodContract):
    method = "mtpsl"


class TestNYUv2(MethodContract):
    method = "mtpsl-nyuv2"
    needs_files = True


class TestCityscapes(MethodContract):
    method = "mtpsl-cityscapes"
    needs_files = True


class TestPascal(MethodContract):
    method = "mtpsl-pascal"
    needs_files = True


def test_is_light() -> None:
    assert_plugin_is_light("mtlcore_mtpsl.plugin")


def test_every_loss_is_listed_with_settings_that_say_what_they_mean() -> None:
    plugins = Plugins.from_environment()
    assert tuple(spec.name for spec in plugin.mtl_losses()) == LOSSES
    for spec in plugin.mtl_losses():
        assert spec.summary and spec.paper
        shown = mtlcore_settings(plugins, spec.name)
        assert shown["weight"]["default"] == 1.0
        assert all(setting["meaning"] for setting in shown.values())


def mtlcore_settings(plugins: Plugins, name: str) -> dict[str, Any]:
    from mtlcore.cli.descriptions import show_data

    return {s["name"]: s for s in show_data(plugins, "losses", name)["settings"]}


@pytest.mark.parametrize(
    ("method", "total", "mapping"),
    [
        ("mtpsl-nyuv2", 25_055_185, 14_819_328),
        ("mtpsl-cityscapes", 25_017_672, 14_780_160),
        # ResNet-18 with five DeepLab heads; the mapping's five first convolutions read 33 channels.
        ("mtpsl-pascal", 34_795_873, 11_166_976 + 33 * 64 * 49 + 5 * 128 + 153_600),
    ],
)
def test_published_sizes(method: str, total: int, mapping: int) -> None:
    counted = count_method_parameters(Plugins.from_environment(), method)
    assert counted["total"] == total
    components = counted["components"]
    assert isinstance(components, dict)
    assert components["cross_task"] == mapping


def test_five_tasks_of_pascal_context_take_a_step(tmp_path: Path) -> None:
    """The published preset, narrow, on photographs of noise in the layout of the archive."""
    scipy_io = pytest.importorskip("scipy.io")
    draw = np.random.default_rng(0)
    names = {"train": ["2008_1", "2008_2", "2008_3", "2008_4", "2008_5"], "val": ["2009_1"]}
    pictures = {"JPEGImages": 3, "semseg/VOC12": 1, "normals_distill": 3, "sal_distill": 1}
    for folder in (*pictures, "ImageSets/Context", "pascal-context/trainval"):
        (tmp_path / folder).mkdir(parents=True)
    for split, stems in names.items():
        (tmp_path / f"ImageSets/Context/{split}.txt").write_text("\n".join(stems) + "\n")
        for stem in stems:
            for folder, channels in pictures.items():
                shape = (80, 70, 3) if channels == 3 else (80, 70)
                pixels = draw.integers(0, 21 if folder.startswith("semseg") else 256, shape)
                ending = "jpg" if folder == "JPEGImages" else "png"
                Image.fromarray(pixels.astype(np.uint8)).save(
                    tmp_path / folder / f"{stem}.{ending}"
                )
            classes = draw.integers(1, 460, (80, 70)).astype(np.uint16)
            scipy_io.savemat(
                tmp_path / f"pascal-context/trainval/{stem}.mat", {"LabelMap": classes}
            )
    small = {
        "device": "cpu",
        "data": {"root": str(tmp_path), "size": [64, 64], "workers": 0},
        "model": {"backbone": {"width": 0.0625}, "head": {"channels": 8}},
        "training": {"batch_size": 5},
    }
    config = resolve(Plugins.from_environment(), ["mtpsl-pascal"], [Layer("test", small)])
    report = try_step(config)
    assert set(report["losses"]) <= set(config.losses)
    assert len(report["losses"]) >= 3  # one label per photograph, and parts have none
    assert all(math.isfinite(loss) for loss in report["losses"].values())


# The released regime files


def kept(labels: str, tasks: list[str], samples: int, seed: int = 0) -> LabelRegime:
    regime = draw_regime(labels, tasks, samples, torch.Generator().manual_seed(seed))
    assert regime is not None
    return regime


def test_one_label_has_the_frequencies_of_the_released_files() -> None:
    """795 images of NYUv2: 265 each; 2,975 of Cityscapes: 1,487 and 1,488."""
    nyuv2 = kept("one", ["segmentation", "depth", "normals"], 795)
    assert nyuv2.counts() == {"segmentation": 265, "depth": 265, "normals": 265}
    assert all(len(nyuv2.tasks(i, "")) == 1 for i in range(795))
    cityscapes = kept("one", ["segmentation", "inverse_depth"], 2975)
    assert sorted(cityscapes.counts().values()) == [1487, 1488]
    assert all(len(cityscapes.tasks(i, "")) == 1 for i in range(2975))


def test_random_labels_have_the_frequencies_of_the_released_file() -> None:
    """Its counts are within four standard deviations of how labels are drawn here.

    405 images have one label and 390 two; combinations, as digits segmentation-depth-normals, 110
    x148, 001 x143, 010 x133, 100 x129, 011 x127, 101 x115.
    """
    released = {"110": 148, "001": 143, "010": 133, "100": 129, "011": 127, "101": 115}
    tasks = ["segmentation", "depth", "normals"]
    number = 40 * 795
    regime = kept("random", tasks, number)
    found = Counter(
        "".join(str(int(task in regime.tasks(i, ""))) for task in tasks) for i in range(number)
    )
    assert set(found) == set(released)
    for combination, count in released.items():
        share = found[combination] / number
        assert abs(share - 1 / 6) < 4 * (5 / 36 / number) ** 0.5
        assert abs(count - 795 * share) < 4 * (795 * share * (1 - share)) ** 0.5


# Runs


def run(out: Path, cross_task: list[dict[str, Any]], workers: int = 0) -> dict[str, Any]:
    return mtlcore.run(tiny(cross_task, workers), plugins=[], out=str(out))


def records(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def state(folder: Path) -> dict[str, Any]:
    return load_checkpoint(folder / "checkpoints" / "last.safetensors")


@pytest.mark.parametrize("name", some_fast("mtpsl", "consistency", "contrastive"))
def test_trains(name: str, tmp_path: Path) -> None:
    """Every loss under one label per image: finite, recorded, and what it learns has moved."""
    summary = run(tmp_path / "run", [{"name": name}])
    assert summary["steps"] == 6
    assert summary["skipped_steps"] == 0
    terms = {line["task"] for line in records(tmp_path / "run") if line["metric"] == "term"}
    assert name.replace("-", "_") in terms
    learnt = {
        key[2:]: value
        for key, value in leaves(state(tmp_path / "run")["learner"])
        if key[0] == "cross_task"
    }
    assert bool(learnt) == (name != "consistency")
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    counted = sum(value.numel() for key, value in learnt.items() if key[-1] not in statistics)
    assert summary["parameters"]["components"]["cross_task"] == counted


@pytest.mark.parametrize("name", some_fast("mtpsl"))
def test_with_weight_zero_a_run_is_the_supervised_one(name: str, tmp_path: Path) -> None:
    """Bit for bit: parameters, statistics, the optimizer's state and everything recorded."""
    supervised = run(tmp_path / "without", [])
    switched_off = run(tmp_path / "off", [{"name": name, "weight": 0.0}])
    assert records(tmp_path / "without") == records(tmp_path / "off")
    assert same(supervised["final"], switched_off["final"])
    one, other = state(tmp_path / "without"), state(tmp_path / "off")
    model = {k: v for k, v in leaves(other["learner"]) if k[0] != "cross_task"}
    assert same(dict(leaves(one["learner"])), model)
    assert same(one["random"], other["random"])
    moments = [dict(leaves(each["optimizer"]["torch"]["state"])) for each in (one, other)]
    assert same(*moments)
    # And it is not that the loss has no effect at all.
    on = run(tmp_path / "on", [{"name": name}])
    assert not same(supervised["final"], on["final"])


@pytest.mark.parametrize("name", some_fast("discriminator"))
def test_what_is_learnt_is_saved_and_resumed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the midst of an epoch and resumed, it ends in the bits of a run at once."""
    own = {} if name == "consistency" else {"mapping": {"lr": 0.01}}
    values = tiny([{"name": name, **own}])
    plugins = Plugins.from_environment()
    config = resolve(plugins, [], [Layer("test", values)])
    execute(plugins, config, str(tmp_path / "whole"), False, SilentDisplay())

    def stop(_display: object, step: int, _losses: object) -> None:
        if step == 4:
            signal.raise_signal(signal.SIGINT)

    parts = str(tmp_path / "parts")
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(SilentDisplay, "step", stop)
        execute(plugins, config, parts, False, SilentDisplay())
    saved = state(tmp_path / "parts")
    learns = any(key[0] == "cross_task" for key, _ in leaves(saved["learner"]))
    assert learns == (name != "consistency")
    execute(plugins, config, parts, True, SilentDisplay())
    assert not same(saved["learner"], state(tmp_path / "parts")["learner"])
    for part in ("learner", "optimizer", "random"):
        assert same(state(tmp_path / "whole")[part], state(tmp_path / "parts")[part])
    assert records(tmp_path / "whole") == records(tmp_path / "parts")


def test_it_is_left_out_of_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "run", [{"name": "mtpsl"}])
    trained = load_run(Plugins.from_environment(), str(tmp_path / "run"), "last")
    inputs = torch.rand(2, 3, 32, 32)
    expected = trained.learner.predict(inputs, trained.learner.tasks)
    del trained.learner.cross_task
    found = trained.learner.predict(inputs, trained.learner.tasks)
    assert same(found, expected)


def test_runs_are_the_same_whoever_loads(tmp_path: Path) -> None:
    here = run(tmp_path / "here", [{"name": "mtpsl"}])
    there = run(tmp_path / "there", [{"name": "mtpsl"}], workers=1)
    assert same(here["final"], there["final"])
    assert same(state(tmp_path / "here")["learner"], state(tmp_path / "there")["learner"])


def test_a_method_without_its_loss_is_refused() -> None:
    values = {"cross_task": [{"name": "consistency"}]}
    with pytest.raises(ConfigError, match="not itself without losses/mtpsl"):
        resolve(Plugins.from_environment(), ["mtpsl"], [Layer("test", values)])
