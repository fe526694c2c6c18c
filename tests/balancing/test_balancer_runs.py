"""What a run gives a balancer of losses, and records and draws of its weights."""

import inspect
import json
from collections import Counter
from xml.etree import ElementTree

import pytest
import torch

import mtlcore
from mtlcore import BalancerSpec, hookimpl
from mtlcore.balancing import LossBalancer
from mtlcore.report.charts.files import save_weights

READ = []  # of every pass over the training labels: what it held


class Reader(LossBalancer):
    """Looks at the training labels twice, as it may."""

    def prepare(self, tasks, data=None):
        assert data is not None
        READ.extend(list(data) for _ in range(2))

    def transform(self, losses, context):
        return losses

    def current_weights(self):
        return {"segmentation": {"wall": 0.5, "floor": 2}, "depth": 3}


class Ignorant(LossBalancer):
    """Never asks for labels, and has one weight per task."""

    def prepare(self, tasks, data=None):
        assert data is not None

    def transform(self, losses, context):
        return losses

    def current_weights(self):
        return {"depth": 7.0, "segmentation": 8.0}


@hookimpl
def mtl_balancers():
    yield BalancerSpec(name="reader", target=Reader)
    yield BalancerSpec(name="ignorant", target=Ignorant)


CONFIG = {
    "plugins": [__file__],
    "tasks": ["segmentation", "depth"],
    "device": "cpu",
    "data": {"train": 5, "val": 2, "size": [32, 32], "workers": 0},
    "model": {"backbone": {"width": 0.03125}},
    "training": {"batch_size": 2, "epochs": 1},
}


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def reads(monkeypatch):
    # The plugin is a module of its own, loaded from this file: what it reads is found there.
    from mtlcore.plugins import Plugins

    modules = []
    load = Plugins.load_file

    def loaded(self, path):
        info = load(self, path)
        prepare = self.get("balancers", "reader").load().prepare
        modules.append(inspect.unwrap(prepare).__globals__)
        return info

    monkeypatch.setattr(Plugins, "load_file", loaded)
    return modules


def test_prepare_may_look_at_the_training_labels(tmp_path, reads):
    mtlcore.run({**CONFIG, "balancer": {"name": "reader"}}, out=str(tmp_path / "run"))
    first, second = reads[-1]["READ"]
    assert sum(len(batch) for batch in first) == 5
    keys = [key for batch in first for key in batch.keys]
    assert keys == [f"rooms/train/{i}" for i in range(5)]
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.targets["depth"], other.targets["depth"])
        assert set(one.targets) == {"segmentation", "depth"}


def test_nothing_is_read_for_one_that_does_not_look(tmp_path, monkeypatch):
    from mtlcore.engine import Session

    def refuse(self):
        raise AssertionError("read")

    monkeypatch.setattr(Session, "_batches_for_balancers", refuse)
    mtlcore.run({**CONFIG, "balancer": {"name": "ignorant"}}, out=str(tmp_path / "run"))
    with pytest.raises(AssertionError, match="read"):
        mtlcore.run({**CONFIG, "balancer": {"name": "reader"}}, out=str(tmp_path / "reading"))


def test_labels_that_a_regime_hides_are_hidden_there_too(tmp_path, reads):
    data = {**CONFIG["data"], "train": 4, "labels": "one"}
    config = {**CONFIG, "data": data, "balancer": {"name": "reader"}}
    mtlcore.run(config, out=str(tmp_path / "run"))
    batches = reads[-1]["READ"][0]
    seen = [bool(b.valid[t][i].any()) for b in batches for i in range(len(b)) for t in b.valid]
    assert (len(seen), sum(seen)) == (8, 4)


def test_named_weights_are_recorded_beside_those_of_tasks(tmp_path):
    chain = [{"name": "ignorant"}, {"name": "reader"}]
    mtlcore.run({**CONFIG, "balancer": {"chain": chain}}, out=str(tmp_path / "run"))
    found = Counter(
        (record["task"], record["metric"], record["value"])
        for record in records(tmp_path / "run")
        if record["metric"].startswith("weight")
    )
    # Of weights per task those of the last balancer in the chain, once per record.
    assert found == {
        ("segmentation", "weight/wall", 0.5): 2,
        ("segmentation", "weight/floor", 2.0): 2,
        ("depth", "weight", 3.0): 2,
    }


def test_named_weights_are_drawn_in_a_chart_per_task(tmp_path):
    values = [("depth", "weight"), ("segmentation", "weight/wall"), ("segmentation", "weight/rug")]
    lines = [
        {"step": s, "epoch": 1, "split": "train", "task": t, "metric": m, "value": s / 2}
        for s in (0, 1)
        for t, m in values
    ]
    save_weights(tmp_path / "weights.svg", lines)
    charts = ElementTree.parse(tmp_path / "weights.svg").iterfind(".//*[@aria-label]")
    assert [chart.get("aria-label") for chart in charts] == [
        "Weights of the tasks: depth from 0 to 0.5",
        "Weights of segmentation by class: wall from 0 to 0.5; rug from 0 to 0.5",
    ]
