"""What this plugin adds: a logger that sends runs to Weights & Biases."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import LoggerSpec, hookimpl


@hookimpl
def mtl_loggers() -> Iterator[LoggerSpec]:
    """Yield the logger."""
    yield LoggerSpec(
        name="wandb",
        target="mtlcore_wandb.logger:WeightsAndBiases",
        summary="Runs at Weights & Biases, or for its wandb sync.",
    )
