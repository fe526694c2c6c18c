"""What this plugin adds: a logger that sends runs to MLflow."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import LoggerSpec, hookimpl


@hookimpl
def mtl_loggers() -> Iterator[LoggerSpec]:
    """Yield the logger."""
    yield LoggerSpec(
        name="mlflow",
        target="mtlcore_mlflow.logger:MLflow",
        summary="Runs on an MLflow server, or in a local store of MLflow.",
    )
