"""What this project has to install, so that a name that is not there can be explained."""

from __future__ import annotations

from collections.abc import Mapping

#: Plugins that can be installed from this project: id -> what they bring under other names.
KNOWN: Mapping[str, tuple[str, ...]] = {
    "atinet": ("ati-net", "atinet-nyuv2"),
    "ira": ("ira-nyuv2", "ira-cityscapes", "ira-vkitti"),
    "mtml": ("mtml-nyuv2", "mtml-taskonomy", "task-powerset"),
    "mtpsl": ("mtpsl-nyuv2", "mtpsl-cityscapes", "direct-map", "perceptual-map"),
    "nashmtl": ("nash-mtl",),
    "paretomtl": ("pareto-mtl",),
    "pcgrad": (),
}
