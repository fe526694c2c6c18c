"""A study's file with anything in it: cells that can start, or a message that names the file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlcore.errors import MtlError
from mtlcore.plugins import Plugins
from mtlcore.studies import prepare_study, read_study

STUDY = {
    "name": "Both", "seeds": [0, 1], "baseline": "single-task", "delta_m": "mtan", "epoch": "best",
    "targets": ["depth.abs_error=0.5"], "launcher": {"name": "local"},
    "base": {
        "tasks": ["segmentation", "depth"],
        "data": {"train": 2, "val": 2, "size": [32, 32], "workers": 0},
    },
    "variants": {
        "single-task": {},
        "pcgrad": {"plugins": ["pcgrad"], "training": {"steps": 3}},
        "apart": {"groups": [["segmentation"], ["depth"]], "balancer": {"name": "equal"}},
        "later": {"starts_from": "pcgrad", "seeds": [1], "optimizer": {"lr": 0.1}},
    },
    "search": {
        "trials": 3, "objectives": ["delta_m", "depth.abs_error"], "variant": "apart", "seed": 1,
        "searcher": {"name": "random"},
        "ranges": {
            "optimizer": {"lr": {"low": 1e-4, "high": 0.1, "log": True}},
            "training": {"batch_size": {"low": 2, "high": 8, "step": 2}},
            "balancer": {"choices": [{"name": "equal"}, {"name": "dwa"}]},
        },
    },
}  # fmt: skip
DEPTHS = ["fast", pytest.param("deep", marks=pytest.mark.slow)]


@pytest.mark.parametrize("depth", DEPTHS)
def test_any_study_file_is_prepared_or_told(tmp_path: Path, mutated: Any, depth: str) -> None:
    file, out, plugins = tmp_path / "study.toml", tmp_path / "out", Plugins.from_environment()

    @settings(settings.get_profile(depth))
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        try:
            file.write_text(tomli_w.dumps(data.draw(mutated(STUDY))))
        except (TypeError, AttributeError, ValueError):  # TOML has no such value
            return
        try:
            study = read_study(str(file))
        except MtlError as error:
            problems = getattr(error, "problems", [str(error)])
            assert all(str(file) in problem for problem in problems)
            return
        shutil.rmtree(out, ignore_errors=True)
        try:
            prepared = prepare_study(plugins, str(file), str(out), 1, lambda _: None)
        except MtlError as error:
            assert str(error)
            assert not out.exists() or not [*out.rglob("config.toml")]  # all or none
        else:
            assert len(prepared) >= len(study.variants)

    file.write_text(tomli_w.dumps(STUDY))
    # two seeds of two tasks, of one model, of two groups; one seed of what starts from another
    assert len(prepare_study(plugins, str(file), str(out), 1, lambda _: None)) == 4 + 2 + 4 + 1
    check()
