"""The launcher through submitit's local executor: what mtlcore asks of every launcher, and more."""

from __future__ import annotations

from pathlib import Path

from mtlcore.testing import LauncherContract, assert_plugin_is_light, assert_plugin_is_whole
from mtlcore_slurm.launcher import Slurm


class TestLocally(LauncherContract):
    def make(self, folder: Path, lock: int) -> Slurm:
        return Slurm(folder, lock, executor="local")


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_slurm.plugin")
    assert_plugin_is_whole("mtlcore_slurm.plugin")
