"""Weights for an encoder: a file, or what timm publishes, held against the encoder's own names."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import attrs
from torch import Tensor, nn

from mtlcore.errors import MtlError, UsageError, describe
from mtlcore.loading import WeightFile, check_fit, hub_file, read_weight_file

_LOGGER = logging.getLogger("mtlcore.timm")
#: Files of one repository of the Hugging Face hub, in the order in which timm looks for them.
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_COUNTER = "num_batches_tracked"


def find_weights(weights: str, encoder: nn.Module) -> WeightFile:
    """Read the weights that a setting names.

    Args:
        weights: A path, an fsspec URL, or "pretrained".
        encoder: Of timm; "pretrained" are those that belong to its name.

    Raises:
        UsageError: There are none for the encoder's name.
        MtlError: They cannot be read, or downloaded.
    """
    if weights != "pretrained":
        return read_weight_file(weights)
    about: Mapping[str, Any] = encoder.pretrained_cfg  # type: ignore[assignment]
    if repository := about.get("hf_hub_id"):
        name = about.get("hf_hub_filename")
        names = (name,) if name else _HUB_FILES
        file = hub_file(repository, names, "model.backbone.weights")
        if file is None:
            raise MtlError(
                f"model.backbone.weights: {repository} on the Hugging Face hub holds no "
                f"{' and no '.join(names)}; give the path of a file"
            )
        return attrs.evolve(read_weight_file(file.path), source=file.source)
    if about.get("url") and not about.get("custom_load"):
        return read_weight_file(about["url"])
    raise UsageError(
        f"model.backbone.weights: timm has no pretrained weights for {about.get('architecture')} "
        "in a format that can be read here; give the path of a file, or choose another model "
        "(python -c 'import timm; print(timm.list_pretrained())')"
    )


def load_weights(
    encoder: nn.Module, file: WeightFile, channels: int, left_out: Collection[str] = ()
) -> list[str]:
    """Load a file into an encoder that is whole but for its classifier.

    The names may be timm's, those of a release that timm knows how to convert, timm's behind a
    common prefix, or foreign ones, where a file that keeps the order has tensors of the encoder's
    shapes, one by one.

    Args:
        encoder: Of timm; `num_classes` is 0.
        file: The weights.
        channels: Of the images that it will read.
        left_out: Names of tensors that the model has elsewhere, and the encoder was made without.

    Returns:
        The names of the tensors that are of no use here: those of a classifier, and `left_out`.

    Raises:
        MtlError: Something is missing, left over, or of another shape; the message lists it.
    """
    own = encoder.state_dict()
    found = _renamed(file, encoder, own)
    about: Mapping[str, Any] = encoder.pretrained_cfg  # type: ignore[assignment]
    classifiers = _several(about.get("classifier"))
    unused = sorted(
        key for key in found if key not in own and (key in left_out or _is_within(key, classifiers))
    )
    found = {key: value for key, value in found.items() if key not in unused}
    for name in _several(about.get("first_conv")):
        key = f"{name}.weight"
        if key in found and key in own and found[key].shape != own[key].shape:
            found[key] = _for_channels(found[key], own[key], channels, file.source)
    check_fit(file.source, str(about.get("architecture")), own, found)
    encoder.load_state_dict({**own, **found})
    return unused


def _renamed(file: WeightFile, encoder: nn.Module, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file under the encoder's names, as far as they can be told."""
    tensors = dict(file.tensors)
    while tensors and not own.keys() & tensors.keys():
        heads = {key.partition(".")[0] for key in tensors}
        if len(heads) > 1 or not all("." in key for key in tensors):
            break
        tensors = {key.partition(".")[2]: value for key, value in tensors.items()}
    foreign = file.ordered and not own.keys() & tensors.keys()
    ordered = _in_order(tensors, own) if foreign else None
    if ordered is not None:
        _LOGGER.warning(
            "%s: the names are not timm's; its tensors have the shapes of the encoder's, one by "
            "one, and are taken in this order",
            file.source,
        )
        return ordered
    # What other releases call these layers, each module of timm knows about its own encoders.
    convert = getattr(sys.modules[type(encoder).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return tensors
    try:
        return dict(convert(tensors, encoder))
    except Exception as error:  # it takes for granted what a release has
        raise MtlError(
            f"{file.source}: timm cannot make weights of this encoder of it ({describe(error)})"
        ) from error


def _in_order(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the tensors under the names at the same places, if all shapes are the same.

    Counters of batches are left out; a classifier's weight and bias may follow.
    """
    names = [key for key in own if not key.endswith(_COUNTER)]
    given = [key for key in tensors if not key.endswith(_COUNTER)]
    pairs = list(zip(names, given, strict=False))
    same = all(own[name].shape == tensors[key].shape for name, key in pairs)
    if not same or not len(names) <= len(given) <= len(names) + 2:
        return None
    return {name: tensors[key] for name, key in pairs}


def _for_channels(weight: Tensor, own: Tensor, channels: int, source: str) -> Tensor:
    """Return the first layer's weight for images of other channels, as timm does it."""
    from timm.models import adapt_input_conv

    if weight.dim() != 4 or weight.shape[1] == own.shape[1] or weight.shape[1] not in (1, 3):
        return weight
    before = weight.shape[1]
    adapted: Tensor = adapt_input_conv(channels, weight)
    if adapted.shape == own.shape:
        _LOGGER.warning(
            "%s: the first layer read %d channels and is adapted to %d, by repeating or adding up "
            "its weights",
            source,
            before,
            channels,
        )
    return adapted


def _several(names: str | Sequence[str] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())


def _is_within(key: str, modules: Sequence[str]) -> bool:
    return any(key.startswith(f"{module}.") for module in modules)
