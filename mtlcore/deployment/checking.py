"""Whether a program computes what the model predicts."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

#: The most by which a value of a program may differ; of one above 1, this part of it.
TOLERANCE = 1e-4


def difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """Return in which output a program differs from a model, and by how much; None: in none.

    NaN equals NaN, and infinity itself.

    Args:
        found: name -> what the program computed.
        expected: name -> what the model predicts.
    """
    if list(found) != list(expected):
        return f"its outputs are {', '.join(found)}, and {', '.join(expected)} were expected"
    for name, wanted in expected.items():
        value = found[name]
        if value.shape != wanted.shape or value.dtype != wanted.dtype:
            return (
                f"{name} is {value.dtype} {list(value.shape)}, and {wanted.dtype} "
                f"{list(wanted.shape)} was expected"
            )
        alike = (value == wanted) | (value.isnan() & wanted.isnan())
        apart = (value - wanted).abs() / wanted.abs().clamp_min(1)
        # Whatever is not finite differs unless it is alike: its distance is not below any bound.
        beyond = ~(alike | (apart <= TOLERANCE))
        if bool(beyond.any()):
            worst = apart[beyond].nan_to_num(nan=float("inf")).max().item()
            return (
                f"{name} differs by up to {worst:.2g} in {beyond.float().mean().item():.1%} of its "
                f"values, and {TOLERANCE:g} is allowed"
            )
    return None
