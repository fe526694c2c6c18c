"""ASTMT's network against its equations, and numbers of parameters."""

from __future__ import annotations

from functools import partial

import attrs
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlcore.errors import UsageError
from mtlcore.models import Backbone, count_parameters
from mtlcore.standard.resnet import ResNet
from mtlcore.standard.unet import UNet
from mtlcore.tasks import Task
from mtlcore.testing import TINY_TASKS
from mtlcore_astmt.backbone import ASTMT
from mtlcore_astmt.layers import Squeeze

NAMES = [task.name for task in TINY_TASKS]
KEYS = [task.key for task in TINY_TASKS]
RESNET = partial(ResNet, depth=18, width=1 / 8, pyramid=True)


@pytest.fixture(autouse=True)
def _a_seed() -> None:
    torch.manual_seed(0)


def normalised(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    mean, variance = norm.running_mean, norm.running_var
    scaled = (x - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
    return scaled * norm.weight[:, None, None] + norm.bias[:, None, None]


def squeezed(x: Tensor, layer: Squeeze) -> Tensor:
    between = (x.mean((2, 3)) @ layer.squeeze.weight.T + layer.squeeze.bias).clamp(min=0)
    weights = 1 / (1 + torch.exp(-(between @ layer.excite.weight.T + layer.excite.bias)))
    return x * weights[:, :, None, None]


def scrambled(network: nn.Module) -> None:
    """Other than their first values, among which are zeros that hide a mistake."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)


def test_a_block_is_that_of_the_equations() -> None:
    """Of two 3x3 convolutions, the first of which strides."""
    backbone = ASTMT(TINY_TASKS, encoder=RESNET, channels=8).eval()
    scrambled(backbone)
    block, key = backbone.encoder.layer2[0], KEYS[1]
    backbone(torch.rand(1, 3, 64, 64), [NAMES[1]])  # the task's pass
    x = torch.randn(2, 8, 10, 12)

    def adapted(layer: nn.Module, x: Tensor, stride: int) -> Tensor:
        shared = F.conv2d(x, layer.shared.weight, stride=stride, padding=1)
        return shared + F.conv2d(x, layer.own[key].weight, stride=stride)

    y = normalised(adapted(block.conv1, x, 2), block.bn1.own[key]).clamp(min=0)
    norms, squeezes = block.bn2
    y = squeezed(normalised(adapted(block.conv2, y, 1), norms.own[key]), squeezes.own[key])
    convolution, norm = block.downsample
    past = normalised(F.conv2d(x, convolution.weight, stride=2), norm.own[key])
    torch.testing.assert_close(block(x), (y + past).clamp(min=0))


def test_the_decoder_is_that_of_the_equations() -> None:
    backbone = ASTMT(TINY_TASKS, encoder=RESNET, channels=32).eval()
    scrambled(backbone)
    decoder, key = backbone.decoder, KEYS[2]
    deep, fine = torch.randn(2, 64, 2, 3), torch.randn(2, 8, 16, 24)
    backbone(torch.rand(1, 3, 64, 64), [NAMES[2]])  # the task's pass

    def unit(layer: nn.Sequential, x: Tensor, dilation: int = 1, *, adapted: bool = True) -> Tensor:
        first, norms, _, squeezes = layer
        weight = first.shared.weight if adapted else first.weight
        y = F.conv2d(x, weight, padding=dilation * (weight.shape[-1] // 2), dilation=dilation)
        if adapted:
            y = y + F.conv2d(x, first.own[key].weight)
        return squeezed(normalised(y, norms.own[key]).clamp(min=0), squeezes.own[key])

    # At a stride of 32 the dilations of 6, 12 and 18 at 16 are halved.
    pooled = [
        unit(layer, deep, rate) for layer, rate in zip(decoder.branches, (1, 3, 6, 9), strict=True)
    ]
    mean = unit(decoder.mean, deep.mean((2, 3), keepdim=True), adapted=False)
    joined = unit(decoder.join, torch.cat([*pooled, mean.expand(-1, -1, 2, 3)], 1))
    joined = F.interpolate(joined, (16, 24), mode="bilinear", align_corners=False)
    y = torch.cat([joined, unit(decoder.fine, fine)], 1)
    expected = unit(decoder.last, unit(decoder.both, y))
    torch.testing.assert_close(decoder(deep, fine), expected)
    assert decoder.fine[0].shared.out_channels == 48 * 32 // 256


def test_numbers_of_parameters() -> None:
    """Of the published network on a ResNet-50: widths of 64, reductions of 16, and of 4 on 12."""
    resnet = partial(ResNet, depth=50, output_stride=16, pyramid=True)
    with torch.device("meta"):
        backbone = ASTMT(TINY_TASKS, encoder=resnet)

    def squeeze(channels: int, reduction: int = 16) -> int:
        between = channels // reduction
        return 2 * channels * between + between + channels

    stages = list(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True))
    adapters = sum(n * c * c for c, n in stages)
    # Of bottlenecks, and of the shortcut of the first one of a stage.
    norms = sum(2 * (n * (c + c + 4 * c) + 4 * c) for c, n in stages)
    squeezes = sum(n * squeeze(4 * c) for c, n in stages)
    decoder = 5 * 2048 * 64 - 2048 * 64 + 320 * 64 + 256 * 12 + 76 * 64 + 64 * 64
    decoder += 2 * (8 * 64 + 12) + 8 * squeeze(64) + squeeze(12, 4)
    own = adapters + norms + squeezes + decoder
    assert count_parameters(backbone.task_parameters(NAMES[0])) == own
    shared = 2048 * 64 * (1 + 3 * 9 + 1) + 320 * 64 + 256 * 12 + 9 * 76 * 64 + 9 * 64 * 64
    whole = 23_508_032 + shared + len(TINY_TASKS) * own - norms
    assert count_parameters(backbone.parameters()) == whole


def test_at_first_a_task_adds_nothing_to_a_convolution() -> None:
    backbone = ASTMT(TINY_TASKS, encoder=RESNET, channels=8)
    for name, parameter in backbone.named_parameters():
        if ".own." in name and name.endswith(f"{KEYS[0]}.weight") and parameter.dim() == 4:
            assert not bool(parameter.any()), name
    assert backbone.decoder.both[0].shared.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_squeeze_and_excitation_of_the_encoder_is_copied() -> None:
    class Squeezing(Backbone):
        """A ResNet whose branches end with a module that is no norm."""

        def __init__(self, tasks: object) -> None:
            super().__init__()
            self.inner = RESNET(tasks)
            for block in self.inner.residual_blocks():
                module = self.inner.get_submodule(block.name)
                module.bn2 = nn.Sequential(module.bn2, Squeeze(block.channels, 4))
            for name in ("out_channels", "strides", "main_map", "input_multiple"):
                setattr(self, name, getattr(self.inner, name))

        def forward(self, inputs, tasks):
            return self.inner(inputs, tasks)

        def residual_blocks(self):
            return [
                attrs.evolve(block, name=f"inner.{block.name}", last=f"inner.{block.last}.1")
                for block in self.inner.residual_blocks()
            ]

    backbone = ASTMT(TINY_TASKS, encoder=Squeezing, channels=8)
    copied = backbone.encoder.inner.layer1[0].bn2[1]
    assert set(copied.own) == set(KEYS)
    first, second = (copied.own[key].squeeze.weight for key in KEYS[:2])
    assert first is not second
    assert torch.equal(first, second)


def test_what_is_a_tasks_own_learns_as_many_times_faster_as_there_are_tasks() -> None:
    backbone = ASTMT(TINY_TASKS, encoder=RESNET, channels=8)
    (group,) = backbone.parameter_groups()
    own = {id(p) for name in NAMES for p in backbone.task_parameters(name)}
    assert {id(p) for p in group["params"]} == own
    assert group["lr_scale"] == len(NAMES)
    assert not list(ASTMT(TINY_TASKS[:1], encoder=RESNET, channels=8).parameter_groups())


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (partial(UNet, width=1 / 32, decoder="none"), "UNet names no residual blocks"),
        (partial(ResNet, depth=18, width=1 / 8), "ResNet gives no maps of two strides"),
    ],
)
def test_what_cannot_be_attended_to_is_refused(encoder: object, message: str) -> None:
    tasks = [Task(name="depth", kind="depth", channels=1)]
    with pytest.raises(UsageError, match=rf"model\.backbone\.encoder: {message}"):
        ASTMT(tasks, encoder=encoder)
