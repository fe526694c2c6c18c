"""What this plugin adds: a launcher that submits the cells of a study to Slurm."""

from __future__ import annotations

from collections.abc import Iterator

from mtlcore import LauncherSpec, hookimpl


@hookimpl
def mtl_launchers() -> Iterator[LauncherSpec]:
    """Yield the launcher."""
    yield LauncherSpec(
        name="slurm",
        target="mtlcore_slurm.launcher:Slurm",
        summary="Submits every cell to Slurm, through submitit.",
    )
