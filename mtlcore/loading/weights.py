"""Files of pretrained weights: safetensors, or what `torch.save` wrote of tensors alone."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import attrs
import torch
from torch import Tensor

from mtlcore.errors import MtlError, describe
from mtlcore.loading.files import Root

__all__ = ["HubFile", "WeightFile", "check_fit", "hub_file", "read_weight_file"]

#: Where training programs keep the state dict within their checkpoints; an average comes first.
_WITHIN = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
#: What data parallelism and `torch.compile` put before every name.
_WRAPPERS = ("module.", "_orig_mod.")
#: Buffers that files older than torch 0.4.1 lack, and that nothing reads.
_COUNTER = "num_batches_tracked"


@final
@attrs.frozen(kw_only=True)
class WeightFile:
    """The tensors of a file, and where they came from.

    Args:
        source: Path or URL of the file.
        sha256: Of its content.
        tensors: Name -> tensor.
        ordered: Whether they are in the order in which their model had them: `torch.save` keeps it,
            safetensors does not.
    """

    source: str
    sha256: str
    tensors: Mapping[str, Tensor]
    ordered: bool

    @property
    def facts(self) -> dict[str, str]:
        """What `Backbone.facts` tells of it."""
        return {"weights": self.source, "weights_sha256": self.sha256}


def read_weight_file(where: str) -> WeightFile:
    """Read a state dict, or a checkpoint that holds one (`state_dict`, `model`, ...).

    The prefixes `module.` and `_orig_mod.`, where all names have them, are removed.

    Args:
        where: Path or fsspec URL.

    Raises:
        DataError: The file cannot be read.
        MtlError: It is neither safetensors nor tensors alone; no code in it is ever run.
    """
    data = Root(where).read_bytes("")
    # After eight bytes with its length, a safetensors header is JSON.
    safe = data[8:9] == b"{"
    state: Any
    try:
        if safe:
            from safetensors.torch import load

            state = load(data)
        else:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever is in the file, the file is at fault
        reason = describe(error).partition(". ")[0]
        raise MtlError(
            f"{where}: neither safetensors nor a state dict of tensors alone: {reason}"
        ) from error
    if not isinstance(state, Mapping):
        raise MtlError(f"{where}: holds a {type(state).__name__}, not a state dict")
    inner = next((state[key] for key in _WITHIN if isinstance(state.get(key), Mapping)), state)
    for key, value in inner.items():
        if not isinstance(value, Tensor):
            raise MtlError(f"{where}: {key!r} is a {type(value).__name__}, not a tensor")
    tensors = dict(inner)
    while prefix := next((p for p in _WRAPPERS if tensors and _all_begin(tensors, p)), None):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return WeightFile(
        source=where,
        sha256=hashlib.sha256(data).hexdigest(),
        tensors=tensors,
        ordered=not safe,
    )


def _all_begin(names: Mapping[str, Any], prefix: str) -> bool:
    return all(name.startswith(prefix) for name in names)


def check_fit(
    source: str, model: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> None:
    """Hold the tensors of a file against a model's own.

    Args:
        source: Path or URL of the file.
        model: The model's name.
        own: Its state dict.
        given: Tensors of the file, under the model's names as far as they have any.

    Raises:
        MtlError: Something is missing, left over, or of another shape; the message lists it.
    """
    shapes = [k for k, v in given.items() if k in own and v.shape != own[k].shape]
    problems = [
        *_problem("missing", [k for k in own if k not in given and not k.endswith(_COUNTER)]),
        *_problem("unknown here", [k for k in given if k not in own]),
        *_problem(
            "of another shape",
            shapes,
            lambda k: f"{k} {tuple(given[k].shape)}, not {tuple(own[k].shape)}",
        ),
    ]
    if problems:
        raise MtlError(f"{source}: are these weights of {model}? {'; '.join(problems)}")


def _problem(what: str, keys: Sequence[str], told: Callable[[str], str] = str) -> list[str]:
    if not keys:
        return []
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return [f"{what}: {', '.join(map(told, keys[:5]))}{more}"]


@final
@attrs.frozen
class HubFile:
    """A file of a repository on the Hugging Face hub.

    Args:
        path: Where the hub's cache has it.
        source: Where it came from.
    """

    path: str
    source: str


def hub_file(repository: str, names: Sequence[str], setting: str) -> HubFile | None:
    """Return the first of some files that a repository has, from the hub's cache or downloaded.

    None where it has none of them.

    Args:
        repository: Its name, with `@revision` or without.
        names: Of the files.
        setting: That names the repository, for messages.

    Raises:
        MtlError: It cannot be downloaded.
    """
    for name in names:
        path = _download(repository, name, setting)
        if path is not None:
            return HubFile(path, f"hf-hub:{repository}/{name}")
    return None


def _download(repository: str, filename: str, setting: str) -> str | None:
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
            f"{setting}: {filename} of {repository} cannot be downloaded from the Hugging Face hub "
            f"({describe(error)}). Without a network, set {setting} to a local path that holds the "
            "same"
        ) from error
    return path
