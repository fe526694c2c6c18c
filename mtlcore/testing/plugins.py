"""Whether a plugin module can be listed without waiting for torch, and whether it is whole."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module

from mtlcore.errors import MtlError
from mtlcore.plugins import KINDS, MethodSpec, Spec, create, hook_name, settings_of

_HEAVY = ("torch", "numpy")


def assert_plugin_is_light(module_name: str) -> None:
    """Fail unless importing the module and calling its hooks imports neither torch nor numpy.

    It is done in a process of its own. `mtl list` imports every installed plugin and calls all its
    hooks; one that is heavy makes all of it slow.
    """
    code = (
        f"import sys, {module_name}\n"
        f"for hook in {[hook_name(kind) for kind in KINDS]!r}:\n"
        f"    list(getattr({module_name}, hook, tuple)())\n"
        f"print(*(name for name in {_HEAVY!r} if name in sys.modules))"
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


def assert_plugin_is_whole(module_name: str) -> None:
    """Fail unless every record of the module has a target that `mtl show` can explain.

    That is: it has a summary, its target (a method: its preset) can be loaded, and each setting of
    the target has a meaning in the docstring.
    """
    records = list(_records(module_name))
    assert records, f"{module_name} has no hook that yields a record"
    for record in records:
        assert record.summary, f"{record}: needs a summary for mtl list"
        try:
            target = record.load()
            settings = () if isinstance(record, MethodSpec) else settings_of(target)
        except MtlError as error:
            raise AssertionError(str(error)) from error
        silent = [setting.name for setting in settings if not setting.meaning]
        assert not silent, (
            f"{record}: the docstring of its target does not say under Args: what "
            f"{', '.join(silent)} {'is' if len(silent) == 1 else 'are'}"
        )


def assert_settings_are_checked(kind: str, name: str, **wrong: Sequence[object]) -> None:
    """Fail unless a component refuses values that its settings cannot have, by their names.

    Args:
        kind: The component's kind, as `mtl list` names it, such as "balancers".
        name: Its name.
        wrong: Setting -> values that are none, such as the bounds that its range leaves out. It is
            made with one of them at a time and without what the core would pass.
    """
    for setting, values in wrong.items():
        for value in values:
            try:
                create(kind, name, **{setting: value})
            except MtlError as error:
                assert setting in str(error), f"{setting}={value!r}: the message is {error}"
            else:
                raise AssertionError(f"{name} takes {setting}={value!r}")


def _records(module_name: str) -> Iterator[Spec]:
    module = import_module(module_name)
    for kind in KINDS:
        yield from getattr(module, hook_name(kind), tuple)()
