"""Valid command lines and runs with something changed: an exit code of four, never a traceback."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mtlcore.storage import load_checkpoint, save_checkpoint

Answered = Callable[..., tuple[int, str]]
OWN = {
    "tasks": ["segmentation", "depth"],
    "data": {"name": "rooms", "train": 2, "val": 1, "size": [32, 32], "workers": 0},
    "model": {"backbone": {"width": 0.03125}},
    "training": {"steps": 2, "batch_size": 2, "threads": 1},
}
STUDY = """
name = "Two"
seeds = [0]
[base]
data = {train = 2, val = 2, size = [32, 32], workers = 0}
[variants.a]
[variants.b]
plugins = ["pcgrad"]
"""
LINES = [
    "config",
    "config --json --plugin pcgrad --set optimizer.lr=0.1",
    "config own.toml --plugin mtml --seed 3 --device cpu",
    "list balancers --json",
    "list",
    "plugins --json",
    "show optimizer adam --json",
    "show method mtml --set model.backbone.width=0.03125",
    "report run --out page.html",
    "compare run run2 --baseline equal --target depth.abs_error=0.5 --json",
    "labels labels.csv --tasks segmentation,depth --out labels.json",
    "study study.toml --out study --prepare",
    "new-plugin own --kind balancers --out own",
    "predict run a.png --out out",
    "pseudo-label run --data photographs --out out --threshold 0.3 --split val",
    "doctor",
]
# What trains or evaluates; `half` is a run that was stopped.
TINY = "--set training.steps=1 --set data.train=2 --set data.val=1"
TRAINING = [
    "run own.toml --out new",
    "run own.toml --plugin pcgrad --json",
    "run own.toml --dry-run",
    "run own.toml --set initial.run=run --out new",
    "run --resume --out half",
    "run --resume --out run --json",
    "eval run",
    "eval run --split train --set data.train=2 --json --checkpoint last",
    f"adapt run --tasks normals {TINY} --out new",
    f"adapt run --tasks normals --train heads --target depth.abs_error=9 {TINY} --out new --json",
]
SETTINGS = [
    "optimizer.lr", "training.steps", "data.train", "data.size", "seed", "tasks", "data",
    "model.backbone.width", "balancer", "balancer.name", "balancer.chain", "losses.depth.name",
    "metrics.depth", "cross_task", "data.labels", "training", "initial.run", "teachers.t",
    "model.freeze", "loggers", "data.augment.scales", "episodes.name", "plugins", "method",
]  # fmt: skip
# A command that trains or evaluates, and the file that is changed before.
READ = [
    ("run own.toml --out new", "own.toml"),
    ("run run/config.toml --plugin pcgrad --json", "run/config.toml"),
    ("run --resume --out half", "half/config.toml"),
    ("run --resume --out half", "half/run.json"),
    ("run --resume --out half", "half/checkpoints/last.safetensors"),
    ("eval run --split train", "run/config.toml"),
    ("eval run", "run/checkpoints/best.safetensors"),
    (TRAINING[-1], "run/config.toml"),
    (TRAINING[-1], "run/summary.json"),
    (TRAINING[-1], "run/checkpoints/best.safetensors"),
]
# No operating system hands over a zero byte.
VALUES = [
    "", "nan", "-1", "inf", "0", "[]", "{}", "1e400", "99999999999999999999", "true", "'x'",
    "[[]]", "[nan]", "{name=1}", "{name='dwa'}", "x/../y", "\udcff", "a" * 300,
    "0x" + "f" * 5000, "[" * 3000, "1979-05-27", "[1, 'x']", "'depth'", "['depth', 'depth']",
    "=", "\n", "<b>", "ä",
]  # fmt: skip
WORDS = [
    "", "-", "--", "--out", "--set", "--set=", "--set==", "--seed=-1",
    "--seed=99999999999999999999",
    "--device=gpu9", "--plugin=nothing", "--plugin=gone.py", "--json", "--help", "run", "gone", ".",
    "a.png", "own.toml", "study.toml", "\udcff", "x" * 300, "memory://", "zip://a.png",
    "zip://x::a.png", "no://x", "://", "--epoch=best", "--checkpoint=none", "--resume",
]  # fmt: skip
DEPTHS = ["fast", pytest.param("deep", marks=pytest.mark.slow)]
# Training takes longer than listing.
TRAINING_DEPTHS = [
    pytest.param(settings(settings.get_profile("fast"), max_examples=10), id="fast"),
    pytest.param(settings.get_profile("deep"), id="deep", marks=pytest.mark.slow),
]


def changed_words(data: st.DataObject, words: list[str]) -> list[str]:
    """A command line with up to three things changed."""
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(words)))
        match data.draw(st.sampled_from(["set", "set", "insert", "remove", "replace", "swap"])):
            case "set":
                path, value = (
                    data.draw(st.sampled_from(SETTINGS)),
                    data.draw(st.sampled_from(VALUES)),
                )
                words.append(f"--set={path}={value}")
            case "insert":
                words.insert(at, data.draw(st.sampled_from(WORDS)))
            case "remove" if len(words) > 1:
                del words[at - 1]
            case "replace" if at > 0:
                words[at - 1] = data.draw(st.sampled_from(WORDS))
            case _:
                words[at:at] = reversed(words[at:])
    return words


@pytest.fixture
def folder(tmp_path: Path, finished: Path) -> Path:
    """Something of everything that a command reads."""
    folder = tmp_path / "folder"
    shutil.copytree(finished, folder / "run")
    shutil.copytree(finished, folder / "run2")
    shutil.copytree(finished, folder / "half")
    (folder / "half" / "summary.json").unlink()
    # It has another epoch to go.
    checkpoint = folder / "half" / "checkpoints" / "last.safetensors"
    state = load_checkpoint(checkpoint)
    state["config"]["training"]["epochs"] += 1
    save_checkpoint(checkpoint, state)
    (folder / "half" / "config.toml").write_text(tomli_w.dumps(state["config"]))
    (folder / "own.toml").write_text(tomli_w.dumps(OWN))
    (folder / "study.toml").write_text(STUDY)
    (folder / "labels.csv").write_text("1,0\n0,1\n")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(folder / "a.png")
    return folder


def check_answer(answered: Answered, words: list[str], folder: Path) -> None:
    code, said = answered(words, folder)
    assert code in (0, 1, 2, 130), (code, words, said)
    assert "Traceback" not in said, (words, said)


@pytest.mark.parametrize("depth", DEPTHS)
def test_any_command_line_ends_in_an_exit_code(
    folder: Path, answered: Answered, depth: str
) -> None:
    @settings(settings.get_profile(depth))
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        words = changed_words(data, data.draw(st.sampled_from(LINES)).split())
        if words[:1] == ["study"] and "--prepare" not in words:
            return  # starts a Python for each run
        check_answer(answered, words, folder)

    check()


@pytest.mark.parametrize("depth", TRAINING_DEPTHS)
def test_any_training_ends_in_an_exit_code(folder: Path, answered: Answered, depth: Any) -> None:
    @depth
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        words = changed_words(data, data.draw(st.sampled_from(TRAINING)).split())
        with TemporaryDirectory(dir=folder.parent) as place:
            shutil.copytree(folder, place, dirs_exist_ok=True)
            check_answer(answered, words, Path(place))

    check()


def rewrite(file: Path, change: Callable[[Any], Any]) -> None:
    """Change what a configuration, a JSON file or the header of a checkpoint holds."""
    if file.suffix == ".toml":
        file.write_text(tomli_w.dumps(change(tomllib.loads(file.read_text()))))
    elif file.suffix == ".json":
        file.write_text(json.dumps(change(json.loads(file.read_text()))))
    else:
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata()
        header["tree"] = json.dumps(change(json.loads(header["tree"])))
        save_file(load_file(file), file, header)


@pytest.mark.parametrize("depth", TRAINING_DEPTHS)
def test_any_file_ends_a_command_in_an_exit_code(
    folder: Path, answered: Answered, mutated: Any, depth: Any
) -> None:
    @depth
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        words, name = data.draw(st.sampled_from(READ))
        with TemporaryDirectory(dir=folder.parent) as place:
            shutil.copytree(folder, place, dirs_exist_ok=True)
            try:
                rewrite(Path(place) / name, lambda tree: data.draw(mutated(tree)))
            except (TypeError, AttributeError, ValueError):  # TOML has no such value
                return
            check_answer(answered, words.split(), Path(place))

    check()
