"""Values of a regression are learnt in a standard unit and told in their own."""

import attrs
import numpy as np
import pytest
import torch

import mtlcore
from mtlcore.config import resolve, set_layer
from mtlcore.data import Sample, TargetUnits, collate
from mtlcore.engine.units import fit_units
from mtlcore.errors import ConfigError
from mtlcore.features import FeatureInfo
from mtlcore.models import MultiTaskModel
from mtlcore.plugins import Plugins
from mtlcore.runs import evaluate_run, load_run
from mtlcore.standard.heads import LinearHead
from mtlcore.standard.mlp import MLP
from mtlcore.tasks import Task

PRICE = Task(name="price", kind="regression", channels=2)
PLAIN = Task(name="plain", kind="regression", channels=1, standardise=False)
GARDEN = Task(name="garden", kind="classification", channels=2)


def model(tasks):
    backbone = MLP(tasks, inputs=3, hidden=(4,))
    features = FeatureInfo(tuple(backbone.out_channels), tuple(backbone.strides))
    return MultiTaskModel(tasks, backbone, {t.name: LinearHead(t, features) for t in tasks})


def batch(values, valid):
    values, valid = torch.tensor(values), torch.tensor(valid)
    return collate(
        [
            Sample(inputs=torch.zeros(3), targets={"price": v}, valid={"price": k}, key="x")
            for v, k in zip(values, valid, strict=True)
        ],
        [PRICE],
    )


def test_units_are_mean_and_deviation_of_the_valid_labels():
    rng = np.random.default_rng(0)
    values = (1e6 + rng.normal(size=(30, 2)) * [3, 2000]).astype(np.float32)
    valid = rng.random((30, 2)) < 0.7
    net = model([PRICE, PLAIN, GARDEN])
    parts = [batch(values[i : i + 7], valid[i : i + 7]) for i in range(0, 30, 7)]
    fit_units(net, [parts[0], None, *parts[1:]])
    units = net.units_of("price")
    for channel in (0, 1):
        known = values[valid[:, channel], channel].astype(np.float64)
        assert float(units.mean[channel]) == pytest.approx(known.mean(), rel=1e-6)
        assert float(units.deviation[channel]) == pytest.approx(known.std(), rel=1e-4)
    assert net.units_of("plain") is net.units_of("garden") is None


def test_no_label_and_equal_labels_leave_a_unit_that_divides_by_one():
    net = model([PRICE])
    fit_units(net, [batch([[7.0, 5.0], [7.0, 6.0]], [[True, False], [True, False]])])
    units = net.units_of("price")
    assert (units.mean.tolist(), units.deviation.tolist()) == ([7, 0], [1, 1])
    assert torch.equal(units(units.standard(torch.ones(3, 2))), torch.ones(3, 2))


def test_maps_are_standardised_by_channel():
    units = TargetUnits(2)
    units.mean.copy_(torch.tensor([1.0, 2]))
    units.deviation.copy_(torch.tensor([2.0, 4]))
    maps = units(torch.ones(1, 2, 3, 3))
    assert (maps[0, 0, 0, 0], maps[0, 1, 0, 0]) == (3, 6)
    assert torch.equal(units.standard(maps), torch.ones(1, 2, 3, 3))


def test_predictions_are_in_the_tasks_unit():
    net, inputs = model([PRICE]), torch.randn(5, 3)
    raw = net(inputs, ["price"])["price"]
    fit_units(net, [batch([[100.0, 0.0], [300.0, 8.0]], [[True, True]] * 2)])
    told = net(inputs, ["price"])["price"]
    torch.testing.assert_close(told, raw * torch.tensor([100.0, 4]) + torch.tensor([200.0, 4]))


# Runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train on prices in a unit; return where the run lies, and its summary."""
    rng = np.random.default_rng(0)
    rooms, age = rng.integers(1, 8, 80), rng.integers(0, 90, 80)
    price = 150 + 40 * rooms - age + rng.normal(0, 5, 80)
    place = tmp_path_factory.mktemp("prices")

    def run(name, unit=1.0, shift=0.0, standardise=True, **more):
        root = place / name
        root.mkdir(exist_ok=True)
        rows = zip(rooms, age, price * unit + shift, rooms > 4, strict=True)
        text = "".join(f"{a},{b},{c:.9g},{int(d)}\n" for a, b, c, d in rows)
        (root / "t.csv").write_text("rooms,age,price,garden\n" + text)
        target = {"kind": "regression", "column": "price", "standardise": standardise}
        garden = {"kind": "classification", "column": "garden", "classes": ["0", "1"]}
        config = {
            "data": {"name": "tabular", "root": str(root), "file": "t.csv", "workers": 0,
                     "targets": {"price": target, "garden": garden}},
            "model": {"backbone": {"name": "mlp", "inputs": 2, "hidden": [8]}},
            "training": {"epochs": 6, "batch_size": 16, "evaluate_every": 6},
            "optimizer": {"lr": 0.02},
            **more,
        }  # fmt: skip
        return str(root / "run"), mtlcore.run(config, out=str(root / "run"))

    return run


@pytest.fixture(scope="module")
def thousands(run):
    return run("thousands")


@pytest.mark.parametrize(("unit", "shift"), [(1024.0, 0.0), (2.0**-10, 0.0), (1.0, 4096.0)])
def test_the_unit_changes_nothing_but_the_unit_of_the_metrics(run, thousands, unit, shift):
    one = thousands[1]["final"]["val"]
    other = run(f"unit-{unit}-{shift}", unit, shift)[1]["final"]["val"]
    assert other["price"]["r2"] == pytest.approx(one["price"]["r2"], abs=2e-3)
    assert other["price"]["mae"] == pytest.approx(one["price"]["mae"] * unit, rel=5e-3)
    assert other["price"]["loss"] == pytest.approx(one["price"]["loss"], rel=5e-3)
    assert other["garden"]["loss"] == pytest.approx(one["garden"]["loss"], rel=5e-3)


def test_metrics_beat_the_best_constant_in_dollars(run):
    summary = run("dollars", unit=1000.0, training={"epochs": 40, "batch_size": 16})[1]
    constant = summary["constants"]["global"]["price"]["mae"]
    assert summary["final"]["val"]["price"]["mae"] < 0.5 * constant


def test_it_can_be_left(run):
    summary = run("as-it-is", unit=1000.0, standardise=False)[1]
    assert summary["final"]["val"]["price"]["r2"] < 0
    assert summary["final"]["val"]["price"]["loss"] > 1000


def test_the_unit_is_that_of_the_training_whoever_evaluates(run, thousands):
    place, summary = thousands
    trained = load_run(Plugins(), place, "last")
    values, _ = evaluate_run(trained, "val")
    assert values["price"]["mae"] == pytest.approx(summary["final"]["val"]["price"]["mae"])
    units = trained.learner.model.units_of("price")
    assert float(units.mean[0]) == pytest.approx(265, abs=30)
    # A run that starts from it keeps what its head has learnt in.
    later = run("later", unit=3.0, initial={"run": place}, training={"steps": 1})[0]
    kept = load_run(Plugins(), later, "last").learner.model.units_of("price")
    assert torch.equal(kept.mean, units.mean)


def test_an_averaged_model_has_the_unit_too(run):
    training = {"epochs": 6, "batch_size": 16, "ema": 0.5, "evaluate_ema": True}
    summary = run("averaged", unit=1000.0, training=training)[1]
    assert summary["final"]["val"]["price"]["r2"] > -1


def test_a_task_says_whether_it_is_standardised():
    assert PRICE.standardise
    assert not GARDEN.standardise
    assert not attrs.evolve(PRICE, standardise=False).standardise


def rooms(*changes):
    small = ["data.name=rooms", "data.train=4", "data.val=2", "data.size=32x32", "data.workers=0"]
    small += ["model.backbone={name='unet', width=0.03125}", "training.steps=1", "device=cpu"]
    return resolve(Plugins(), [], [set_layer([*small, *changes])])


def test_depth_is_learnt_in_standard_deviations_where_a_run_says_so(tmp_path):
    """Predictions are then about the mean depth at once, and metrics are in metres."""
    config = rooms("data.standardise=['depth', 'inverse-depth']")
    assert [task.name for task in config.tasks if task.standardise] == ["depth"]
    far = mtlcore.run(rooms(), out=str(tmp_path / "plain"))
    near = mtlcore.run(config, out=str(tmp_path / "standard"))
    errors = [run["final"]["val"]["depth"]["abs_error"] for run in (far, near)]
    assert errors[1] < 0.6 * errors[0]
    values, _ = evaluate_run(load_run(Plugins(), str(tmp_path / "standard"), "last"), "val")
    assert values["depth"]["abs_error"] == pytest.approx(errors[1], rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("normals", "data.standardise: values of the kind 'normals' have a scale of their own"),
        ("edges", "data.standardise: values of the kind 'edges' have a scale of their own"),
        ("segmentation", "data.standardise: values of the kind 'segmentation' have a scale"),
        ("dept", "data.standardise: no task is of the kind 'dept'; did you mean 'depth'?"),
    ],
)
def test_what_has_a_scale_of_its_own_keeps_it(kind, words):
    with pytest.raises(ConfigError) as refused:
        rooms(f"data.standardise=['{kind}']")
    assert words in str(refused.value)
