"""PAD-Net keeps the contract over any encoder, and computes what its equations say."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo
from mtlcore.models import MultiTaskModel
from mtlcore.standard.heads import PointwiseHead
from mtlcore.standard.mlp import MLP
from mtlcore.standard.resnet import ResNet
from mtlcore.standard.unet import UNet
from mtlcore.testing import (
    TINY_TASKS,
    BackboneContract,
    HeadContract,
    TinyPyramid,
    tiny_batch,
    tiny_learner,
)
from mtlcore_pad_net.backbone import PADNet
from mtlcore_pad_net.heads import bottlenecks

NAMES = [task.name for task in TINY_TASKS]
KEYS = {task.name: task.key for task in TINY_TASKS}
PREDICTING = partial(TinyPyramid, predicts=True)
ONE_MAP = partial(ResNet, depth=18, width=1 / 32, output_stride=8)
PYRAMID = partial(UNet, width=1 / 32, decoder="none", output_stride=4)
MODULES = ("a", "b", "c", "c-receiver")


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class TestOverAPyramid(BackboneContract):
    def make(self, tasks):
        return PADNet(tasks, backbone=PYRAMID, channels=4)


class TestWithAuxiliaryTasksOverWhatPredicts(BackboneContract):
    """One final task alone: nobody else reads its map."""

    def make(self, tasks):
        auxiliary = tuple(task.name for task in tasks[1:])
        return PADNet(tasks, backbone=PREDICTING, channels=4, auxiliary=auxiliary)


class TestBottlenecks(HeadContract):
    features = (FeatureInfo((8,), (2,)), FeatureInfo((3, 6), (4, 2)))

    def make(self, task, features):
        return bottlenecks(task, features)


def settled(backbone: PADNet, images: Tensor) -> PADNet:
    """In float64, with running statistics of its own."""
    backbone.double().train()
    backbone(images, NAMES)
    return backbone.eval()


def branch_maps(backbone: PADNet, images: Tensor) -> dict[str, Tensor]:
    """Of every task, from torch's functions and the state alone."""
    coarse, fine = backbone.encoder(images, NAMES).shared
    weights = backbone.state_dict()

    def norm(prefix: str, x: Tensor) -> Tensor:
        mean, variance, scale, shift = (
            weights[f"{prefix}.{name}"].reshape(-1, 1, 1)
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    joined = torch.cat([fine, F.interpolate(coarse, fine.shape[2:], mode="bilinear")], dim=1)
    fused = F.conv2d(joined, weights["fusion.join.0.weight"], weights["fusion.join.0.bias"])
    fused = norm("fusion.join.1", fused).relu()
    found = {}
    for task, key in KEYS.items():
        x = fused
        for block in (f"branches.{key}.0", f"branches.{key}.1"):
            past = x
            if f"{block}.downsample.0.weight" in weights:
                past = F.conv2d(x, weights[f"{block}.downsample.0.weight"])
                past = norm(f"{block}.downsample.1", past)
            for number, padding in ((1, 0), (2, 1), (3, 0)):
                x = F.conv2d(x, weights[f"{block}.conv{number}.weight"], padding=padding)
                x = norm(f"{block}.bn{number}", x)
                x = x.relu() if number < 3 else (x + past).relu()
        found[task] = x
    return found


def distilled(backbone: PADNet, module: str, task: str, maps: dict[str, Tensor]) -> Tensor:
    """The paper's equations of a module."""
    weights = backbone.state_dict()
    into = {s: f"distillation.messages.into.{KEYS[task]}.{KEYS[s]}" for s in NAMES if s != task}
    own = maps[task]

    def conv(x: Tensor, name: str) -> Tensor:
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)

    if module == "a":  # a single convolution of everything side by side
        side_by_side = torch.cat([own, *(maps[s] for s in into)], dim=1)
        names = [f"distillation.own.{KEYS[task]}", *into.values()]
        weight = torch.cat([weights[f"{name}.weight"] for name in names], dim=1)
        return F.conv2d(side_by_side, weight)
    if module == "c":
        gated = [
            conv(maps[s], f"{name}.message") * conv(maps[s], f"{name}.attention").sigmoid()
            for s, name in into.items()
        ]
        return own + sum(gated)
    messages = sum(conv(maps[s], name) for s, name in into.items())
    if module == "b":
        return own + messages
    return own + conv(own, f"distillation.gates.{KEYS[task]}").sigmoid() * messages


@pytest.mark.parametrize("module", MODULES)
def test_every_module_knows_what_tasks_share(module) -> None:
    class Contract(BackboneContract):
        def make(self, tasks):
            return PADNet(
                tasks, backbone=TinyPyramid, channels=4, auxiliary=("normals",), distillation=module
            )

    Contract().test_task_parameters_are_honest()
    Contract().test_every_parameter_is_reached()
    Contract().test_the_cut_is_crossed()


def test_the_cut_is_the_maps_of_all_tasks() -> None:
    images = torch.rand(2, 3, 8, 12)
    backbone = PADNet(TINY_TASKS, backbone=TinyPyramid, channels=4)
    assert len(backbone(images, ["depth"]).cut) == len(NAMES)
    assert backbone(images, NAMES).early
    assert PADNet(TINY_TASKS, backbone=PREDICTING, channels=4)(images, NAMES).cut == ()


@pytest.mark.parametrize("module", MODULES)
def test_maps_are_those_of_the_equations(module) -> None:
    images = torch.rand(2, 3, 8, 12, dtype=torch.float64)
    backbone = settled(
        PADNet(TINY_TASKS, backbone=TinyPyramid, channels=8, distillation=module), images
    )
    maps = branch_maps(backbone, images)
    features = backbone(images, NAMES)
    for task in NAMES:
        (found,) = features.of(task)
        assert found.shape == (2, 8, 4, 6)
        torch.testing.assert_close(found, distilled(backbone, module, task, maps))


def test_predictions_on_the_way_are_made_before_distillation() -> None:
    images = torch.rand(2, 3, 8, 12, dtype=torch.float64)
    backbone = settled(
        PADNet(TINY_TASKS, backbone=TinyPyramid, channels=4, auxiliary=("normals",)), images
    )
    maps = branch_maps(backbone, images)
    torch.testing.assert_close(backbone(images, NAMES).of("normals"), (maps["normals"],))
    backbone.training = True  # of its batch norms and its encoder nothing changes
    early = backbone(images, NAMES).early
    assert set(early) == {"segmentation", "depth"}  # what predicts normals is their head
    for task, predictions in early.items():
        weights = backbone.initial[KEYS[task]]
        expected = F.conv2d(maps[task], weights.weight, weights.bias)
        torch.testing.assert_close(predictions[-1].prediction, expected)
        assert predictions[-1].weight == 1.0


def test_a_task_learns_from_both_of_its_predictions() -> None:
    """The published loss: final and intermediate predictions count alike."""
    learner = tiny_learner(backbone=partial(PADNet, backbone=PREDICTING, channels=4))
    batch = tiny_batch(2, size=(8, 12))
    model = learner.model
    losses = learner(batch, NAMES)
    features = model.features(batch.inputs, NAMES)
    predictions = model.predict(features, NAMES, (8, 12))
    for task in NAMES:
        inside, own = features.early[task]
        assert (inside.weight, own.weight) == (0.5, 1.0)
        labels = (batch.targets[task], batch.valid[task])
        weighed = [(1.0, predictions[task])] + [
            (one.weight, F.interpolate(one.prediction, (8, 12), mode="bilinear"))
            for one in (inside, own)
        ]
        expected = [w * learner.loss_of(task, x, *labels)[0] for w, x in weighed]
        torch.testing.assert_close(losses.total[task], sum(expected))


@pytest.mark.parametrize("module", MODULES)
def test_every_task_hears_every_other_one(module) -> None:
    backbone = PADNet(TINY_TASKS, backbone=TinyPyramid, channels=16, distillation=module)
    features = backbone(torch.rand(2, 3, 16, 16), NAMES)
    for target in NAMES:
        loss = features.of(target)[0].square().sum()
        for source in NAMES:
            first = backbone.branches[KEYS[source]][0].conv1.weight
            (gradient,) = torch.autograd.grad(loss, first, retain_graph=True, allow_unused=True)
            assert gradient is not None and bool(gradient.any()), (target, source)


def test_an_auxiliary_task_speaks_and_does_not_hear() -> None:
    backbone = PADNet(TINY_TASKS, backbone=TinyPyramid, channels=8, auxiliary=("depth",))
    features = backbone(torch.rand(2, 3, 16, 16), NAMES)
    firsts = [backbone.branches[KEYS[task]][0].conv1.weight for task in NAMES]

    def heard(task: str) -> list[str]:
        loss = features.of(task)[0].square().sum()
        found = torch.autograd.grad(loss, firsts, retain_graph=True, allow_unused=True)
        return [name for name, g in zip(NAMES, found, strict=True) if g is not None]

    assert heard("depth") == ["depth"]
    assert heard("normals") == NAMES
    assert set(backbone.distillation.messages.into) == {KEYS["segmentation"], KEYS["normals"]}


def test_maps_that_nobody_reads_are_not_computed() -> None:
    backbone = PADNet(TINY_TASKS, backbone=TinyPyramid, channels=4, auxiliary=("depth", "normals"))
    run = []
    for task, key in KEYS.items():
        backbone.branches[key].register_forward_hook(lambda *_, task=task: run.append(task))
    backbone(torch.rand(2, 3, 8, 8), ["depth"])
    assert run == ["depth"]
    backbone(torch.rand(2, 3, 8, 8), ["segmentation"])
    assert run[1:] == NAMES


def test_a_lone_task_has_a_network_of_its_own() -> None:
    for module in MODULES:
        backbone = PADNet(TINY_TASKS[:1], backbone=TinyPyramid, channels=4, distillation=module)
        own = {id(p) for p in backbone.task_parameters("segmentation")}
        shared = {n.split(".")[0] for n, p in backbone.named_parameters() if id(p) not in own}
        assert shared == {"encoder", "fusion"}
        names = {id(p): name for name, p in backbone.named_parameters()}
        last = [names[id(p)] for p in backbone.last_shared_parameters()]
        assert last == ["encoder.levels.1.weight", "encoder.levels.1.bias"]


def test_the_last_shared_layers_are_those_of_the_branches() -> None:
    backbone = PADNet(TINY_TASKS, backbone=ONE_MAP, channels=4)
    names = {id(p): name for name, p in backbone.named_parameters()}
    last = [names[id(p)] for p in backbone.last_shared_parameters()]
    assert last == [f"branches.{key}.1.conv3.weight" for key in KEYS.values()]
    assert backbone.fusion is None  # one map is read as it is


def test_any_size_through_the_model() -> None:
    backbone = PADNet(TINY_TASKS, backbone=PYRAMID, channels=4)
    info = FeatureInfo.of(backbone)
    heads = {t.name: PointwiseHead(t, info) for t in TINY_TASKS[1:]}
    heads["segmentation"] = bottlenecks(TINY_TASKS[0], info)
    model = MultiTaskModel(TINY_TASKS, backbone, heads)
    found = model(torch.rand(2, 3, 33, 45), NAMES)
    assert {tuple(x.shape[2:]) for x in found.values()} == {(33, 45)}


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match=r"backbone.auxiliary: no task named 'depht'.*'depth'"):
        PADNet(TINY_TASKS, backbone=TinyPyramid, auxiliary=("depht",))
    with pytest.raises(UsageError, match="auxiliary: it names all tasks"):
        PADNet(TINY_TASKS, backbone=TinyPyramid, auxiliary=tuple(NAMES))
    with pytest.raises(UsageError, match="channels: 30 must be a multiple of 4"):
        PADNet(TINY_TASKS, backbone=TinyPyramid, channels=30)
    with pytest.raises(UsageError, match="MLP gives no maps to predict from"):
        PADNet(TINY_TASKS, backbone=partial(MLP, inputs=3))
    backbone = PADNet(TINY_TASKS, backbone=partial(UNet, width=1 / 32), channels=4).eval()
    with pytest.raises(UsageError, match=r"UNet gives tasks maps of their own.*decoder=none"):
        backbone(torch.rand(1, 3, 16, 16), NAMES)
