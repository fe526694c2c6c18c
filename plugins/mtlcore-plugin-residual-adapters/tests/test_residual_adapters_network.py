"""Adapters against their equations, what is whose, and numbers of parameters."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from mtlcore.errors import UsageError
from mtlcore.models import LayerPerTask, ParallelAdapters, count_parameters
from mtlcore.standard.mlp import MLP
from mtlcore.standard.resnet import ResNet
from mtlcore.standard.unet import UNet
from mtlcore.tasks import Task
from mtlcore.testing import TINY_TASKS
from mtlcore_residual_adapters.backbone import ResidualAdapters, SeriesAdapters, initialise

NAMES = [task.name for task in TINY_TASKS]
KEYS = [task.key for task in TINY_TASKS]
RESNET = partial(ResNet, depth=18, width=1 / 8)


@pytest.fixture(autouse=True)
def _a_seed() -> None:
    torch.manual_seed(0)


def pointwise(weight: Tensor, x: Tensor, stride: int = 1) -> Tensor:
    """A 1x1 convolution, written as a product of matrices."""
    return torch.einsum("oc,bchw->bohw", weight[:, :, 0, 0], x[:, :, ::stride, ::stride])


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 4)])
def test_in_parallel_each_task_adds_its_own_convolution(stride: int, dilation: int) -> None:
    convolution = nn.Conv2d(3, 5, 3, stride, dilation, dilation, bias=False)
    layer = ParallelAdapters(TINY_TASKS, convolution, initialise)
    x = torch.randn(2, 3, 9, 12)
    found = {}
    for key in KEYS:
        layer.enter(key)
        found[key] = layer(x)
        expected = convolution(x) + pointwise(layer.own[key].weight, x, stride)
        torch.testing.assert_close(found[key], expected)
    assert not torch.equal(found[KEYS[0]], found[KEYS[1]])


def test_in_series_each_task_adapts_the_map_after_its_batch_norm() -> None:
    convolution = nn.Conv2d(3, 5, 3, 2, 1, bias=False)
    layer = SeriesAdapters(TINY_TASKS, convolution)
    x = torch.randn(2, 3, 8, 8)
    layer.enter(KEYS[1])
    y = convolution(x)
    mean, variance = y.mean((0, 2, 3), True), y.var((0, 2, 3), unbiased=False, keepdim=True)
    normal = (y - mean) / (variance + 1e-5).sqrt()
    expected = y + pointwise(layer.own[KEYS[1]][1].weight, normal)
    torch.testing.assert_close(layer(x), expected)
    assert layer.own[KEYS[1]][0].num_batches_tracked == 1
    assert layer.own[KEYS[0]][0].num_batches_tracked == 0


def test_numbers_of_parameters() -> None:
    """A task has a ninth of the weights of all 3x3 convolutions, and batch norms of its own.

    Of ResNet-18, 11,176,512 = 10,985,472 in 3x3 convolutions + 9,408 + 172,032 in others + 9,600.
    """
    resnet = partial(ResNet, depth=18)
    with torch.device("meta"):
        parallel = ResidualAdapters(TINY_TASKS, encoder=resnet)
        series = ResidualAdapters(TINY_TASKS, encoder=resnet, placement="series")
    adapters, norms, tasks = 10_985_472 // 9, 9_600, len(TINY_TASKS)
    assert adapters * 9 == 10_985_472
    whole = 11_176_512 + tasks * adapters + (tasks - 1) * norms
    assert count_parameters(parallel.parameters()) == whole
    assert count_parameters(parallel.task_parameters(NAMES[0])) == adapters + norms
    # After the convolution they are as wide as its output on both sides, with a norm before.
    squares = 4 * 64**2 + 4 * 128**2 + 4 * 256**2 + 4 * 512**2
    assert count_parameters(series.task_parameters(NAMES[0])) == squares + 2 * norms - 2 * (
        64 + 128 + 256 + 512 + 64 - 64
    )


def test_first_weights_are_those_of_the_authors_code() -> None:
    backbone = ResidualAdapters(TINY_TASKS, encoder=partial(ResNet, depth=18, width=0.25))
    adapter = backbone.encoder.layer4[1].conv2.own[KEYS[0]]
    assert adapter.weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.05)


def test_norms_begin_as_those_of_the_encoder() -> None:
    def trained(tasks: object) -> ResNet:
        network = RESNET(tasks)
        network.layer2[0].bn1.running_mean.fill_(3.0)
        nn.init.constant_(network.layer2[0].bn1.weight, 2.0)
        return network

    backbone = ResidualAdapters(TINY_TASKS, encoder=trained)
    norm = backbone.encoder.layer2[0].bn1
    assert isinstance(norm, LayerPerTask)
    for key in KEYS:
        assert bool((norm.own[key].running_mean == 3).all())
        assert bool((norm.own[key].weight == 2).all())
    assert norm.own[KEYS[0]].weight is not norm.own[KEYS[1]].weight


@pytest.mark.parametrize("frozen", [False, True])
def test_what_tasks_share_of_the_encoder_stands_still_if_asked(frozen: bool) -> None:
    unet = partial(UNet, width=1 / 32, decoder="shared")
    backbone = ResidualAdapters(TINY_TASKS, encoder=unet, frozen=frozen)
    own = {id(p) for name in NAMES for p in backbone.task_parameters(name)}
    layers = {id(p) for layer in backbone.encoder.layer_groups() for p in layer}
    shared = [p for p in backbone.parameters() if id(p) not in own]
    assert any(id(p) in layers for p in shared)
    assert any(id(p) not in layers for p in shared)  # of the decoder
    for parameter in backbone.parameters():
        still = frozen and id(parameter) in layers and id(parameter) not in own
        assert parameter.requires_grad is not still


def test_a_task_that_joins_changes_nothing_for_the_others() -> None:
    few, more = (ResidualAdapters(TINY_TASKS[:n], encoder=RESNET) for n in (2, 3))
    missing, unexpected = more.load_state_dict(few.state_dict(), strict=False)
    assert not unexpected
    assert missing
    assert all(f".{TINY_TASKS[2].key}." in name for name in missing)
    x = torch.rand(2, 3, 64, 64)
    few.eval(), more.eval()
    with torch.no_grad():
        one, other = (backbone(x, NAMES[:1]).of(NAMES[0])[0] for backbone in (few, more))
    assert torch.equal(one, other)


def test_what_has_no_convolution_to_adapt_is_refused() -> None:
    tasks = [Task(name="colour", kind="classification", channels=2)]
    with pytest.raises(UsageError, match=r"model\.backbone\.encoder: MLP has no 3x3"):
        ResidualAdapters(tasks, encoder=partial(MLP, inputs=4))


def test_maps_that_are_computed_again_are_refused() -> None:
    def checkpointing(tasks: object) -> ResNet:
        network = RESNET(tasks)
        network.layer1.grad_checkpointing = True
        return network

    with pytest.raises(UsageError, match=r"encoder\.gradient_checkpointing"):
        ResidualAdapters(TINY_TASKS, encoder=checkpointing)


def test_the_last_shared_parameters_are_those_of_the_convolution() -> None:
    backbone = ResidualAdapters(TINY_TASKS, encoder=RESNET)
    (weight,) = backbone.last_shared_parameters()
    assert weight is backbone.encoder.layer4[1].conv2.shared.weight
