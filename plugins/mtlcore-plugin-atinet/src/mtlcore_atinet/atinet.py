"""ATI-Net: MTAN with features of the tasks exchanged between encoder and decoder.

Sinodinos and Armanfard, "Attentive Task Interaction Network for Multi-Task Learning", ICPR 2022
(arXiv 2201.10649).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain, pairwise
from typing import Literal, final

from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.features import Features
from mtlcore.models import Transition, joined
from mtlcore.ranges import Fraction, Width
from mtlcore.standard.messages import Gate, Messages
from mtlcore.standard.segnet import conv, conv_unit, initialise, scaled
from mtlcore.tasks import Task
from mtlcore_atinet.attention import Attention
from mtlcore_atinet.trunk import Encoder, TrunkBackbone, trunk_of

STACK = (1, 1 / 2, 1 / 4, 1 / 8)
"""Parts of the latent map's channels through which a task reads it, and backwards returns to it.

Published: 512, 256, 128 and 64 channels.
"""


def _stacks(tasks: Sequence[Task], channels: Sequence[int]) -> nn.ModuleDict:
    """Per task a stack of 1x1 conv units through these channels."""
    return nn.ModuleDict(
        {
            task.key: nn.Sequential(*(conv_unit(c, d, kernel=1) for c, d in pairwise(channels)))
            for task in tasks
        }
    )


class LatentDistillation(nn.Module):
    """The tasks read the latent map, exchange features, and write one map back.

    Args:
        tasks: that take part, always all of them: the result is their mean.
        latent: channels of the map.
    """

    def __init__(self, tasks: Sequence[Task], latent: int) -> None:
        super().__init__()
        channels = [scaled(latent, part) for part in STACK]
        self._keys = {task.name: task.key for task in tasks}
        self.read = _stacks(tasks, channels)
        # The paper has them "concatenated and summed"; as in its code that is a sum per element.
        self.gates = Messages(tasks, tasks, partial(Gate, channels[-1], conv))
        self.write = _stacks(tasks, channels[::-1])

    def forward(self, latent: Tensor) -> Tensor:
        """Return a map of the shape of the latent one."""
        maps = {task: self.read[key](latent) for task, key in self._keys.items()}
        written = [self.write[key](self.gates(task, maps)) for task, key in self._keys.items()]
        total: Tensor = sum(written[1:], start=written[0])
        return total / len(written)


@final
class ATINet(TrunkBackbone):
    """Attentive Task Interaction Network, on SegNet or over the maps of another backbone.

    Until `distil_from` the network is MTAN. Then the attention is re-initialised, and the decoder
    reads the mean of the maps distilled for each task instead of the encoder's latent map.
    The features are MTAN's: the encoder's latent map, shared (512 width channels, stride 32), and
    for each task its attended map (64 width channels, stride 1); over an encoder they have the
    channels and strides of its deepest and its finest map. As in MTAN, `Features.cut` is empty.

    The released code differs from the paper, and settings reproduce it: it computes the distilled
    map and never uses it (`decoder_input = "encoder"`), and it re-initialises more (`reset =
    "released"`, `reset_balancer = true`). The defaults follow the paper, which does not say whether
    the loss balancing is reset; by default it is not.

    Args:
        width: factor on all numbers of channels of SegNet and what is added to it; 1 is the
            published size.
        encoder: a backbone whose maps are attended to and whose deepest map is exchanged, with
            U-Net's decoder over them (such as `{name = "unet", width = 0.125, decoder = "none"}`);
            unset, or the name "none": SegNet, as published.
        distil_from: fraction of the run after which distillation begins; with 0 it begins at the
            first step, and nothing is re-initialised. The paper has one half.
        decoder_input: what the decoder reads from then on: "distilled" (paper), or "encoder"
            (released code); the distilled map is not computed then.
        reset: what is re-initialised then: the tasks' attention masks ("paper"), all attention
            branches and the heads ("released"), or nothing ("none").
        reset_balancer: whether the balancer (DWA in the paper) is reset then.

    Raises:
        ValueError: `distil_from` is not between 0 and 1.
        UsageError: an encoder and a width for SegNet, or an encoder whose maps do not fit.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        width: Width = 1.0,
        encoder: Encoder = None,
        distil_from: Fraction = 0.5,
        decoder_input: Literal["distilled", "encoder"] = "distilled",
        reset: Literal["paper", "released", "none"] = "paper",
        reset_balancer: bool = False,
    ) -> None:
        if not 0 <= distil_from <= 1:
            raise ValueError(f"distil_from {distil_from} must be a part of the run, 0 to 1")
        trunk = trunk_of(tasks, width, encoder)
        super().__init__(trunk)
        self.distil_from = distil_from
        self.decoder_input = decoder_input
        self.reset = reset
        self.reset_balancer = reset_balancer
        self.distilling = distil_from == 0
        self.decoder = trunk.make_decoder()
        self.attention = Attention(tasks, trunk.layout)
        # Made last: from one seed, all before it has the same weights as in MTAN.
        self.distillation = LatentDistillation(tasks, trunk.layout.latent)

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        """Compute the features of images (B, 3, H, W), sides multiples of `input_multiple`."""
        encoded = self.encode(inputs, tasks)
        latent = encoded.latent
        if self.distilling and self.decoder_input == "distilled":
            latent = self.distillation(latent)
        decoded = self.decoder(latent, encoded.skipped)
        attended = {task: (self.attention(task, encoded, decoded),) for task in tasks}
        return Features(
            shared=(encoded.latent,), per_task=attended, early=encoded.early, terms=encoded.terms
        )

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return the task's masks and its own part of the encoder; stacks and gates are shared."""
        return chain(super().task_parameters(task), self.attention.task_parameters(task))

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the decoder's last convolution, whose map all masks multiply."""
        return self.last_convolution_of(self.decoder)

    def at_progress(self, fraction: float) -> Transition | None:
        """Begin to distil at the first step past `distil_from`, and re-initialise the attention."""
        inside = super().at_progress(fraction)
        if self.distilling or fraction < self.distil_from:
            return inside
        self.distilling = True
        begun = Transition(
            reset=self._start_anew(),
            reset_heads=self.reset == "released",
            reset_balancer=self.reset_balancer,
        )
        return joined(inside, begun)

    def get_extra_state(self) -> dict[str, bool]:
        """Return whether it distils; a buffer would be read from the device in every step."""
        return {"distilling": self.distilling}

    def set_extra_state(self, state: dict[str, bool]) -> None:
        """Restore what `get_extra_state` returned."""
        self.distilling = state["distilling"]

    def _start_anew(self) -> tuple[str, ...]:
        """Re-initialise what `reset` says; the names of its parameters."""
        # The paper: "task-specific attention modules". The released loader matches names with one
        # underscore too many, and so also loses the shared attention convolutions and the heads.
        if self.reset == "none":
            return ()
        prefix = "attention.masks" if self.reset == "paper" else "attention"
        module = self.get_submodule(prefix)
        initialise(module)
        return tuple(name for name, _ in module.named_parameters(prefix=prefix))
