"""One broken plugin takes nothing else down: whatever it does while it loads, or lacks."""

from __future__ import annotations

import enum
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import attrs
import numpy as np
import pytest
from click.testing import Result

from mtlcore.config import Layer, resolve
from mtlcore.errors import ConfigError, MtlError, UsageError
from mtlcore.plugins import NotPlain, Plugins, as_plain, structure
from mtlcore.plugins.foreign import called
from mtlcore.system import stop_by_exception

Command = Callable[..., Result]
HEAD = "import os, sys\nfrom mtlcore import BalancerSpec, hookimpl\n"
HOOK = "\n@hookimpl\ndef mtl_balancers():\n    {}\n"
YIELD = 'yield BalancerSpec(name="mine", target="mtlcore.standard.balancers:Equal")'


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed distributions."""
    (tmp_path / "site").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path / "site"


def install(site: Path, code: str, *, metadata: str | None, entry: bytes | None = None) -> None:
    module = f"broken_{site.parent.name.replace('-', '_')}"
    (site / f"{module}.py").write_text(code)
    info = site / "mtlcore_plugin_broken-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_bytes(entry or f"[mtlcore]\nbroken = {module}\n".encode())
    if metadata is not None:
        (info / "METADATA").write_text(metadata)


METADATA = "Metadata-Version: 2.1\nName: mtlcore-plugin-broken\nVersion: 1.0\n"
LOADING = {
    "exits": ("sys.exit(0)\n", "SystemExit: 0"),
    "exits with a text": ("sys.exit('no license')\n", "no license"),
    "interrupts": ("raise KeyboardInterrupt\n", "KeyboardInterrupt"),
    "raises what nobody catches": ("raise BaseException('deep')\n", "BaseException: deep"),
    "ends a generator": ("raise GeneratorExit\n", "GeneratorExit"),
    "exits in a hook": (HOOK.format("sys.exit(3)"), "failed in mtl_balancers(): SystemExit: 3"),
    "interrupts in a hook": (HOOK.format("raise KeyboardInterrupt; yield"), "KeyboardInterrupt"),
}


@pytest.mark.parametrize("how", LOADING)
def test_whatever_a_plugin_raises_is_its_own_affair(how: str, site: Path, mtl: Command) -> None:
    code, says = LOADING[how]
    install(site, HEAD + code, metadata=METADATA)
    result = mtl("plugins", "--json", env={"MTL_PLUGINS": "broken"})
    assert result.exit_code == 0, result.output
    found = {row["id"]: row for row in json.loads(result.stdout)}
    assert found["standard"]["status"] == "ok"
    assert found["broken"]["status"] == "failed" and says in found["broken"]["reason"]


def test_what_a_plugin_prints_is_not_what_a_command_prints(site: Path, mtl: Command) -> None:
    code = HEAD + "print('banner')\n" + HOOK.format(f"print('more'); {YIELD}")
    install(site, code, metadata=METADATA)
    result = mtl("list", "balancers", "--json", env={"MTL_PLUGINS": "broken"})
    assert result.exit_code == 0, result.output
    assert "mine" in {row["name"] for row in json.loads(result.stdout)}
    assert "banner" in result.stderr and "more" in result.stderr


def test_a_distribution_hides_older_ones_behind_it(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mtl: Command
) -> None:
    install(site, "raise RuntimeError('what the newer one no longer has')", metadata=METADATA)
    newer = tmp_path / "newer" / "mtlcore_plugin_broken-2.0.dist-info"
    newer.mkdir(parents=True)
    (newer / "METADATA").write_text(METADATA.replace("1.0", "2.0"))
    monkeypatch.syspath_prepend(str(newer.parent))
    result = mtl("plugins", "--json", env={"MTL_PLUGINS": "broken"})
    assert "broken" not in {row["id"] for row in json.loads(result.stdout)}, result.output


def test_a_scan_sees_what_was_installed_or_removed_since_the_last_one(site: Path) -> None:
    def status() -> list[str]:
        return [info.status for info in Plugins(allow=("broken",)).infos if info.id == "broken"]

    assert status() == []
    install(site, HEAD + HOOK.format(YIELD), metadata=METADATA)
    assert status() == ["ok"]
    shutil.rmtree(site / "mtlcore_plugin_broken-1.0.dist-info")
    assert status() == []


BAD_METADATA = {
    "missing": None,
    "empty": "",
    "without version": "Metadata-Version: 2.1\nName: mtlcore-plugin-broken\n",
    "without name": "Metadata-Version: 2.1\nVersion: 1.0\n",
}


@pytest.mark.parametrize("how", BAD_METADATA)
def test_a_damaged_distribution_is_named(how: str, site: Path, mtl: Command) -> None:
    install(site, HEAD, metadata=BAD_METADATA[how])
    result = mtl("plugins", env={"MTL_PLUGINS": "broken"})
    assert result.exit_code == 0, result.output
    assert "is in a damaged distribution" in result.stdout
    assert "mtlcore_plugin_broken-1.0.dist-info" in result.stdout
    result = mtl("run", "--plugin", "broken", env={"MTL_PLUGINS": "broken"})
    assert result.exit_code == UsageError.exit_code
    assert "damaged distribution" in result.stderr


@pytest.mark.parametrize("entry", [b"\xff\xfe\x00[mtlcore]", b"[mtlcore]\nno equals sign\n"])
def test_entry_points_that_cannot_be_read_hide_no_others(
    entry: bytes, site: Path, mtl: Command
) -> None:
    install(site, HEAD, metadata=METADATA, entry=entry)
    result = mtl("list", "balancers")
    assert result.exit_code == 0, result.output
    assert "pcgrad" in result.stdout
    doctor = mtl("doctor")
    assert doctor.exit_code == 0, doctor.output


def test_a_requirement_that_is_none_is_told(site: Path) -> None:
    install(site, HEAD, metadata=METADATA + "Requires-Dist: mtlcore >= banana <\n")
    (info,) = [i for i in Plugins(allow=("broken",)).infos if i.id == "broken"]
    assert info.status == "failed" and "banana" in info.reason


@pytest.mark.usefixtures("interruptible")
def test_somebodys_interrupt_is_no_fault_of_a_plugin() -> None:
    with pytest.raises(KeyboardInterrupt):
        called("it failed", lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), stop_by_exception():
        called("it failed", lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(MtlError, match="it failed: KeyboardInterrupt"):
        called("it failed", lambda: (_ for _ in ()).throw(KeyboardInterrupt))


EXITING = """
import sys
from mtlcore import BalancerSpec, hookimpl
from mtlcore.balancing import LossBalancer

class Made(LossBalancer):
    def __init__(self):
        super().__init__()
        sys.exit(0)
    def transform(self, losses, context):
        return losses

class Working(LossBalancer):
    def transform(self, losses, context):
        sys.exit(0)

@hookimpl
def mtl_balancers():
    yield BalancerSpec(name="made", target=Made)
    yield BalancerSpec(name="working", target=Working)
"""


@pytest.mark.parametrize("name", ["made", "working"])
def test_a_component_that_exits_fails_the_run(name: str, tmp_path: Path, mtl: Command) -> None:
    file = tmp_path / "exiting.py"
    file.write_text(EXITING)
    settings = {"tasks": "['depth']", "data.train": 2, "data.val": 2, "data.size": "32x32",
                "data.workers": 0, "model.backbone.width": 0.03125, "training.steps": 1,
                "training.batch_size": 2, "balancer.name": name,
                "plugins": json.dumps([str(file)])}  # fmt: skip
    words = [f"--set={key}={value}" for key, value in settings.items()]
    result = mtl("run", *words, "--out", str(tmp_path / "run"), env={"MTL_PLUGINS": ""})
    assert result.exit_code == 1, result.output
    assert "exiting.py, line" in result.stderr
    assert "wants to end the program (exit status 0)" in result.stderr
    if name == "working":
        about = json.loads((tmp_path / "run/run.json").read_text())
        assert about["status"] == "failed"


# Defaults that TOML has no words for


class Mode(enum.Enum):
    FAST = "fast"
    EXACT = "exact"


class Level(enum.IntEnum):
    LOW = 1


@attrs.frozen
class Record:
    where: Path = Path("a/b")
    modes: tuple[Mode, ...] = (Mode.FAST,)


def target(
    *,
    where: Path = Path("x/y"),
    mode: Mode = Mode.EXACT,
    level: Level = Level.LOW,
    names: set[str] = frozenset({"b", "a"}),  # type: ignore[assignment]
    both: frozenset[Mode] = frozenset({Mode.FAST, Mode.EXACT}),
    record: Record = Record(),
    nothing: int | None = None,
) -> None:
    """Do nothing."""


def test_defaults_survive_a_file() -> None:
    import tomllib

    import tomli_w

    defaults = {name: p for name, p in target.__kwdefaults__.items() if p is not None}
    plain = as_plain(defaults)
    assert plain["names"] == ["a", "b"] and plain["where"] == "x/y" and plain["level"] == 1
    read = tomllib.loads(tomli_w.dumps(plain))
    problems: list[str] = []
    assert structure(target, read, "it", problems) == defaults and not problems


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.int64(3), 3), (np.float32(0.5), 0.5), ({1: (2, 3)}, {"1": [2, 3]}), (None, None),
        (PurePosixPath("/a"), "/a"), (frozenset(), []), ({"a": None}, {"a": None}),
    ],
)  # fmt: skip
def test_plain_values(value: Any, plain: Any) -> None:
    assert as_plain(value) == plain and type(as_plain(value)) is type(plain)


@pytest.mark.parametrize("value", [object(), print, [None], {"a": object()}, b"x", "\udcff", 1j])
def test_what_no_file_can_hold(value: Any) -> None:
    with pytest.raises(NotPlain):
        as_plain(value)


ODD = """
from pathlib import Path
from mtlcore import BalancerSpec, hookimpl
from mtlcore.balancing import LossBalancer

class Odd(LossBalancer):
    def __init__(self, *, place: Path = Path("here"), odd: {kind} = {default}):
        super().__init__()
    def transform(self, losses, context):
        return losses

@hookimpl
def mtl_balancers():
    yield BalancerSpec(name="odd", target=Odd)
"""


def test_a_default_of_no_known_kind_is_told_with_its_path(tmp_path: Path, mtl: Command) -> None:
    file = tmp_path / "odd.py"
    file.write_text(ODD.format(kind="object", default="object()"))
    layer = Layer("test", {"plugins": [str(file)], "balancer": {"name": "odd"}})
    with pytest.raises(ConfigError, match=r"balancer\.odd: its default .* config\.toml"):
        resolve(Plugins(allow=()), (), [layer])
    shown = mtl("show", "balancers", "odd", "--plugin", str(file))
    assert shown.exit_code == 0 and 'place: Path = "here"' in shown.stdout
    file.write_text(ODD.format(kind="set[str]", default="{'b', 'a'}"))
    config = resolve(Plugins(allow=()), (), [layer])
    assert config.tree["balancer"] == {
        "name": "odd", "place": "here", "odd": ["a", "b"],
    }  # fmt: skip
