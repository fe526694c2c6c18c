"""MTAN's attention: per task, masks that pick from the maps of a network all tasks share.

Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019 (arXiv
1803.10704), section 3.2 and figure 2, as its published code does it for SegNet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.standard.segnet import Decoded, Encoded, conv, conv_unit, filters_of
from mtlcore.tasks import Task


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
        filters: of the SegNet, per level.
    """

    def __init__(self, filters: Sequence[int]) -> None:
        super().__init__()
        shallower = (filters[0], *filters[:-1])
        read = (filters[0], *(2 * channels for channels in filters[1:]))
        self.encoder = nn.ModuleList(map(mask_network, read, filters))
        self.decoder = nn.ModuleList(
            mask_network(f + g, g) for f, g in zip(filters, shallower, strict=True)
        )


class Attention(nn.Module):
    """The attention branches of all tasks: masks of their own, convolutions between them shared.

    The shared convolutions run once per task, so that their batch norms normalise each task's maps
    by themselves and update their running statistics once per task, as in the published code.

    Args:
        tasks: that get a branch each.
        width: the SegNet's.
    """

    def __init__(self, tasks: Sequence[Task], width: float) -> None:
        super().__init__()
        filters = filters_of(width)
        self._keys = {task.name: task.key for task in tasks}
        self.masks = nn.ModuleDict({key: TaskMasks(filters) for key in self._keys.values()})
        self.encoder_convs = nn.ModuleList(map(conv_unit, filters, (*filters[1:], filters[-1])))
        self.decoder_convs = nn.ModuleList(map(conv_unit, filters, (filters[0], *filters[:-1])))

    def forward(self, task: str, encoded: Encoded, decoded: Decoded) -> Tensor:
        """Compute the attended map of a task, (B, f, H, W), f the filters of level 0."""
        masks = self.masks[self._keys[task]]
        assert isinstance(masks, TaskMasks)
        return self._decode(masks.decoder, decoded, self._encode(masks.encoder, encoded))

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return the parameters of the task's masks."""
        return self.masks[self._keys[task]].parameters()

    def _encode(self, masks: nn.ModuleList, encoded: Encoded) -> Tensor:
        """Attend to the encoder, shallow to deep: a map like the latent one."""
        attended: Tensor | None = None
        levels = zip(masks, self.encoder_convs, encoded.first, encoded.full, strict=True)
        for mask, unit, first, full in levels:
            read = first if attended is None else torch.cat((first, attended), dim=1)
            attended = F.max_pool2d(unit(mask(read) * full), 2)
        assert attended is not None
        return attended

    def _decode(self, masks: nn.ModuleList, decoded: Decoded, attended: Tensor) -> Tensor:
        """Attend to the decoder, deep to shallow, from what was attended to in the encoder."""
        levels = zip(masks, self.decoder_convs, decoded.unpooled, decoded.full, strict=True)
        for mask, unit, unpooled, full in reversed(tuple(levels)):
            larger = F.interpolate(attended, scale_factor=2, mode="bilinear", align_corners=True)
            attended = mask(torch.cat((unpooled, unit(larger)), dim=1)) * full
        return attended
