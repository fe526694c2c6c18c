"""What holds for all backbones here: shapes, whose parameters are whose, and who runs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from mtlcore.features import FeatureInfo, Features
from mtlcore.models import Backbone
from mtlcore.standard.heads import ConvHead
from mtlcore.standard.segnet import SegNet, conv_unit, scaled, unpool
from mtlcore.tasks import Task
from mtlcore_atinet.atinet import ATINet
from mtlcore_atinet.mtan import MTAN
from mtlcore_atinet.padnet import PADNet
from mtlcore_atinet.single import SegNetPerTask
from mtlcore_atinet.split import DeepSegNet

WIDTH = 1 / 16
NAMES = ("red", "green", "blue", "type", "half")


def distilling(tasks: Sequence[Task], *, width: float) -> ATINet:
    return ATINet(tasks, width=width, distil_from=0)


BACKBONES = (SegNet, DeepSegNet, SegNetPerTask, MTAN, PADNet, ATINet, distilling)


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def some_tasks(count: int) -> list[Task]:
    return [Task(name=name, kind="depth", channels=2) for name in NAMES[:count]]


def images(height: int = 32, width: int = 64) -> Tensor:
    return torch.randn(2, 3, height, width)


def loss_of(features: Features, task: str) -> Tensor:
    return torch.stack([maps.square().sum() for maps in features.of(task)]).sum()


@pytest.mark.parametrize("make", BACKBONES)
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("width", [WIDTH, 0.05])
def test_maps_are_as_announced(make, count: int, width: float) -> None:
    tasks = some_tasks(count)
    backbone = make(tasks, width=width)
    info = FeatureInfo(backbone.out_channels, backbone.strides)
    features = backbone(images(), NAMES[:count])
    assert backbone.out_channels == (scaled(512, width), scaled(64, width))
    for task in tasks:
        latent, last = features.of(task.name)
        assert latent.shape == (2, info.channels[0], 1, 2)
        assert last.shape == (2, info.channels[1], 32, 64)
        assert ConvHead(task, info)(features.of(task.name)).shape == (2, 2, 32, 64)


@pytest.mark.parametrize("make", BACKBONES)
@pytest.mark.parametrize("count", [1, 3])
def test_only_its_own_loss_reaches_a_tasks_parameters(make, count: int) -> None:
    backbone = make(some_tasks(count), width=WIDTH)
    parameters = dict(backbone.named_parameters())
    names = {id(p): name for name, p in parameters.items()}
    own = {task: {names[id(p)] for p in backbone.task_parameters(task)} for task in NAMES[:count]}
    assert sum(map(len, own.values())) == len(set().union(*own.values()))
    features = backbone(images(), NAMES[:count])
    reached = {}
    for task in own:
        gradients = torch.autograd.grad(
            loss_of(features, task), [*parameters.values()], retain_graph=True, allow_unused=True
        )
        reached[task] = {n for n, g in zip(parameters, gradients, strict=True) if g is not None}
    for name in parameters:
        by = {task for task in own if name in reached[task]}
        owners = {task for task in own if name in own[task]}
        if owners:
            assert by == owners, name
        elif by:
            assert by == set(own), name
        else:  # nothing but what ATI-Net adds may wait for its time
            assert make is ATINet, name
            assert name.startswith("distillation."), name


@pytest.mark.parametrize("make", [SegNet, DeepSegNet, PADNet])
@pytest.mark.parametrize("maps", ["last", "all"])
def test_every_path_crosses_the_cut_once(make, maps: str) -> None:
    backbone = make(some_tasks(2), width=WIDTH).double()
    own = {id(p) for task in NAMES[:2] for p in backbone.task_parameters(task)}
    shared = [p for p in backbone.parameters() if id(p) not in own]
    features = backbone(images().double(), NAMES[:2])
    loss = loss_of(features, "red") if maps == "all" else features.of("red")[-1].square().sum()
    direct = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
    at_cut = torch.autograd.grad(loss, features.cut, retain_graph=True, allow_unused=True)
    crossed = [(c, g) for c, g in zip(features.cut, at_cut, strict=True) if g is not None]
    through = torch.autograd.grad(
        [c for c, _ in crossed], shared, [g for _, g in crossed], allow_unused=True
    )
    for one, other in zip(direct, through, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("make", [MTAN, ATINet, SegNetPerTask])
def test_without_a_place_to_cut_none_is_declared(make) -> None:
    assert make(some_tasks(2), width=WIDTH)(images(), NAMES[:2]).cut == ()


def modules_that_ran(backbone: Backbone, tasks: Sequence[str]) -> set[str]:
    ran: set[str] = set()
    for name, module in backbone.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.add(name))
    backbone(images(), tasks)
    return ran


@pytest.mark.parametrize("make", [MTAN, PADNet, ATINet, distilling, SegNetPerTask])
def test_only_what_the_named_tasks_need_runs(make) -> None:
    backbone = make(some_tasks(3), width=WIDTH)
    own = {id(p) for p in backbone.task_parameters("green")}
    foreign = {id(p) for task in ("red", "blue") for p in backbone.task_parameters(task)}
    ran = modules_that_ran(backbone, ["green"])

    def some_ran(parameters: set[int]) -> bool:
        return any(
            id(p) in parameters
            for name in ran
            for p in backbone.get_submodule(name).parameters(recurse=False)
        )

    assert some_ran(own)
    assert not some_ran(foreign)
    alone = backbone.eval()(images(), ["green"])
    assert set(alone.per_task) == {"green"}


@pytest.mark.parametrize("make", [MTAN, PADNet, ATINet, distilling, SegNetPerTask])
def test_a_task_gets_the_same_maps_alone_as_in_company(make) -> None:
    backbone, inputs = make(some_tasks(3), width=WIDTH).eval(), images()
    alone = backbone(inputs, ["green"]).of("green")
    company = backbone(inputs, NAMES[:3]).of("green")
    assert all(torch.equal(one, other) for one, other in zip(alone, company, strict=True))


def test_shared_convolutions_of_the_attention_see_each_task_by_itself() -> None:
    backbone = MTAN(some_tasks(3), width=WIDTH)
    backbone(images(), NAMES[:3])
    updates = {
        name: int(buffer)
        for name, buffer in backbone.named_buffers()
        if name.endswith("num_batches_tracked")
    }
    for name, count in updates.items():
        assert count == (3 if "_convs." in name else 1), name


def test_unpooling_is_torchs() -> None:
    pooled, indices = nn.functional.max_pool2d(torch.randn(2, 3, 8, 6), 2, return_indices=True)
    assert torch.equal(unpool(pooled, indices), nn.functional.max_unpool2d(pooled, indices, 2))


def test_head_enlarges_coarse_maps_and_starts_anew() -> None:
    head = ConvHead(some_tasks(1)[0], FeatureInfo((8, 4), (32, 8)))
    coarse = [torch.randn(2, 8, 1, 2), torch.randn(2, 4, 4, 8)]
    before = head(coarse)
    assert before.shape == (2, 2, 32, 64)
    head.reset_parameters()
    assert not torch.equal(head(coarse), before)


def test_initial_weights_are_xavier_normal() -> None:
    convolution, norm, _ = conv_unit(64, 128)
    deviation = (2 / (9 * (64 + 128))) ** 0.5
    assert convolution.weight.std().item() == pytest.approx(deviation, rel=0.02)
    assert convolution.bias.abs().max() == 0
    assert norm.weight.eq(1).all()
    assert norm.bias.eq(0).all()


def test_width_must_be_positive() -> None:
    with pytest.raises(ValueError, match="width -1"):
        SegNet(some_tasks(1), width=-1)
