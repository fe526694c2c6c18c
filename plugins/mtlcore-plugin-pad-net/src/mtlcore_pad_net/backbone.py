"""PAD-Net: intermediate predictions of every task, and distillation between what they are made of.

Xu, Ouyang, Wang and Sebe, "PAD-Net: Multi-Tasks Guided Prediction-and-Distillation Network for
Simultaneous Depth Estimation and Scene Parsing", CVPR 2018 (arXiv 1805.04409), with the layers of
Vandenhende et al., "Multi-Task Learning for Dense Prediction Tasks: A Survey", TPAMI 2021 (arXiv
2004.13379), whose code its numbers of parameters come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Annotated, final

from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.errors import UsageError
from mtlcore.features import EarlyPrediction, FeatureInfo, Features
from mtlcore.models import Backbone, WrappingBackbone, shared_maps
from mtlcore.ranges import Channels, Nested
from mtlcore.standard.decoders import HRNetFusion
from mtlcore.standard.messages import final_tasks
from mtlcore.standard.resnet import Bottleneck
from mtlcore.tasks import Task
from mtlcore_pad_net.distillation import Module, make_distillation
from mtlcore_pad_net.heads import bottleneck


@final
class PADNet(WrappingBackbone):
    """PAD-Net over the maps of any encoder.

    All maps of the encoder at the finest stride are joined (`HRNetFusion`); a single one is read as
    it is. Of that each task computes a map of its own by two bottlenecks, from which a 1x1
    convolution makes the intermediate prediction, whose loss counts as much as that of the final
    one. A final task then receives messages made of the maps of all others; its head reads the sum.
    The map is the task's own (`channels`, the encoder's finest stride).

    An auxiliary task is only there to send messages: its head reads its map before distillation,
    and what the head predicts is its intermediate prediction; there is no other. With the head
    `pointwise` that is the published network.

    Args:
        tasks: of the run.
        backbone: the encoder, any backbone whose maps all tasks share, with its settings, such as
            {name = "resnet", output_stride = 8}.
        auxiliary: names of the tasks that are predicted on the way only; the others are final.
        distillation: "c": every message has a gate that reads the map that is sent; "c-receiver":
            a gate for all messages reads the map of the task that receives; "b": messages without
            gates; "a": all maps side by side, projected to `channels`.
        channels: of every task's map, a multiple of four.

    Raises:
        UsageError: an auxiliary task that the run has not, no final task, channels that bottlenecks
            cannot have, or an encoder without maps.
    """

    reads_through = "backbone"

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        backbone: Annotated[Callable[[Sequence[Task]], Backbone], Nested("backbones")],
        auxiliary: tuple[str, ...] = (),
        distillation: Module = "c",
        channels: Channels = 256,
    ) -> None:
        super().__init__()
        finals = final_tasks(tasks, auxiliary)
        if channels % Bottleneck.expansion:
            raise UsageError(
                f"model.backbone.channels: {channels} must be a multiple of "
                f"{Bottleneck.expansion}, as a bottleneck has a part of them inside"
            )
        self.encoder = backbone(tasks)
        self.input_kind = self.encoder.input_kind
        self.input_multiple = self.encoder.input_multiple
        info = FeatureInfo.of(self.encoder)
        self._places = info.pyramid
        if self.input_kind != "image" or not self._places:
            raise UsageError(
                f"model.backbone.backbone: {type(self.encoder).__name__} gives no maps to predict "
                "from; choose a backbone of images (mtl list backbones)"
            )
        self.fusion = HRNetFusion(info) if len(self._places) > 1 else None
        inputs = sum(info.channels[place] for place in self._places)
        self.out_channels, self.strides = (channels,), (info.strides[self._places[-1]],)
        self._keys = {task.name: task.key for task in tasks}
        self._finals = tuple(task.name for task in finals)
        self.branches = nn.ModuleDict(
            {
                key: nn.Sequential(bottleneck(inputs, channels), bottleneck(channels, channels))
                for key in self._keys.values()
            }
        )
        self.initial = nn.ModuleDict(
            {task.key: nn.Conv2d(channels, task.channels, 1) for task in finals}
        )
        self.distillation = make_distillation(distillation, tasks, finals, channels)

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        """Compute the features of images (B, 3, H, W), sides multiples of `input_multiple`.

        The cut is the map of every task, of which predictions and messages are made; there is none
        where the encoder predicts early.

        Raises:
            UsageError: the encoder gives tasks maps of their own.
        """
        found: Features = self.encoder(inputs, tasks)
        shared = shared_maps("model.backbone.backbone", self.encoder, found)
        fused = shared[self._places[0]]
        if self.fusion is not None:
            (fused,) = self.fusion(shared)
        final = [task for task in tasks if task in self._finals]
        maps = {
            task: self.branches[key](fused)
            for task, key in self._keys.items()
            if final or task in tasks
        }
        own = {
            task: (self.distillation(task, maps) if task in final else maps[task],)
            for task in tasks
        }
        cut = () if found.early else tuple(maps.values())
        if not self.training:
            return Features(per_task=own, cut=cut)
        early = {task: list(several) for task, several in found.early.items()}
        for task in final:
            prediction = EarlyPrediction(self.initial[self._keys[task]](maps[task]))
            early.setdefault(task, []).append(prediction)
        return Features(per_task=own, cut=cut, early=early, terms=found.terms)

    def wrapped(self) -> Sequence[Backbone]:
        """Return the encoder."""
        return (self.encoder,)

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return what only the task's loss reaches.

        That is its part of the encoder, its intermediate prediction, the messages that it receives,
        and its branch if no final task but itself reads the map.
        """
        key = self._keys[task]
        own = [self.encoder.task_parameters(task)]
        if task in self._finals:
            own += [self.initial[key].parameters(), self.distillation.parameters_into(task)]
        if not self._is_read(task):
            own.append(self.branches[key].parameters())
        return chain.from_iterable(own)

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the last convolution of every branch that several tasks reach.

        A lone task shares nothing; then they are those of the encoder.
        """
        shared = [key for task, key in self._keys.items() if self._is_read(task)]
        if not shared:
            return self.encoder.last_shared_parameters()
        last = [self.branches[key].get_submodule("1.conv3") for key in shared]
        return chain.from_iterable(convolution.parameters() for convolution in last)

    def _is_read(self, task: str) -> bool:
        """Return whether a final task other than this one receives messages made of its map."""
        return any(other != task for other in self._finals)
