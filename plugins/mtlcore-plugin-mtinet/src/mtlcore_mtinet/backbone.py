"""MTI-Net: tasks exchange at every scale, and hand what they know to the next finer one.

Vandenhende, Georgoulis and Van Gool, "MTI-Net: Multi-Scale Task Interaction Networks for Multi-Task
Learning", ECCV 2020 (arXiv 2001.06902), with the layers of the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Annotated, cast, final

from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.errors import UsageError
from mtlcore.features import EarlyPrediction, FeatureInfo, Features
from mtlcore.models import Backbone, WrappingBackbone, shared_maps
from mtlcore.ranges import Channels, Nested
from mtlcore.standard.messages import final_tasks
from mtlcore.tasks import Task
from mtlcore_mtinet.pyramid import FeaturePyramid
from mtlcore_mtinet.scale import Scale


@final
class MTINet(WrappingBackbone):
    """Multi-Scale Task Interaction Network over the maps of any encoder that gives several.

    At each scale, from the deepest to the finest, every task computes a map of its own of the
    encoder's and, enlarged, of what the next deeper scale handed to it, by two residual blocks; a
    1x1 convolution makes the initial prediction of that scale, whose loss counts as much as that of
    the final one. The maps of all tasks are mixed and handed on to the next finer scale
    (`FeaturePropagation`), and at each scale a final task receives gated messages made of the maps
    of all others. Its head reads the results of all scales: the maps have the encoder's channels
    and strides, the deepest first; a head of one map reads the finest.

    An auxiliary task is only there to help: its head reads its maps before the messages, and what
    the head predicts is its initial prediction at the finest scale. With the head `pointwise` that
    is the published network.

    What is mixed depends on the number of tasks, so that no task can be added to a trained network.

    Args:
        tasks: of the run.
        backbone: the encoder, any backbone with maps of several strides that all tasks share, with
            its settings, such as {name = "resnet", depth = 18, pyramid = true}.
        auxiliary: names of the tasks that are predicted on the way only; the others are final.
        fpn: channels of a feature pyramid network which the encoder's maps pass first, as those of
            a ResNet do; unset: they are read as they are, as those of HRNet are.

    Raises:
        UsageError: an auxiliary task that the run has not, no final task, or an encoder that has
            not maps of several strides.
    """

    reads_through = "backbone"

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        backbone: Annotated[Callable[[Sequence[Task]], Backbone], Nested("backbones")],
        auxiliary: tuple[str, ...] = (),
        fpn: Channels | None = None,
    ) -> None:
        super().__init__()
        finals = final_tasks(tasks, auxiliary)
        self.encoder = backbone(tasks)
        self.input_kind = self.encoder.input_kind
        self.input_multiple = self.encoder.input_multiple
        info = FeatureInfo.of(self.encoder)
        self._places = info.pyramid
        self.strides = tuple(info.strides[place] for place in self._places)
        if self.input_kind != "image" or len(set(self.strides)) < 2:
            raise UsageError(
                f"model.backbone.backbone: {type(self.encoder).__name__} gives no maps of several "
                "strides, and MTI-Net has a scale for each; let it give a pyramid (resnet: "
                "model.backbone.backbone.pyramid=true), or choose another encoder"
            )
        channels = tuple(info.channels[place] for place in self._places)
        self.fpn = None if fpn is None else FeaturePyramid(channels, fpn)
        self.out_channels = channels if fpn is None else (fpn,) * len(channels)
        self._tasks = tuple(task.name for task in tasks)
        self._finals = tuple(task.name for task in finals)
        last = len(channels) - 1
        self.scales = nn.ModuleList(
            Scale(
                tasks,
                finals,
                # An auxiliary task's finest prediction is its head's.
                finals if number == last else tasks,
                self.out_channels[number],
                self.out_channels[number - 1] if number else 0,
                finest=number == last,
            )
            for number in range(len(channels))
        )

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        """Compute the features of images (B, 3, H, W), sides multiples of `input_multiple`.

        The cut is the map of every task at every scale, or rather a view of it, of which
        predictions and messages are made, while the next scale reads the map itself. There is none
        where the encoder predicts early.

        Raises:
            UsageError: the encoder gives tasks maps of their own.
        """
        found: Features = self.encoder(inputs, tasks)
        shared = shared_maps("model.backbone.backbone", self.encoder, found)
        encoded: Sequence[Tensor] = [shared[place] for place in self._places]
        if self.fpn is not None:
            encoded = self.fpn(encoded)
        final = [task for task in tasks if task in self._finals]
        # Only final tasks read maps of others; deeper ones are also handed on, mixed.
        heard = [task for task in self._tasks if final or task in tasks]
        own: dict[str, list[Tensor]] = {task: [] for task in tasks}
        early = {task: list(several) for task, several in found.early.items()}
        handed: dict[str, Tensor] = {}
        cut: list[Tensor] = []
        for number, (scale, here) in enumerate(zip(self._scales, encoded, strict=True)):
            maps = scale.maps(here, handed, heard if scale.propagate is None else self._tasks)
            read = {task: x.view_as(x) for task, x in maps.items() if task in heard}
            cut += read.values()
            for task in tasks:
                own[task].append(scale.messages(task, read) if task in final else read[task])
                prediction = scale.predict(task, read) if self.training else None
                if prediction is not None:
                    early.setdefault(task, []).append(EarlyPrediction(prediction))
            if scale.propagate is not None:
                next_is_finest = number == len(encoded) - 2
                handed = scale.propagate(maps, heard if next_is_finest else self._tasks)
        per_task = {task: tuple(maps_of_task) for task, maps_of_task in own.items()}
        return Features(
            per_task=per_task, cut=() if found.early else tuple(cut), early=early, terms=found.terms
        )

    def wrapped(self) -> Sequence[Backbone]:
        """Return the encoder."""
        return (self.encoder,)

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return what only the task's loss reaches.

        That is its part of the encoder, its initial predictions and the messages that it receives.
        Its map of the finest scale, and what it is handed there, are its own if no final task but
        itself reads the map; a lone task has everything that is not the encoder's.
        """
        own = [self.encoder.task_parameters(task)]
        if len(self._tasks) == 1:
            return chain(*own, *(part.parameters() for part in self._behind_the_encoder()))
        for scale in self._scales:
            own.append(scale.parameters_of_predictions(task))
            if task in self._finals:
                own.append(scale.messages.parameters_into(task))
        if not self._is_read(task):
            *_, above, finest = self._scales
            own += [finest.refining(task).parameters(), above.parameters_of_handing(task)]
        return chain.from_iterable(own)

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the last convolution of every map that several tasks reach.

        A lone task shares nothing but what it shares in the encoder.
        """
        if len(self._tasks) == 1:
            return self.encoder.last_shared_parameters()
        last = [
            scale.refining(task).get_submodule("1.conv2")
            for scale in self._scales
            for task in self._tasks
            if scale.propagate is not None or self._is_read(task)
        ]
        return chain.from_iterable(convolution.parameters() for convolution in last)

    @property
    def _scales(self) -> list[Scale]:
        return cast(list[Scale], [*self.scales])

    def _behind_the_encoder(self) -> list[nn.Module]:
        return [self.scales] if self.fpn is None else [self.fpn, self.scales]

    def _is_read(self, task: str) -> bool:
        """Return whether a final task other than this one receives messages made of its map."""
        return any(other != task for other in self._finals)
