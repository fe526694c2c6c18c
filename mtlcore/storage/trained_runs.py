"""What a trained run leaves to others: its configuration and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mtlcore.errors import MtlError, UsageError, describe
from mtlcore.storage.checkpoints import load_checkpoint
from mtlcore.storage.run_directory import BEST, LAST
from mtlcore.storage.run_files import RunFiles, stored_config

Which = Literal["best", "last"]


def trained_config(location: str) -> Mapping[str, Any]:
    """Return the configuration of a run, as its directory or URL holds it.

    Raises:
        UsageError: No run is there.
        MtlError: It cannot be read.
    """
    stored = stored_config(location)
    if stored is None:
        raise UsageError(f"{location}: no run there (it has no config.toml)")
    return stored


def read_weights(location: str, which: Which) -> tuple[str, dict[str, Any]]:
    """Return the path of a run's checkpoint, and the state of the learner that was evaluated.

    Of a run that evaluates its averaged copy, the model is that copy.

    Args:
        location: Directory or URL of the run.
        which: The best epoch's weights, or the last ones.

    Raises:
        MtlError: The checkpoint is missing or damaged, or holds no weights.
    """
    path = f"{location}/{BEST if which == 'best' else LAST}"
    state = load_checkpoint(_local(path))
    weights = state.get("learner")
    if not isinstance(weights, dict):
        raise MtlError(f"{path}: holds no weights")
    # Those of the best epoch are the averaged ones already.
    training = RunFiles(location).config.get("training", {})
    if training.get("evaluate_ema") and "average" in state:
        weights = with_model(weights, state["average"])
    return path, weights


def with_model(learner: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a learner with the state of another model in it."""
    return {**learner, **{f"model.{name}": value for name, value in model.items()}}


def model_of(learner: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of the model in the state of a learner."""
    return {
        name.removeprefix("model."): value
        for name, value in learner.items()
        if name.startswith("model.")
    }


def _local(path: str) -> Path:
    """Return a path on this machine for a file that may be elsewhere."""
    if "://" not in path:
        return Path(path)
    import fsspec

    try:
        return Path(fsspec.open_local(f"simplecache::{path}"))
    except Exception as error:  # a network's file system raises what its libraries raise
        raise MtlError(f"{path}: cannot be read ({describe(error)})") from error
