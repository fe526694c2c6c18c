"""Importing transformers, late: it takes seconds. And quietly: it prints while it loads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from mtlcore.loading import library


def transformers() -> ModuleType:
    """Import transformers and return it.

    Raises:
        MtlError: It is not installed, or cannot be imported.
    """
    needed = "transformers.models.auto.modeling_auto"
    return library("transformers", "mtlcore-plugin-transformers", "transformers", needed)


def model_types() -> dict[str, Any]:
    """Return the types of model that transformers knows, and the names of their configurations."""
    known: dict[str, Any] = transformers().models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    return known


def mapping(name: str) -> Any:
    """Return one of the library's mappings from a class of configurations to one of models."""
    return getattr(transformers().models.auto.modeling_auto, name)


@contextmanager
def quiet() -> Iterator[None]:
    """Let the library print no bars and no reports; what is wrong with weights is told by us."""
    logging = transformers().utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
