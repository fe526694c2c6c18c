"""Files of pretrained weights: safetensors, or what `torch.save` wrote of tensors alone."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any, final

import attrs
import torch
from torch import Tensor

from mtlcore.errors import MtlError, describe
from mtlcore.loading.files import Root

__all__ = ["WeightFile", "read_weight_file"]

#: Where training programs keep the state dict within their checkpoints; an average comes first.
_WITHIN = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
#: What data parallelism and `torch.compile` put before every name.
_WRAPPERS = ("module.", "_orig_mod.")


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
