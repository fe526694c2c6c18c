"""What all suites share: each plugin's tests see that plugin only; the command; golden vectors."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mtlcore.plugins import Plugins

ROOT = Path(__file__).parent
_PLUGIN_TESTS = re.compile(r"/plugins/mtlcore-plugin-([\w-]+)/tests/")
_REAL_DATA = "MTLCORE_REAL_DATA"


def _plugin_of(path: Path) -> str | None:
    """The plugin that a test file belongs to; None for the core's tests, which see all."""
    match = _PLUGIN_TESTS.search(path.as_posix())
    return match[1] if match else None


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out the tests of plugins that are not installed here: `make test-integrations`."""
    plugin = _plugin_of(collection_path)
    if plugin is None:
        return None
    try:
        distribution(f"mtlcore-plugin-{plugin}")
    except PackageNotFoundError:
        return True
    return None


def _allow(plugin: str | None, environment: pytest.MonkeyPatch) -> None:
    if plugin is None:
        environment.delenv("MTL_PLUGINS", raising=False)
    else:
        environment.setenv("MTL_PLUGINS", plugin)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Let a test module see its own plugin while it is imported, too."""
    with pytest.MonkeyPatch.context() as environment:
        _allow(_plugin_of(collector.path) if hasattr(collector, "path") else None, environment)
        return (yield)


@pytest.fixture(scope="module", autouse=True)
def _only_own_plugin(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as environment:
        _allow(_plugin_of(request.path), environment)
        yield


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where a shell started pytest in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[Any]]]:
    """`subprocess.Popen`, whose processes end with the test, also where it fails."""
    with ExitStack() as stack:

        def start(*arguments: Any, **options: Any) -> subprocess.Popen[Any]:
            process = stack.enter_context(subprocess.Popen(*arguments, **options))
            stack.callback(process.kill)
            return process

        yield start


@pytest.fixture
def study_process(spawn: Callable[..., subprocess.Popen[Any]]) -> Callable[..., Any]:
    """A study in a process of its own, whose output can be read: `study_process(file, out, *)`."""

    def start(file: Path | str, out: Path, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "mtlcore", "study", str(file), "--out", str(out), *words]
        return spawn(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return start


@pytest.fixture(scope="session")
def until() -> Callable[..., None]:
    """Wait until something is the case, not for ever: `until(condition, seconds=600)`."""

    def wait(condition: Callable[[], Any], seconds: float = 600.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.05)

    return wait


_STOPPER = """
import os
import signal

from mtlcore import BalancerSpec, hookimpl
from mtlcore.balancing import LossBalancer


class Stop(LossBalancer):
    def transform(self, losses, context):
        if os.environ.get("MTL_TEST_STOP") == str(context.step):
            os.kill(os.getpid(), signal.SIGINT)
        return losses


@hookimpl
def mtl_balancers():
    yield BalancerSpec(name="stop", target=Stop)
"""


@pytest.fixture
def stopped_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Path, Path]]:
    """The directories of a run that was not stopped, and of one that was and went on.

    `stopped_and_resumed(configuration, step)`: a balancer behind that of the configuration
    interrupts it there.
    """

    def run(configuration: dict[str, Any], step: int) -> tuple[Path, Path]:
        import mtlcore
        from mtlcore.errors import MtlError

        (tmp_path / "stopper.py").write_text(_STOPPER)
        whole, stopped = tmp_path / "whole", tmp_path / "stopped"
        chain = [configuration["balancer"], {"name": "stop"}]
        values = {
            **configuration,
            "plugins": [str(tmp_path / "stopper.py")],
            "balancer": {"chain": chain},
        }
        mtlcore.run(values, out=str(whole))
        with monkeypatch.context() as environment:
            environment.setenv("MTL_TEST_STOP", str(step))
            with pytest.raises(MtlError, match="stopped by SIGINT"):
                mtlcore.run(values, out=str(stopped))
        mtlcore.run(values, out=str(stopped), resume=True)
        return whole, stopped

    return run


@pytest.fixture(scope="session")
def mtl() -> Callable[..., Result]:
    """The command `mtl`, in this process: `mtl("run", "--out", "x")`.

    Keyword `plugins` replaces the installed plugins, `env` changes environment variables.
    """
    from mtlcore.cli import main

    def invoke(
        *arguments: str, plugins: Plugins | None = None, env: dict[str, str] | None = None
    ) -> Result:
        return CliRunner().invoke(main, arguments, obj=plugins, env=env)

    return invoke


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Any]:
    """Vectors computed independently of mtlcore (tests/golden/README.md): `golden("ira.json")`."""
    return lambda name: json.loads((ROOT / "tests" / "golden" / name).read_text("utf-8"))


@pytest.fixture(scope="session")
def golden_arrays() -> Callable[[str], dict[str, Any]]:
    """Arrays of an archive in the same folder: `golden_arrays("balancers.npz")["J_mixed_K2_P10"]`.

    A session reads each archive once: leave the arrays as they are.
    """
    import numpy as np

    @functools.cache
    def load(name: str) -> dict[str, Any]:
        with np.load(ROOT / "tests" / "golden" / name) as archive:
            return dict(archive)

    return load


@pytest.fixture(scope="session")
def packaged_weights() -> Callable[[str], Path]:
    """Where a package has pretrained weights (tools/packaged_weights.py); skip where it has not."""

    def place(name: str) -> Path:
        script = str(ROOT / "tools" / "packaged_weights.py")
        done = subprocess.run(
            [sys.executable, script, name], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(done.stderr.strip())
        return Path(done.stdout.strip())

    return place


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """A folder of real data by its name; a test that asks for one that is missing is skipped."""

    def folder(name: str) -> Path:
        place = Path(os.environ.get(_REAL_DATA) or ROOT.parent / "shared" / "data") / name
        if not place.is_dir():
            pytest.skip(f"no real data in {place} ({_REAL_DATA} names the folder above it)")
        return place

    return folder
