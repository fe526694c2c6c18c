"""MTAN's attention: per task, masks that pick from the maps of a network all tasks share.

Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019 (arXiv
1803.10704), section 3.2 and figure 2, as its published code does it for SegNet. Over the maps of
another network there is a level for each map; the paper has SegNet and a wide ResNet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.standard.segnet import Decoded, conv, conv_unit
from mtlcore.tasks import Task
from mtlcore_atinet.trunk import Encoded, Layout


def mask_network(channels: int, outputs: int) -> nn.Sequential:
    """Return two 1x1 convolutions with batch norm, whose output is a mask between 0 and 1."""
    return nn.Sequential(
        conv_unit(channels, outputs, kernel=1),
        conv(outputs, outputs, kernel=1),
        nn.BatchNorm2d(outputs),
        nn.Sigmoid(),
    )


class TaskMasks(nn.Module):
    """The mask networks of one task, one per level of the encoder and of the decoder.

    A mask is computed from a shared map and from what this task attended to one level before, put
    together along the channels; at level 0 of the encoder there is nothing before.

    Args:
        layout: of the trunk.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        attended = (0, *layout.encoded[1:])
        read = map(sum, zip(layout.first, attended, strict=True))
        self.encoder = nn.ModuleList(map(mask_network, read, layout.encoded))
        self.decoder = nn.ModuleList(
            mask_network(read + channels, channels)
            for read, channels in zip(layout.joined, layout.decoded, strict=True)
        )


class Attention(nn.Module):
    """The attention branches of all tasks: masks of their own, convolutions between them shared.

    The shared convolutions run once per task, so that their batch norms normalise each task's maps
    by themselves and update their running statistics once per task, as in the published code.

    Args:
        tasks: that get a branch each.
        layout: of the trunk.
    """

    def __init__(self, tasks: Sequence[Task], layout: Layout) -> None:
        super().__init__()
        encoded, decoded = layout.encoded, layout.decoded
        self._keys = {task.name: task.key for task in tasks}
        self._ratios = layout.ratios
        self.masks = nn.ModuleDict({key: TaskMasks(layout) for key in self._keys.values()})
        # A level's attended map becomes one like that of the next level, and the last one's stays.
        self.encoder_convs = nn.ModuleList(map(conv_unit, encoded, (*encoded[1:], encoded[-1])))
        self.decoder_convs = nn.ModuleList(map(conv_unit, (*decoded[1:], encoded[-1]), decoded))

    def forward(self, task: str, encoded: Encoded, decoded: Decoded) -> Tensor:
        """Compute the attended map of a task, of the shape of the finest decoded one."""
        masks = self.masks[self._keys[task]]
        assert isinstance(masks, TaskMasks)
        return self._decode(masks.decoder, decoded, self._encode(masks.encoder, encoded))

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return the parameters of the task's masks."""
        return self.masks[self._keys[task]].parameters()

    def _encode(self, masks: nn.ModuleList, encoded: Encoded) -> Tensor:
        """Attend to the encoder, shallow to deep: a map like the latent one."""
        attended: Tensor | None = None
        levels = zip(
            masks, self.encoder_convs, encoded.first, encoded.full, self._ratios, strict=True
        )
        for mask, unit, first, full, ratio in levels:
            read = first if attended is None else torch.cat((first, attended), dim=1)
            attended = unit(mask(read) * full)
            if ratio > 1:
                attended = F.max_pool2d(attended, ratio)
        assert attended is not None
        return attended

    def _decode(self, masks: nn.ModuleList, decoded: Decoded, attended: Tensor) -> Tensor:
        """Attend to the decoder, deep to shallow, from what was attended to in the encoder."""
        levels = zip(
            masks, self.decoder_convs, decoded.unpooled, decoded.full, self._ratios, strict=True
        )
        for mask, unit, joined, full, ratio in reversed(tuple(levels)):
            if ratio > 1:
                attended = F.interpolate(
                    attended, scale_factor=ratio, mode="bilinear", align_corners=True
                )
            attended = mask(torch.cat((joined, unit(attended)), dim=1)) * full
        return attended
