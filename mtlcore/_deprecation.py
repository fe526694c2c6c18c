"""How a public name goes away: with a warning for one minor version, through this one function."""

from __future__ import annotations

import warnings


def warn_deprecated(name: str, *, since: str, instead: str) -> None:
    """Warn the caller's caller that a public name goes away in the next minor version.

    Call it from whatever stands for the old name, such as a function or a module's
    ``__getattr__``: the warning then points at the line that uses it.

    Args:
        name: What is deprecated, as its users write it.
        since: The minor version that warns first, such as ``"0.2"``. ``make release-check`` fails
            while the call is still there in the next one.
        instead: What to use, as an instruction.
    """
    major, minor = since.split(".")
    warnings.warn(
        f"{name} is deprecated since mtlcore {since} and will be removed in "
        f"{major}.{int(minor) + 1}: {instead}",
        DeprecationWarning,
        stacklevel=3,
    )
