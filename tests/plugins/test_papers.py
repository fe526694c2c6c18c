"""Every plugin of this repository holds its published methods against a table of its paper."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mtlcore.plugins import Plugins

FOLDERS = sorted((Path(__file__).parents[2] / "plugins").glob("mtlcore-plugin-*"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_published_methods_are_compared_with_their_paper(folder: Path) -> None:
    """Where a method exists on rooms and on a paper's data, the latter is the published one."""
    name = folder.name.removeprefix("mtlcore-plugin-")
    methods = {
        component.spec.name: component.spec.read()
        for component in Plugins.from_environment().all("methods")
        if component.plugin == name and component.spec.paper  # others claim no publication
    }
    paper = folder / f"tests/test_{name.replace('-', '_')}_paper.py"
    assert methods or not paper.exists()  # what wraps a library publishes no method
    elsewhere = {m for m, preset in methods.items() if "name" in preset.get("data", {})}
    small = {m for m in methods if any(other.startswith(f"{m}-") for other in elsewhere)}
    compared = re.findall(r'method = "([a-z0-9-]+)"', paper.read_text("utf-8") if methods else "")
    assert set(compared) == set(methods) - small
