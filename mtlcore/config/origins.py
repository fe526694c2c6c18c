"""A configuration as text in which each value names its origin."""

from __future__ import annotations

import re
from collections.abc import Mapping


def annotated(toml: str, origins: Mapping[str, str]) -> str:
    """Return TOML text with the origin of each value as a comment behind it."""
    lines, table = [], ""
    for line in toml.splitlines():
        heading = re.fullmatch(r"\[+([\w.-]+)\]+", line)
        entry = re.match(r"([\w-]+) = ", line)
        if heading:
            table = heading[1]
        path = ".".join(part for part in (table, entry[1] if entry else "") if part)
        origin = origins.get(path) if entry else None
        lines.append(f"{line}  # {origin}" if origin else line)
    return "\n".join(lines)
