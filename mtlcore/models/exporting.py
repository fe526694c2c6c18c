"""Whether a forward pass is run by `torch.export`, for networks that look at values."""

from __future__ import annotations

import torch

__all__ = ["is_exporting"]


def is_exporting() -> bool:
    """Return whether `torch.export` follows what is computed, as it does for `mtl export`.

    No value of a tensor is known then, so a network must not branch on one: `bool(x)`, `x.item()`
    and `x.tolist()` fail. What only checks its inputs is left out then, and a choice between two
    results is computed as `torch.where`.
    """
    # torch.compiler.is_exporting is younger than torch 2.6.
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
