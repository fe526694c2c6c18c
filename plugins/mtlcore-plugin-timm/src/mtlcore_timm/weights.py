"""Weights for an encoder: a file, or what timm publishes, held against the encoder's own names."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from torch import Tensor, nn

from mtlcore.errors import MtlError, UsageError, describe
from mtlcore.loading import WeightFile, read_weight_file

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
        path, name = _from_hub(repository, about.get("hf_hub_filename"))
        return attrs.evolve(read_weight_file(path), source=f"hf-hub:{repository}/{name}")
    if about.get("url") and not about.get("custom_load"):
        return read_weight_file(about["url"])
    raise UsageError(
        f"model.backbone.weights: timm has no pretrained weights for {about.get('architecture')} "
        "in a format that can be read here; give the path of a file, or choose another model "
        "(python -c 'import timm; print(timm.list_pretrained())')"
    )


def load_weights(encoder: nn.Module, file: WeightFile, channels: int) -> list[str]:
    """Load a file into an encoder that is whole but for its classifier.

    The names may be timm's, those of a release that timm knows how to convert, timm's behind a
    common prefix, or foreign ones, where a file that keeps the order has tensors of the encoder's
    shapes, one by one.

    Args:
        encoder: Of timm; `num_classes` is 0.
        file: The weights.
        channels: Of the images that it will read.

    Returns:
        The names of the tensors that are of no use here: those of a classifier.

    Raises:
        MtlError: Something is missing, left over, or of another shape; the message lists it.
    """
    own = encoder.state_dict()
    found = _renamed(file, encoder, own)
    about: Mapping[str, Any] = encoder.pretrained_cfg  # type: ignore[assignment]
    classifiers = _several(about.get("classifier"))
    unused = sorted(key for key in found if key not in own and _is_within(key, classifiers))
    found = {key: value for key, value in found.items() if key not in unused}
    for name in _several(about.get("first_conv")):
        key = f"{name}.weight"
        if key in found and key in own and found[key].shape != own[key].shape:
            found[key] = _for_channels(found[key], own[key], channels, file.source)
    problems = [
        *_problem("missing", [k for k in own if k not in found and not k.endswith(_COUNTER)]),
        *_problem("unknown here", [k for k in found if k not in own]),
        *_problem(
            "of another shape",
            [k for k, v in found.items() if k in own and v.shape != own[k].shape],
            lambda k: f"{k} {tuple(found[k].shape)}, not {tuple(own[k].shape)}",
        ),
    ]
    if problems:
        raise MtlError(
            f"{file.source}: are these weights of {about.get('architecture')}? "
            f"{'; '.join(problems)}"
        )
    encoder.load_state_dict({**own, **found})
    return unused


def _from_hub(repository: str, filename: str | None) -> tuple[str, str]:
    """Return the path of a file in the hub's cache, where it is downloaded to, and its name."""
    names = (filename,) if filename else _HUB_FILES
    for name in names:
        path = _download(repository, name)
        if path is not None:
            return path, name
    raise MtlError(
        f"model.backbone.weights: {repository} on the Hugging Face hub holds no "
        f"{' and no '.join(names)}; give the path of a file"
    )


def _download(repository: str, filename: str) -> str | None:
    """Return the path of a file of the hub; None where the repository has no such file."""
    import huggingface_hub as hub  # late: one need not download anything
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    name, _, revision = repository.partition("@")
    try:
        path: str = hub.hf_hub_download(name, filename, revision=revision or None)
    except Exception as error:  # its libraries raise what they like where there is no network
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise MtlError(
            f"model.backbone.weights: {filename} of {repository} cannot be downloaded from the "
            f"Hugging Face hub ({describe(error)}). Without a network, set model.backbone.weights "
            "to the path of a file with the same weights"
        ) from error
    return path


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


def _problem(what: str, keys: Sequence[str], told: Callable[[str], str] = str) -> list[str]:
    if not keys:
        return []
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return [f"{what}: {', '.join(map(told, keys[:5]))}{more}"]


def _several(names: str | Sequence[str] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())


def _is_within(key: str, modules: Sequence[str]) -> bool:
    return any(key.startswith(f"{module}.") for module in modules)
