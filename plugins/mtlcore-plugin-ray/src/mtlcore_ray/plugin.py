"""What this plugin adds: a launcher that runs the cells of a study on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import LauncherSpec, hookimpl


@hookimpl
def mtl_launchers() -> Iterator[LauncherSpec]:
    """Yield the launcher."""
    yield LauncherSpec(
        name="ray",
        target="mtlcore_ray.launcher:Ray",
        summary="Runs every cell on a machine of a Ray cluster.",
    )
