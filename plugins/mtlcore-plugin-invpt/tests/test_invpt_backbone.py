"""InvPT keeps the contract over a pyramid and over maps of one stride, and does what it says."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo, Features
from mtlcore.models import Backbone, MultiTaskModel
from mtlcore.standard.heads import PointwiseHead
from mtlcore.standard.mlp import MLP
from mtlcore.standard.resnet import ResNet
from mtlcore.standard.unet import UNet
from mtlcore.tasks import Task
from mtlcore.testing import TINY_TASKS, BackboneContract, TinyPyramid, tiny_batch, tiny_learner
from mtlcore_invpt.backbone import InvPT
from mtlcore_invpt.stage import CrossTaskAttention

NAMES = [task.name for task in TINY_TASKS]
KEYS = {task.name: task.key for task in TINY_TASKS}
PYRAMID = partial(TinyPyramid, channels=(4, 5, 6))
PREDICTING = partial(PYRAMID, predicts=True)
SMALL = partial(InvPT, preliminary=4, channels=16)


class Plain(Backbone):
    """Maps of one stride, as of three of a transformer's blocks, the last block first."""

    out_channels, strides, input_multiple, main_map = (6, 5, 4), (4, 4, 4), 4, 0

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 4, stride=4)
        self.second = nn.Conv2d(4, 5, 3, padding=1)
        self.third = nn.Conv2d(5, 6, 3, padding=1)

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        first = self.first(inputs).tanh()
        second = self.second(first).tanh()
        return Features(shared=(self.third(second).tanh(), second, first))

    def last_shared_parameters(self):
        return self.third.parameters()


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


class TestOverAPyramid(BackboneContract):
    def make(self, tasks):
        return SMALL(tasks, backbone=PYRAMID)


class TestOverMapsOfOneStride(BackboneContract):
    def make(self, tasks):
        return SMALL(tasks, backbone=Plain)


class TestOverWhatPredicts(BackboneContract):
    def make(self, tasks):
        return SMALL(tasks, backbone=PREDICTING)


class ByHand:
    """The authors' network, by torch's functions and the state alone, one task at a time."""

    def __init__(self, backbone: InvPT, images: Tensor, skips: Sequence[int]) -> None:
        self.weights = backbone.state_dict()
        encoded = backbone.encoder(images, NAMES).shared
        size = [side // (8 * backbone.strides[0]) for side in images.shape[2:]]
        start = self.resized(encoded[0], size)
        self.early, maps = {}, []
        for task, key in KEYS.items():
            x = start
            for layer in (0, 3):
                x = self.conv(x, f"preliminary.{key}.{layer}", padding=1)
                x = self.norm(x, f"preliminary.{key}.{layer + 1}").relu()
            self.early[task] = self.conv(x, f"initial.{key}")
            maps.append(self.conv(torch.cat([x, self.early[task]], 1), f"join.{key}"))
        self.scores = None
        sums = [torch.zeros(())] * len(NAMES)
        for stage in range(3):
            if stage:
                place = skips[stage - 1]
                added = self.skip(encoded[place], f"skip.{stage - 1}", maps[0].shape[-1] * 2)
                maps = [
                    self.grown(x, f"stages.{stage}.grow.{key}") + added
                    for x, key in zip(maps, KEYS.values(), strict=True)
                ]
            maps = self.block(maps, stage)
            parts = torch.cat(maps, 1).movedim(1, -1)
            parts = self.layer_norm(parts, f"norms.{stage}").movedim(-1, 1).chunk(len(NAMES), 1)
            for number, (x, key) in enumerate(zip(parts, KEYS.values(), strict=True)):
                y = self.conv(x, f"project.{key}.{stage - 1}") if stage else x
                sums[number] = sums[number] + self.resized(y, [8 * side for side in size])
        self.maps = {}
        for x, (task, key) in zip(sums, KEYS.items(), strict=True):
            x = self.norm(self.conv(x, f"output.{key}.0", padding=1), f"output.{key}.1")
            self.maps[task] = x.relu()

    def conv(self, x: Tensor, name: str, **how: int) -> Tensor:
        bias = self.weights.get(f"{name}.bias")
        return F.conv2d(x, self.weights[f"{name}.weight"], bias, **how)

    def skip(self, x: Tensor, name: str, width: int) -> Tensor:
        if x.shape[-1] == width:
            return self.conv(x, name, padding=1)
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=1)

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean, variance, scale, shift = (
            self.weights[f"{name}.{part}"].reshape(-1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    def layer_norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def resized(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(x, tuple(size), mode="bilinear")

    def grown(self, x: Tensor, name: str) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bilinear")
        for layer in (1, 4):
            x = self.conv(x, f"{name}.{layer}", padding=2, dilation=2)
            x = self.norm(x, f"{name}.{layer + 1}").relu()
        return x

    def block(self, maps: list[Tensor], stage: int) -> list[Tensor]:
        name, pooling = f"stages.{stage}", 2 ** (stage + 1)
        channels, size = maps[0].shape[1], maps[0].shape[2:]
        queries, memory = [], []
        for x, key in zip(maps, KEYS.values(), strict=True):
            y = self.layer_norm(x.movedim(1, -1), f"{name}.norm_attention").movedim(-1, 1)
            reduce = f"{name}.attention.reduce.{key}"
            half = self.conv(y, f"{reduce}.0", stride=2, padding=1, groups=channels)
            queries.append(self.norm(half, f"{reduce}.1"))
            memory.append(F.avg_pool2d(y, pooling, ceil_mode=True))
        grid = queries[0].shape[2:]
        tokens = [torch.cat([x.flatten(2) for x in xs], 2).mT for xs in (queries, memory, memory)]
        q, k, v = (
            self.linear(x, f"{name}.attention.{part}")
            for x, part in zip(tokens, ("query", "key", "value"), strict=True)
        )
        pieces = [x.chunk(2, dim=-1) for x in (q, k, v)]
        scores = torch.stack([a @ b.mT for a, b in zip(*pieces[:2], strict=True)], 1)
        scores = scores / channels**0.5
        if self.scores is not None:
            of_tasks = [
                self.resized(x.flatten(0, 1).mT.unflatten(2, self.grid), grid)
                .flatten(2)
                .mT.unflatten(0, (-1, 2))
                for x in self.scores.chunk(len(NAMES), dim=2)
            ]
            both = torch.cat([scores, torch.cat(of_tasks, dim=2)], dim=1)
            scores = self.conv(both, f"{name}.attention.mix")
        self.scores, self.grid = scores, grid
        heads = [scores[:, h].softmax(-1) @ pieces[2][h] for h in (0, 1)]
        received = self.linear(torch.cat(heads, -1), f"{name}.attention.output")
        found = []
        for x, y in zip(maps, received.chunk(len(NAMES), dim=1), strict=True):
            x = x + self.resized(y.mT.unflatten(2, grid), size)
            z = self.layer_norm(x.movedim(1, -1), f"{name}.norm_perceptron")
            z = F.gelu(self.linear(z, f"{name}.perceptron.0"))
            found.append(x + self.linear(z, f"{name}.perceptron.2").movedim(-1, 1))
        return found


@pytest.mark.parametrize("encoder", [PYRAMID, Plain], ids=["pyramid", "plain"])
def test_maps_and_predictions_are_those_of_the_equations(encoder: type[Backbone]) -> None:
    """Both read the second map in the second stage and the third in the third."""
    # An even and an odd number of places to a side of the first stage.
    images = torch.rand(2, 3, 24, 32, dtype=torch.float64)
    backbone = SMALL(TINY_TASKS, backbone=encoder).double().train()
    for name, p in backbone.named_parameters():
        if "stages" in name:  # attention that is not the same everywhere
            nn.init.normal_(p, std=0.5)
    backbone(images, NAMES)
    backbone.eval()
    by_hand = ByHand(backbone, images, skips=(1, 2))
    features = backbone(images, NAMES)
    for task in NAMES:
        (found,) = features.of(task)
        assert found.shape[1:] == (16, 24 // backbone.strides[0], 32 // backbone.strides[0])
        torch.testing.assert_close(found, by_hand.maps[task])
    backbone.training = True  # of its batch norms nothing changes
    for task, (early,) in backbone(images, NAMES).early.items():
        assert early.weight == 1.0
        torch.testing.assert_close(early.prediction, by_hand.early[task])


def test_every_place_of_every_task_is_attended_to() -> None:
    attention = CrossTaskAttention(("a", "b"), 4, pooling=2, listens=False).double().eval()
    maps = torch.randn(1, 2, 4, 6, 4, dtype=torch.float64, requires_grad=True)
    received, scores = attention(maps, None)
    assert received.shape == (1, 2, 2, 3, 4)
    assert scores.shape == (1, 2, 2, 2, 3, 2 * 2 * 3)
    (gradient,) = torch.autograd.grad(received[0, 0, 0, 0].square().sum(), maps)
    assert bool((gradient[0].abs().sum(-1) > 0).all())


def test_attention_of_the_stage_before_is_mixed_in() -> None:
    attention = CrossTaskAttention(("a", "b"), 4, pooling=4, listens=True).double().eval()
    maps = torch.randn(1, 2, 4, 8, 4, dtype=torch.float64)
    before = torch.randn(1, 2, 2, 1, 2, 4, dtype=torch.float64)
    with torch.no_grad():
        attention.mix.bias.zero_()
        attention.mix.weight.zero_()[:, 2:, 0, 0] = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    _, scores = attention(maps, before)
    # Head 0 hears head 1 of the stage before, whose queries are enlarged, and none of its own.
    row = before[0, 1, 0, 0, :, 3]
    enlarged = torch.stack([row[0], 0.75 * row[0] + 0.25 * row[1],
                            0.25 * row[0] + 0.75 * row[1], row[1]])  # fmt: skip
    torch.testing.assert_close(scores[0, 0, 0, 0, :, 3], enlarged)


def test_initialisation_is_the_published_one() -> None:
    backbone = InvPT(TINY_TASKS, backbone=PYRAMID, preliminary=8, channels=64)
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Linear):
            assert not bool(module.bias.any()), name
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.2), name
    for key in KEYS.values():
        assert backbone.output[key][0].weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_a_task_learns_from_both_of_its_predictions() -> None:
    learner = tiny_learner(backbone=partial(SMALL, backbone=PREDICTING))
    batch = tiny_batch(2, size=(16, 24))
    model = learner.model
    losses = learner(batch, NAMES)
    features = model.features(batch.inputs, NAMES)
    predictions = model.predict(features, NAMES, (16, 24))
    for task in NAMES:
        labels = (batch.targets[task], batch.valid[task])
        weighed = [(1.0, predictions[task])] + [
            (one.weight, F.interpolate(one.prediction, (16, 24), mode="bilinear"))
            for one in features.early[task]
        ]
        assert [weight for weight, _ in weighed] == [1.0, 0.5, 1.0]
        expected = [w * learner.loss_of(task, x, *labels)[0] for w, x in weighed]
        torch.testing.assert_close(losses.total[task], sum(expected))


def test_a_lone_task_has_a_decoder_of_its_own() -> None:
    backbone = SMALL(TINY_TASKS[:1], backbone=PYRAMID)
    own = {id(p) for p in backbone.task_parameters("segmentation")}
    shared = {n.split(".")[0] for n, p in backbone.named_parameters() if id(p) not in own}
    assert shared == {"encoder"}
    names = {id(p): name for name, p in backbone.named_parameters()}
    last = [names[id(p)] for p in backbone.last_shared_parameters()]
    assert last == ["encoder.levels.2.weight", "encoder.levels.2.bias"]


def test_the_last_shared_layers_are_those_of_the_stages() -> None:
    backbone = SMALL(TINY_TASKS, backbone=PYRAMID)
    names = {id(p): name for name, p in backbone.named_parameters()}
    last = {names[id(p)].rpartition(".")[0] for p in backbone.last_shared_parameters()}
    assert last == {f"stages.{number}.perceptron.2" for number in range(3)}


def test_any_size_through_the_model() -> None:
    for encoder in (
        partial(ResNet, depth=18, width=1 / 32, pyramid=True),
        partial(UNet, width=1 / 32, decoder="none", output_stride=2),
    ):
        backbone = SMALL(TINY_TASKS, backbone=encoder)
        info = FeatureInfo.of(backbone)
        heads = {task.name: PointwiseHead(task, info) for task in TINY_TASKS}
        found = MultiTaskModel(TINY_TASKS, backbone, heads)(torch.rand(2, 3, 33, 70), NAMES)
        assert {tuple(x.shape[2:]) for x in found.values()} == {(33, 70)}


class Coarse(Plain):
    """Maps of the stride of 14 pixels."""

    strides, input_multiple = (14, 14, 14), 14


class Apart(TinyPyramid):
    """Its finest map is the task's own."""

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        *shared, fine = super().forward(inputs, tasks).shared
        return Features(shared=tuple(shared), per_task=dict.fromkeys(tasks, (fine,)))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match=r"backbone.channels: 20 must be a multiple of 8"):
        InvPT(TINY_TASKS, backbone=PYRAMID, channels=20)
    for lacking in (partial(MLP, inputs=3), partial(ResNet, depth=18, width=1 / 32)):
        with pytest.raises(UsageError, match=r"of half and of a quarter.*pyramid=true"):
            SMALL(TINY_TASKS, backbone=lacking)
    with pytest.raises(UsageError, match=r"would have the stride 28.*multiple of 8"):
        SMALL(TINY_TASKS, backbone=Coarse)
    with pytest.raises(UsageError, match=r"UNet has maps of the strides \[16, 1\].*decoder=none"):
        SMALL(TINY_TASKS, backbone=partial(UNet, width=1 / 32))
    backbone = SMALL(TINY_TASKS, backbone=partial(Apart, channels=(4, 5, 6))).eval()
    with pytest.raises(UsageError, match=r"backbone.backbone: Apart gives tasks maps of their own"):
        backbone(torch.rand(1, 3, 32, 32), NAMES)
