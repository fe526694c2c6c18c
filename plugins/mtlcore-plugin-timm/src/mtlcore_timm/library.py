"""Importing timm, late: it takes seconds."""

from __future__ import annotations

import functools
from types import ModuleType

from mtlcore.errors import MtlError, describe
from mtlcore.loading import torchvision_repaired


@functools.cache
def timm() -> ModuleType:
    """Import timm and return it.

    Raises:
        MtlError: It is not installed, or cannot be imported.
    """
    try:
        torchvision_repaired()
        import timm  # late: it takes seconds
        import timm.models
    except ImportError as error:
        raise MtlError(
            f"backbone 'timm': timm cannot be imported ({describe(error)}); "
            "pip install timm torchvision"
        ) from error
    module: ModuleType = timm
    return module
