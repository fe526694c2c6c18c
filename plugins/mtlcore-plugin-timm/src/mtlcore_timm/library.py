"""Importing timm, late: it takes seconds."""

from __future__ import annotations

from types import ModuleType

from mtlcore.loading import library


def timm() -> ModuleType:
    """Import timm and return it.

    Raises:
        MtlError: It is not installed, or cannot be imported.
    """
    return library("timm", "backbone 'timm'", "timm torchvision", "timm.models")
