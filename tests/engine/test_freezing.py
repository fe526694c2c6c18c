"""Parts of a model that do not learn: nothing of them changes, and what cannot work is refused."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlcore.balancing import BalancerContext, Balancing, GramianBalancer
from mtlcore.config import Layer, resolve
from mtlcore.display import SilentDisplay
from mtlcore.engine import Session, Training, check
from mtlcore.errors import ConfigError, UsageError
from mtlcore.models import Transition
from mtlcore.plugins import Plugins
from mtlcore.standard.heads import ConvHead
from mtlcore.standard.segnet import SegNet
from mtlcore.storage import RunDirectory


def session_of(folder: Path, freeze: list[str], **tables: Any) -> Session:
    values: dict[str, Any] = {
        "tasks": ["segmentation", "depth"],
        "device": "cpu",
        "data": {"train": 6, "val": 2, "size": [32, 32], "workers": 0},
        "model": {"backbone": {"width": 0.03125}, "freeze": freeze},
        # A head that is drawn anew or decays would show.
        "optimizer": {"name": "adamw", "weight_decay": 0.1},
        "training": {"epochs": 2, "batch_size": 3},
        **tables,
    }
    config = resolve(Plugins(allow=()), (), [Layer("test", values)])
    return Session(config, RunDirectory(str(folder / "run"), False), SilentDisplay())


def state_of(session: Session) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in session.learner.model.state_dict().items()}


def trained(session: Session) -> tuple[set[str], set[str]]:
    """Names of the tensors that a run changed, and of all."""
    before = state_of(session)
    session.directory.open_metrics(0)
    Training(session).run()
    session.directory.close()
    after = state_of(session)
    return {name for name in before if not torch.equal(before[name], after[name])}, set(before)


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [
        (["backbone"], ["backbone."]),
        (
            ["backbone.encoder", "heads.depth"],
            ["backbone.encoder.", "heads.task_depth."],
        ),
        (["backbone.encoder.levels.0", "heads"], ["backbone.encoder.levels.0.", "heads."]),
        (["heads.task_depth"], ["heads.task_depth."]),
    ],
)
def test_frozen_parts_stay_bit_for_bit(
    tmp_path: Path, freeze: list[str], frozen: list[str]
) -> None:
    moved, names = trained(session_of(tmp_path, freeze))
    kept = {name for name in names if name.startswith(tuple(frozen))}
    assert kept
    assert {name for name in kept if "running" in name} or frozen == ["heads.task_depth."]
    assert moved == names - kept


def test_without_freezing_everything_moves(tmp_path: Path) -> None:
    moved, names = trained(session_of(tmp_path, []))
    assert moved == names


def test_a_single_parameter(tmp_path: Path) -> None:
    session = session_of(tmp_path, [])
    names = {n for n, _ in session.learner.model.named_parameters()}
    name = next(n for n in sorted(names) if n.startswith("backbone.encoder") and "weight" in n)
    moved, every = trained(session_of(tmp_path / "frozen", [name]))
    assert every - moved == {name}


def test_a_frozen_backbone_needs_no_graph(tmp_path: Path) -> None:
    session = session_of(tmp_path, ["backbone"])
    learner = session.learner.train()
    assert not any(module.training for module in learner.model.backbone.modules())
    assert all(head.training for head in learner.model.heads.modules())
    features = learner.model.features(torch.rand(2, 3, 32, 32), learner.tasks)
    assert all(x.grad_fn is None and not x.requires_grad for x in features.of("depth"))
    grouped = [p for group in learner.parameter_groups() for p in group["params"]]
    heads = [*learner.model.heads.parameters()]
    assert {id(p) for p in grouped} == {id(p) for p in heads}


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("backbon", "did you mean 'backbone'"),
        ("heads.dept", "did you mean 'heads.depth'"),
        ("head", "did you mean 'heads'"),
    ],
)
def test_an_unknown_name_is_a_mistake_of_the_configuration(
    tmp_path: Path, part: str, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        session_of(tmp_path, [part])
    assert "model.freeze" in str(caught.value)
    assert repr(part) in str(caught.value)
    assert said in str(caught.value)


def test_an_unknown_name_inside_a_part_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        session_of(tmp_path, ["backbone.encodr"])
    for word in ("model.freeze", "'backbone.encodr'", "did you mean 'backbone.encoder'"):
        assert word in str(caught.value)


def test_what_is_no_list_of_names_is_refused(tmp_path: Path) -> None:
    for wrong in ("backbone", [1]):
        with pytest.raises(ConfigError, match=r"model\.freeze: expected a list"):
            session_of(tmp_path, wrong)  # type: ignore[arg-type]


def phase(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let SegNet draw all of itself, and all heads, anew in the middle of the run."""
    entered: list[float] = []

    def at_progress(self: SegNet, fraction: float) -> Transition | None:
        if fraction < 0.5 or entered:
            return None
        entered.append(fraction)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                module.reset_parameters()
        return Transition(
            reset=tuple(name for name, _ in self.named_parameters()), reset_heads=True
        )

    monkeypatch.setattr(SegNet, "at_progress", at_progress)
    return entered


def test_a_frozen_backbone_enters_no_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered = phase(monkeypatch)
    moved, _ = trained(session_of(tmp_path, ["backbone"]))
    assert not entered
    assert not {name for name in moved if name.startswith("backbone.")}


def test_a_phase_leaves_frozen_parts_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered = phase(monkeypatch)
    moved, names = trained(session_of(tmp_path, ["backbone.encoder", "heads.depth"]))
    assert len(entered) == 1
    kept = {n for n in names if n.startswith(("backbone.encoder.", "heads.task_depth."))}
    assert moved == names - kept


class Mean(GramianBalancer):
    """The mean of the gradients."""

    def weights(self, gramian: Tensor, context: BalancerContext | None = None) -> Tensor:
        return torch.full((len(gramian),), 1 / len(gramian), dtype=torch.float64)


def refused(session: Session, words: Iterable[str]) -> None:
    with pytest.raises(UsageError) as caught:
        check(session)
    for word in words:
        assert word in str(caught.value)


def test_a_balancer_of_gradients_with_nothing_to_compare_is_refused(tmp_path: Path) -> None:
    session = session_of(tmp_path / "all", ["backbone"])
    check(session)
    session.learner.balancing = Balancing([Mean()])
    refused(session, ["balancer: Mean", "frozen", "model.freeze", "equal"])
    part = session_of(tmp_path / "part", ["backbone.encoder"])
    part.learner.balancing = Balancing([Mean()])
    check(part)


def test_a_task_for_which_nothing_learns_is_refused(tmp_path: Path) -> None:
    refused(session_of(tmp_path / "one", ["backbone", "heads.depth"]), ["model.freeze", "depth"])
    both = session_of(tmp_path / "both", ["backbone", "heads"])
    refused(both, ["model.freeze", "segmentation, depth"])


def test_beside_initial_both_count(tmp_path: Path) -> None:
    initial = {"new": ["depth"], "train": "new"}
    session = session_of(tmp_path, ["backbone.encoder"], initial=initial)
    moved, names = trained(session)
    kept = {n for n in names if n.startswith(("backbone.encoder.", "heads.task_segmentation."))}
    assert moved == names - kept


def test_frozen_parts_do_not_hear_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[nn.Module] = []
    for part in (SegNet, ConvHead):
        monkeypatch.setattr(part, "after_step", lambda self, context: heard.append(self))
    session = session_of(tmp_path, ["backbone", "heads.depth"], tasks=["depth", "normals"])
    Training(session).first_step()
    assert heard == [session.learner.model.head("normals")]
