"""Image encoders that other libraries make: their maps, their normalisation, what is frozen."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self, TypeAlias

import attrs
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.errors import UsageError, describe
from mtlcore.features import Features
from mtlcore.models.contracts import Backbone, ExchangePoint
from mtlcore.models.pyramids import DPTPyramid, Pyramid, SimplePyramid, levels
from mtlcore.models.tracing import StageTrace, traced

__all__ = [
    "ImageEncoder",
    "PyramidKind",
    "Stage",
    "chosen_stages",
    "computes_again",
    "no_checkpointing",
]

#: What the blocks of a plain transformer are made into.
PyramidKind: TypeAlias = Literal["simple", "dpt", "none"]


@attrs.frozen
class Stage:
    """A stage of an encoder, or a block of a plain transformer.

    Args:
        channels: Of its map.
        stride: Of its map.
    """

    channels: int
    stride: int


def chosen_stages(
    model: str, wanted: Sequence[int] | None, stages: Sequence[Stage], pyramid: PyramidKind
) -> list[int]:
    """Return the numbers of the stages or blocks whose maps are read, sorted.

    Args:
        model: Its name, for messages.
        wanted: The setting `out_indices`; None: the stages of stride 4 and more, and of a plain
            transformer what the pyramid needs.
        stages: All that the encoder has, from the input on.
        pyramid: What a plain transformer's blocks are made into.

    Raises:
        UsageError: There are no such stages, or the pyramid needs another number of them.
    """
    number, plain = len(stages), _is_plain(stages)
    scales = len(levels(stages[0].stride)) if plain else 0
    if wanted is None:
        if not plain:
            coarse = [index for index, stage in enumerate(stages) if stage.stride >= 4]
            return coarse or [number - 1]
        if pyramid == "dpt":
            return [number * (index + 1) // scales - 1 for index in range(scales)]
        return [number - 1]
    path = "model.backbone.out_indices"
    if not wanted or any(not -number <= index < number for index in wanted):
        what = "blocks" if plain else "stages"
        strides = ", ".join(str(stage.stride) for stage in stages)
        raise UsageError(
            f"{path}: {list(wanted)}; {model} has the {what} 0 to {number - 1}, of "
            f"strides {strides}"
        )
    found = sorted({index % number for index in wanted})
    needed = {"simple": 1, "dpt": scales}.get(pyramid, 0) if plain else 0
    if needed and len(found) != needed:
        raise UsageError(
            f"{path}: {list(wanted)}; the pyramid {pyramid!r} of {model} is made of "
            f"{needed} of its {number} blocks"
        )
    return found


def _is_plain(stages: Sequence[Stage]) -> bool:
    """Return whether all maps have one resolution, as those of a plain transformer's blocks."""
    return len(stages) > 1 and len({stage.stride for stage in stages}) == 1


class ImageEncoder(Backbone, abc.ABC):
    """An image encoder of another library, with its maps or a pyramid of them, coarsest first.

    Inputs are images in [0, 1]; mean and standard deviation are those that its weights were trained
    with. Of other than three channels, channel i is normalised as channel i mod 3 is; a single one
    by the mean of the three.

    Args:
        model: Its name, for messages.
        encoder: The library's network.
        stages: All that it has, from the input on.
        indices: Numbers of the stages whose maps `encode` returns (see `chosen_stages`).
        normalisation: Mean and standard deviation of red, green and blue.
        pyramid: What a plain transformer's blocks are made into.
        channels: Of each map of that pyramid.
        in_chans: Channels of the images.
        freeze_norm: Whether batch norm keeps its statistics and factors.
        checkpointing: Whether gradient checkpointing has been turned on.
        stage_names: Of the modules within the network that return the maps of the stages, from the
            input on, up to the last one that is read; where networks can exchange them. Empty:
            they cannot.

    Raises:
        UsageError: The encoder cannot read images of any size, its maps are not those of the
            stages, or gradient checkpointing is on and does nothing.
    """

    first_weights = ("weights",)
    main_map: int
    encoder: Any  # of another library, which mypy does not judge
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: str,
        encoder: nn.Module,
        stages: Sequence[Stage],
        indices: Sequence[int],
        normalisation: tuple[Sequence[float], Sequence[float]],
        *,
        pyramid: PyramidKind,
        channels: int,
        in_chans: int,
        freeze_norm: bool,
        checkpointing: bool,
        stage_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self._checkpointing = checkpointing
        self.in_chans = in_chans
        self.freeze_norm = freeze_norm
        self.encoder = encoder
        self.indices = list(indices)
        scales = levels(stages[0].stride) if _is_plain(stages) and pyramid != "none" else {}
        self.pyramid: Pyramid | None = None
        self.input_multiple = math.lcm(*(stage.stride for stage in stages))
        # Where heads of a single map look: at what most of the network has made.
        self.main_map = -1 if scales and pyramid == "simple" else 0
        if scales:
            made = SimplePyramid if pyramid == "simple" else DPTPyramid
            self.pyramid = made(stages[0].channels, channels, tuple(scales.values()))
            self.strides, self.out_channels = tuple(scales), (channels,) * len(scales)
            self.input_multiple = math.lcm(self.input_multiple, *scales)
        else:
            kept = [stages[index] for index in reversed(self.indices)]
            self.out_channels = tuple(stage.channels for stage in kept)
            self.strides = tuple(stage.stride for stage in kept)
        for name, values in zip(("mean", "std"), normalisation, strict=True):
            self.register_buffer(name, _per_channel(values, in_chans))
        self._exchange = self._try(model, dict(zip(stage_names, stages, strict=False)))
        if checkpointing:
            self._check_checkpointing(model)
        if freeze_norm:
            for norm in self._norms():
                norm.requires_grad_(False)
        self.train(self.training)

    @abc.abstractmethod
    def encode(self, images: Tensor) -> Sequence[Tensor]:
        """Compute the maps (B, C, H / stride, W / stride) of the stages `self.indices`, in order.

        Args:
            images: (B, in_chans, H, W), normalised.
        """

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        """Compute images (B, in_chans, H, W) in [0, 1] -> maps (B, C, H / stride, W / stride).

        Raises:
            UsageError: the images have another number of channels.
        """
        if inputs.shape[1] != self.in_chans:
            raise UsageError(
                f"model.backbone.in_chans: the images have {inputs.shape[1]} channels, and it is "
                f"{self.in_chans}; set it to {inputs.shape[1]}"
            )
        return Features(shared=self._maps(inputs))

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules; with `freeze_norm` batch norm stays in evaluation mode."""
        super().train(mode)
        if self.freeze_norm:
            for norm in self._norms():
                norm.train(False)
        return self

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the last layer that learns, of a pyramid that of its finest map.

        Where nothing learns, they are those of the last layer.
        """
        part: nn.Module = self.encoder if self.pyramid is None else self.pyramid
        layers = [[*module.parameters(recurse=False)] for module in part.modules()]
        learning = [layer for layer in layers if any(p.requires_grad for p in layer)]
        return (learning or [layer for layer in layers if layer])[-1]

    def exchange_points(self) -> Sequence[ExchangePoint]:
        """Return the maps of the stages, as the library's own module of each returns them.

        Raises:
            UsageError: gradient checkpointing is on, which would compute maps again without an
                exchange, or the map of a stage cannot be told from what its module returns.
        """
        if self._checkpointing and self._exchange:
            raise UsageError(
                "model.backbone.backbone.gradient_checkpointing: networks that exchange maps "
                "cannot compute them again by themselves; leave it off"
            )
        return [trace.point(self.encoder) for trace in self._exchange]

    def _maps(self, inputs: Tensor) -> tuple[Tensor, ...]:
        maps = self.encode((inputs - self.mean) / self.std)
        return self.pyramid(maps) if self.pyramid is not None else tuple(reversed(maps))

    def _small(self) -> tuple[int, int]:
        """Height and width of the smallest image that is no square and has no map of one pixel."""
        return 2 * self.input_multiple, 3 * self.input_multiple

    def _norms(self) -> list[nn.Module]:
        kinds = (nn.modules.batchnorm._BatchNorm,)
        return [module for module in self.encoder.modules() if isinstance(module, kinds)]

    def _try(self, model: str, named: Mapping[str, Stage]) -> list[StageTrace]:
        """Hold what is announced against the maps of a small image that is no square.

        Args:
            model: Its name, for messages.
            named: Name of a module -> the stage whose map it returns.

        Returns:
            What was seen of these modules.

        Raises:
            UsageError: they differ, or there are none.
        """
        height, width = self._small()
        expected = [
            (1, number, height // stride, width // stride)
            for number, stride in zip(self.out_channels, self.strides, strict=True)
        ]
        image = torch.zeros(1, self.in_chans, height, width)
        channels = {name: stage.channels for name, stage in named.items()}
        self.eval()
        try:
            with torch.no_grad(), traced(self.encoder, channels) as traces:
                found = [tuple(x.shape) for x in self._maps(image)]
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UsageError(
                f"model.backbone.model: {model} cannot read images of any size, such as "
                f"{height}x{width} ({describe(error)}); choose one that can"
            ) from error
        if found != expected:
            raise UsageError(
                f"model.backbone.model: the maps of {model} for an image of {height}x{width} have "
                f"the shapes {found}, and {expected} was expected; choose another model"
            )
        self.train()
        return traces

    def _check_checkpointing(self, model: str) -> None:
        """Hold gradient checkpointing against what it does for a small image.

        Raises:
            UsageError: The backward pass computes no part of the encoder again.
        """
        calls: list[nn.Module] = []
        hooks = [
            module.register_forward_hook(lambda module, *_: calls.append(module))
            for module in self.encoder.modules()
        ]
        self.train()
        for norm in self._norms():  # it does not count this image
            norm.train(False)
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            maps = self._maps(torch.zeros(1, self.in_chans, *self._small()))
            calls.clear()  # what is called from here on is called again
            torch.autograd.grad(
                [x.sum() for x in maps], list(self.encoder.parameters()), allow_unused=True
            )
        for hook in hooks:
            hook.remove()
        if not calls:
            raise no_checkpointing(model)


def computes_again(module: nn.Module) -> bool:
    """Return whether gradient checkpointing is on in a module, as timm and transformers say it."""
    names = ("grad_checkpointing", "gradient_checkpointing")
    return any(getattr(module, name, False) is True for name in names)


def no_checkpointing(model: str) -> UsageError:
    """Return the refusal of gradient checkpointing that would do nothing."""
    return UsageError(
        f"model.backbone.gradient_checkpointing: there is none for the maps of {model}; leave it "
        "off"
    )


def _per_channel(values: Sequence[float], channels: int) -> Tensor:
    """Return (channels, 1, 1) of the values of red, green and blue."""
    known = torch.tensor(tuple(values))
    if channels == 1:
        return known.mean().reshape(1, 1, 1)
    return known[torch.arange(channels) % len(known)].reshape(-1, 1, 1)
