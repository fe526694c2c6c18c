"""The README's commands run, on data made here; what the hub would be fetched for is only read."""

import re
import tomllib
from pathlib import Path

import numpy as np

from mtlcore_hf.dataset import HuggingFace

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
FIRST, SECOND = re.findall(r"^```toml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_first_configuration_trains(tmp_path, mtl, monkeypatch):
    random = np.random.default_rng(0)
    points = random.normal(size=(40, 2)).tolist()
    rows = [f"{x:.3f},{y:.3f},{'ab'[x > 0]},{100 * x + y:.2f}" for x, y in points]
    (tmp_path / "rows.csv").write_text("x,y,kind,price\n" + "\n".join(rows) + "\n")
    (tmp_path / "hf.toml").write_text(FIRST)
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"^mtl (run .*)$", README, re.MULTILINE)
    result = mtl(*command.split(), "--set=training.epochs=1", "--set=data.workers=0",
                 "--set=device=cpu")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert Path("runs/hf/summary.json").exists()


def test_the_second_one_names_settings_that_there_are():
    data = tomllib.loads(SECOND)["data"]
    known = {*HuggingFace.__init__.__kwdefaults__, "targets", "name", "size"}
    assert {*data} <= known
