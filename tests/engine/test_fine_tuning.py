"""Fine-tuning: rates of the backbone and its layers, thawing in the middle of a run, necks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlcore.config import Layer, resolve
from mtlcore.display import SilentDisplay
from mtlcore.engine import Session, Training, check, parameter_table, restore
from mtlcore.engine.checkpointing import save_last
from mtlcore.errors import ConfigError, UsageError
from mtlcore.models import BackboneRates, Transition
from mtlcore.plugins import Plugins
from mtlcore.standard.segnet import SegNet
from mtlcore.storage import RunDirectory, load_checkpoint
from mtlcore.testing import TINY_TASKS, TinyBackbone, tiny_learner

RESNET = {"name": "resnet", "depth": 18, "width": 0.03125, "pyramid": True}
MLP_NECK = {"name": "segformer-mlp", "channels": 8}


def session_of(folder: Path, **tables: Any) -> Session:
    values: dict[str, Any] = {
        "tasks": ["segmentation", "depth"],
        "device": "cpu",
        "data": {"train": 12, "val": 2, "size": [32, 32], "workers": 0},
        "model": {"backbone": {"width": 0.03125}},
        "optimizer": {"name": "adamw", "weight_decay": 0.1},
        "training": {"epochs": 2, "batch_size": 3, "evaluate_every": 1},
    }
    for name, table in tables.items():
        values[name] = {**values.get(name, {}), **table}
    config = resolve(Plugins(allow=("pcgrad",)), (), [Layer("test", values)])
    return Session(config, RunDirectory(str(folder), False), SilentDisplay())


def weights(session: Session) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in session.learner.state_dict().items()
            if isinstance(value, Tensor)}  # fmt: skip


def groups(session: Session) -> Iterator[tuple[str, float]]:
    """Name and factor of everything that learns."""
    names = {id(p): name for name, p in session.learner.model.named_parameters()}
    for group in session.learner.parameter_groups():
        for parameter in group["params"]:
            yield names[id(parameter)], group.get("lr_scale", 1.0)


# Rates


def test_a_rate_of_its_own_for_the_backbone(tmp_path: Path) -> None:
    model = {"backbone": RESNET | {"lr_scale": 0.1}, "neck": MLP_NECK}
    session = session_of(tmp_path, model=model)
    found = dict(groups(session))
    assert found.keys() == {name for name, _ in session.learner.model.named_parameters()}
    for name, factor in found.items():
        assert factor == (0.1 if name.startswith("backbone.") else 1.0), name
    # The rate that runs record is that of the heads.
    report = Training(session).first_step()
    assert report.learning_rate == session.config.optimizer.settings["lr"]
    rates = {group["lr"] for group in session.optimizer.state_dict()["torch"]["param_groups"]}
    assert rates == {report.learning_rate, 0.1 * report.learning_rate}


def test_rates_fall_from_layer_to_layer(tmp_path: Path) -> None:
    backbone = RESNET | {"lr_scale": 0.5, "layer_decay": 0.75}
    session = session_of(tmp_path, model={"backbone": backbone})
    found = dict(groups(session))
    layers = session.learner.model.backbone.layer_groups()
    assert len(layers) == 9
    expected = {"conv1.weight": 9, "layer1.0.conv1.weight": 8, "layer4.1.bn2.bias": 1}
    for name, steps in expected.items():
        assert found[f"backbone.{name}"] == pytest.approx(0.5 * 0.75**steps)
    assert all(factor == 1 for name, factor in found.items() if name.startswith("heads."))


def test_what_is_in_no_layer_counts_as_nearest_to_the_heads(tmp_path: Path) -> None:
    backbone = {"name": "unet", "width": 0.03125, "layer_decay": 0.5}
    found = dict(groups(session_of(tmp_path, model={"backbone": backbone})))
    decoders = {factor for name, factor in found.items() if "decoders" in name}
    encoder = {factor for name, factor in found.items() if "encoder" in name}
    assert decoders == {1.0} and encoder == {0.5**n for n in range(1, 6)}


@pytest.mark.parametrize(
    ("backbone", "said"),
    [
        ({"lr_scale": 0}, r"model\.backbone\.lr_scale: .* > 0"),
        ({"layer_decay": 1.5}, r"model\.backbone\.layer_decay: .* <= 1"),
        ({"lr_scale": "small"}, r"model\.backbone\.lr_scale"),
    ],
)
def test_rates_that_make_no_sense_are_refused(
    tmp_path: Path, backbone: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        session_of(tmp_path, model={"backbone": backbone})


def test_rates_of_a_backbones_own_groups_are_factors_too() -> None:
    backbone = TinyBackbone(TINY_TASKS)
    first, *rest = backbone.parameters()
    groups = [{"params": rest}, {"params": [first], "lr_scale": 0.1}]
    found = BackboneRates(lr_scale=0.5).applied(groups, backbone)
    assert {group.get("lr_scale", 1.0) for group in found if group["params"]} == {0.5, 0.05}


def test_a_backbone_without_layers_says_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"layer_decay: TinyBackbone names no groups.*lr_scale"):
        BackboneRates(layer_decay=0.5).factors(TinyBackbone(TINY_TASKS))


# Thawing


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_a_frozen_encoder_learns_from_some_step_on(tmp_path: Path) -> None:
    """12 samples, 4 steps an epoch, 8 in all: three eighths are in the middle of an epoch."""
    session = session_of(
        tmp_path,
        model={"backbone": {"width": 0.03125}, "freeze": ["backbone.encoder"]},
        training={"freeze_until": 0.375},
    )
    check(session)
    training, start = Training(session), weights(session)
    plans = iter(session.loader.plans(training.plan_block(), False))
    session.directory.open_metrics(0)
    session.learner.train()
    encoder = session.learner.model.backbone.encoder
    for step in range(4):
        training.finish_step(training.step(next(plans)))
        names = moved(start, weights(session))
        assert any(name.startswith("model.backbone.decoder") for name in names)
        learns = any(name.startswith("model.backbone.encoder") for name in names)
        assert learns == (step >= 3), step
        assert encoder.training == (step >= 3)
        assert all(p.requires_grad == (step >= 3) for p in encoder.parameters())
    assert not session.learner.model.frozen_tensors()
    session.directory.close()


@pytest.mark.parametrize("stopped_after", [2, 3, 4])
@pytest.mark.parametrize("balancer", ["equal", "pcgrad"])
def test_resuming_around_the_thaw_is_exact(
    tmp_path: Path, stopped_after: int, balancer: str
) -> None:
    tables: dict[str, Any] = {
        "model": {"backbone": {"width": 0.03125}, "freeze": ["backbone.encoder"]},
        "training": {"freeze_until": 0.375, "ema": 0.9, "patience": 9, "task_patience": 9},
        "balancer": {"name": balancer},
    }
    if balancer == "pcgrad":
        pytest.importorskip("mtlcore_pcgrad")

    def made(folder: str) -> Session:
        session = session_of(tmp_path / folder, **tables)
        session.directory.open_metrics(0)
        return session

    whole = made("whole")
    Training(whole).run()
    part = made("part")
    training = Training(part)
    part.learner.train()
    part.progress.constants = whole.progress.constants
    plans = iter(part.loader.plans(training.plan_block(), False))
    for _ in range(stopped_after):
        training.finish_step(training.step(next(plans)))
    save_last(part)
    resumed = made("resumed")
    restore(resumed, load_checkpoint(part.directory.checkpoint))
    Training(resumed).run()
    assert not moved(weights(whole), weights(resumed))
    assert whole.average is not None and resumed.average is not None
    averages = [session.average.model.state_dict() for session in (whole, resumed)]  # type: ignore[union-attr]
    assert not moved(*averages)
    for session in (whole, part, resumed):
        session.directory.close()


def test_the_average_and_the_heads_learn_meanwhile(tmp_path: Path) -> None:
    session = session_of(
        tmp_path,
        model={"freeze": ["backbone"]},
        training={"freeze_until": 0.9, "ema": 0.5, "epochs": 1},
    )
    assert session.average is not None
    before = {n: v.clone() for n, v in session.average.model.state_dict().items()}
    session.directory.open_metrics(0)
    Training(session).run()
    session.directory.close()
    names = moved(before, session.average.model.state_dict())
    assert names and all(name.startswith("heads.") for name in names)


def test_what_is_frozen_for_good_stays_so(tmp_path: Path) -> None:
    """What `initial.train` freezes is no part of what thaws."""
    session = session_of(
        tmp_path,
        model={"freeze": ["backbone.encoder.levels.0"]},
        initial={"new": ["depth"], "train": "heads"},
        training={"freeze_until": 0.125},
    )
    start = weights(session)
    session.directory.open_metrics(0)
    Training(session).run()
    session.directory.close()
    assert all(
        name.startswith("model.heads.task_depth.") for name in moved(start, weights(session))
    )


def test_what_never_learnt_does_not_learn_once_it_thaws() -> None:
    model = tiny_learner().model
    weight = model.backbone.trunk[0].weight.requires_grad_(False)
    frozen = model.freeze(["backbone"])
    assert not any(p.requires_grad for p in model.backbone.parameters())
    model.thaw(frozen)
    still = [p for p in model.backbone.parameters() if not p.requires_grad]
    assert len(still) == 1 and still[0] is weight


def test_a_backbone_enters_its_phase_once_it_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def at_progress(self: SegNet, fraction: float) -> Transition | None:
        asked.append(fraction)
        if fraction != 0.5:
            return None
        for name, parameter in self.named_parameters():
            if name.startswith("encoder"):
                nn.init.constant_(parameter, 0.5)
        return Transition(reset=tuple(n for n, _ in self.named_parameters() if "encoder" in n))

    monkeypatch.setattr(SegNet, "at_progress", at_progress)
    # With a rate of zero, what the phase draws is what remains.
    session = session_of(
        tmp_path,
        model={"freeze": ["backbone"]},
        training={"freeze_until": 0.375},
        optimizer={"lr": 0.0},
    )
    session.directory.open_metrics(0)
    Training(session).run()
    session.directory.close()
    assert asked == [0.375, 0.5, 0.625, 0.75, 0.875]
    assert all(bool((p == 0.5).all()) for p in session.learner.model.backbone.encoder.parameters())


def test_thawing_nothing_is_a_mistake_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.freeze_until: .*model\.freeze"):
        session_of(tmp_path, training={"freeze_until": 0.5})
    for wrong in (0.0, 1.0, 3):
        with pytest.raises(ConfigError, match="freeze_until"):
            session_of(tmp_path, training={"freeze_until": wrong}, model={"freeze": ["backbone"]})
    with pytest.raises(UsageError, match=r"no part 'backbone\.encodr'.*did you mean"):
        session_of(tmp_path, training={"freeze_until": 0.5}, model={"freeze": ["backbone.encodr"]})


# Necks


@pytest.mark.parametrize("per_task", [False, True])
def test_a_neck_trains_and_is_counted(tmp_path: Path, per_task: bool) -> None:
    model = {"backbone": RESNET, "neck": MLP_NECK | {"per_task": per_task}}
    session = session_of(tmp_path, model=model, training={"epochs": 1})
    check(session)
    found, start = session.learner.model, weights(session)
    per_neck = 8 * (2 + 4 + 8 + 16 + 4) + 8 * 32 + 2 * 8
    own = {n: sum(p.numel() for p in found.task_parameters(n)) for n in found.tasks}
    heads = {n: sum(p.numel() for p in found.head(n).parameters()) for n in found.tasks}
    for task in own:
        assert own[task] - heads[task] == (per_neck if per_task else 0)
    session.directory.open_metrics(0)
    Training(session).run()
    session.directory.close()
    names = moved(start, weights(session))
    necks = {name for name in start if name.startswith("model.neck.")}
    assert len(necks) == (2 if per_task else 1) * 14 and necks <= names


def test_a_task_that_joins_brings_its_neck(tmp_path: Path) -> None:
    model = {"backbone": RESNET, "neck": MLP_NECK | {"per_task": True}}
    initial = {"new": ["depth"], "train": "heads"}
    session = session_of(tmp_path, model=model, initial=initial, training={"epochs": 1})
    start = weights(session)
    session.directory.open_metrics(0)
    Training(session).run()
    session.directory.close()
    own = {name for name in start if "task_depth" in name and name.startswith("model.")}
    assert moved(start, weights(session)) == own
    assert {name.split(".")[1] for name in own} == {"neck", "heads"}
    table = parameter_table(session.learner)["modules"]
    assert {"neck.depth", "neck.segmentation", "heads.depth"} <= table.keys()  # type: ignore[attr-defined]


def test_a_neck_can_be_frozen_by_name(tmp_path: Path) -> None:
    model = {"backbone": RESNET, "neck": MLP_NECK | {"per_task": True}, "freeze": ["neck.depth"]}
    session = session_of(tmp_path, model=model)
    names = {n for n, p in session.learner.model.named_parameters() if not p.requires_grad}
    assert names and all(name.startswith("neck.task_depth.") for name in names)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"neck": {"name": "upernt"}}, r"model\.neck\.name: .*upernet"),
        ({"neck": {"name": "fpn", "channel": 8}}, r"model\.neck\.channel: .*channels"),
        ({"neck": {"channels": 8}}, r"model\.neck\.channels: there is no neck"),
        ({"neck": {"name": "fpn", "per_task": 1}}, r"model\.neck\.per_task"),
        ({"freeze": ["neck"]}, r"model\.freeze: the model has no part 'neck'"),
    ],
)
def test_mistakes_of_a_neck_are_told(tmp_path: Path, model: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        session_of(tmp_path, model=model)


def test_a_later_layer_takes_a_neck_away(tmp_path: Path) -> None:
    layers = [
        Layer("preset", {"model": {"neck": {"name": "fpn", "channels": 8}}}),
        Layer("--set", {"model": {"neck": {"name": "none"}}}),
    ]
    assert resolve(Plugins(allow=()), (), layers).neck is None
