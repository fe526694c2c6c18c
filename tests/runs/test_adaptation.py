"""New tasks join trained runs: what is taken over, what learns, what is told.

One file: all of it adapts the same trained run.
"""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image

import mtlcore
from mtlcore.config import Layer, RunConfig, resolve, set_layer
from mtlcore.display import Display
from mtlcore.engine import build_learner
from mtlcore.engine.building import open_splits
from mtlcore.errors import MtlError
from mtlcore.models import made_for
from mtlcore.plugins import Plugins
from mtlcore.runs import adapted_config
from mtlcore.runs.adaptation import scratch_config
from mtlcore.runs.initial import load_initial
from mtlcore.storage import flatten, load_checkpoint

Command = Callable[..., Result]
Files = Callable[[Path], dict[Path, tuple[bytes, int]]]
pytestmark = pytest.mark.usefixtures("without_pictures")

NEW = {"task_edges"}


@pytest.fixture(scope="module")
def adapted(mtl: Command, folder: Path, run: Path) -> Path:
    result = mtl("adapt", str(run), "--tasks", "edges", "--out", str(folder / "adapted"))
    assert result.exit_code == 0, result.output
    return folder / "adapted"


def weights(run: Path, which: str = "last") -> dict[str, Any]:
    return load_checkpoint(run / "checkpoints" / f"{which}.safetensors")["learner"]


def tensors(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def figures(run: Path) -> list[dict[str, Any]]:
    """What a run recorded, but for the time."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key != "seconds"} for row in rows]


# What is taken over

BACKBONES: dict[str, dict[str, Any]] = {
    "segnet": {"name": "segnet", "width": 0.03125},
    "resnet": {"name": "resnet", "depth": 18, "width": 0.0625},
    "unet": {"name": "unet", "width": 0.03125},
    "mtan": {"name": "mtan", "width": 0.03125},
    "atinet": {"name": "atinet", "width": 0.03125, "distil_from": 0.4, "reset": "released"},
    "padnet": {"name": "padnet", "width": 0.03125},
    "segnet-per-task": {"name": "segnet-per-task", "width": 0.03125},
}


def plugin_of(backbone: str) -> str:
    if backbone not in ("mtan", "atinet", "padnet", "segnet-per-task"):
        return ""
    pytest.importorskip("mtlcore_atinet", reason="mtlcore-plugin-atinet is not installed")
    return "atinet"


def started(config: RunConfig) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The learner's state as it is drawn, and with the run's weights."""
    torch.manual_seed(5)
    learner = build_learner(config)
    learner.balancing.prepare(config.tasks, None)
    before = {name: _copy(value) for name, value in learner.state_dict().items()}
    notes = load_initial(learner, config)
    return before, dict(learner.state_dict()), notes


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("which", ["best", "last"])
def test_everything_but_the_new_task_is_the_runs(
    folder: Path, backbone: str, which: str, monkeypatch: pytest.MonkeyPatch, small: dict[str, Any]
) -> None:
    monkeypatch.setenv("MTL_PLUGINS", plugin_of(backbone))
    source = folder / f"source {backbone}"
    if not source.exists():
        mtlcore.run({**small, "model": {"backbone": BACKBONES[backbone]}}, out=str(source))
    config = adapted_config(Plugins.from_environment(), str(source), ["edges"], checkpoint=which)
    drawn, begun, notes = started(config)
    assert notes == []
    trained = weights(source, which)
    assert set(trained) < set(begun)
    for name, value in tensors(begun).items():
        expected = drawn[name] if made_for(name, NEW) else trained[name]
        assert torch.equal(value, expected), name
    assert any(made_for(name, NEW) for name in begun if name.startswith("model.heads."))
    for name in set(begun) - set(tensors(begun)):
        if name in trained and name.startswith("model."):
            assert begun[name] == trained[name]  # whether a backbone has entered its phase


@pytest.mark.parametrize("train", ["all", "new", "heads"])
@pytest.mark.parametrize("backbone", ["segnet", "resnet", "atinet", "segnet-per-task"])
def test_every_backbone_goes_on_learning(
    adapt: Command,
    folder: Path,
    tmp_path: Path,
    backbone: str,
    train: str,
    monkeypatch: pytest.MonkeyPatch,
    small: dict[str, Any],
) -> None:
    monkeypatch.setenv("MTL_PLUGINS", plugin_of(backbone))
    source = folder / f"source {backbone}"
    if not source.exists():
        mtlcore.run({**small, "model": {"backbone": BACKBONES[backbone]}}, out=str(source))
    # The last weights: by then ATI-Net distils, which reaches the modules that it has for that.
    adapt(source, tmp_path / "out", "--train", train, "--checkpoint=last")
    before, after = weights(source), weights(tmp_path / "out")
    learnt = [n for n in tensors(before) if not torch.equal(before[n], after[n])]
    old = [n for n in tensors(before) if made_for(n, {"task_segmentation", "task_depth"})]
    if train == "heads":
        # Weights, running statistics and the balancer's own: all is as it was.
        assert learnt == []
    elif backbone == "segnet-per-task":
        assert bool(set(learnt) & set(old)) == (train == "all")  # nothing is shared here
    else:
        assert [name for name in learnt if name.startswith("model.backbone.")]
        heads = {name for name in old if name.startswith("model.heads.")}
        assert heads <= set(learnt) if train == "all" else not heads & set(learnt)
    config = resolve(Plugins.from_environment(), (), [set_layer(()), _stored(tmp_path / "out")])
    torch.manual_seed(config.seed)
    drawn = tensors(build_learner(config).state_dict())
    own = [name for name in drawn if name.startswith("model.") and made_for(name, NEW)]
    still = [
        name for name in own if name.endswith("weight") and torch.equal(drawn[name], after[name])
    ]
    assert own
    assert still == []


def _stored(run: Path) -> Layer:
    return Layer(str(run), tomllib.loads((run / "config.toml").read_text()))


def test_frozen_tasks_keep_their_figures(adapt: Command, run: Path, tmp_path: Path) -> None:
    adapt(run, tmp_path / "out", "--train", "heads")
    best = json.loads((run / "summary.json").read_text())["best"]["val"]
    evaluated = [x for x in figures(tmp_path / "out") if x["split"] == "val"]
    for task, values in best.items():
        for metric, value in values.items():
            found = {x["value"] for x in evaluated if (x["task"], x["metric"]) == (task, metric)}
            assert [*found] == pytest.approx([value] * len(found), rel=1e-6)
    losses = [x["value"] for x in evaluated if (x["task"], x["metric"]) == ("edges", "loss")]
    assert len(set(losses)) == len(losses) == 2
    steps = [x for x in figures(tmp_path / "out") if (x["split"], x["metric"]) == ("train", "loss")]
    assert {x["task"] for x in steps} == {"edges"}


def test_the_best_epoch_is_that_of_the_tasks_that_learn(
    adapt: Command, run: Path, tmp_path: Path
) -> None:
    adapt(run, tmp_path / "out", "--train", "new", "--set=training.epochs=4")
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    first = next(iter(summary["higher_is_better"]["edges"]))
    values = {
        x["epoch"]: x["value"]
        for x in figures(tmp_path / "out")
        if (x["split"], x["task"], x["metric"]) == ("val", "edges", first)
    }
    assert summary["best"]["epoch"] == max(values, key=lambda epoch: values[epoch])
    assert summary["best"]["chosen_by"] == [f"edges.{first}"]


def test_the_balancer_keeps_what_it_knows(run: Path, small: dict[str, Any]) -> None:
    plugins = Plugins(allow=())
    drawn, begun, _ = started(adapted_config(plugins, str(run), ["edges"]))
    trained = weights(run, "best")
    name = "balancing.balancers.0.log_variance.task_{}"
    for task in small["tasks"]:
        assert float(begun[name.format(task)]) == float(trained[name.format(task)]) != 0
    assert float(begun[name.format("edges")]) == float(drawn[name.format("edges")]) == 0
    # Another balancer, or the same with other settings, starts anew and says so.
    for change in ("balancer.name=equal", "balancer.initial=0.5"):
        config = adapted_config(plugins, str(run), ["edges"], changes=set_layer([change]))
        drawn, begun, notes = started(config)
        (note,) = notes
        assert note.startswith("initial.run: balancing starts anew") and str(run) in note
        same = [drawn[n] == begun[n] for n in begun if n.startswith("balancing.")]
        assert all(map(bool, same))


def test_histories_of_a_balancer_are_kept(folder: Path, small: dict[str, Any]) -> None:
    source = folder / "dwa"
    training = {**small["training"], "epochs": 3}
    mtlcore.run({**small, "balancer": {"name": "dwa"}, "training": training}, out=str(source))
    config = adapted_config(Plugins(allow=()), str(source), ["edges"], checkpoint="last")
    _, begun, notes = started(config)
    assert notes == []
    name = "balancing.balancers.0._extra_state"
    assert begun[name]["means"].keys() == set(small["tasks"])
    assert begun[name] == weights(source)[name]


@pytest.mark.parametrize("balancer", ["pcgrad", "nash-mtl"])
@pytest.mark.parametrize("train", ["new", "heads"])
def test_balancers_of_gradients_meet_a_frozen_trunk(
    mtl: Command,
    adapt: Command,
    folder: Path,
    tmp_path: Path,
    balancer: str,
    train: str,
    monkeypatch: pytest.MonkeyPatch,
    small: dict[str, Any],
) -> None:
    plugin = balancer.replace("-", "")
    pytest.importorskip(f"mtlcore_{plugin}", reason=f"mtlcore-plugin-{plugin} is not installed")
    monkeypatch.setenv("MTL_PLUGINS", plugin)
    source = folder / balancer
    if not source.exists():
        config = {**small, "balancer": {"name": balancer}}
        (folder / "config.json").write_text(json.dumps(config))
        sets = [f"--set={key}={json.dumps(value)}" for key, value in flatten(config).items()]
        result = mtl("run", *sets, "--out", str(source))
        assert result.exit_code == 0, result.output
    adapt(source, tmp_path / "out", "--train", train, tasks="edges,normals")
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["skipped_steps"] == 0
    before, after = weights(source, "best"), weights(tmp_path / "out")
    trunk = [name for name in tensors(before) if name.startswith("model.backbone.")]
    assert all(torch.equal(before[n], after[n]) for n in trunk) == (train == "heads")


OWN_PLANS = """
from mtlcore import EpisodeSamplerSpec, OptimizerSpec, hookimpl

@hookimpl
def mtl_episode_samplers():
    from mtlcore.standard.samplers import Joint

    class Pairs(Joint):
        def __init__(self, tasks, splits):
            assert len(tasks) == 2, "made for two tasks"
            super().__init__(tasks, splits)

    yield EpisodeSamplerSpec(name="pairs", target=Pairs)

@hookimpl
def mtl_optimizers():
    from mtlcore.standard.optimizers import adam

    def own(learner, *, lr: float = 0.003):
        assert len(learner.tasks) == 2, "made for two tasks"
        return adam(learner, lr=lr)

    own.needs_queries = True  # which joint episodes have not
    yield OptimizerSpec(name="own", target=own)
"""


def test_a_run_with_episodes_of_its_own_is_adapted_by_joint_ones(
    adapt: Command, tmp_path: Path, small: dict[str, Any]
) -> None:
    (tmp_path / "own.py").write_text(OWN_PLANS)
    own = {"plugins": [str(tmp_path / "own.py")], "episodes": {"name": "pairs"}}
    source = tmp_path / "source"
    mtlcore.run({**small, **own, "optimizer": {"name": "own", "lr": 0.004}}, out=str(source))
    result = adapt(source, tmp_path / "out", "--trust")
    assert "optimizer adamw (adapt) replaces own" in result.stderr
    config = tomllib.loads((tmp_path / "out/config.toml").read_text())
    assert config["episodes"]["name"] == "joint"
    assert (config["optimizer"]["name"], config["optimizer"]["lr"]) == ("adamw", 0.004)


# An ordinary run


def test_the_trained_run_stays_as_it_is(
    adapt: Command, run: Path, tmp_path: Path, files: Files
) -> None:
    before = files(run)
    adapt(run, tmp_path / "out", "--from-scratch", "--train", "new")
    assert files(run) == before


def test_what_does_not_learn_is_not_compared(adapt: Command, run: Path, tmp_path: Path) -> None:
    result = adapt(run, tmp_path / "out", "--from-scratch", "--train", "heads")
    rows = json.loads((tmp_path / "out/adaptation.json").read_text())["rows"]
    assert [(row["task"], row["scratch"] is not None) for row in rows] == [
        ("segmentation", False), ("depth", False), ("edges", True),
    ]  # fmt: skip
    line = next(line for line in result.stdout.splitlines() if line.startswith("depth"))
    assert line.split()[4:] == ["-"] * 6


def test_its_configuration_repeats_it(mtl: Command, adapted: Path, tmp_path: Path) -> None:
    config = tomllib.loads((adapted / "config.toml").read_text())
    assert config["initial"] == {
        "run": str(adapted.parent / "run"), "checkpoint": "best", "train": "all", "new": ["edges"],
    }  # fmt: skip
    assert config["tasks"] == ["segmentation", "depth", "edges"]
    result = mtl("run", str(adapted / "config.toml"), "--out", str(tmp_path / "again"))
    assert result.exit_code == 0, result.output
    assert figures(tmp_path / "again") == figures(adapted)
    ours, theirs = tensors(weights(tmp_path / "again")), tensors(weights(adapted))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


class Breaks(Display):
    """Ctrl-C after the first epoch, before it is saved."""

    def note(self, message: str) -> None: ...

    def epoch(
        self, epoch: int, epochs: int, losses: Mapping[str, float], figures: Any = None
    ) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    def stop(self) -> None: ...

    def _begin(self, title: str) -> None: ...


@pytest.mark.parametrize("train", ["all", "heads"])
def test_resumed_it_is_bit_for_bit_the_same(
    mtl: Command, adapt: Command, run: Path, tmp_path: Path, train: str
) -> None:
    source = tmp_path / "source"
    shutil.copytree(run, source)
    adapt(source, tmp_path / "whole", "--train", train)
    stored = tomllib.loads((tmp_path / "whole/config.toml").read_text())
    with pytest.raises(MtlError, match="go on from the last checkpoint"):
        mtlcore.run(stored, out=str(tmp_path / "out"), display=Breaks())
    # What it began with is in its own checkpoint by now.
    shutil.rmtree(source)
    result = mtl("run", "--resume", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert figures(tmp_path / "out") == figures(tmp_path / "whole")
    ours, theirs = tensors(weights(tmp_path / "out")), tensors(weights(tmp_path / "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_adapt_goes_on_with_resume(adapt: Command, run: Path, tmp_path: Path) -> None:
    whole = adapt(run, tmp_path / "out", "--from-scratch", "--json")
    shutil.rmtree(tmp_path / "out/scratch")
    (tmp_path / "out/adaptation.json").unlink()
    again = adapt(run, tmp_path / "out", "--from-scratch", "--json", "--resume")
    first, second = (json.loads(result.stdout)["rows"] for result in (whole, again))
    assert [row["adapted"] for row in first] == [row["adapted"] for row in second]
    assert [row["scratch"]["final"] for row in first] == [row["scratch"]["final"] for row in second]


def test_eval_and_predict(mtl: Command, adapt: Command, run: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(run, source)
    adapt(source, tmp_path / "out")
    shutil.rmtree(source)
    result = mtl("eval", str(tmp_path / "out"), "--json")
    assert result.exit_code == 0, result.output
    best = json.loads((tmp_path / "out/summary.json").read_text())["best"]["val"]
    found = json.loads(result.stdout)["metrics"]
    assert found.keys() == best.keys() == {"segmentation", "depth", "edges"}
    for task, values in best.items():
        assert found[task] == pytest.approx(values, rel=1e-6)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    result = mtl("predict", str(tmp_path / "out"), str(tmp_path / "a.png"), "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert np.load(tmp_path / "a.edges.npy").shape == (1, 40, 50)


ASKS = """
from mtlcore import CrossTaskLossSpec, hookimpl


@hookimpl
def mtl_losses():
    from mtlcore.losses import CrossTaskLoss

    class Keep(CrossTaskLoss):
        needs_teachers = ("initial",)

        def __init__(self, tasks, features):
            super().__init__()

        def needs(self, batch, tasks):
            return [task for task in tasks if task in self.teachers["initial"].tasks]

        def forward(self, batch, features, predictions):
            old = list(self.needs(batch, predictions))
            taught = self.teachers["initial"].predict(batch.inputs, old)
            return {task: (predictions[task] - raw).abs().mean() for task, raw in taught.items()}

    yield CrossTaskLossSpec(name="keep", target=Keep)
"""


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_the_run_teaches_where_a_loss_asks_for_it(
    run: Path, tmp_path: Path, checkpoint: Any
) -> None:
    plugins = Plugins.from_environment()
    config = adapted_config(plugins, str(run), ["edges"], checkpoint=checkpoint)
    assert not config.teachers
    (tmp_path / "keep.py").write_text(ASKS)
    asking = Layer(
        "test", {"cross_task": [{"name": "keep"}], "plugins": [str(tmp_path / "keep.py")]}
    )
    config = adapted_config(plugins, str(run), ["edges"], checkpoint=checkpoint, changes=asking)
    assert config.teachers["initial"].location == str(run)
    assert config.teachers["initial"].checkpoint == checkpoint
    first = tmp_path / "first"
    assert mtlcore.run(config, out=str(first))
    # The run that is adapted next teaches next, and not the one that taught it.
    plugins.trust_runs()
    config = adapted_config(plugins, str(first), ["normals"])
    assert config.teachers["initial"].location == str(first)


def test_an_adapted_run_can_be_adapted(adapt: Command, adapted: Path, tmp_path: Path) -> None:
    adapt(adapted, tmp_path / "out", tasks="normals")
    config = tomllib.loads((tmp_path / "out/config.toml").read_text())
    assert config["tasks"] == ["segmentation", "depth", "edges", "normals"]
    assert config["initial"]["new"] == ["normals"]


def test_any_run_can_start_from_another(run: Path, tmp_path: Path, small: dict[str, Any]) -> None:
    initial = {"run": str(run), "checkpoint": "last"}
    config = {**small, "tasks": ["depth"], "initial": initial}
    resolved = resolve(Plugins(allow=()), (), [Layer("test", config)])
    _, begun, notes = started(resolved)
    trained = weights(run)
    assert all(torch.equal(begun[n], trained[n]) for n in tensors(begun))
    assert notes == []
    assert mtlcore.run(resolved, out=str(tmp_path / "out"))["final"]["val"].keys() == {"depth"}


# The share of the data


def test_a_share_of_the_training_samples(run: Path) -> None:
    plugins = Plugins(allow=())
    whole = open_splits(adapted_config(plugins, str(run), ["edges"]))
    some = open_splits(adapted_config(plugins, str(run), ["edges"], fraction=0.25))
    assert (len(whole["train"]), len(some["train"])) == (12, 3)
    assert len(some["val"]) == len(whole["val"]) == 4
    every = [whole["train"].sample(4 * i) for i in range(3)]
    for i, sample in enumerate(every):
        assert torch.equal(some["train"].sample(i).inputs, sample.inputs)
    least = adapted_config(plugins, str(run), ["edges"], fraction=0.001)
    assert len(open_splits(least)["train"]) == 1


def test_the_share_on_the_command_line(adapt: Command, run: Path, tmp_path: Path) -> None:
    adapt(run, tmp_path / "out", "--data-fraction", "0.5")
    assert max(row["step"] for row in figures(tmp_path / "out")) == 2 * 2
    config = tomllib.loads((tmp_path / "out/config.toml").read_text())
    assert (config["data"]["train"], config["data"]["train_fraction"]) == (12, 0.5)


# The report


def first_time(run: Path, task: str, metric: str, good: Any) -> tuple[int, float] | None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        here = (row["split"], row["task"], row["metric"]) == ("val", task, metric)
        if here and good(row["value"]):
            return row["epoch"], row["seconds"]
    return None


def test_it_is_compared_with_the_same_from_scratch(
    adapt: Command, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = adapt(run, out, "--from-scratch", "--set=training.epochs=4", tasks="edges,normals")
    report = json.loads((out / "adaptation.json").read_text())
    names = [(row["task"], row["metric"], row["new"]) for row in report["rows"]]
    assert names == [("segmentation", "miou", False), ("depth", "abs_error", False),
                     ("edges", "f1", True), ("normals", "mean_angle", True)]  # fmt: skip
    ours, theirs, before = (
        json.loads((path / "summary.json").read_text()) for path in (out, out / "scratch", run)
    )
    for row in report["rows"]:
        task, metric, target = row["task"], row["metric"], row["target"]
        assert target == theirs["final"]["val"][task][metric]
        assert row["target_from"] == "scratch"
        higher = row["higher_is_better"]
        for name, place, summary in (("adapted", out, ours), ("scratch", out / "scratch", theirs)):
            told = row[name]
            assert told["final"] == summary["final"]["val"][task][metric]
            found = first_time(place, task, metric, lambda x, t=target, h=higher:
                               x >= t if h else x <= t)  # fmt: skip
            assert (told["epoch"], told["seconds"]) == (found or (None, None))
        assert row["scratch"]["epoch"] is not None  # what it ended with, it has reached
        expected = None if row["new"] else before["best"]["val"][task][metric]
        assert row["before"] == expected
    assert "edges (new)" in result.stdout
    config = tomllib.loads((out / "scratch/config.toml").read_text())
    own = tomllib.loads((out / "config.toml").read_text())
    assert config.pop("initial") == {}
    assert (own.pop("initial")["run"], own.pop("method")) == (str(run), "default-adapted")
    assert config.pop("method") == "default-adapted-scratch"
    assert config == own


def test_from_scratch_all_of_the_network_learns(run: Path) -> None:
    plugins = Plugins(allow=())
    for train in ("new", "heads"):
        config = scratch_config(plugins, adapted_config(plugins, str(run), ["edges"], train=train))
        assert config.learning == ("edges",)
        assert config.initial is not None
        assert (config.initial.run, config.initial.train) == (None, "new")
    config = scratch_config(plugins, adapted_config(plugins, str(run), ["edges"]))
    assert config.learning == ("segmentation", "depth", "edges")


def test_targets_of_ones_own(adapt: Command, run: Path, tmp_path: Path) -> None:
    arguments = ["--target", "edges.f1=0.0", "--target", "edges.loss=-1", "--json"]
    result = adapt(run, tmp_path / "out", *arguments, "--train", "new")
    rows = {(row["task"], row["metric"]): row for row in json.loads(result.stdout)["rows"]}
    assert rows["edges", "f1"]["adapted"]["epoch"] == 1
    assert rows["edges", "f1"]["target_from"] == "given"
    assert rows["edges", "loss"]["adapted"]["epoch"] is None
    assert rows["edges", "loss"]["higher_is_better"] is False
    assert rows["depth", "abs_error"]["target"] is None
    assert all(row["scratch"] is None for row in rows.values())
    assert result.stdout == (tmp_path / "out/adaptation.json").read_text()


def test_several_tasks_in_either_way_of_writing(mtl: Command, run: Path, tmp_path: Path) -> None:
    for number, words in enumerate((["--tasks", "edges", "normals"], ["--tasks", "edges,normals"])):
        out = tmp_path / str(number)
        result = mtl("adapt", str(run), *words, "--out", str(out), "--set=training.epochs=1")
        assert result.exit_code == 0, result.output
        config = tomllib.loads((out / "config.toml").read_text())
        assert config["initial"]["new"] == ["edges", "normals"]
