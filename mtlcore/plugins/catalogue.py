"""The plugins of this project, so that a message can say which one to install."""

from __future__ import annotations

from collections.abc import Mapping

#: Id of each plugin of this project -> names of its components and methods that differ from it.
KNOWN: Mapping[str, tuple[str, ...]] = {
    "atinet": ("ati-net", "atinet-nyuv2"),
    "ira": ("ira-nyuv2", "ira-cityscapes", "ira-vkitti"),
    "mtml": ("mtml-nyuv2", "mtml-taskonomy", "task-powerset"),
    "mtpsl": ("mtpsl-nyuv2", "mtpsl-cityscapes", "direct-map", "perceptual-map"),
    "nashmtl": ("nash-mtl",),
    "paretomtl": ("pareto-mtl",),
    "pcgrad": (),
    "timm": (),
}
