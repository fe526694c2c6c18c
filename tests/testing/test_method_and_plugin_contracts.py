"""Methods and plugins that are wrong on purpose, and the checks that catch them."""

from __future__ import annotations

import pytest

import mtlcore.testing.methods
from mtlcore.plugins import Plugins
from mtlcore.testing import (
    MethodContract,
    assert_plugin_is_light,
    assert_plugin_is_whole,
    assert_settings_are_checked,
)

METHODS = """
from mtlcore import BalancerSpec, MethodSpec, hookimpl
from mtlcore.balancing import LossBalancer

class Explode(LossBalancer):
    def transform(self, losses, context):
        return {task: loss * float("inf") for task, loss in losses.items()}

@hookimpl
def mtl_balancers():
    yield BalancerSpec(name="explode", target=Explode)

@hookimpl
def mtl_methods():
    fixed = {"balancer": {"name": "fixed", "weights": {"depth": 2.0}}}
    yield MethodSpec(name="good", summary="s", preset=fixed, requires=("balancers/fixed",))
    yield MethodSpec(name="absent", summary="s", preset={"balancer": {"name": "nowhere"}})
    yield MethodSpec(name="not-itself", summary="s", preset={}, requires=("balancers/explode",))
    yield MethodSpec(name="misspelt", summary="s", preset=fixed, requires=("balancers/fxed",))
    yield MethodSpec(name="explodes", summary="s", preset={"balancer": {"name": "explode"}})
    yield MethodSpec(name="unknown", summary="s", preset={"balancer": {"name": "dwa", "temper": 1}})
    yield MethodSpec(name="mistyped", summary="s", preset={"training": {"epochs": "many"}})
    yield MethodSpec(name="lost", summary="s", preset="mtlcore:there_is_no_such.toml")
    yield MethodSpec(name="mute", preset=fixed)
    yield MethodSpec(name="asks", summary="s", preset={"data": {"name": "folder"}})
"""


@pytest.fixture
def method(tmp_path, monkeypatch):
    """Contracts of the methods above, as if their plugin were installed."""
    file = tmp_path / "some_methods.py"
    file.write_text(METHODS)
    plugins = Plugins(entry_points=())
    plugins.load_file(str(file))
    monkeypatch.setattr(
        mtlcore.testing.methods.Plugins, "from_environment", classmethod(lambda cls: plugins)
    )
    return lambda name, **more: type(name, (MethodContract,), {"method": name, **more})()


def test_methods(method, passes, catches):
    passes(method("good"))
    catches(method("absent"), "test_the_preset_is_a_configuration", "nowhere")
    catches(method("not-itself"), "test_the_preset_is_a_configuration", "not itself without")
    catches(method("misspelt"), "test_it_is_itself", "requires balancers/fxed")
    catches(method("explodes"), "test_it_learns", "learns nothing")
    catches(method("unknown"), "test_the_preset_is_a_configuration", "balancer.temper: unknown")
    catches(method("mistyped"), "test_the_preset_is_a_configuration", "training.epochs")
    catches(method("lost"), "test_the_preset_is_a_configuration", "there_is_no_such.toml")
    catches(method("mute"), "test_it_is_itself", "needs a summary")
    catches(method("asks"), "test_the_preset_is_a_configuration", "data.root")
    passes(method("asks", given=("data.name=rooms",)))


def test_heavy_plugins(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "light_plugin.py").write_text("import json\n")
    (tmp_path / "heavy_plugin.py").write_text("import torch\n")
    (tmp_path / "late_plugin.py").write_text("def mtl_balancers():\n    import torch\n    yield\n")
    (tmp_path / "broken_plugin.py").write_text("import there_is_no_such_module\n")
    assert_plugin_is_light("light_plugin")
    for heavy in ("heavy_plugin", "late_plugin"):
        with pytest.raises(AssertionError, match="imports torch"):
            assert_plugin_is_light(heavy)
    with pytest.raises(AssertionError, match="there_is_no_such_module"):
        assert_plugin_is_light("broken_plugin")


RECORDS = """
from mtlcore import BalancerSpec, MethodSpec, hookimpl

def explained(*, gain: float = 1.0):
    '''Explained.

    Args:
        gain: factor.
    '''

def silent(*, gain: float = 1.0, loss: float = 1.0):
    pass

@hookimpl
def mtl_{kind}():
    yield {record}
"""


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ('BalancerSpec(name="x", summary="s", target=explained)', None),
        ('MethodSpec(name="x", summary="s", preset={})', None),
        ('BalancerSpec(name="x", target=explained)', "needs a summary"),
        ('BalancerSpec(name="x", summary="s", target=silent)', "gain, loss are"),
        ('BalancerSpec(name="x", summary="s", target="json:nothing")', "cannot load target"),
        ('MethodSpec(name="x", summary="s", preset="json:x.toml")', "cannot read preset"),
        ("from ()", "no hook that yields"),
    ],
)
def test_plugins_that_are_not_whole(tmp_path, monkeypatch, record, message):
    monkeypatch.syspath_prepend(tmp_path)
    name = f"records_{abs(hash(record))}"
    kind = "methods" if "MethodSpec" in record else "balancers"
    text = RECORDS.replace("{kind}", kind).replace("{record}", record)
    (tmp_path / f"{name}.py").write_text(text)
    if message is None:
        assert_plugin_is_whole(name)
        return
    with pytest.raises(AssertionError, match=message):
        assert_plugin_is_whole(name)


def test_settings_that_are_not_checked() -> None:
    assert_settings_are_checked("balancers", "dwa", temperature=[0.0, "hot"], window=[0])
    with pytest.raises(AssertionError, match=r"dwa takes temperature=2\.0"):
        assert_settings_are_checked("balancers", "dwa", temperature=[2.0])
    with pytest.raises(AssertionError, match="the message is"):
        assert_settings_are_checked("balancers", "none-such", temperature=[0.0])
