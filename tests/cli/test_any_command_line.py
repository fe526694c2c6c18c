"""Valid command lines with something changed: an exit code of the four, and never a traceback."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mtlcore.plugins import Plugins

Place = Any  # the class in conftest.py
PLUGINS = Plugins.from_environment(())
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
]
SETTINGS = [
    "optimizer.lr", "training.steps", "data.train", "data.size", "seed", "tasks", "data",
    "model.backbone.width", "balancer", "balancer.name", "balancer.chain", "losses.depth.name",
    "metrics.depth", "cross_task", "data.labels", "training", "initial.run", "teachers.t",
    "model.freeze", "loggers", "data.augment.scales", "episodes.name", "plugins", "method",
]  # fmt: skip
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


@pytest.fixture
def folder(place: Place, finished: Path) -> Path:
    """Something of everything that a command reads."""
    shutil.copytree(finished, place.path / "run")
    shutil.copytree(finished, place.path / "run2")
    place.write("own.toml", "[training]\nsteps = 3\n")
    place.write("study.toml", STUDY)
    place.write("labels.csv", "1,0\n0,1\n")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(place.path / "a.png")
    return place.path


@pytest.mark.parametrize("depth", ["fast", pytest.param("deep", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("default::UserWarning")
def test_any_command_line_ends_in_an_exit_code(
    folder: Path, mtl: Callable[..., Result], depth: str
) -> None:
    @settings(settings.get_profile(depth))
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        words = data.draw(st.sampled_from(LINES)).split()
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
        # What trains takes longer than it is worth.
        if words[:1] == ["run"] or (words[:1] == ["study"] and "--prepare" not in words):
            return
        result = mtl(*words, plugins=PLUGINS)
        assert result.exit_code in (0, 1, 2, 130), (words, result.output)
        assert result.exception is None or isinstance(result.exception, SystemExit), words
        assert "Traceback" not in result.output, words

    check()
