"""Records of components: what they accept and what they load."""

import json

import pytest

from mtlcore import BalancerSpec, HeadSpec, MethodSpec
from mtlcore.errors import MtlError
from mtlcore.plugins import specs


@pytest.mark.parametrize("name", ["", "Nash", "nash_mtl", "-nash", "nash--mtl", "a/b", None])
def test_record_names_are_checked(name):
    with pytest.raises(ValueError, match="BalancerSpec name"):
        BalancerSpec(name=name, target="a:B")


@pytest.mark.parametrize("target", ["package.module", "a:b:c", "", 3])
def test_targets_are_checked(target):
    with pytest.raises(ValueError, match="target"):
        BalancerSpec(name="x", target=target)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task_kinds": ()}, "task_kinds"),
        ({"task_kinds": ("depth",), "default_for": ("normals",)}, "default_for has normals"),
        ({"task_kinds": ("*",), "default_for": ("*",)}, "default_for"),
    ],
)
def test_task_kinds_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        HeadSpec(name="x", target="a:B", **fields)


def test_a_string_is_not_a_tuple_of_task_kinds():
    with pytest.raises(TypeError, match="tuple of names"):
        HeadSpec(name="x", target="a:B", task_kinds="depth")


def test_any_kind_may_be_default_for_one():
    head = HeadSpec(name="x", target="a:B", task_kinds=("*",), default_for=("depth",))
    assert head.serves("anything")


def test_requires_names_a_kind():
    assert MethodSpec(name="x", preset={}, requires=("balancers/ira",)).requires
    with pytest.raises(ValueError, match="balancers/ira"):
        MethodSpec(name="x", preset={}, requires=("ira",))


def test_load_resolves_strings_and_callables():
    assert BalancerSpec(name="x", target="json.decoder:JSONDecoder.decode").load() is (
        json.JSONDecoder.decode
    )
    assert BalancerSpec(name="x", target=dict).load() is dict


@pytest.mark.parametrize("target", ["no_such_module_at_all:X", "json:NoSuchName"])
def test_load_says_which_record_and_target(target):
    with pytest.raises(MtlError, match=f"BalancerSpec 'x'.*{target}.*(No module|no attribute)"):
        BalancerSpec(name="x", target=target).load()


def test_abstract_records_cannot_be_made():
    with pytest.raises(TypeError):
        specs.Spec(name="x")


def test_presets_are_read_from_files_and_dicts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "preset_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "good.toml").write_text("[training]\nepochs = 3\n")
    (package / "bad.toml").write_text("= 3")
    good = MethodSpec(name="x", preset="preset_package:good.toml")
    assert good.read() == {"training": {"epochs": 3}}
    for wrong in ("preset_package:bad.toml", "preset_package:none.toml", "no_package:a.toml"):
        with pytest.raises(MtlError, match=wrong):
            MethodSpec(name="x", preset=wrong).read()
    mine = MethodSpec(name="x", preset={"a": {"b": 1}})
    mine.read()["a"]["b"] = 2
    assert mine.read() == {"a": {"b": 1}}
