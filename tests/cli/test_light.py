"""What answers at once must not import torch: plugin records, look-up and the commands on them."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "numpy", "rich", "cattrs", "fsspec"}
MODULES = [
    "mtlcore",
    "mtlcore.errors",
    "mtlcore.plugins.specs",
    "mtlcore.plugins.hookspecs",
    "mtlcore.plugins",
    "mtlcore.plugins.settings",
    "mtlcore.cli.descriptions",
    "mtlcore.cli.adapt",
    "mtlcore.cli.components",
    "mtlcore.standard.plugin",
]


def loaded_after(code):
    ending = "\nimport sys; print(*sys.modules)"
    command = [sys.executable, "-c", code + ending]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(result.stdout.split())


@pytest.mark.parametrize("module", MODULES)
def test_importing_is_light(module):
    loaded = loaded_after(f"import {module}")
    assert module in loaded
    assert not HEAVY & loaded


def test_scanning_and_listing_is_light():
    code = (
        "from mtlcore.plugins import Plugins\n"
        "from mtlcore.cli.descriptions import list_data, plugins_data\n"
        "plugins = Plugins(entry_points=())\n"
        "assert plugins_data(plugins) and list_data(plugins) is not None"
    )
    assert not HEAVY & loaded_after(code)


def test_public_names_are_listed_and_unknown_ones_refused():
    import mtlcore

    assert set(mtlcore.__all__) <= set(dir(mtlcore))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = mtlcore.nonsense
