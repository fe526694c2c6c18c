"""What this plugin adds: a logger that sends runs to TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import LoggerSpec, hookimpl


@hookimpl
def mtl_loggers() -> Iterator[LoggerSpec]:
    """Yield the logger."""
    yield LoggerSpec(
        name="tensorboard",
        target="mtlcore_tensorboard.logger:TensorBoard",
        summary="Event files that TensorBoard shows.",
    )
