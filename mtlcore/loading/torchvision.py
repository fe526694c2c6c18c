"""Importing libraries that need torchvision, also where its compiled operators do not load.

timm imports torchvision, and transformers and peft do where it is installed. Its wheels on PyPI are
built for one build of torch. Beside another one, such as that for CPUs, `import torchvision` fails:
its Python code registers fake kernels for the operators `nms` and `qnms`, which its library would
have defined. Defining their schemas, through torch's public interface, lets it be imported. What
those libraries use is Python alone; only torchvision's detection operators are missing, and say so
when they are called.
"""

from __future__ import annotations

import functools
import logging
import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch

from mtlcore.errors import MtlError, describe

__all__ = ["library", "torchvision_repaired"]

_LOGGER = logging.getLogger("mtlcore.loading")
_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@functools.cache
def torchvision_repaired() -> torch.library.Library | None:
    """Import torchvision if there is one, after defining the operators that it lacks if need be.

    Returns:
        What holds the definitions; None where none are needed.
    """
    if find_spec("torchvision") is None:
        return None
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
    definitions: torch.library.Library = torch.library.Library(  # type: ignore[no-untyped-call]
        "torchvision", "FRAGMENT"
    )
    for name in ("nms", "qnms"):
        definitions.define(name + _BOXES)  # type: ignore[no-untyped-call]
    import torchvision

    _LOGGER.warning(
        "torchvision %s is built for another torch than %s: its compiled operators do not load, "
        "and it is used without them",
        torchvision.__version__,
        torch.__version__,
    )
    return definitions


@functools.cache
def library(name: str, wanted_by: str, packages: str, *modules: str) -> ModuleType:
    """Import a library that may import torchvision, which takes seconds, and return it.

    Args:
        name: Of the library's module.
        wanted_by: Who needs it, for the message.
        packages: What pip installs it by.
        modules: Of the library, to import as well.

    Raises:
        MtlError: It is not installed, or cannot be imported.
    """
    try:
        torchvision_repaired()
        found = import_module(name)
        for module in modules:
            import_module(module)
    except ImportError as error:
        raise MtlError(
            f"{wanted_by}: {name} cannot be imported ({describe(error)}); pip install {packages}"
        ) from error
    return found
