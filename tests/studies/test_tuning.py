"""Variants that choose among the same settings before their seeds run."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

import mtlcore
from mtlcore.errors import ConfigError, MtlError
from mtlcore.plugins import Plugins
from mtlcore.results import compare
from mtlcore.studies import prepare_study, read_study
from mtlcore.studies.tuning import tuned_study

pytest.importorskip("fcntl", reason="studies need file locks")

TUNED = """
name = "Tiny"
seeds = [3]
delta_m = "DEFINITION"

[base]
tasks = ["segmentation", "depth"]
data = {train = 4, val = 2, size = [32, 32], workers = 0}
training = {epochs = 1, batch_size = 2, threads = 1}
model.backbone = {name = "unet", width = 0.03125}

[variants.one]
optimizer.lr = 1.0

[variants.two]
balancer.name = "rlw"

[tune]
seed = 9

[tune.candidates.slow]
optimizer.lr = 1e-6

[tune.candidates.fast]
optimizer.lr = 1e-2
"""


def _file(folder: Path, text: str) -> str:
    file = folder / "study.toml"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize("definition", [pytest.param("mtan", marks=pytest.mark.slow), "cagrad"])
def test_each_variant_has_the_candidate_that_served_it_best(
    definition: str, mtl: Callable[..., Result], tmp_path: Path
) -> None:
    file, out = _file(tmp_path, TUNED.replace("DEFINITION", definition)), tmp_path / "out"
    told: list[str] = []

    def prepared() -> list[str]:
        cells = prepare_study(Plugins.from_environment(), file, str(out), 1, told.append)
        return [Path(cell).relative_to(out).as_posix() for cell in cells]

    first = prepared()
    assert first == [
        f"tune/cells/{variant}+{candidate}/seed-9"
        for variant in ("one", "two")
        for candidate in ("slow", "fast")
    ]
    assert len(told) == 2 and "tune the variants" in told[1]
    for cell in first[1:]:
        mtlcore.run(out=str(out / cell), resume=True)
    assert prepared() == first[:1], "nothing is chosen before all have ended"
    mtlcore.run(out=str(out / first[0]), resume=True)
    # A candidate is laid over the variant's own settings.
    rates = [
        tomllib.loads((out / cell / "config.toml").read_text())["optimizer"]["lr"] for cell in first
    ]
    assert rates == [1e-6, 1e-2] * 2

    assert prepared() == ["cells/one/seed-3", "cells/two/seed-3"]
    tuning = compare([str(out / "tune")])
    assert tuning.baseline == "one+slow"
    sign = 1 if definition == "mtan" else -1
    for name in ("one", "two"):
        gains = {}
        for candidate, rate in (("slow", 1e-6), ("fast", 1e-2)):
            spread = tuning.delta_m(tuning.variant(f"{name}+{candidate}"))
            assert spread is not None
            gains[rate] = sign * spread.mean
        config = tomllib.loads((out / f"cells/{name}/seed-3/config.toml").read_text())
        assert config["optimizer"]["lr"] == max(gains, key=lambda rate: gains[rate])
        assert config["seed"] == 3
        mtlcore.run(out=str(out / f"cells/{name}/seed-3"), resume=True)

    # What has ended is not run again, and the tables say what was chosen.
    result = mtl("study", file, "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "Tiny: tuning: 4 cells, 4 of them done before" in result.stdout
    table = (out / "table.md").read_text()
    assert "Δm (" in table and "on the seed 9, which is in no table: one: " in table
    assert "seed-9" not in json.dumps(json.loads((out / "study.json").read_text()))


def test_a_variant_may_have_candidates_of_its_own(tmp_path: Path) -> None:
    own = """
[variants.two.candidates.even]
balancer = {name = "fixed", weights = {depth = 1.0}}
[variants.two.candidates.depth-2]
balancer = {name = "fixed", weights = {depth = 2.0}}
[variants.two.candidates.depth-3]
balancer = {name = "fixed", weights = {depth = 3.0}}

[tune]
"""
    text = TUNED.replace("DEFINITION", "mtan").replace("[tune]\n", own)
    file, told = _file(tmp_path, text), list[str]()
    cells = prepare_study(Plugins.from_environment(), file, str(tmp_path / "o"), 1, told.append)
    assert [Path(cell).parent.name for cell in cells] == [
        "one+slow", "one+fast", "two+even", "two+depth-2", "two+depth-3",
    ]  # fmt: skip
    without = text.replace("[tune]\nseed = 9", "").replace("[tune.candidates", "[variants.x")
    with pytest.raises(ConfigError, match=r"variants\.two\.candidates: the seed that chooses"):
        read_study(_file(tmp_path, without))


def test_a_candidate_without_a_result_is_not_chosen(tmp_path: Path) -> None:
    file, out = _file(tmp_path, TUNED.replace("DEFINITION", "mtan")), tmp_path / "out"
    cells = prepare_study(Plugins.from_environment(), file, str(out), 1, lambda _: None)
    study = read_study(file)
    assert study.tuning is not None
    with pytest.raises(
        MtlError, match=r"no candidate of one, two has a result on the seed 9; .*tune"
    ):
        tuned_study(study, study.tuning, out / "tune")
    for cell in cells[1::2]:
        mtlcore.run(out=cell, resume=True)
    variants = tuned_study(study, study.tuning, out / "tune").variants
    assert [variant.tuned for variant in variants] == [{"optimizer": {"lr": 1e-2}}] * 2


@pytest.mark.slow
def test_a_candidate_that_fails_does_not_stop_the_study(
    mtl: Callable[..., Result], tmp_path: Path
) -> None:
    text = TUNED.replace("DEFINITION", "mtan").replace("1e-6", "1e30").replace("[variants.two]", "")
    text = text.replace('balancer.name = "rlw"', "").replace("threads = 1", "max_skipped = 1")
    out = tmp_path / "out"
    result = mtl("study", _file(tmp_path, text), "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "one+slow, seed 9: failed" in result.stdout
    config = tomllib.loads((out / "cells/one/seed-3/config.toml").read_text())
    assert config["optimizer"]["lr"] == 1e-2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed = 9", "seed = 3", r"tune\.seed: 3 is one of the study's seeds"),
        ("seed = 9", "", r"tune\.seed"),
        ("seed = 9", "seed = 9\nseeds = [1]", r"tune\.seeds: unknown setting"),
        ("[tune.candidates.fast]\noptimizer.lr = 1e-2", "", "name at least two"),
        ("[tune.candidates.fast]", "[tune.candidates.'a/b']", r"candidates\.a/b: a name is"),
        ("[tune]\nseed = 9", "[variants.two.candidates.a]", "name at least two"),
        ("candidates.fast]", "candidates.fast]\nplugins = ['x']", r"fast\.plugins: a candidate"),
        ("[variants.two]", '[variants.two]\nstarts_from = "one"', "tuned start from none"),
        ("[tune.candidates.fast]\noptimizer.lr", "[tune.candidates]\nfast", r"candidates\.fast"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = TUNED.replace("DEFINITION", "mtan")
    assert old in text
    with pytest.raises(ConfigError, match=message):
        read_study(_file(tmp_path, text.replace(old, new)))
