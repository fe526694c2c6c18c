"""The image backbone: an encoder of transformers, with maps of its stages or made of blocks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, final

import attrs
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.errors import MtlError, UsageError, describe, did_you_mean
from mtlcore.loading import WeightFile
from mtlcore.models import ImageEncoder, PyramidKind, ResidualBlock, Stage, chosen_stages
from mtlcore.ranges import Channels, Range
from mtlcore.tasks import Task
from mtlcore_transformers.building import (
    compute_again,
    freeze_unreached,
    layers_of,
    weight_facts,
    with_weights,
)
from mtlcore_transformers.library import mapping, transformers
from mtlcore_transformers.source import Source

_LOGGER = logging.getLogger("mtlcore.transformers")
_MODEL = "model.backbone.model"
#: Side of the image by which strides are measured: a multiple of 32 and of patches of 14 pixels.
_SIDE = 224
#: A backbone that wraps another library's.
_OTHERS = "timm_backbone"


@final
class TransformersBackbone(ImageEncoder):
    """An image encoder of transformers, shared by all tasks, with its maps, the coarsest first.

    It is what `AutoBackbone` makes: ResNet, ConvNeXt V2, Swin, DINOv2 and others. An encoder in
    stages gives the map of each stage, by default those of stride 4 and more; a plain transformer,
    whose blocks all have one resolution, a pyramid that is made of them.

    Inputs are images in [0, 1]; the backbone subtracts the mean and divides by the standard
    deviation of the model's `preprocessor_config.json`, or ImageNet's where there is none. With
    other than three channels, channel i is normalised as channel i mod 3 is; a single one by the
    mean of the three. `mtl show backbones transformers --set model.backbone.model=NAME` shows these
    numbers, the maps, and the licence that the model's card names.

    Args:
        model: a local folder that `save_pretrained` wrote, a repository of the Hugging Face hub,
            such as "facebook/dinov2-small" (with "@revision" where it matters), or a mere type of
            model, such as "resnet", with the library's default configuration.
        weights: "none": random ones; "pretrained": those of the folder or repository; otherwise a
            folder, or the path or fsspec URL of a file (safetensors, or a state dict of tensors,
            also within a checkpoint). What a head would use is ignored; anything else that does not
            fit is an error.
        config: values of the model's configuration that are to be others, such as
            {drop_path_rate = 0.1} or, for a smaller network, {depths = [1, 1, 1, 1]}.
        out_indices: numbers of the stages, or of a plain transformer's blocks, from 0 (the stem is
            none); negative ones count from the end. Unset: the stages of stride 4 and more; of a
            plain transformer what `pyramid` needs.
        pyramid: what a plain transformer's blocks are made into. "simple": maps of half, 1, 2 and 4
            times the last block's size (ViTDet); "dpt": the same sizes, one from each of four
            blocks (DPT); "none": the maps as they are. Encoders in stages have a pyramid, and this
            changes nothing about it.
        channels: of each map of a pyramid that is made from a plain transformer.
        gradient_checkpointing: whether to compute the encoder's maps again in the backward pass
            instead of keeping them: less memory, more time.
        freeze_norm: whether batch norm keeps the statistics and factors of the weights, as it
            should in batches of a few images.
        in_chans: channels of the images. Where the weights have another number, the first layer's
            are repeated, or added up.

    Raises:
        UsageError: the model has no such stage or option, it gives no maps, or it cannot read
            images of any size.
        MtlError: transformers is missing, there is no such model, or the weights cannot be read or
            are of another model.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        model: str = "resnet",
        weights: str = "none",
        config: dict[str, Any] | None = None,
        out_indices: tuple[Annotated[int, Range(ge=-1000, le=1000)], ...] | None = None,
        pyramid: PyramidKind = "simple",
        channels: Channels = 256,
        gradient_checkpointing: bool = False,
        freeze_norm: bool = False,
        in_chans: Channels = 3,
    ) -> None:
        if channels < 1 or in_chans < 1:
            raise UsageError(
                f"model.backbone: channels {channels} and in_chans {in_chans} must be positive"
            )
        source, changes = Source.of(model), config or {}
        known = source.configuration(changes)
        if in_chans != 3 and "num_channels" not in known.to_dict():
            raise UsageError(
                f"model.backbone.in_chans: {known.model_type} reads three channels; leave it at 3"
            )
        own = {} if in_chans == 3 else {"num_channels": in_chans}
        kind = _kind(known)
        names = list(getattr(known, "stage_names", None) or [])
        after_stem = [number for number, name in enumerate(names) if name != "stem"]
        stages = _stages(
            model, kind, source.configuration(changes, out_indices=after_stem, **own), in_chans
        )
        indices = chosen_stages(model, out_indices, stages, pyramid)
        configuration = source.configuration(
            changes, out_indices=[after_stem[index] for index in indices], **own
        )
        normalisation, told = source.normalisation()
        facts = {"model": model, "normalisation": told}
        licence = source.licence()
        if licence is not None and weights in ("none", "pretrained"):
            facts["licence"] = f"{licence} (the model's card)"
        # On the meta device there is nothing to load into.
        if weights == "none" or torch.empty(0).is_meta:
            encoder = kind(configuration)
        else:
            file = _for_channels(source.weights(weights), in_chans)
            encoder, unused = with_weights(kind, configuration, file)
            facts |= weight_facts(file, unused)
        if gradient_checkpointing:
            compute_again(encoder, model)
        super().__init__(
            model,
            encoder,
            stages,
            indices,
            normalisation,
            pyramid=pyramid,
            channels=channels,
            in_chans=in_chans,
            freeze_norm=freeze_norm,
            checkpointing=gradient_checkpointing,
            stage_names=_stage_names(encoder, len(stages))[: indices[-1] + 1],
        )
        self._facts = facts
        self.eval()
        image = torch.zeros(1, in_chans, *self._small())
        freeze_unreached(self.encoder, lambda: self.encode(image))
        self.train()

    def encode(self, images: Tensor) -> Sequence[Tensor]:
        """Compute the maps of the chosen stages."""
        maps: Sequence[Tensor] = self.encoder(images, return_dict=True).feature_maps
        return maps

    def layer_groups(self) -> Sequence[Sequence[Parameter]]:
        """Return the embedding, and each block of the encoder, from the input on."""
        return layers_of(self.encoder)

    def residual_blocks(self) -> Sequence[ResidualBlock]:
        """Return the blocks of a ResNet of transformers; other encoders name none."""
        resnet = transformers().models.resnet.modeling_resnet
        found = []
        for name, block in self.named_modules():
            if isinstance(block, resnet.ResNetBasicLayer | resnet.ResNetBottleNeckLayer):
                number = len(block.layer) - 1
                plain = isinstance(block.shortcut, nn.Identity)
                found.append(
                    ResidualBlock(
                        name=name,
                        last=f"{name}.layer.{number}.normalization",
                        channels=block.layer[number].convolution.out_channels,
                        shortcut=None if plain else f"{name}.shortcut",
                    )
                )
        return found

    def facts(self) -> Mapping[str, str]:
        """Return the model, its weights with their hash, their licence and the normalisation."""
        return self._facts


def _kind(configuration: Any) -> Any:
    """Return the class of the backbone of a configuration.

    Raises:
        UsageError: There is none.
        MtlError: It needs something that is missing here.
    """
    backbones = mapping("MODEL_FOR_BACKBONE_MAPPING")
    known = sorted(set(mapping("MODEL_FOR_BACKBONE_MAPPING_NAMES")) - {_OTHERS})
    name = configuration.model_type
    if name == _OTHERS:
        raise UsageError(
            f"{_MODEL}: {name} wraps the encoders of timm; take the backbone timm instead "
            "(pip install mtlcore-plugin-timm)"
        )
    try:
        return backbones[type(configuration)]
    except KeyError as error:
        text = " (texts are read by the backbone transformers-text)"
        raise UsageError(
            f"{_MODEL}: transformers has no backbone of the type {name}"
            f"{did_you_mean(name, known)}; it has those of {', '.join(known)}{text}"
        ) from error
    except Exception as error:  # a model may need libraries of its own
        raise MtlError(f"{_MODEL}: {name} cannot be imported ({describe(error)})") from error


def _stages(model: str, kind: Any, configuration: Any, in_chans: int) -> list[Stage]:
    """Measure the stages of an encoder, without memory for its parameters.

    Raises:
        UsageError: It cannot read an image, or gives no maps.
    """
    try:
        with torch.device("meta"), torch.no_grad():
            encoder = kind(configuration).eval()
            maps = encoder(torch.zeros(1, in_chans, _SIDE, _SIDE), return_dict=True).feature_maps
        sides = [(x.shape[1], x.shape[2]) for x in maps]
    except Exception as error:  # the library and its checks raise what they like
        raise UsageError(
            f"{_MODEL}: {model} with this configuration gives no maps of an image of "
            f"{_SIDE}x{_SIDE} ({describe(error)})"
        ) from error
    if not sides:
        raise UsageError(f"{_MODEL}: {model} hands out no maps; choose another model")
    return [Stage(channels, round(_SIDE / side)) for channels, side in sides]


def _stage_names(encoder: nn.Module, number: int) -> list[str]:
    """Return the names of the modules that return the maps of the stages; none if unknown.

    A stage is a module of the list that has as many as there are stages; where it holds a list of
    blocks itself, the last block returns its map, before it is made smaller for the next stage.
    """
    for name, stages in encoder.named_modules():
        if not isinstance(stages, nn.ModuleList) or len(stages) != number:
            continue
        names = []
        for place, stage in enumerate(stages):
            lists = [
                f".{inner}.{len(blocks) - 1}"
                for inner, blocks in stage.named_children()
                if isinstance(blocks, nn.ModuleList) and len(blocks)
            ]
            names.append(f"{name}.{place}{lists[-1] if lists else ''}")
        return names
    return []


def _for_channels(file: WeightFile, channels: int) -> WeightFile:
    """Return weights for images of other than three channels.

    The kernels of red, green and blue are repeated in this order and scaled, so that the layer's
    outputs stay as large as they were; of a single channel they are added up.
    """
    if channels == 3:
        return file
    tensors = dict(file.tensors)
    for key, weight in file.tensors.items():
        # Of all convolutions the first one alone reads three channels.
        if weight.dim() != 4 or weight.shape[1] != 3:
            continue
        if channels == 1:
            tensors[key] = weight.sum(1, keepdim=True)
        else:
            tensors[key] = weight[:, torch.arange(channels) % 3] * (3 / channels)
        _LOGGER.warning(
            "%s: the first layer (%s) read 3 channels and is adapted to %d, by repeating or adding "
            "up its weights",
            file.source,
            key,
            channels,
        )
    return attrs.evolve(file, tensors=tensors)
