"""ASTMT: one forward pass for each task, in which shared layers attend to what the task needs.

Maninis, Radosavovic and Kokkinos, "Attentive Single-Tasking of Multiple Tasks", CVPR 2019 (arXiv
1904.08918).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, final

from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo
from mtlcore.models import (
    Backbone,
    BackbonePerTask,
    ConditionedBackbone,
    LayerPerTask,
    ParallelAdapters,
    adaptable,
    copies,
)
from mtlcore.ranges import Channels, Count
from mtlcore.tasks import Task
from mtlcore_astmt.decoder import Decoder
from mtlcore_astmt.layers import squeezes


@final
class ASTMT(ConditionedBackbone):
    """A pass per task through a residual encoder and a decoder whose convolutions all tasks share.

    In every residual block of the encoder, task t has

    * beside each 3x3 convolution C an adapter, `C(x) + A_t(x)`, a 1x1 convolution that begins as 0;
    * batch norms of its own, which begin as those of the encoder, statistics included;
    * squeeze and excitation on the branch before it is added to the shortcut; one that the encoder
      has (`seresnet50` of timm) is copied for each task, weights included.

    What comes before the blocks is shared as it is. In the decoder, DeepLabV3+'s, the same follows
    every convolution, squeeze and excitation after ReLU. Its map is the task's own; a 1x1
    convolution (`model.head.name = "pointwise"`) predicts of it, as published. Time and memory of a
    step grow with the number of tasks.

    What a task has for itself learns at the run's rate times the number of tasks.

    Args:
        encoder: the backbone inside, with its settings, such as {name = "resnet", depth = 50,
            output_stride = 16, pyramid = true}. It must name its residual blocks and give maps of
            two strides at least, of which the deepest and the finest one are read.
        channels: of the decoder's map; the published ones are 64.
        reduction: channels divided by the values in the middle of squeeze and excitation.

    Raises:
        UsageError: the encoder names no residual blocks, gives too few maps, or computes maps again
            in the backward pass.
    """

    reads_through = "encoder"

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        encoder: BackbonePerTask,
        channels: Channels = 64,
        reduction: Count = 16,
    ) -> None:
        super().__init__(tasks, "model.backbone.encoder", encoder)
        info = FeatureInfo.of(self.encoder)
        places = info.pyramid
        name = type(self.encoder).__name__
        if len(places) < 2 or info.strides[places[0]] == info.strides[places[-1]]:
            raise UsageError(
                f"model.backbone.encoder: {name} gives no maps of two strides; set pyramid=true of "
                "a resnet, or choose an encoder in stages"
            )
        self._deep, self._fine = places[0], places[-1]
        self.put(_layers(tasks, self.encoder, reduction))
        self.decoder = Decoder(
            tasks,
            (info.channels[self._deep], info.strides[self._deep]),
            info.channels[self._fine],
            channels,
            reduction,
        )
        self.out_channels, self.strides = (channels,), (info.strides[self._fine],)
        self.main_map = -1
        self.train(self.training)

    def decode(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the decoder's map."""
        return (self.decoder(maps[self._deep], maps[self._fine]),)

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return the weights of the decoder's last convolution."""
        return self.decoder.last_parameters()

    def parameter_groups(self) -> Iterator[dict[str, Any]]:
        """Yield what is a task's own, which learns as many times faster as there are tasks."""
        own = [layer.own for layer in self._task_layers()]
        parameters = [p for parts in own for p in parts.parameters() if p.requires_grad]
        if len(self._keys) > 1:
            yield {"params": parameters, "lr_scale": float(len(self._keys))}


def _layers(tasks: Sequence[Task], encoder: Backbone, reduction: int) -> dict[str, nn.Module]:
    """Return the layers that take the place of those in the encoder's residual blocks.

    Raises:
        UsageError: it names no residual blocks.
    """
    blocks = encoder.residual_blocks()
    if not blocks:
        raise UsageError(
            f"model.backbone.encoder: {type(encoder).__name__} names no residual blocks, in which "
            "tasks attend to channels; choose a ResNet, such as resnet or one of timm"
        )
    layers: dict[str, nn.Module] = {}
    for block in blocks:
        for inner, module in encoder.get_submodule(block.name).named_modules(prefix=block.name):
            if adaptable(module):
                layers[inner] = ParallelAdapters(tasks, module, nn.init.zeros_)
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                layers[inner] = LayerPerTask(copies(tasks, module))
        last = layers.get(block.last)
        if last is None:
            layers[block.last] = LayerPerTask(copies(tasks, encoder.get_submodule(block.last)))
        else:
            layers[block.last] = nn.Sequential(last, squeezes(tasks, block.channels, reduction))
    return layers
