"""[search]: trials that a searcher chooses, and which of them is best."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from mtlcore.errors import ConfigError
from mtlcore.results import compare, search_result
from mtlcore.searchers import Choices, FloatRange, IntRange
from mtlcore.studies import read_study

pytest.importorskip("fcntl", reason="studies need file locks")

Command = Callable[..., Result]

STUDY = """
name = "Searched"
seeds = [0]
launcher = {name = "paper"}

[base]
plugins = ["PLUGIN"]
tasks = ["segmentation", "depth"]
data = {train = 4, val = 2, size = [32, 32], workers = 0}
training = {epochs = 4, batch_size = 2, threads = 1}

[variants.equal]

[search]
trials = 4
searcher = {name = "counting"}
objectives = ["depth.abs_error"]

[search.ranges]
optimizer.lr = {low = 0.125, high = 1.0}
training.batch_size = {low = 1, high = 2}
"""
# A launcher that trains nothing: a cell has a curve that its learning rate decides, an evaluation
# per poll. A searcher that counts, and stops what is worse than the best in the same epoch.
PLUGIN = """
import json
import tomllib
from pathlib import Path

from mtlcore import LauncherSpec, SearcherSpec, hookimpl


@hookimpl
def mtl_launchers():
    from mtlcore.launchers import CellExit, Launcher

    class Paper(Launcher):
        outlives = True
        poll_seconds = 0.0

        def __init__(self, folder, lock, *, dies_at: int = 99, loses: int = 0, fails: str = ""):
            self.folder, self.running, self.started = folder, {}, 0
            self.dies_at, self.loses, self.fails = dies_at, loses, fails

        def start(self, cell):
            place = self.folder / cell.location
            self.started += 1
            if self.started > self.dies_at:
                raise KeyboardInterrupt
            with (self.folder / "started").open("a") as file:
                print(cell.location, file=file)
            (place / "run.json").write_text('{"status": "running"}')
            (place / "metrics.jsonl").write_text("")
            config = tomllib.loads((place / "config.toml").read_text())
            self.running[cell.location] = (place, config, 0)

        def poll(self):
            exits = []
            for location, (place, config, epoch) in list(self.running.items()):
                if (place / "stop.json").exists():
                    reason = json.loads((place / "stop.json").read_text())["reason"]
                    about = {"status": "pruned", "reason": reason}
                    (place / "run.json").write_text(json.dumps(about))
                    exits.append(self.exit(location, 3, "mtl: " + reason))
                elif self.loses > 0:
                    self.loses -= 1
                    exits.append(self.exit(location, 1, "mtl: its machine failed", lost=True))
                elif self.fails and self.fails in location:
                    exits.append(self.exit(location, 1, "mtl: no"))
                elif epoch == 4:
                    self.finish(place, config)
                    exits.append(self.exit(location, 0, ""))
                else:
                    self.running[location] = (place, config, epoch + 1)
                    self.evaluate(place, config, epoch + 1)
            return exits

        def exit(self, location, code, said, lost=False):
            del self.running[location]
            return CellExit(location=location, code=code, seconds=1.0, output=said, lost=lost)

        def values(self, config):
            lr = config["optimizer"]["lr"]
            return {"segmentation": {"loss": 1.0, "miou": lr},
                    "depth": {"loss": 1.0, "abs_error": abs(lr - 0.5) + 1}}

        def evaluate(self, place, config, epoch):
            with (place / "metrics.jsonl").open("a") as file:
                for task, metrics in self.values(config).items():
                    for metric, value in metrics.items():
                        print(json.dumps({"step": epoch, "epoch": epoch, "split": "val",
                                          "task": task, "metric": metric,
                                          "value": value + 1 / epoch, "seconds": 1.0}), file=file)

        def finish(self, place, config):
            (place / "run.json").write_text('{"status": "finished"}')
            values = self.values(config)
            (place / "summary.json").write_text(json.dumps({
                "final": {"val": values}, "final_split": "val", "averaged_over": 1,
                "best": {"epoch": 1, "chosen_on": "val", "val": values},
                "constants": {}, "parameters": {"total": 1}, "epochs": 4, "steps": 4,
                "seconds": 1.0,
                "higher_is_better": {"segmentation": {"miou": True},
                                     "depth": {"abs_error": False}},
            }))

        def stop(self):
            pass

        stop_at_once = stop

    yield LauncherSpec(name="paper", target=Paper, summary="Trains nothing.")


@hookimpl
def mtl_searchers():
    from mtlcore.searchers import Searcher

    class Counting(Searcher):
        def __init__(self, space, objectives, seed, *, wrong: bool = False, strict: bool = False):
            self.space, self.wrong, self.strict = space, wrong, strict

        def ask(self, number, trials):
            assert [trial.number for trial in trials] == list(range(number))
            chosen = {path: one.at((number % 3) / 3) for path, one in self.space.items()}
            return {**chosen, "optimizer.lr": 7.0} if self.wrong else chosen

        def prunes(self, trial, trials):
            epoch = max(trial.intermediate)
            known = [one.intermediate[epoch] for one in trials if one.status == "finished"]
            return self.strict and bool(known) and trial.intermediate[epoch] > min(known)

    yield SearcherSpec(name="counting", target=Counting, summary="Counts.")
"""


@pytest.fixture
def study(mtl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    from mtlcore.studies import searching

    monkeypatch.setattr(searching, "_SECONDS", 0.0)
    plugin = tmp_path / "paper.py"
    plugin.write_text(PLUGIN)

    def command(*changes: tuple[str, str], options: tuple[str, ...] = ()) -> Result:
        text = STUDY.replace("PLUGIN", str(plugin))
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        file = tmp_path / "study.toml"
        file.write_text(text)
        return mtl("study", str(file), "--out", str(tmp_path / "out"), *options)

    return command


def content(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "out" / "study.json").read_text())
    return found


def rates(tmp_path: Path) -> list[float]:
    trials = content(tmp_path)["search"]["trials"]
    return [trial["parameters"]["optimizer.lr"] for trial in trials]


def test_trials_are_cells_and_the_best_one_is_told(study: Command, tmp_path: Path) -> None:
    result = study()
    assert result.exit_code == 0, result.output
    started = (tmp_path / "out" / "started").read_text().split()
    assert started == [
        "cells/equal/seed-0", *(f"cells/trial-000{number}/seed-0" for number in range(4))
    ], "variants come first, with which trials are compared"  # fmt: skip
    assert rates(tmp_path) == pytest.approx([0.125, 0.125 + 0.875 / 3, 0.125 + 1.75 / 3, 0.125])
    # 0.4167 is nearer to 0.5 than 0.7083, and lower is better.
    assert "best: trial-0001 with depth.abs_error 1.083" in result.output
    best = tomllib.loads((tmp_path / "out" / "best.toml").read_text())
    cell = tmp_path / "out" / "cells" / "trial-0001" / "seed-0" / "config.toml"
    assert best == tomllib.loads(cell.read_text())
    assert best["optimizer"]["lr"] == rates(tmp_path)[1]


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_a_search_goes_on_where_it_was(study: Command, tmp_path: Path, jobs: str) -> None:
    launcher = ('name = "paper"', 'name = "paper", dies_at = 3')
    result = study(launcher, options=("--jobs", jobs))
    assert result.exit_code == 130, result.output
    before = rates(tmp_path)
    assert 1 < len(before) < 4
    assert study(options=("--jobs", jobs)).exit_code == 0
    assert rates(tmp_path)[: len(before)] == before, "other trials than before"
    assert len(rates(tmp_path)) == 4
    started = (tmp_path / "out" / "started").read_text().split()
    finished = [line for line in started if started.count(line) == 1]
    assert "cells/equal/seed-0" in finished, "a finished cell ran again"
    assert study(("trials = 4", "trials = 5")).exit_code == 0, "more trials may be added"
    assert len(rates(tmp_path)) == 5


def test_more_than_one_seed_is_the_mean(study: Command, tmp_path: Path) -> None:
    assert study(("seeds = [0]", "seeds = [0, 1]")).exit_code == 0
    names = [(cell["variant"], cell["seed"]) for cell in content(tmp_path)["cells"]]
    assert len(names) == 2 * 5 and names[-2:] == [("trial-0003", 0), ("trial-0003", 1)]
    result = search_result(compare([str(tmp_path / "out")]))
    assert result is not None and result.trials[1].values == pytest.approx([1 + 1 / 12])


@pytest.mark.parametrize(
    ("objective", "best"),
    [
        ("segmentation.miou", "trial-0002"),
        ("delta_m", "trial-0002"),
        ("depth.abs_error", "trial-0001"),
    ],
)
def test_the_metric_says_which_way_is_better(study: Command, objective: str, best: str) -> None:
    result = study(('["depth.abs_error"]', f'["{objective}"]'))
    assert f"best: {best} with {objective}" in result.output, result.output


def test_several_objectives_have_a_front(study: Command, tmp_path: Path, mtl: Command) -> None:
    result = study(('["depth.abs_error"]', '["depth.abs_error", "segmentation.miou"]'))
    assert "Pareto front: trial-0001, trial-0002" in result.output
    files = sorted(file.name for file in (tmp_path / "out" / "front").iterdir())
    assert files == ["trial-0001.toml", "trial-0002.toml"]
    assert mtl("report", str(tmp_path / "out")).exit_code == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count('class="dot c0"') >= 2, "those that are not on the front are not seen"
    assert page.count('class="dot c1"') >= 2 and "Pareto front" in page
    assert (tmp_path / "out" / "front.svg").read_text().startswith("<svg")


def test_what_leads_nowhere_is_pruned(study: Command, tmp_path: Path) -> None:
    result = study(('name = "counting"', 'name = "counting", strict = true'))
    assert result.exit_code == 0, "pruning is no failure"
    states = {cell["variant"]: cell["status"] for cell in content(tmp_path)["cells"]}
    # Nothing stops the first one, nor the second, which is better.
    assert states == {
        "equal": "finished", "trial-0000": "finished", "trial-0001": "finished",
        "trial-0002": "pruned", "trial-0003": "pruned",
    }  # fmt: skip
    lines = (tmp_path / "out/cells/trial-0002/seed-0/metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["epoch"] < 4
    assert study(('name = "counting"', 'name = "counting", strict = true')).exit_code == 0
    started = (tmp_path / "out" / "started").read_text().split()
    assert len(set(started)) == len(started), "a pruned trial ran again"


def test_the_other_seeds_of_a_pruned_trial_do_not_run(study: Command, tmp_path: Path) -> None:
    study(
        ("seeds = [0]", "seeds = [0, 1]"),
        ('name = "counting"', 'name = "counting", strict = true'),
        ('["depth.abs_error"]', '["depth.abs_error"]'),
        options=("--jobs", "2"),
    )
    cells = content(tmp_path)["cells"]
    assert {c["status"] for c in cells if c["variant"] == "trial-0002"} == {"pruned"}


def test_a_lost_cell_is_begun_again_so_many_times(study: Command, tmp_path: Path) -> None:
    result = study(('name = "paper"', 'name = "paper", loses = 2'))
    assert result.exit_code == 0 and result.output.count("lost, and begun again") == 2
    started = (tmp_path / "out" / "started").read_text().split()
    assert started.count("cells/equal/seed-0") == 3


def test_a_cell_that_is_always_lost_has_failed(study: Command, tmp_path: Path) -> None:
    result = study(
        ('name = "paper"', 'name = "paper", loses = 3'),
        ("seeds = [0]", "seeds = [0]\nrestarts = 2"),
    )
    assert result.exit_code == 1
    assert content(tmp_path)["cells"][0]["status"] == "failed"
    assert content(tmp_path)["cells"][0]["reason"] == "its machine failed"


def test_without_its_baseline_delta_m_ends_the_search(study: Command, tmp_path: Path) -> None:
    result = study(
        ('["depth.abs_error"]', '["delta_m"]'),
        ('name = "paper"', 'name = "paper", fails = "equal"'),
    )
    assert result.exit_code == 1
    assert "delta_m compares with equal, and equal, seed 0 has no result: no" in result.output
    assert not rates(tmp_path)


def test_a_failed_trial_does_not_end_it_and_is_tried_again(study: Command, tmp_path: Path) -> None:
    result = study(('name = "paper"', 'name = "paper", fails = "trial-0001"'))
    assert result.exit_code == 1 and len(rates(tmp_path)) == 4
    assert "best: trial-0002" in result.output
    assert study().exit_code == 0


def test_a_searcher_that_leaves_the_ranges_is_told(study: Command) -> None:
    result = study(('name = "counting"', 'name = "counting", wrong = true'))
    assert result.exit_code == 1
    assert (
        "counting chose {'optimizer.lr': 7.0" in result.output and "search.ranges" in result.output
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("trials = 4", "trials = 0", "search.trials: expected int >= 1"),
        ("trials = 4", "", "search.trials"),
        ('"counting"', '"countin"', "did you mean 'counting'"),
        ('name = "counting"', 'name = "counting", stric = true', "search.searcher.stric: unknown"),
        ("low = 0.125, high = 1.0", "low = 1, high = 1", "optimizer.lr: expected low < high"),
        ("high = 1.0}", "high = 1.0, log = 3}", "search.ranges.optimizer.lr: log is true or false"),
        ("low = 0.125, high = 1.0", "low = 0.0, high = 1.0, log = true", "log needs low > 0"),
        ("low = 0.125, high = 1.0", "low = -1.0, high = 1.0", "optimizer.lr: expected float >= 0"),
        ("optimizer.lr =", "optimizer.rate =", "optimizer.rate: unknown setting"),
        ("high = 1.0}", "high = 1.0, step = 0.1}", "step is for whole numbers"),
        ("{low = 0.125, high = 1.0}", "{choices = [1]}", "at least two"),
        ("{low = 0.125, high = 1.0}", "0.1", "search.ranges.optimizer.lr: expected {low"),
        ('["depth.abs_error"]', '["depth"]', "neither"),
        ('["depth.abs_error"]', '["normals.angle"]', "the tasks are segmentation, depth"),
        ('["depth.abs_error"]', "[]", "search.objectives: expected different ones"),
        ('["depth.abs_error"]', '["depth.abs_eror"]', "did you mean 'depth.abs_error'"),
        ("[search]", '[search]\nvariant = "equl"', "did you mean 'equal'"),
        ("[variants.equal]", "[variants.trial-0001]", "trials have such names"),
        (
            "[variants.equal]",
            "[tune]\nseed = 9\n[tune.candidates.a]\n[tune.candidates.b]\n[variants.equal]",
            "a study that tunes its variants has no trials",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_told(study: Command, old: str, new: str, message: str) -> None:
    result = study((old, new))
    assert result.exit_code == 2, result.output
    assert message in result.output


def test_without_variants_metrics_alone_can_be_searched(study: Command, tmp_path: Path) -> None:
    result = study(("[variants.equal]", ""))
    assert result.exit_code == 0, result.output
    assert "trial-0000 (baseline)" in result.output
    with pytest.raises(ConfigError, match=r'"delta_m" compares with a variant'):
        text = (tmp_path / "study.toml").read_text().replace("depth.abs_error", "delta_m")
        (tmp_path / "study.toml").write_text(text)
        read_study(str(tmp_path / "study.toml"))


def test_trials_are_laid_over_a_variant(study: Command, tmp_path: Path) -> None:
    variant = ("[variants.equal]", '[variants.equal]\n[variants.dwa]\nbalancer.name = "dwa"')
    assert study(variant, ("[search]", '[search]\nvariant = "dwa"')).exit_code == 0
    config = tmp_path / "out" / "cells" / "trial-0000" / "seed-0" / "config.toml"
    assert tomllib.loads(config.read_text())["balancer"]["name"] == "dwa"


def test_ranges_hold_their_ends_and_nothing_else() -> None:
    logarithmic = FloatRange(low=1e-4, high=1.0, log=True)
    assert logarithmic.at(0.5) == pytest.approx(1e-2) and 1.0 in logarithmic
    assert (logarithmic.at(0.0), logarithmic.at(1.0)) == (1e-4, 1.0)
    assert 0.0 not in logarithmic and "a" not in logarithmic
    whole = IntRange(low=2, high=9, step=3)
    assert {whole.at(share / 100) for share in range(100)} == {2, 5, 8} and 3 not in whole
    doubled = IntRange(low=1, high=64, log=True)
    drawn = [doubled.at(share / 1000) for share in range(1000)]
    assert min(drawn) == 1 and max(drawn) == 64
    assert sum(value <= 8 for value in drawn) == pytest.approx(500, abs=120), "not by factors"
    several = Choices(values=(True, 1, {"name": "a"}))
    assert True in several and 1 in several and {"name": "a"} in several and 1.0 not in several
