"""What this plugin adds: a logger that sends runs to Trackio."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import LoggerSpec, hookimpl


@hookimpl
def mtl_loggers() -> Iterator[LoggerSpec]:
    """Yield the logger."""
    yield LoggerSpec(
        name="trackio",
        target="mtlcore_trackio.logger:Trackio",
        summary="Runs in Trackio's local store, on its server or in a Space.",
    )
