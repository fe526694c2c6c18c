"""The backbone: an encoder of timm, whose maps are those of its stages or made of its blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, final

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.errors import UsageError, describe, did_you_mean
from mtlcore.models import (
    ImageEncoder,
    PyramidKind,
    ResidualBlock,
    Stage,
    chosen_stages,
    no_checkpointing,
)
from mtlcore.ranges import Channels, Range
from mtlcore.tasks import Task
from mtlcore_timm.library import timm
from mtlcore_timm.weights import find_weights, load_weights

# Arguments of timm that are settings here, or would make something else of the model.
_SET_HERE = frozenset(
    {"model_name", "num_classes", "in_chans", "drop_path_rate", "pretrained", "pretrained_cfg",
     "checkpoint_path", "features_only"}
)  # fmt: skip
# What lets an encoder read images of any size; others either do so anyway, or cannot.
_ANY_SIZE: tuple[dict[str, bool], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False})


@final
class TimmBackbone(ImageEncoder):
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
        options: further arguments of timm's model, such as {head = ""} of an HRNet, whose maps are
            then those that its parallel branches end with, without the layers that its classifier
            reads them through. What they leave out of a file of weights is ignored.

    Raises:
        UsageError: timm has no such model, the model has no such stage or option, or it cannot read
            images of any size.
        MtlError: timm is missing, or the weights cannot be read or are of another model.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        model: str = "tf_efficientnet_lite0",
        weights: str = "none",
        out_indices: tuple[Annotated[int, Range(ge=-1000, le=1000)], ...] | None = None,
        pyramid: PyramidKind = "simple",
        channels: Channels = 256,
        drop_path: Annotated[float, Range(ge=0, lt=1)] = 0.0,
        gradient_checkpointing: bool = False,
        freeze_norm: bool = False,
        in_chans: Channels = 3,
        options: dict[str, Any] | None = None,
    ) -> None:
        if channels < 1 or in_chans < 1 or not 0 <= drop_path < 1:
            raise UsageError(
                f"model.backbone: channels {channels} and in_chans {in_chans} must be positive, "
                f"drop_path {drop_path} from 0 to below 1"
            )
        encoder = _create(model, drop_path, in_chans, options or {})
        about: Mapping[str, Any] = encoder.pretrained_cfg
        facts = _facts(about, weights)
        # On the meta device there is nothing to load into.
        if weights != "none" and not any(p.is_meta for p in encoder.parameters()):
            file = find_weights(weights, encoder)
            unused = load_weights(
                encoder, file, in_chans, _left_out(model, encoder) if options else ()
            )
            facts |= file.facts
            if unused:
                facts["weights_unused"] = ", ".join(unused)
        names = [info["module"] for info in encoder.feature_info]
        stages = [Stage(info["num_chs"], info["reduction"]) for info in encoder.feature_info]
        wanted = chosen_stages(model, out_indices, stages, pyramid)
        indices: list[int] = encoder.prune_intermediate_layers(wanted, prune_norm=True)
        if gradient_checkpointing:
            try:
                encoder.set_grad_checkpointing(True)
            except (AttributeError, AssertionError) as error:
                raise no_checkpointing(model) from error
        super().__init__(
            model,
            encoder,
            stages,
            indices,
            (about["mean"], about["std"]),
            pyramid=pyramid,
            channels=channels,
            in_chans=in_chans,
            freeze_norm=freeze_norm,
            checkpointing=gradient_checkpointing,
            stage_names=names[: indices[-1] + 1],
        )
        self._facts = facts

    def encode(self, images: Tensor) -> Sequence[Tensor]:
        """Compute the maps of the chosen stages."""
        maps: list[Tensor] = self.encoder.forward_intermediates(
            images, indices=self.indices, intermediates_only=True, output_fmt="NCHW"
        )
        return maps

    def layer_groups(self) -> Sequence[Sequence[Parameter]]:
        """Return the encoder's layers from the input on, as timm groups them."""
        grouped = timm().models.group_parameters(self.encoder, self.encoder.group_matcher())
        named = dict(self.encoder.named_parameters())
        return [[named[name] for name in grouped[number]] for number in sorted(grouped)]

    def residual_blocks(self) -> Sequence[ResidualBlock]:
        """Return the blocks of a ResNet of timm; other encoders name none."""
        resnet = timm().models.resnet
        found = []
        for name, block in self.named_modules():
            if not isinstance(block, resnet.BasicBlock | resnet.Bottleneck):
                continue
            norm, convolution = (
                ("bn3", "conv3") if isinstance(block, resnet.Bottleneck) else ("bn2", "conv2")
            )
            found.append(
                ResidualBlock(
                    name=name,
                    # Stochastic depth, where it is on, leaves the whole branch out.
                    last=f"{name}.{norm if block.se is None else 'se'}",
                    channels=block.get_submodule(convolution).out_channels,
                    shortcut=None if block.downsample is None else f"{name}.downsample",
                )
            )
        return found

    def facts(self) -> Mapping[str, str]:
        """Return the model, its weights with their hash, their licence and the normalisation."""
        return self._facts


def _create(model: str, drop_path: float, in_chans: int, options: Mapping[str, Any]) -> Any:
    """Build an encoder without classifier, for images of any size where it has such an option."""
    library = timm()
    _check_name(library, model)
    given: dict[str, Any] = {"num_classes": 0, "in_chans": in_chans}
    if drop_path:
        given["drop_path_rate"] = drop_path
    if clash := sorted(_SET_HERE & options.keys()):
        raise UsageError(
            f"model.backbone.options: {clash[0]} is set by other settings of the backbone; leave "
            "it out"
        )
    for extra in (*_ANY_SIZE, {}):
        try:
            encoder = library.create_model(model, **{**given, **extra, **options})
            break
        except TypeError as error:
            if any(name in str(error) for name in extra.keys() - options.keys()):
                continue
            if "drop_path_rate" in str(error):
                raise _no_drop_path(model) from error
            if not options:
                raise
            raise _refused(model, error) from error
        except Exception as error:  # models check options in many ways
            if not options:
                raise
            raise _refused(model, error) from error
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


def _refused(model: str, error: Exception) -> UsageError:
    return UsageError(f"model.backbone.options: {model} does not take them ({describe(error)})")


def _left_out(model: str, encoder: nn.Module) -> set[str]:
    """Return the names of the tensors that the model has without options, and the encoder not."""
    with torch.device("meta"):
        whole = timm().create_model(model, num_classes=0)
    return set(whole.state_dict()) - set(encoder.state_dict())


def _no_drop_path(model: str) -> UsageError:
    return UsageError(f"model.backbone.drop_path: {model} has no stochastic depth; leave it at 0")


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
