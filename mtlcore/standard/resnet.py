"""ResNet, dilated where a finer map is wanted, with parameters named as torchvision names them.

He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv
1512.03385), with the stride of a bottleneck in its 3x3 convolution, as torchvision and most
published weights have it. For an output stride of 8 or 16 the last stages dilate their convolutions
instead of striding (Yu, Koltun and Funkhouser, "Dilated Residual Networks", CVPR 2017), so that the
map has more places, and the values at every second (fourth) of them are those of the plain network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.errors import MtlError
from mtlcore.features import Features
from mtlcore.loading import WeightFile, read_weight_file
from mtlcore.models import Backbone, ExchangePoint, ResidualBlock
from mtlcore.ranges import Width
from mtlcore.standard.segnet import scaled
from mtlcore.tasks import Task

CHANNELS = (64, 128, 256, 512)
"""Inner channels of the four stages at width 1."""

# Published weights were trained on images in [0, 1] that were normalised by these.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection.

    Args:
        channels: of its input.
        inner: channels of its output.
        stride: of the first convolution.
        entering: dilation of the first convolution, that of the stage before.
        dilation: of the second one.
    """

    expansion = 1

    def __init__(
        self, channels: int, inner: int, stride: int, entering: int, dilation: int
    ) -> None:
        super().__init__()
        self.conv1 = _conv(channels, inner, 3, stride, entering)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = _conv(inner, inner, 3, 1, dilation)
        self.bn2 = nn.BatchNorm2d(inner)
        self.downsample = _shortcut(channels, inner, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Compute (B, channels, H, W) -> (B, inner, H / stride, W / stride)."""
        past = maps if self.downsample is None else self.downsample(maps)
        maps = F.relu(self.bn1(self.conv1(maps)), inplace=True)
        return F.relu(self.bn2(self.conv2(maps)) + past, inplace=True)


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution with a residual connection.

    Args:
        channels: of its input.
        inner: channels between the convolutions; its output has four times as many.
        stride: of the 3x3 convolution.
        entering: dilation of the 3x3 convolution.
        dilation: of the stage; nothing here follows the 3x3 convolution that would need it.
    """

    expansion = 4

    def __init__(
        self, channels: int, inner: int, stride: int, entering: int, dilation: int
    ) -> None:
        super().__init__()
        self.conv1 = _conv(channels, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = _conv(inner, inner, 3, stride, entering)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = _conv(inner, self.expansion * inner, 1)
        self.bn3 = nn.BatchNorm2d(self.expansion * inner)
        self.downsample = _shortcut(channels, self.expansion * inner, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Compute (B, channels, H, W) -> (B, 4 inner, H / stride, W / stride)."""
        past = maps if self.downsample is None else self.downsample(maps)
        maps = F.relu(self.bn1(self.conv1(maps)), inplace=True)
        maps = F.relu(self.bn2(self.conv2(maps)), inplace=True)
        return F.relu(self.bn3(self.conv3(maps)) + past, inplace=True)


_LAYOUTS: dict[int, tuple[type[BasicBlock | Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(Backbone):
    """ResNet without its classifier, shared by all tasks; its map is that of the last stage.

    With `pyramid` it gives the maps of all four stages, the deepest first, for a neck or a head
    that reads several; a head of one map reads the deepest one then as before.

    Inputs are images in [0, 1]; the network subtracts ImageNet's mean and divides by its standard
    deviation itself, with and without pretrained weights. At width 1 it has 11,176,512 parameters
    (depth 18), 21,284,672 (34), 23,508,032 (50) or 42,500,160 (101), whatever the output stride.

    Args:
        depth: number of layers with weights; 18 and 34 give 512 channels, 50 and 101 give 2048.
        output_stride: height of the input divided by that of the map; below 32 the last stages are
            dilated.
        weights: path or fsspec URL of pretrained weights under torchvision's names: safetensors, or
            a state dict, or a checkpoint that holds one, which `torch.load` reads with
            `weights_only`. The classifier (`fc`) is ignored. Unset: random weights, as in
            torchvision (Kaiming normal, fan out).
        width: factor on all numbers of channels; published weights need 1.
        pyramid: whether the maps of the first three stages are given as well.

    Raises:
        MtlError: the weights cannot be read, or a key is missing, unknown or of another shape.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential
    mean: Tensor
    std: Tensor

    main_map = 0
    input_kind = "image"
    first_weights = ("weights",)

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        depth: Literal[18, 34, 50, 101] = 50,
        output_stride: Literal[8, 16, 32] = 32,
        weights: str | None = None,
        width: Width = 1.0,
        pyramid: bool = False,
    ) -> None:
        super().__init__()
        block, counts = _LAYOUTS[depth]
        inner = [scaled(channels, width) for channels in CHANNELS]
        self.conv1 = nn.Conv2d(3, inner[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(inner[0])
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels, reached, dilation = inner[0], 4, 1
        given: list[tuple[int, int]] = []
        for number, (size, count) in enumerate(zip(inner, counts, strict=True)):
            stride, entering = 1 if number == 0 else 2, dilation
            if reached * stride > output_stride:
                stride, dilation = 1, 2 * dilation
            reached *= stride
            blocks = [block(channels, size, stride, entering, dilation)]
            channels = block.expansion * size
            blocks += [block(channels, size, 1, dilation, dilation) for _ in range(count - 1)]
            setattr(self, f"layer{number + 1}", nn.Sequential(*blocks))
            given.insert(0, (channels, reached))
        self._stages = tuple(channels for channels, _ in reversed(given))
        self._given = len(given) if pyramid else 1
        self.out_channels = tuple(channels for channels, _ in given[: self._given])
        self.strides = tuple(stride for _, stride in given[: self._given])
        self.input_multiple = output_stride
        # Not part of the state: files of weights have no such names.
        self.register_buffer("mean", torch.tensor(MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).reshape(3, 1, 1), persistent=False)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        file = None if weights is None else read_weight_file(weights)
        if file is not None:
            _load_weights(self, file)
        self._weight_facts = {} if file is None else file.facts

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        """Compute the maps (B, c, H / s, W / s) of images (B, 3, H, W) in [0, 1]."""
        maps = (inputs - self.mean) / self.std
        maps = F.relu(self.bn1(self.conv1(maps)), inplace=True)
        maps = self.maxpool(maps)
        found: list[Tensor] = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps = stage(maps)
            found.insert(0, maps)
        # Of several maps, each comes from the next one: the core separates heads where they read.
        return Features(shared=tuple(found[: self._given]), cut=(maps,) if self._given == 1 else ())

    def facts(self) -> Mapping[str, str]:
        """Return where the weights came from, and what images are normalised by."""
        return {**self._weight_facts, "normalisation": f"mean {MEAN}, std {STD}"}

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the last convolution of the last block."""
        block = self.layer4[-1]
        return block.get_submodule("conv3" if hasattr(block, "conv3") else "conv2").parameters()

    def exchange_points(self) -> list[ExchangePoint]:
        """Return the maps of the stem after pooling and of the four stages."""
        stem = (*self.conv1.parameters(), *self.bn1.parameters())
        channels = (self.conv1.out_channels, *self._stages)
        modules = (self.maxpool, self.layer1, self.layer2, self.layer3, self.layer4)
        return [
            ExchangePoint(module=module, channels=number, parameters=parameters)
            for module, number, parameters in zip(
                modules, channels, (stem, *((*m.parameters(),) for m in modules[1:])), strict=True
            )
        ]

    def residual_blocks(self) -> list[ResidualBlock]:
        """Return the blocks of all stages."""
        found = []
        for number, channels in enumerate(self._stages, start=1):
            for place, block in enumerate(getattr(self, f"layer{number}")):
                name = f"layer{number}.{place}"
                last = "bn3" if hasattr(block, "bn3") else "bn2"
                shortcut = None if block.downsample is None else f"{name}.downsample"
                found.append(
                    ResidualBlock(
                        name=name, last=f"{name}.{last}", channels=channels, shortcut=shortcut
                    )
                )
        return found

    def layer_groups(self) -> list[list[Parameter]]:
        """Return the stem, and each residual block."""
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        blocks = [list(block.parameters()) for stage in stages for block in stage]
        return [[*self.conv1.parameters(), *self.bn1.parameters()], *blocks]


def _conv(
    channels: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1
) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    return nn.Conv2d(channels, outputs, kernel, stride, padding, dilation, bias=False)


def _shortcut(channels: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels == outputs:
        return None
    return nn.Sequential(_conv(channels, outputs, 1, stride), nn.BatchNorm2d(outputs))


def _load_weights(network: nn.Module, file: WeightFile) -> None:
    own, where = network.state_dict(), file.source
    loaded = {key: value for key, value in file.tensors.items() if not key.startswith("fc.")}
    # Files older than the counter of batches lack it, and nothing here reads it.
    missing = [k for k in own if k not in loaded and not k.endswith("num_batches_tracked")]
    unknown = [k for k in loaded if k not in own]
    misshaped = [k for k in loaded if k in own and loaded[k].shape != own[k].shape]
    if missing:
        raise MtlError(f"{where}: {_listed(missing)} missing; is it for another depth?")
    if unknown:
        raise MtlError(f"{where}: {_listed(unknown)} unknown here; is it for another depth?")
    if misshaped:
        key = misshaped[0]
        raise MtlError(
            f"{where}: {_listed(misshaped)} of another shape: {tuple(loaded[key].shape)} where "
            f"{tuple(own[key].shape)} was expected"
        )
    network.load_state_dict({**own, **loaded})


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - 1} more are" if len(keys) > 1 else " is"
    return f"{keys[0]!r}{more}"
