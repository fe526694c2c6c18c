"""Whether a plugin module can be listed without waiting for torch."""

from __future__ import annotations

import os
import subprocess
import sys

_HEAVY = ("torch", "numpy")


def assert_plugin_is_light(module_name: str) -> None:
    """Fail unless importing the module, in a process of its own, imports neither torch nor numpy.

    `mtl list` imports every installed plugin; one that is heavy makes all of it slow.
    """
    code = (
        f"import sys, {module_name}\nprint(*(name for name in {_HEAVY!r} if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"importing {module_name} fails:\n{done.stderr}"
    heavy = done.stdout.split()
    assert not heavy, (
        f"importing {module_name} imports {' and '.join(heavy)}: name components in its records "
        "as strings ('package.module:Name'), so that they are imported when they are used"
    )
