"""Studies: their files, their cells, and what becomes of them when things go wrong.

One file: all of it runs the same tiny study.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import Result

import mtlcore
from mtlcore.display import StudyDisplay
from mtlcore.engine.step_times import StepTimes
from mtlcore.errors import ConfigError, UsageError
from mtlcore.plugins import Plugins
from mtlcore.results import compare
from mtlcore.storage import load_checkpoint
from mtlcore.studies import cells_of, read_study, run_study
from mtlcore.studies.tuning import tuning_study

fcntl = pytest.importorskip("fcntl", reason="studies need file locks")

Command = Callable[..., Result]

TINY = """
name = "Tiny"
seeds = [3]
targets = ["depth.abs_error=100"]

[base]
tasks = ["segmentation", "depth"]
data = {train = 4, val = 2, size = [32, 32], workers = 0}
training = {epochs = 2, batch_size = 2, max_skipped = 1}
model.backbone = {name = "segnet", width = 0.03125}
"""
VARIANTS = """
[variants.single-task]
[variants.diverges]
optimizer.lr = 1e30
"""
LAST = "checkpoints/last.safetensors"
STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return Plugins.from_environment()


def study_file(folder: Path, text: str) -> str:
    file = folder / "study.toml"
    file.write_text(text)
    return str(file)


# The file


def test_base_then_variant_over_the_presets(tmp_path: Path, plugins: Plugins) -> None:
    text = TINY.replace("[3]", "[3, 0]") + (
        '[variants.weighted]\nbalancer = {name = "fixed", weights = {depth = 2.0}}\n'
        "[variants.short]\ntraining.steps = 1\n"
    )
    cells = cells_of(read_study(study_file(tmp_path, text)), tmp_path, plugins, threads=2)
    assert [(cell.variant, cell.seed) for cell in cells] == [
        ("weighted", 3), ("short", 3), ("weighted", 0), ("short", 0),
    ]  # fmt: skip
    first, second = cells[0].config, cells[1].config
    assert (first.seed, first.training.epochs, first.training.threads) == (3, 2, 2)
    assert first.tree["balancer"]["name"] == "fixed"
    assert (second.training.epochs, second.training.steps) == (None, 1)
    assert second.tree["balancer"]["name"] == "equal"
    assert cells[2].location == "cells/weighted/seed-0"


def test_a_variant_may_have_fewer_seeds(tmp_path: Path, plugins: Plugins) -> None:
    text = TINY.replace("[3]", "[3, 0]") + ("[variants.some]\nseeds = [0]\n[variants.all]\n")
    cells = cells_of(read_study(study_file(tmp_path, text)), tmp_path, plugins, threads=2)
    assert [(cell.variant, cell.seed) for cell in cells] == [("all", 3), ("some", 0), ("all", 0)]
    late = '[variants.late]\nstarts_from = "some"\n'
    with pytest.raises(ConfigError, match=r"late\.seeds: it starts from some, which has"):
        read_study(study_file(tmp_path, text + late))


def test_threads_that_the_file_names_are_kept(tmp_path: Path, plugins: Plugins) -> None:
    text = TINY.replace("max_skipped", "threads = 3, max_skipped") + VARIANTS
    cells = cells_of(read_study(study_file(tmp_path, text)), tmp_path, plugins, threads=8)
    assert {cell.config.training.threads for cell in cells} == {3}


def test_a_single_task_variant_is_a_run_per_task(tmp_path: Path, plugins: Plugins) -> None:
    text = TINY + (
        'losses.depth = {name = "huber"}\n'
        "[variants.alone]\nsingle_task = true\n[variants.single-task]\n"
        "[variants.together]\nsingle_task = false\n"
    )
    study = read_study(study_file(tmp_path, text))
    assert study.baseline == "alone"
    cells = cells_of(study, tmp_path, plugins, threads=1)
    assert [cell.location for cell in cells] == [
        "cells/alone/seed-3/segmentation", "cells/alone/seed-3/depth",
        "cells/single-task/seed-3/segmentation", "cells/single-task/seed-3/depth",
        "cells/together/seed-3",
    ]  # fmt: skip
    for cell in cells[:2]:
        tree = cell.config.tree
        assert (
            tree["tasks"]
            == list(cell.group)
            == list(tree["losses"])
            == list(tree["model"]["heads"])
        )
    assert cells[1].config.tree["losses"]["depth"]["name"] == "huber"
    together = dict(cells[4].config.tree)
    assert cells[1].config.tree["optimizer"] == together["optimizer"]


def test_a_variant_may_have_a_run_per_group_of_tasks(tmp_path: Path, plugins: Plugins) -> None:
    text = TINY.replace('"depth"]\n', '"depth", "normals"]\n') + (
        'losses.depth = {name = "huber"}\n'
        '[variants.pair]\ngroups = [["normals", "segmentation"], ["depth"]]\n'
        '[variants.one]\ngroups = [["segmentation", "depth", "normals"]]\n'
        "[variants.alone]\nsingle_task = true\n"
        '[variants.as-alone]\ngroups = [["segmentation"], ["depth"], ["normals"]]\n'
    )
    study = read_study(study_file(tmp_path, text))
    assert study.baseline == "alone"
    pair, depth, one, *alone = cells_of(study, tmp_path, plugins, threads=1)
    assert [pair.location, depth.location, one.location] == [
        "cells/pair/seed-3/normals+segmentation", "cells/pair/seed-3/depth",
        "cells/one/seed-3/segmentation+depth+normals",
    ]  # fmt: skip
    tree = pair.config.tree
    assert tree["tasks"] == ["normals", "segmentation"]
    assert {*tree["losses"]} == {*tree["model"]["heads"]} == {*tree["metrics"]} == {*pair.group}
    assert depth.config.tree["losses"] == {"depth": one.config.tree["losses"]["depth"]}
    for cell, same in zip(alone[:3], alone[3:], strict=True):
        assert cell.group == same.group
        assert cell.config.tree == same.config.tree


@pytest.mark.parametrize(
    ("groups", "problem"),
    [
        ("3", "variants.a.groups: expected, in a variant, lists of tasks"),
        ('["depth"]', "variants.a.groups: expected, in a variant, lists of tasks"),
        ('[["depth"], []]', "variants.a.groups: expected, in a variant, lists of tasks"),
        ('[["depth"], ["depth"]]', "variants.a.groups: expected the names of tasks, each once"),
        ('[["depth"]]\nsingle_task = true', "variants.a.single_task: groups say already"),
        ('[["segmentation"]]', "variants.a: groups: depth is in none"),
        ('[["segmentation", "depht"]]', "groups: the variant learns no 'depht'; did you mean"),
    ],
)
def test_groups_that_are_none_are_refused(
    tmp_path: Path, plugins: Plugins, groups: str, problem: str
) -> None:
    text = f"{TINY}[variants.a]\ngroups = {groups}\n"
    with pytest.raises(ConfigError) as caught:
        cells_of(read_study(study_file(tmp_path, text)), tmp_path, plugins, threads=1)
    assert problem in str(caught.value)
    with pytest.raises(ConfigError, match=r"base\.groups: expected, in a variant"):
        read_study(study_file(tmp_path, f'{TINY}groups = [["depth"]]\n[variants.a]\n'))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seed = 1", r"seed: a setting of the runs; write it into \[base\]"),
        ("baselin = 'a'", r"baselin: unknown setting; did you mean 'baseline'"),
        ("baseline = 'b'", r"baseline: 'b' is no variant \(there are: single-task, diverges\)"),
        ("delta_m = 'mtam'", r"did you mean 'mtan'"),
        ("targets = ['depth']", r"task\.metric=value"),
        ("epoch = 'first'", r"epoch: .*'first'"),
    ],
)
def test_a_file_with_mistakes(tmp_path: Path, change: str, message: str) -> None:
    text = "\n".join(line for line in TINY.splitlines() if not line.startswith(change[:7]))
    with pytest.raises(ConfigError, match=message):
        read_study(study_file(tmp_path, f"{change}\n{text}{VARIANTS}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TINY, r"variants: name at least one"),
        (TINY.replace("[3]", "[3, 3]") + VARIANTS, r"seeds: expected different numbers"),
        (TINY.replace("[3]", "[]") + VARIANTS, r"seeds: expected different numbers"),
        (TINY + "[variants.'a/b']", r"variants\.a/b: a variant's name is"),
        (TINY + "[variants]\na = 1", r"variants\.a: expected a table"),
        (TINY + "[variants.a]\nplugins = 'pcgrad'", r"variants\.a\.plugins: expected a list"),
        (TINY + "[variants.a]\nsingle_task = 1", r"single_task: expected true or false"),
        (TINY + "[variants.a]\nseed = 1", r"variants\.a\.seed: the study's seeds are a list"),
    ],
)
def test_variants_with_mistakes(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_study(study_file(tmp_path, text))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the study"):
        read_study(str(tmp_path / "nothing.toml"))
    with pytest.raises(UsageError, match="not TOML"):
        read_study(study_file(tmp_path, "name ="))


def test_every_variant_is_checked_before_the_first_cell(mtl: Command, tmp_path: Path) -> None:
    text = TINY + "[variants.a]\noptimizer.rate = 1\n[variants.b]\nplugins = ['nothing']\n"
    result = mtl("study", study_file(tmp_path, text), "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "variants.a: optimizer.rate: unknown" in result.output
    assert result.output.count("optimizer.rate") == 1
    assert "variants.b: " in result.output
    assert not (tmp_path / "out" / "cells").exists()
    again = mtl("study", study_file(tmp_path, text), "--out", str(tmp_path / "out"))
    assert again.output == result.output  # not that the place is taken


def test_what_is_wrong_for_all_variants_is_told_once(mtl: Command, tmp_path: Path) -> None:
    text = TINY.replace("max_skipped", "max_skiped") + "[variants.a]\n[variants.b]\n[variants.c]\n"
    result = mtl("study", study_file(tmp_path, text), "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert result.output.count("max_skiped") == 1
    assert "every variant: training.max_skiped: unknown" in result.output


@pytest.mark.parametrize("out", ["memory://study", "taken"])
def test_a_place_that_is_no_study_is_refused(tmp_path: Path, out: str, plugins: Plugins) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    place = out if "://" in out else str(tmp_path / out)
    with pytest.raises(UsageError, match=r"local directory|holds no study"):
        run_study(plugins, study_file(tmp_path, TINY + VARIANTS), place, 1, StudyDisplay())


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(
            file,
            id=file.relative_to(STUDIES).as_posix(),
            # One of those of all balancers tells as much as four.
            marks=[pytest.mark.slow] * (file.parent.name == "balancers-all" and file.stem != "ten"),
        )
        for file in sorted([*STUDIES.glob("*.toml"), *STUDIES.glob("*/*.toml")])
    ],
)
def test_studies_that_are_here_can_start(file: Path, tmp_path: Path, plugins: Plugins) -> None:
    study = read_study(str(file))
    # Seeds differ in nothing else.
    settings = attrs.evolve(study.settings, seeds=study.settings.seeds[:1])
    study = attrs.evolve(study, settings=settings)
    if study.tuning is not None:
        study = tuning_study(study, study.tuning)
    cells = cells_of(study, tmp_path, plugins, threads=1)
    assert len({cell.location for cell in cells}) == len(cells) > 1
    assert {cell.config.training.threads for cell in cells} == {1}


STARTS = """
[variants.one]
tasks = ["segmentation"]
[variants.two]
starts_from = "one"
initial.new = ["depth"]
[variants.diverges]
optimizer.lr = 1e30
[variants.after]
starts_from = "diverges"
"""


@pytest.mark.slow
def test_a_variant_starts_from_another_ones_weights(mtl: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = study_file(tmp_path, TINY.replace("epochs = 2", "epochs = 1") + STARTS)
    result = mtl("study", file, "--out", str(out), "--jobs", "2")
    assert result.exit_code == 1, result.output
    source = out / "cells" / "one" / "seed-3"
    two = tomllib.loads((out / "cells" / "two" / "seed-3" / "config.toml").read_text())
    assert two["initial"] == {"run": str(source), "checkpoint": "best", "new": ["depth"],
                              "train": "all"}  # fmt: skip
    states = {c["variant"]: c for c in json.loads((out / "study.json").read_text())["cells"]}
    assert [state["status"] for state in states.values()] == ["finished"] * 2 + ["failed"] * 2
    assert "starts from diverges, seed 3" in states["after"]["reason"]
    assert f"after, seed 3: failed: {states['after']['reason']}" in result.output


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ('starts_from = "two"', "variants.two.starts_from: 'two' is no variant before this one"),
        ('starts_from = "alone"', "with one run per seed (there are: one)"),
        ("starts_from = 3", "variants.two.starts_from: expected, in a variant, the name of"),
        ('starts_from = "one"\nsingle_task = true', "with several runs per seed starts from none"),
        ("seeds = [3, 4]", "variants.two.seeds: [3, 4] are not some of the study's seeds [3]"),
        ("seeds = 3", "variants.two.seeds: expected, in a variant, a list"),
        ('starts_from = "one"\ninitial.run = "x"', "variants.two.initial.run: starts_from says"),
    ],
)
def test_a_variant_or_its_start_that_cannot_be_is_refused(
    tmp_path: Path, lines: str, problem: str
) -> None:
    text = f"{TINY}[variants.one]\n[variants.alone]\nsingle_task = true\n[variants.two]\n{lines}"
    with pytest.raises(ConfigError) as caught:
        read_study(study_file(tmp_path, text))
    assert problem in str(caught.value)


# Prepared, and run by somebody else; asked to stop

ASKS = """
from mtlcore import BalancerSpec, hookimpl

@hookimpl
def mtl_balancers():
    from mtlcore.balancing import LossBalancer
    from mtlcore.storage import request_stop

    class Asks(LossBalancer):
        def __init__(self, *, location: str):
            super().__init__()
            self.location = location

        def prepare(self, tasks, data=None): ...

        def transform(self, losses, context):
            return losses

        def after_step(self, context):
            request_stop(self.location, "it is no better")

    yield BalancerSpec(name="asks", target=Asks)
"""


def states(out: Path) -> dict[str, dict[str, Any]]:
    cells = json.loads((out / "study.json").read_text())["cells"]
    return {cell["variant"]: cell for cell in cells}


@pytest.mark.slow
def test_cells_are_prepared_and_asked_to_stop(mtl: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    one, two, asks = (out / "cells" / name / "seed-3" for name in ("one", "two", "asks"))
    (tmp_path / "asks.py").write_text(ASKS)
    text = TINY + (
        '[variants.one]\n[variants.two]\nstarts_from = "one"\n'
        f'[variants.asks]\nplugins = ["{tmp_path}/asks.py"]\nbalancer.location = "{asks}"\n'
    )
    arguments = ["study", study_file(tmp_path, text), "--out", str(out)]
    prepared = mtl(*arguments, "--prepare")
    assert prepared.exit_code == 0, prepared.output
    assert prepared.stdout.splitlines() == [str(one), str(two), str(asks)]
    for cell in (one, two, asks):
        assert [file.name for file in cell.iterdir()] == ["config.toml"]
    assert {cell["status"] for cell in states(out).values()} == {"waiting"}
    # A cell is a run like any other, and the study finds what became of it.
    mtlcore.run(out=str(one), resume=True)
    assert mtl(*arguments, "--prepare").stdout.splitlines() == [str(two), str(asks)]
    result = mtl(*arguments)
    assert result.exit_code == 1, "a cell has no result"
    assert "Tiny: 3 cells, 1 of them done before" in result.stdout
    assert {name: cell["status"] for name, cell in states(out).items()} == {
        "one": "finished", "two": "finished", "asks": "pruned",
    }  # fmt: skip
    assert "(it is no better)" in states(out)["asks"]["reason"]
    assert "* asks, seed 3: asked to stop after epoch 1 of 2" in (out / "table.md").read_text()
    # A cell that was asked to stop is left alone, unless somebody goes on with it.
    before = (asks / LAST).stat().st_mtime_ns
    assert mtl(*arguments).exit_code == 1
    assert (asks / LAST).stat().st_mtime_ns == before
    mtlcore.run(out=str(asks), resume=True, trust=True)
    assert mtl(*arguments).exit_code == 0
    assert states(out)["asks"] | {"location": None} == {
        "variant": "asks", "seed": 3, "group": None, "location": None, "status": "finished",
        "reason": None,
    }  # fmt: skip


# A whole study


@pytest.fixture(scope="module")
def finished(mtl: Command, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """One with a model per task, and a variant that fails."""
    folder = tmp_path_factory.mktemp("study")
    arguments = [study_file(folder, TINY + VARIANTS), "--out", str(folder / "out"), "--jobs", "2"]
    return folder, mtl("study", *arguments)


def test_one_line_per_cell_and_the_tables(finished: tuple[Path, Result]) -> None:
    folder, result = finished
    assert result.exit_code == 1, "a cell failed"
    lines = result.stdout.splitlines()
    assert lines[1] == "Tiny: 3 cells"
    assert {line.partition("  ")[0] for line in lines[2:5]} == {"1/3", "2/3", "3/3"}
    assert sum("single-task depth, seed 3: finished in 0:" in line for line in lines) == 1
    assert sum("diverges, seed 3: failed: stopped at step" in line for line in lines) == 1
    assert (folder / "out" / "table.md").read_text() in result.stdout
    assert not any("\x1b" in line or "Traceback" in line for line in lines)


def test_cells_are_ordinary_runs(mtl: Command, finished: tuple[Path, Result]) -> None:
    place = finished[0] / "out" / "cells" / "single-task" / "seed-3" / "depth"
    for name in ("config.toml", "run.json", "metrics.jsonl", "summary.json", "log.txt", LAST):
        assert (place / name).is_file(), name
    summary = json.loads((place / "summary.json").read_text())
    # Two epochs of two steps, the first of which is not timed.
    timed = 3 * summary["seconds_per_step"]
    assert 0 < timed < summary["seconds"]
    assert 1e7 < summary["peak_memory"] < 1e11
    assert "epoch 2/2" in (place / "log.txt").read_text()
    result = mtl("run", "--resume", "--out", str(place))
    assert "this run is finished" in result.output


def test_the_failed_one_is_told_of(finished: tuple[Path, Result]) -> None:
    out = finished[0] / "out"
    table = (out / "table.md").read_text()
    assert "* diverges, seed 3: stopped at step" in table
    assert "| diverges               |" in table
    assert "0 of 1" in table
    results = json.loads((out / "results.json").read_text())
    alone, diverges = results["variants"]
    assert diverges["failed"][0]["reason"].startswith("stopped at step")
    assert "diverges" not in str(diverges["metrics"])
    assert (alone["name"], alone["single_task"], results["baseline"]) == (
        "single-task", True, "single-task",
    )  # fmt: skip
    assert set(alone["metrics"]) == {"segmentation", "depth"}
    assert alone["targets"]["depth.abs_error=100"]["3"]["epoch"] == 1
    assert (out / "table.csv").is_file()
    assert (out / "table.tex").is_file()


def test_compare_shows_a_study_again(mtl: Command, finished: tuple[Path, Result]) -> None:
    out = str(finished[0] / "out")
    assert mtl("compare", out).stdout == (finished[0] / "out" / "table.md").read_text()
    comparison = compare([out], baseline="diverges", epoch="best")
    assert (comparison.baseline, comparison.epoch) == ("diverges", "best")
    assert comparison.delta_m(comparison.variants[0]) is None
    with pytest.raises(UsageError, match="is a study, which is compared alone"):
        compare([out, out])


def test_only_what_failed_is_tried_again(mtl: Command, finished: tuple[Path, Result]) -> None:
    """Also with another number of jobs, which leaves the threads of cells as they are."""
    folder, _ = finished
    cells, state = folder / "out" / "cells", folder / "out" / "study.json"
    before = [(file, file.stat().st_mtime_ns) for file in sorted(cells.rglob("single-task/**/*"))]
    threads = json.loads(state.read_text())["threads"]
    log = (cells / "diverges" / "seed-3" / "log.txt").stat().st_size
    result = mtl("study", str(folder / "study.toml"), "--out", str(folder / "out"))
    assert result.exit_code == 1, result.output
    assert "Tiny: 3 cells, 2 of them done before" in result.stdout
    assert before == [(f, f.stat().st_mtime_ns) for f in sorted(cells.rglob("single-task/**/*"))]
    assert (cells / "diverges" / "seed-3" / "log.txt").stat().st_size > log
    assert json.loads(state.read_text())["threads"] == threads


def test_a_changed_cell_is_refused(
    mtl: Command, finished: tuple[Path, Result], tmp_path: Path
) -> None:
    folder, _ = finished
    text = (TINY + VARIANTS).replace("max_skipped = 1", "max_skipped = 2")
    result = mtl("study", study_file(tmp_path, text), "--out", str(folder / "out"))
    assert result.exit_code == 2
    cell = folder / "out" / "cells" / "single-task" / "seed-3" / "depth"
    assert f"{cell}: was begun with other settings" in result.output
    assert "(training.max_skipped)" in result.output


# Killed


def steps_saved(cell: Path) -> int:
    file = cell / LAST
    step: int = load_checkpoint(file)["progress"]["step"] if file.exists() else 0
    return step


def wait_for_step(process: subprocess.Popen[str], cell: Path, step: int) -> None:
    while steps_saved(cell) < step:
        assert process.poll() is None, (cell / "log.txt").read_text()
        time.sleep(0.05)


def wait_for_cells(out: Path) -> None:
    """They hold the study's lock as long as they live."""
    with (out / "study.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)


@pytest.mark.parametrize(
    "signals",
    [
        (signal.SIGKILL,),
        pytest.param((signal.SIGKILL, signal.SIGTERM), marks=pytest.mark.slow),
        pytest.param((signal.SIGINT, signal.SIGKILL), marks=pytest.mark.slow),
    ],
)
def test_killed_studies_leave_nothing_running_and_go_on(
    tmp_path: Path,
    signals: tuple[signal.Signals, ...],
    study_process: Callable[..., subprocess.Popen[str]],
) -> None:
    text = TINY.replace("epochs = 2", "epochs = 100000, evaluate_every = 100000")
    file, out = study_file(tmp_path, text + "[variants.equal]"), tmp_path / "out"
    cell = out / "cells" / "equal" / "seed-3"
    saved = 0
    for number, how in enumerate(signals, start=1):
        process = study_process(file, out)
        wait_for_step(process, cell, saved + 3)
        process.send_signal(how)
        assert process.wait() == (-how if how == signal.SIGKILL else 130)
        wait_for_cells(out)
        about = json.loads((cell / "run.json").read_text())
        assert about["status"] == "interrupted", how
        assert steps_saved(cell) > saved
        saved = steps_saved(cell)
        progress = load_checkpoint(cell / LAST)["progress"]
        timed = StepTimes.from_state(progress["step_times"]).steps
        assert timed == progress["step"] - number, "the first of each process"
        status = json.loads((out / "study.json").read_text())["cells"][0]["status"]
        assert status == ("running" if how == signal.SIGKILL else "interrupted")
