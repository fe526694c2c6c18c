"""MTI-Net keeps the contract over any pyramid, and computes what its equations say."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo
from mtlcore.models import MultiTaskModel
from mtlcore.standard.decoder_heads import hrnet
from mtlcore.standard.heads import PointwiseHead
from mtlcore.standard.mlp import MLP
from mtlcore.standard.resnet import ResNet
from mtlcore.standard.unet import UNet
from mtlcore.testing import TINY_TASKS, BackboneContract, TinyPyramid, tiny_batch, tiny_learner
from mtlcore_mtinet.backbone import MTINet
from mtlcore_mtinet.propagation import FeaturePropagation
from mtlcore_mtinet.pyramid import FeaturePyramid

NAMES = [task.name for task in TINY_TASKS]
KEYS = {task.name: task.key for task in TINY_TASKS}
PYRAMID = partial(TinyPyramid, channels=(4, 5, 6))
PREDICTING = partial(PYRAMID, predicts=True)
RESNET = partial(ResNet, depth=18, width=1 / 32, pyramid=True)


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class TestOverAPyramid(BackboneContract):
    def make(self, tasks):
        return MTINet(tasks, backbone=PYRAMID)


class TestWithAuxiliaryTasksOverWhatPredicts(BackboneContract):
    """One final task alone: nobody else reads its finest map."""

    def make(self, tasks):
        auxiliary = tuple(task.name for task in tasks[1:])
        return MTINet(tasks, backbone=PREDICTING, auxiliary=auxiliary, fpn=4)


def test_with_two_final_tasks_it_knows_what_they_share() -> None:
    class Contract(BackboneContract):
        def make(self, tasks):
            return MTINet(tasks, backbone=PYRAMID, auxiliary=("normals",))

    Contract().test_task_parameters_are_honest()
    Contract().test_every_parameter_is_reached()
    Contract().test_the_cut_is_crossed()


def test_the_cut_is_the_maps_of_all_tasks_at_all_scales() -> None:
    images = torch.rand(2, 3, 16, 24)
    backbone = MTINet(TINY_TASKS, backbone=PYRAMID)
    assert len(backbone(images, ["depth"]).cut) == 3 * len(NAMES)
    assert backbone(images, NAMES).early
    assert MTINet(TINY_TASKS, backbone=PREDICTING)(images, NAMES).cut == ()


def settled(backbone: MTINet, images: Tensor) -> MTINet:
    """In float64, with running statistics of its own."""
    backbone.double().train()
    backbone(images, NAMES)
    return backbone.eval()


class ByHand:
    """What the paper describes, by torch's functions and the state alone."""

    def __init__(self, backbone: MTINet, images: Tensor) -> None:
        self.weights = backbone.state_dict()
        self.encoded = backbone.encoder(images, NAMES).shared
        self.maps: list[dict[str, Tensor]] = []
        handed: dict[str, Tensor] = {}
        for number, encoded in enumerate(self.encoded):
            found = {}
            for task, key in KEYS.items():
                x = encoded
                if handed:
                    finer = F.interpolate(handed[task], x.shape[2:], mode="bilinear")
                    x = torch.cat([x, finer], dim=1)
                for block in (0, 1):
                    x = self.block(x, f"scales.{number}.refine.{key}.{block}")
                found[task] = x
            self.maps.append(found)
            if number < len(self.encoded) - 1:
                handed = self.propagated(found, f"scales.{number}.propagate")

    def conv(self, x: Tensor, name: str) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        bias = self.weights.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, variance, scale, shift = (
            self.weights[f"{name}.{part}"].reshape(-1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    def block(self, x: Tensor, name: str) -> Tensor:
        past = x
        if f"{name}.downsample.0.weight" in self.weights:
            past = self.norm(self.conv(x, f"{name}.downsample.0"), f"{name}.downsample.1")
        x = self.norm(self.conv(x, f"{name}.conv1"), f"{name}.bn1").relu()
        return (self.norm(self.conv(x, f"{name}.conv2"), f"{name}.bn2") + past).relu()

    def propagated(self, maps: dict[str, Tensor], name: str) -> dict[str, Tensor]:
        x = torch.cat([maps[task] for task in NAMES], dim=1)
        mixed = self.conv(
            self.block(self.block(x, f"{name}.mix.0"), f"{name}.mix.1"), f"{name}.mix.2"
        )
        # A share of each task in every channel, which add up to one.
        pieces = mixed.chunk(len(NAMES), dim=1)
        total = sum(piece.exp() for piece in pieces)
        weighed = [piece.exp() / total * maps[t] for piece, t in zip(pieces, NAMES, strict=True)]
        shared = self.block(torch.cat(weighed, dim=1), f"{name}.reduce")
        found = {}
        for task, key in KEYS.items():
            means = shared.mean((2, 3))
            for layer, activation in ((0, torch.relu), (2, torch.sigmoid)):
                linear = f"{name}.excite.{key}.weigh.{layer}"
                weight, bias = self.weights[f"{linear}.weight"], self.weights[f"{linear}.bias"]
                means = activation(means @ weight.T + bias)
            found[task] = shared * means[:, :, None, None] + maps[task]
        return found

    def distilled(self, number: int, task: str) -> Tensor:
        maps = self.maps[number]
        found = maps[task]
        for source in NAMES:
            if source != task:
                name = f"scales.{number}.messages.into.{KEYS[task]}.{KEYS[source]}"
                gate = self.conv(maps[source], f"{name}.attention").sigmoid()
                found = found + self.conv(maps[source], f"{name}.message") * gate
        return found


def test_maps_and_predictions_are_those_of_the_equations() -> None:
    images = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    backbone = settled(MTINet(TINY_TASKS, backbone=PYRAMID, auxiliary=("normals",)), images)
    by_hand = ByHand(backbone, images)
    features = backbone(images, NAMES)
    for task in NAMES:
        maps = features.of(task)
        assert [tuple(x.shape[1:]) for x in maps] == [(6, 2, 3), (5, 4, 6), (4, 8, 12)]
        for number, found in enumerate(maps):
            auxiliary = task == "normals"
            expected = by_hand.maps[number][task] if auxiliary else by_hand.distilled(number, task)
            torch.testing.assert_close(found, expected)
    backbone.training = True  # of its batch norms and its encoder nothing changes
    early = backbone(images, NAMES).early
    # Of an auxiliary task the finest prediction is its head's.
    assert {task: len(found) for task, found in early.items()} == {
        "segmentation": 3,
        "depth": 3,
        "normals": 2,
    }
    for task, predictions in early.items():
        for number, found in enumerate(predictions):
            name = f"scales.{number}.initial.{KEYS[task]}"
            expected = by_hand.conv(by_hand.maps[number][task], name)
            torch.testing.assert_close(found.prediction, expected)
            assert found.weight == 1.0


def test_the_mask_is_a_softmax_over_tasks_at_every_channel() -> None:
    """With the mixture at 0 every task has an equal share, whatever its channel."""
    propagation = FeaturePropagation(TINY_TASKS, 4).eval()
    seen = []
    propagation.reduce.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    maps = {task: torch.randn(2, 4, 3, 5) for task in NAMES}
    with torch.no_grad():
        for p in propagation.mix[-1].parameters():
            p.zero_()
        propagation(maps, NAMES)
        torch.testing.assert_close(seen[0], torch.cat([*maps.values()], 1) / 3)
        # Raise channel 2 of the second task: it takes over that channel of all tasks, and no other.
        propagation.mix[-1].bias[4 + 2] = 50.0
        propagation(maps, NAMES)
    expected = torch.stack([*maps.values()], dim=1) / 3
    expected[:, :, 2] = 0
    expected[:, 1, 2] = maps[NAMES[1]][:, 2]
    torch.testing.assert_close(seen[1], expected.flatten(1, 2))


def test_a_pyramid_network_adds_what_is_deeper() -> None:
    pyramid = FeaturePyramid((3, 2), 4)
    deep, fine = torch.rand(1, 3, 2, 2), torch.rand(1, 2, 4, 4)
    found = pyramid([deep, fine])
    top, side = pyramid.lateral[0](deep), pyramid.lateral[1](fine)
    torch.testing.assert_close(found[0], pyramid.output[0](top))
    enlarged = top.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(found[1], pyramid.output[1](side + enlarged))
    backbone = MTINet(TINY_TASKS, backbone=RESNET, fpn=4)
    assert (backbone.out_channels, backbone.strides) == ((4, 4, 4, 4), (32, 16, 8, 4))
    assert MTINet(TINY_TASKS, backbone=RESNET).out_channels == (16, 8, 4, 2)


def test_a_task_learns_from_its_predictions_at_all_scales() -> None:
    """The published loss: those of all initial predictions and of the last one count alike."""
    learner = tiny_learner(backbone=partial(MTINet, backbone=PREDICTING))
    batch = tiny_batch(2, size=(16, 24))
    model = learner.model
    losses = learner(batch, NAMES)
    features = model.features(batch.inputs, NAMES)
    predictions = model.predict(features, NAMES, (16, 24))
    for task in NAMES:
        inside, *own = features.early[task]
        assert (inside.weight, len(own)) == (0.5, 3)
        labels = (batch.targets[task], batch.valid[task])
        weighed = [(1.0, predictions[task])] + [
            (one.weight, F.interpolate(one.prediction, (16, 24), mode="bilinear"))
            for one in (inside, *own)
        ]
        expected = [w * learner.loss_of(task, x, *labels)[0] for w, x in weighed]
        torch.testing.assert_close(losses.total[task], sum(expected))


def reached(backbone: MTINet, task: str, place: int) -> set[str]:
    """Beginnings of the names of what a task's map is computed from."""
    features = backbone(torch.rand(2, 3, 16, 16), NAMES)
    named = dict(backbone.named_parameters())
    loss = features.of(task)[place].square().sum()
    found = torch.autograd.grad(loss, [*named.values()], allow_unused=True)
    return {n for n, g in zip(named, found, strict=True) if g is not None}


def test_what_is_known_goes_from_deep_to_fine() -> None:
    backbone = MTINet(TINY_TASKS, backbone=PYRAMID, auxiliary=("normals",))
    deepest, finest = reached(backbone, "depth", 0), reached(backbone, "depth", 2)
    assert not any(name.startswith(("scales.1", "scales.2")) for name in deepest)
    for number in (0, 1):
        assert f"scales.{number}.propagate.reduce.conv1.weight" in finest
        for key in KEYS.values():
            assert f"scales.{number}.refine.{key}.0.conv1.weight" in finest
    # The auxiliary task hears of others at the finest scale by what was handed on, and of no map.
    auxiliary = reached(backbone, "normals", 2)
    assert "scales.0.refine.task_depth.0.conv1.weight" in auxiliary
    assert "scales.2.refine.task_depth.0.conv1.weight" not in auxiliary
    assert not any(".messages." in name for name in auxiliary)


def test_finest_maps_that_nobody_reads_are_not_computed() -> None:
    auxiliary = ("depth", "normals")
    backbone = MTINet(TINY_TASKS, backbone=PYRAMID, auxiliary=auxiliary)
    run: list[tuple[int, str]] = []
    for number, scale in enumerate(backbone.scales):
        for task, key in KEYS.items():
            scale.refine[key].register_forward_hook(
                lambda *_, number=number, task=task: run.append((number, task))
            )
    backbone(torch.rand(2, 3, 8, 8), ["depth"])
    deeper = [(number, task) for number in (0, 1) for task in NAMES]
    assert run == [*deeper, (2, "depth")]
    run.clear()
    backbone(torch.rand(2, 3, 8, 8), ["segmentation"])
    assert run == [*deeper, *((2, task) for task in NAMES)]


def test_a_lone_task_has_a_network_of_its_own() -> None:
    backbone = MTINet(TINY_TASKS[:1], backbone=PYRAMID, fpn=4)
    own = {id(p) for p in backbone.task_parameters("segmentation")}
    shared = {n.split(".")[0] for n, p in backbone.named_parameters() if id(p) not in own}
    assert shared == {"encoder"}
    names = {id(p): name for name, p in backbone.named_parameters()}
    last = [names[id(p)] for p in backbone.last_shared_parameters()]
    assert last == ["encoder.levels.2.weight", "encoder.levels.2.bias"]


def test_the_last_shared_layers_are_those_of_the_maps() -> None:
    backbone = MTINet(TINY_TASKS[:2], backbone=PYRAMID, auxiliary=("depth",))
    names = {id(p): name for name, p in backbone.named_parameters()}
    last = [names[id(p)] for p in backbone.last_shared_parameters()]
    pairs = [(0, "segmentation"), (0, "depth"), (1, "segmentation"), (1, "depth"), (2, "depth")]
    assert last == [f"scales.{number}.refine.task_{t}.1.conv2.weight" for number, t in pairs]


def test_any_size_through_the_model() -> None:
    backbone = MTINet(TINY_TASKS, backbone=RESNET)
    info = FeatureInfo.of(backbone)
    heads = {t.name: PointwiseHead(t, info) for t in TINY_TASKS[1:]}
    heads["segmentation"] = hrnet(TINY_TASKS[0], info)
    model = MultiTaskModel(TINY_TASKS, backbone, heads)
    found = model(torch.rand(2, 3, 33, 45), NAMES)
    assert {tuple(x.shape[2:]) for x in found.values()} == {(33, 45)}


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match=r"backbone.auxiliary: no task named 'depht'.*'depth'"):
        MTINet(TINY_TASKS, backbone=PYRAMID, auxiliary=("depht",))
    with pytest.raises(UsageError, match="auxiliary: it names all tasks"):
        MTINet(TINY_TASKS, backbone=PYRAMID, auxiliary=tuple(NAMES))
    for lacking in (partial(MLP, inputs=3), partial(ResNet, depth=18, width=1 / 32)):
        with pytest.raises(UsageError, match=r"gives no maps of several strides.*pyramid=true"):
            MTINet(TINY_TASKS, backbone=lacking)
    backbone = MTINet(TINY_TASKS, backbone=partial(UNet, width=1 / 32)).eval()
    with pytest.raises(UsageError, match=r"UNet gives tasks maps of their own.*decoder=none"):
        backbone(torch.rand(1, 3, 16, 16), NAMES)
