"""Importing timm, also where the compiled operators of torchvision do not load.

timm imports torchvision, and torchvision's wheels on PyPI are built for one build of torch. Beside
another one, such as that for CPUs, `import torchvision` fails: its Python code registers fake
kernels for the operators `nms` and `qnms`, which its library would have defined. Defining their
schemas, through torch's public interface, lets it be imported. What timm uses is Python alone; only
torchvision's detection operators are missing, and say so when they are called.
"""

from __future__ import annotations

import functools
import logging
import sys
from types import ModuleType

import torch

from mtlcore.errors import MtlError, describe

_LOGGER = logging.getLogger("mtlcore.timm")
_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


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


@functools.cache
def torchvision_repaired() -> torch.library.Library | None:
    """Import torchvision, after defining the operators that it lacks if need be.

    Returns:
        What holds the definitions; None where none are needed.

    Raises:
        ImportError: There is no torchvision.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        return None
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    # Definitions last as long as this object does, which the cache keeps.
    library: torch.library.Library = torch.library.Library(  # type: ignore[no-untyped-call]
        "torchvision", "FRAGMENT"
    )
    for name in ("nms", "qnms"):
        library.define(name + _BOXES)  # type: ignore[no-untyped-call]
    import torchvision

    _LOGGER.warning(
        "torchvision %s is built for another torch than %s: its compiled operators do not load. "
        "timm works without them.",
        torchvision.__version__,
        torch.__version__,
    )
    return library
