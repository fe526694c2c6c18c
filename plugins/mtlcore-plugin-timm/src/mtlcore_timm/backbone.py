"""The backbone: an encoder of timm, whose maps are those of its stages or made of its blocks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self, final

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.errors import UsageError, describe, did_you_mean
from mtlcore.features import Features
from mtlcore.models import Backbone
from mtlcore.ranges import Channels, Range
from mtlcore.tasks import Task
from mtlcore_timm.library import timm
from mtlcore_timm.plain import DPTPyramid, Pyramid, SimplePyramid, levels
from mtlcore_timm.weights import find_weights, load_weights

# What lets an encoder read images of any size; others either do so anyway, or cannot.
_ANY_SIZE: tuple[dict[str, bool], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False})


@final
class TimmBackbone(Backbone):
    """An image encoder of timm, shared by all tasks, with its maps, the coarsest first.

    An encoder in stages gives the map of each stage, by default those of stride 4 and more. A plain
    transformer, whose blocks all have one resolution, gives a pyramid that is made of them.

    Inputs are images in [0, 1]; the backbone subtracts the mean and divides by the standard
    deviation that the weights of this model were trained with, which timm knows. With other than
    three channels, channel i is normalised as channel i mod 3 is; a single one by the mean of the
    three. `mtl show backbones timm --set model.backbone.model=NAME` shows these numbers, the maps,
    and the licence of timm's weights.

    Args:
        model: name of the encoder, such as "resnet50" or, with the tag of its weights,
            "resnet50.a1_in1k"; without a tag it has that of timm's default weights.
        weights: "none": random ones; "pretrained": those that timm publishes, downloaded once to
            the cache of the Hugging Face hub; otherwise the path or fsspec URL of a file
            (safetensors, or a state dict of tensors, also within a checkpoint). Its classifier is
            ignored; anything else that does not fit is an error.
        out_indices: numbers of the stages, from 0, or of a plain transformer's blocks; negative
            ones count from the end. Unset: the stages of stride 4 and more; of a plain transformer
            what `pyramid` needs.
        pyramid: what a plain transformer's blocks are made into. "simple": maps of half, 1, 2 and 4
            times the last block's size (ViTDet); "dpt": the same sizes, one from each of four
            blocks (DPT); "none": the maps as they are. Encoders in stages have a pyramid, and this
            changes nothing about it.
        channels: of each map of a pyramid that is made from a plain transformer.
        drop_path: probability with which a residual branch is left out in training, growing to this
            value at the last block.
        gradient_checkpointing: whether to compute the encoder's maps again in the backward pass
            instead of keeping them: less memory, more time.
        freeze_norm: whether batch norm keeps the statistics and factors of the weights, as it
            should in batches of a few images.
        in_chans: channels of the images. Where the weights have another number, the first layer's
            are repeated, or added up.

    Raises:
        UsageError: timm has no such model, the model has no such stage or option, or it cannot read
            images of any size.
        MtlError: timm is missing, or the weights cannot be read or are of another model.
    """

    first_weights = ("weights",)
    main_map: int
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        model: str = "tf_efficientnet_lite0",
        weights: str = "none",
        out_indices: tuple[Annotated[int, Range(ge=-1000, le=1000)], ...] | None = None,
        pyramid: Literal["simple", "dpt", "none"] = "simple",
        channels: Channels = 256,
        drop_path: Annotated[float, Range(ge=0, lt=1)] = 0.0,
        gradient_checkpointing: bool = False,
        freeze_norm: bool = False,
        in_chans: Channels = 3,
    ) -> None:
        super().__init__()
        if channels < 1 or in_chans < 1 or not 0 <= drop_path < 1:
            raise UsageError(
                f"model.backbone: channels {channels} and in_chans {in_chans} must be positive, "
                f"drop_path {drop_path} from 0 to below 1"
            )
        self.in_chans = in_chans
        self.freeze_norm = freeze_norm
        encoder = _create(model, drop_path, in_chans)
        about: Mapping[str, Any] = encoder.pretrained_cfg
        self._facts = _facts(about, weights)
        # On the meta device there is nothing to load into.
        if weights != "none" and not any(p.is_meta for p in encoder.parameters()):
            file = find_weights(weights, encoder)
            unused = load_weights(encoder, file, in_chans)
            self._facts |= file.facts
            if unused:
                self._facts["weights_unused"] = ", ".join(unused)
        stages = [(info["num_chs"], info["reduction"]) for info in encoder.feature_info]
        plain = len(stages) > 1 and len({stride for _, stride in stages}) == 1
        scales = levels(stages[0][1]) if plain and pyramid != "none" else {}
        wanted = _indices(model, out_indices, stages, plain, pyramid, len(scales))
        self.indices: list[int] = encoder.prune_intermediate_layers(wanted, prune_norm=True)
        self.encoder = encoder
        self.pyramid: Pyramid | None = None
        self.input_multiple = math.lcm(*(stride for _, stride in stages))
        # Where heads of a single map look: at what most of the network has made.
        self.main_map = -1 if scales and pyramid == "simple" else 0
        if scales:
            made = SimplePyramid if pyramid == "simple" else DPTPyramid
            self.pyramid = made(stages[0][0], channels, tuple(scales.values()))
            self.strides, self.out_channels = tuple(scales), (channels,) * len(scales)
            self.input_multiple = math.lcm(self.input_multiple, *scales)
        else:
            kept = [stages[index] for index in reversed(self.indices)]
            self.out_channels = tuple(number for number, _ in kept)
            self.strides = tuple(stride for _, stride in kept)
        for name in ("mean", "std"):
            self.register_buffer(name, _per_channel(about[name], in_chans))
        self._try(model)
        if gradient_checkpointing:
            self._compute_again(model)
        if freeze_norm:
            for norm in self._norms():
                norm.requires_grad_(False)
        self.train(self.training)

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
        """Return the parameters of the last layer, of a pyramid the one of its finest map."""
        part: nn.Module = self.encoder if self.pyramid is None else self.pyramid
        *_, layer = (m for m in part.modules() if any(True for _ in m.parameters(recurse=False)))
        return layer.parameters(recurse=False)

    def layer_groups(self) -> Sequence[Sequence[Parameter]]:
        """Return the encoder's layers from the input on, as timm groups them."""
        grouped = timm().models.group_parameters(self.encoder, self.encoder.group_matcher())
        named = dict(self.encoder.named_parameters())
        return [[named[name] for name in grouped[number]] for number in sorted(grouped)]

    def facts(self) -> Mapping[str, str]:
        """Return the model, its weights with their hash, their licence and the normalisation."""
        return self._facts

    def _maps(self, inputs: Tensor) -> tuple[Tensor, ...]:
        maps: list[Tensor] = self.encoder.forward_intermediates(
            (inputs - self.mean) / self.std,
            indices=self.indices,
            intermediates_only=True,
            output_fmt="NCHW",
        )
        return self.pyramid(maps) if self.pyramid is not None else tuple(reversed(maps))

    def _compute_again(self, model: str) -> None:
        """Turn gradient checkpointing on.

        Raises:
            UsageError: the encoder has none, or not where it hands out its maps.
        """
        try:
            self.encoder.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:
            raise _no_checkpointing(model) from error
        calls = Counter[nn.Module]()
        hooks = [
            module.register_forward_hook(lambda module, *_: calls.update([module]))
            for module in self.encoder.modules()
        ]
        # In evaluation mode, so that batch norm does not count this image.
        self.eval()
        with torch.enable_grad():
            maps = self._maps(torch.zeros(1, self.in_chans, *self._small()))
            torch.autograd.grad(
                [x.sum() for x in maps], list(self.encoder.parameters()), allow_unused=True
            )
        for hook in hooks:
            hook.remove()
        self.train()
        if max(calls.values()) < 2:
            raise _no_checkpointing(model)

    def _small(self) -> tuple[int, int]:
        """Height and width of the smallest image that is no square and has no map of one pixel."""
        return 2 * self.input_multiple, 3 * self.input_multiple

    def _norms(self) -> list[nn.Module]:
        kinds = (nn.modules.batchnorm._BatchNorm,)
        return [module for module in self.encoder.modules() if isinstance(module, kinds)]

    def _try(self, model: str) -> None:
        """Hold what is announced against the maps of a small image that is no square.

        Raises:
            UsageError: they differ, or there are none.
        """
        height, width = self._small()
        expected = [
            (1, number, height // stride, width // stride)
            for number, stride in zip(self.out_channels, self.strides, strict=True)
        ]
        image = torch.zeros(1, self.in_chans, height, width)
        self.eval()
        try:
            with torch.no_grad():
                found = [tuple(x.shape) for x in self._maps(image)]
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UsageError(
                f"model.backbone.model: {model} cannot read images of any size, such as "
                f"{height}x{width} ({describe(error)}); choose one that can"
            ) from error
        if found != expected:
            raise UsageError(
                f"model.backbone.model: the maps of {model} for an image of {height}x{width} have "
                f"the shapes {found}, and timm announces {expected}; choose another model"
            )
        self.train()


def _create(model: str, drop_path: float, in_chans: int) -> Any:
    """Build an encoder without classifier, for images of any size where it has such an option."""
    library = timm()
    _check_name(library, model)
    given: dict[str, Any] = {"num_classes": 0, "in_chans": in_chans}
    if drop_path:
        given["drop_path_rate"] = drop_path
    for extra in (*_ANY_SIZE, {}):
        try:
            encoder = library.create_model(model, **given, **extra)
            break
        except TypeError as error:
            if "drop_path_rate" in str(error):
                raise _no_drop_path(model) from error
            if not any(name in str(error) for name in extra):
                raise
    if drop_path and not any("DropPath" in type(m).__name__ for m in encoder.modules()):
        raise _no_drop_path(model)  # some take the option and leave it at that
    missing = [
        name
        for name in ("forward_intermediates", "prune_intermediate_layers", "feature_info")
        if not hasattr(encoder, name)
    ]
    if missing:
        raise UsageError(
            f"model.backbone.model: {model} hands out no maps (it has no {missing[0]}); choose "
            "another model"
        )
    return encoder


def _no_drop_path(model: str) -> UsageError:
    return UsageError(f"model.backbone.drop_path: {model} has no stochastic depth; leave it at 0")


def _no_checkpointing(model: str) -> UsageError:
    return UsageError(
        f"model.backbone.gradient_checkpointing: timm has none for the maps of "
        f"{model}; leave it off"
    )


def _check_name(library: Any, model: str) -> None:
    architecture, _, tag = model.partition(".")
    if not library.is_model(architecture):
        hint = did_you_mean(architecture, library.list_models())
        raise UsageError(f"model.backbone.model: timm has no model {architecture!r}{hint}")
    known = [name.partition(".")[2] for name in library.list_pretrained(f"{architecture}.*")]
    if tag and tag not in known:
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise UsageError(
            f"model.backbone.model: {architecture} has no weights {tag!r}"
            f"{did_you_mean(tag, known)} ({has})"
        )


def _indices(
    model: str,
    wanted: tuple[int, ...] | None,
    stages: Sequence[tuple[int, int]],
    plain: bool,
    pyramid: str,
    scales: int,
) -> list[int]:
    """Return the numbers of the stages or blocks, sorted."""
    number = len(stages)
    if wanted is None:
        if not plain:
            coarse = [index for index, (_, stride) in enumerate(stages) if stride >= 4]
            return coarse or [number - 1]
        if pyramid == "dpt":
            return [number * (index + 1) // scales - 1 for index in range(scales)]
        return [number - 1]
    path = "model.backbone.out_indices"
    if not wanted or any(not -number <= index < number for index in wanted):
        what = "blocks" if plain else "stages"
        strides = ", ".join(str(stride) for _, stride in stages)
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


def _facts(about: Mapping[str, Any], weights: str) -> dict[str, str]:
    """Return what timm knows of a model, and of the weights that it publishes for it."""
    name = f"{about.get('architecture')}.{about.get('tag') or ''}".removesuffix(".")
    facts = {
        "model": name,
        "normalisation": f"mean {tuple(about['mean'])}, std {tuple(about['std'])}",
    }
    if about.get("license") and weights in ("none", "pretrained"):
        facts["licence"] = f"{about['license']} (timm's weights of this name)"
    return facts


def _per_channel(values: Sequence[float], channels: int) -> Tensor:
    """Return (channels, 1, 1) of the values of red, green and blue."""
    known = torch.tensor(tuple(values))
    if channels == 1:
        return known.mean().reshape(1, 1, 1)
    return known[torch.arange(channels) % len(known)].reshape(-1, 1, 1)
