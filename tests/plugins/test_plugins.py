"""Plugins: discovery, isolation, look-up, selection, and the commands that show them.

One file: all of it looks at the distributions that `Site` fakes.
"""

import importlib.metadata
import itertools
import json
import sys
import textwrap
from pathlib import Path

import pytest

from mtlcore import __version__
from mtlcore.errors import ConfigError, MtlError, UsageError
from mtlcore.plugins import KINDS, KNOWN, Plugins, hook_name, hookspecs, specs

HEADER = """
from mtlcore import (
    BalancerSpec,
    CrossTaskLossSpec,
    DatasetSpec,
    HeadSpec,
    LossSpec,
    MethodSpec,
    hookimpl,
)
"""
_serial = itertools.count()


def balancer(name, **fields):
    listed = "".join(f", {key}={value!r}" for key, value in fields.items())
    return f"""
@hookimpl
def mtl_balancers():
    yield BalancerSpec(name={name!r}, target="collections:OrderedDict"{listed})
"""


def method(name, preset="{}"):
    return f"""
@hookimpl
def mtl_methods():
    yield MethodSpec(name={name!r}, preset={preset})
"""


class Site:
    """A directory of fake installed distributions."""

    def __init__(self, path):
        self.path = path
        path.mkdir(exist_ok=True)

    def add(self, plugin, code, *, requires=(), dist=None, version="0.1.0", header=HEADER):
        dist = dist or f"mtlcore-plugin-{plugin}"
        module = f"fake_{plugin.replace('-', '_')}_{next(_serial)}"
        (self.path / f"{module}.py").write_text(header + textwrap.dedent(code))
        info = self.path / f"{dist.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {dist}", f"Version: {version}"]
        lines += [f"Requires-Dist: {requirement}" for requirement in requires]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        (info / "entry_points.txt").write_text(f"[mtlcore]\n{plugin} = {module}\n")
        return module

    def scan(self, *others, **options):
        """Load what these directories hold and nothing that happens to be installed."""
        paths = [str(site.path) for site in (self, *others)]
        found = importlib.metadata.distributions(path=paths)
        entry_points = [entry for dist in found for entry in dist.entry_points]
        return Plugins(entry_points=entry_points, **options)


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return Site(tmp_path / "site")


def info_of(plugins, plugin):
    (info,) = [info for info in plugins.infos if info.id == plugin]
    return info


def names(plugins, kind):
    """Names of a kind, the core's own left out."""
    return [c.spec.name for c in plugins.all(kind) if c.plugin != "standard"]


# Hooks


def test_kinds_and_hooks_agree():
    hooks = {name for name in vars(hookspecs) if hasattr(getattr(hookspecs, name), "mtlcore_spec")}
    assert hooks == {hook_name(kind) for kind in KINDS}
    yielded = {spec for allowed in KINDS.values() for spec in allowed}
    exported = {getattr(specs, name) for name in vars(specs) if name.endswith("Spec")}
    assert yielded == exported - {specs.Spec, specs.ComponentSpec, specs.TaskSpec}


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_of_every_hook_runs(kind, site):
    docstring = getattr(hookspecs, hook_name(kind)).__doc__
    site.add("example", textwrap.dedent(docstring.split("Example::\n")[1]), header="")
    plugins = site.scan()
    assert info_of(plugins, "example").status == "ok", info_of(plugins, "example").reason
    assert names(plugins, kind)


# Loading


def test_a_good_plugin_is_found_by_its_metadata(site, monkeypatch):
    monkeypatch.setenv("MTL_PLUGINS", "good")
    site.add("good", balancer("sign-vote", summary="Vote."), requires=["mtlcore>=0.1,<0.2"])
    plugins = Plugins.from_environment()
    info = info_of(plugins, "good")
    assert (info.status, info.reason, info.error) == ("ok", "", None)
    assert (info.distribution, info.version) == ("mtlcore-plugin-good", "0.1.0")
    assert info.provides == {"balancers": ("sign-vote",)}
    assert info.seconds > 0
    component = plugins.get("balancers", "sign-vote")
    assert (component.plugin, component.version) == ("good", "0.1.0")
    assert component.load().__name__ == "OrderedDict"
    plugins.strict()


def test_standard_is_always_first():
    plugins = Plugins(allow=(), entry_points=())
    assert [info.id for info in plugins.infos] == ["standard"]
    assert (plugins.infos[0].status, plugins.infos[0].version) == ("ok", __version__)
    with pytest.raises(UsageError, match="always load"):
        Plugins(block=["standard"], entry_points=())


def test_an_entry_point_cannot_take_the_place_of_standard(site):
    site.add("standard", balancer("impostor"))
    plugins = site.scan()
    assert info_of(plugins, "standard").distribution == "mtlcore"
    assert names(plugins, "balancers") == []


LATE = """
@hookimpl
def mtl_balancers():
    yield BalancerSpec(name="one", target="a:B")
    yield BalancerSpec(name="two", target="a:B")
    raise RuntimeError("third time unlucky")

@hookimpl
def mtl_datasets():
    yield DatasetSpec(name="fine", target="a:B")
"""


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_solver", "failed to import: No module named 'no_such_solver'"),
        ("raise SystemExit(3)", "failed to import: SystemExit: 3"),
        ("def broken(:", "failed to import: SyntaxError"),
        (LATE, r"failed in mtl_balancers\(\): RuntimeError: third time unlucky"),
        (balancer("Bad_Name"), r"failed in mtl_balancers\(\): ValueError: BalancerSpec name"),
        (
            balancer("x").replace("mtl_balancers", "mtl_balancer"),
            "unknown hook mtl_balancer; did you mean 'mtl_balancers'",
        ),
        (balancer("x").replace("@hookimpl", ""), "mtl_balancers without @hookimpl"),
        (
            balancer("x").replace("BalancerSpec", "DatasetSpec"),
            r"a DatasetSpec from mtl_balancers\(\), which takes BalancerSpec",
        ),
        ("@hookimpl\ndef mtl_heads():\n    return None", "TypeError"),
        ("@hookimpl\ndef mtl_heads(config):\n    return []", "config"),
        (
            "@hookimpl\ndef mtl_balancers():\n"
            "    for _ in range(2):\n        yield BalancerSpec(name='x', target='a:B')",
            "the balancer 'x' twice",
        ),
    ],
)
def test_a_bad_plugin_fails_as_a_whole_and_alone(site, code, reason):
    site.add("bad", code)
    site.add("good", balancer("sign-vote"))
    plugins = site.scan()
    info = info_of(plugins, "bad")
    assert info.status == "failed"
    assert "\n" not in info.reason
    with pytest.raises(MtlError, match=rf"plugin bad \(mtlcore-plugin-bad 0\.1\.0\).*{reason}"):
        plugins.strict()
    assert info.error is not None
    assert info.provides == {}
    assert (names(plugins, "balancers"), names(plugins, "datasets")) == (["sign-vote"], [])


def test_an_optional_hook_of_a_later_core_is_ignored(site):
    site.add("new", "@hookimpl(optionalhook=True)\ndef mtl_of_tomorrow():\n    yield 1")
    assert info_of(site.scan(), "new").status == "ok"


@pytest.mark.parametrize(
    ("requirement", "status"),
    [
        ("mtlcore>=7", "incompatible"),
        ("MTLcore[http]<0.1", "incompatible"),
        ("mtlcore>=7; extra == 'later'", "ok"),
        ("mtlcore>=0.1.0,<0.2", "ok"),
        ("torch>=99", "ok"),
    ],
)
def test_an_incompatible_plugin_is_not_imported(site, requirement, status):
    module = site.add("old", balancer("old"), requires=[requirement])
    plugins = site.scan()
    assert info_of(plugins, "old").status == status
    assert (module in sys.modules) == (status == "ok")
    if status == "incompatible":
        with pytest.raises(MtlError, match=r"plugin old .* needs mtlcore.* this is mtlcore 0\.1"):
            plugins.strict()


def test_a_second_dist_info_is_passed_over(site, tmp_path):
    site.add("twice", balancer("first"))
    stale = Site(tmp_path / "stale")
    stale.add("twice", "raise RuntimeError", dist="mtlcore_plugin_twice")
    plugins = site.scan(stale)
    assert info_of(plugins, "twice").status == "ok"
    assert names(plugins, "balancers") == ["first"]


def test_two_distributions_cannot_share_an_id(site):
    site.add("same", balancer("first"), dist="a-dist")
    site.add("same", balancer("second"), dist="b-dist")
    plugins = site.scan()
    assert len(names(plugins, "balancers")) == 1
    with pytest.raises(MtlError, match=r"same id as another, from [ab]-dist"):
        plugins.strict()


def test_allow_and_block(site, monkeypatch):
    site.add("one", balancer("one"))
    site.add("two", balancer("two"))
    assert names(site.scan(), "balancers") == ["one", "two"]
    assert names(site.scan(allow=["one"]), "balancers") == ["one"]
    assert names(site.scan(allow=[]), "balancers") == []
    blocked = site.scan(block=["one"])
    assert names(blocked, "balancers") == ["two"]
    assert info_of(blocked, "one").status == "blocked"
    blocked.strict()
    with pytest.raises(UsageError, match=r"plugin one .* is blocked"):
        blocked.get("balancers", "one")
    for listed, expected in [("two", ["two"]), (" one , two", ["one", "two"]), ("", [])]:
        monkeypatch.setenv("MTL_PLUGINS", listed)
        assert names(Plugins.from_environment(), "balancers") == expected
    monkeypatch.delenv("MTL_PLUGINS")
    assert {"one", "two"} <= set(names(Plugins.from_environment(), "balancers"))


# Looking up


def test_a_collision_matters_only_when_the_short_name_is_used(site):
    site.add("one", balancer("vote"))
    site.add("two", balancer("vote"), version="0.1.7")
    plugins = site.scan()
    plugins.strict()
    with pytest.raises(UsageError) as caught:
        plugins.get("balancers", "vote")
    assert "one/vote (mtlcore-plugin-one 0.1.0)" in str(caught.value)
    assert "two/vote (mtlcore-plugin-two 0.1.7)" in str(caught.value)
    assert plugins.get("balancers", "two/vote").plugin == "two"
    assert plugins.selection("two").preset == {"balancer": {"name": "two/vote"}}


def test_an_unknown_name_is_answered_with_close_and_available_ones(site):
    site.add("good", method("sign-vote"))
    with pytest.raises(UsageError) as caught:
        site.scan().get("methods", "sing-vote")
    for part in ("'sing-vote'", "did you mean 'sign-vote'", "available: sign-vote"):
        assert part in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["nash-mtl", "nashmtl/nash-mtl", "quite-different"])
def test_asking_for_a_part_of_a_failed_plugin_shows_its_error(site, name):
    site.add("nashmtl", "import no_such_solver")
    with pytest.raises(UsageError) as caught:
        site.scan().get("balancers", name)
    for part in (repr(name), "mtlcore-plugin-nashmtl 0.1.0", "failed to import", "no_such_solver"):
        assert part in str(caught.value)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_an_unrelated_failure_is_not_blamed(site):
    site.add("nashmtl", "import no_such_solver")
    site.add("good", method("sign-vote"))
    with pytest.raises(UsageError) as caught:
        site.scan().get("methods", "sing-vote")
    assert "no_such_solver" not in str(caught.value)


def test_all_plugins_of_this_project_are_known_by_all_their_names():
    """Otherwise who has not installed one is not told that it would bring what they ask for."""
    folder = Path(__file__).parents[2] / "plugins"
    ids = {path.name.removeprefix("mtlcore-plugin-") for path in folder.glob("mtlcore-plugin-*")}
    assert set(KNOWN) == ids
    names = {plugin: set() for plugin in ids}
    for kind in KINDS:
        for component in Plugins.from_environment(()).all(kind):
            names.get(component.plugin, set()).add(component.spec.name)
    for plugin, found in names.items():
        if found:  # it is installed
            assert {plugin, *KNOWN[plugin]} == {plugin, *found}


@pytest.mark.parametrize("plugin", KNOWN)
def test_known_plugins_are_answered_with_their_pip_line(plugin):
    plugins = Plugins(entry_points=())
    for name in (plugin, *KNOWN[plugin]):
        with pytest.raises(UsageError, match=f"pip install mtlcore-plugin-{plugin}"):
            plugins.selection(name)
        with pytest.raises(UsageError, match=f"pip install mtlcore-plugin-{plugin}"):
            plugins.get("datasets", f"{plugin}/{name}")


def test_a_misspelt_known_plugin_is_recognised():
    with pytest.raises(UsageError, match="'pcgrd'; did you mean 'pcgrad'"):
        Plugins(entry_points=()).selection("pcgrd")


def test_a_named_plugin_is_not_confused_with_a_broken_one(site):
    site.add("broken", "import no_such_solver")
    with pytest.raises(UsageError) as caught:
        site.scan().get("methods", "other/thing")
    assert "'other/thing'" in str(caught.value)
    assert "no_such_solver" not in str(caught.value)


def test_a_target_that_cannot_be_loaded_names_its_plugin(site):
    site.add("good", balancer("x").replace("collections:", "no_such_package:"))
    message = "plugin good .mtlcore-plugin-good 0.1.0.: BalancerSpec 'x'.*no_such_package"
    with pytest.raises(MtlError, match=message):
        site.scan().get("balancers", "x").load()


def head(name, default, layouts=("map", "vector", "label")):
    return f"""
@hookimpl
def mtl_heads():
    yield HeadSpec(
        name={name!r}, target="a:B", task_kinds=("*",), default_for=({default!r},),
        layouts={layouts!r},
    )
"""


def test_defaults_by_task_kind(site):
    site.add("one", head("one", "sound"))
    site.add("two", head("two", "smell"))
    site.add("three", head("three", "smell"))
    plugins = site.scan()
    assert plugins.default("heads", "sound").spec.name == "one"
    with pytest.raises(UsageError, match="several default heads: three/three, two/two"):
        plugins.default("heads", "smell")
    with pytest.raises(UsageError, match="'taste' have no default head; name one"):
        plugins.default("heads", "taste")


def test_the_default_head_predicts_the_layout(site):
    site.add("one", head("one", "sound", ("map",)))
    site.add("two", head("two", "sound", ("vector", "label")))
    plugins = site.scan()
    assert plugins.default("heads", "sound", "map").spec.name == "one"
    assert plugins.default("heads", "sound", "vector").spec.name == "two"
    with pytest.raises(UsageError, match="several default heads: one/one, two/two"):
        plugins.default("heads", "sound")
    for layout, expected in (("map", "conv"), ("vector", "linear")):
        assert plugins.default("heads", "regression", layout).spec.name == expected
    assert plugins.default("losses", "regression", "map").spec.name == "l1"


def test_the_default_of_standard_loses_to_nobody(site, monkeypatch):
    ours = Site(site.path)
    module = ours.add("stand-in", head("ours", "sound"))
    monkeypatch.setitem(sys.modules, "mtlcore.standard.plugin", __import__(module))
    site.add("other", head("other", "sound"))
    plugins = site.scan(block=["stand-in"])
    assert plugins.default("heads", "sound").plugin == "standard"


# Selection


def test_an_id_selects_the_method_of_that_name(site):
    site.add("atinet", method("atinet", "{'training': {'epochs': 3}}") + balancer("b"))
    site.add("other", method("atinet"))
    plugins = site.scan()
    selection = plugins.selection("atinet")
    assert (selection.plugin, selection.preset) == ("atinet", {"training": {"epochs": 3}})
    assert selection.method is selection.component.spec
    assert plugins.selection("other/atinet").plugin == "other"


def test_a_method_name_selects_it(site):
    site.add("pack", method("atinet-nyuv2"))
    assert site.scan().selection("atinet-nyuv2").method.name == "atinet-nyuv2"
    site.add("pack-two", method("atinet-nyuv2"))
    with pytest.raises(UsageError, match=r"method 'atinet-nyuv2' is ambiguous.*pack-two/atinet"):
        site.scan().selection("atinet-nyuv2")


def test_a_plugin_without_its_method_means_its_only_balancer(site):
    site.add("vote", balancer("sign-vote"))
    selection = site.scan().selection("vote")
    assert selection.preset == {"balancer": {"name": "sign-vote"}}
    assert (selection.method, selection.component.spec.name) == (None, "sign-vote")
    with pytest.raises(UsageError, match=r"is a balancer: write --set balancer\.name=sign-vote"):
        site.scan().selection("sign-vote")


def test_a_plugin_with_nothing_to_select_says_what_it_has(site):
    site.add("pack", method("one"))
    with pytest.raises(UsageError, match=r"'pack' has no method of that name.*\(one\).*\(none\)"):
        site.scan().selection("pack")


def test_words_that_select_nothing(site):
    site.add("broken", "import no_such_solver")
    site.add("pack", method("sign-vote"))
    plugins = site.scan()
    with pytest.raises(UsageError, match=r"plugin broken .* No module named 'no_such_solver'"):
        plugins.selection("broken")
    with pytest.raises(UsageError, match="no plugin or method 'sing-vote'; did you mean"):
        plugins.selection("sing-vote")


# Files

LOCAL = """
from __future__ import annotations

class Mine:
    def __init__(self, *, factor: float = 1.0) -> None: ...
"""


@pytest.fixture
def local(tmp_path):
    def write(code, name="my_balancer.py", header=HEADER):
        path = tmp_path / name
        path.write_text(LOCAL.replace("\n", "", 1) + header + code)
        return str(path)

    return write


def test_a_file_is_loaded_when_named_and_only_then(local, monkeypatch, tmp_path):
    path = local(balancer("mine").replace('"collections:OrderedDict"', "Mine"))
    monkeypatch.chdir(tmp_path)
    assert names(Plugins(entry_points=()), "balancers") == []
    for plugins in (
        Plugins(entry_points=(), files=[path]),
        Plugins(entry_points=(), allow=(), files=["./my_balancer.py", path]),
    ):
        assert info_of(plugins, "my-balancer").status == "ok"
        assert plugins.get("balancers", "my-balancer/mine").load().__name__ == "Mine"
    plugins = Plugins(entry_points=())
    assert plugins.selection("./my_balancer.py").preset == {"balancer": {"name": "mine"}}
    assert plugins.selection(path).plugin == "my-balancer"


def test_a_file_selects_its_method_first_and_nothing_if_it_has_neither(local):
    plugins = Plugins(entry_points=())
    both = local(method("recipe", "{'a': 1}") + balancer("mine"), "both.py")
    assert plugins.selection(both).preset == {"a": 1}
    two = local("@hookimpl\ndef mtl_datasets():\n    yield DatasetSpec(name='d', target=Mine)")
    selection = plugins.selection(two)
    assert (selection.preset, selection.component, selection.method) == ({}, None, None)
    assert names(plugins, "datasets") == ["d"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def (:", "SyntaxError"),
        ("import no_such_thing", "No module named 'no_such_thing'"),
        (None, "no such file"),
    ],
)
def test_a_broken_file_is_raised_when_asked_for(local, tmp_path, code, reason):
    path = str(tmp_path / "missing.py") if code is None else local(code)
    plugins = Plugins(entry_points=(), files=[path])
    assert plugins.infos[-1].status == "failed"
    with pytest.raises(UsageError, match=f"failed to import: .*{reason}"):
        plugins.selection(path)


def test_a_file_cannot_take_a_plugins_id(site, local):
    site.add("vote", balancer("vote"))
    path = local(balancer("vote"), "vote.py")
    with pytest.raises(UsageError, match="same id as another, from mtlcore-plugin-vote"):
        site.scan().selection(path)
    assert site.scan(block=["vote"]).selection(path).component.distribution == path


# Errors


def test_a_config_error_lists_every_problem():
    error = ConfigError(["a.b: wrong", "c: missing"])
    assert str(error) == "a.b: wrong\nc: missing"
    assert (error.problems, error.exit_code) == (("a.b: wrong", "c: missing"), 2)


# Commands


@pytest.fixture
def command(mtl, site):
    site.add("good", balancer("sign-vote", summary="Vote.") + method("good", "{'seed': 1}"))
    site.add("bad", "import no_such_solver")
    return lambda *arguments: mtl(*arguments, plugins=site.scan())


def test_plugins_command_works_with_a_broken_plugin(command):
    result = command("plugins")
    assert result.exit_code == 0
    assert "balancers sign-vote; methods good" in result.output
    assert "bad failed to import: No module named 'no_such_solver'" in result.output
    rows = {row["id"]: row for row in json.loads(command("plugins", "--json").output)}
    assert rows["bad"]["status"] == "failed"
    assert rows["good"]["provides"] == {"balancers": ["sign-vote"], "methods": ["good"]}
    strict = command("plugins", "--strict-plugins")
    assert strict.exit_code == 1 and "no_such_solver" in strict.stderr
    assert "sign-vote" in strict.stdout


def test_list_command(command):
    for kind in ("balancers", "balancer"):
        rows = json.loads(command("list", kind, "--json").output)
        wanted = {"kind": "balancers", "name": "sign-vote", "plugin": "good", "summary": "Vote."}
        assert wanted in rows
    everything = command("list").output
    assert "sign-vote" in everything
    assert "methods" in everything
    assert command("list", "ballancers").exit_code == 2


def test_balancers_are_listed_by_what_they_look_at(tmp_path, command):
    """Three groups, and a last one of those that cannot be asked."""
    odd = tmp_path / "odd.py"
    odd.write_text(
        "from mtlcore import BalancerSpec, hookimpl\n\n\n"
        "def make():\n    return None\n\n\n"
        "@hookimpl\ndef mtl_balancers():\n"
        "    yield BalancerSpec(name='a-function', target=make)\n"
        "    yield BalancerSpec(name='a-gap', target='nowhere.at.all:Balancer')\n"
    )
    title, *lines = command("list", "balancers", "--plugin", odd).output.splitlines()
    assert title.split() == ["looks", "at", "name", "plugin", "summary"]
    found = {line.split()[1]: line.split()[0] for line in lines}
    expected = {"dwa": "losses", "unit-norm": "Gramian", "sign-vote": "unknown"}
    assert expected.items() <= found.items()
    assert found["a-function"] == found["a-gap"] == "unknown"
    order = list(dict.fromkeys(found.values()))
    assert order == [g for g in ("losses", "Gramian", "gradients", "unknown") if g in order]
    assert [*found.values()] == sorted(found.values(), key=order.index)


def test_show_command(command, site):
    code = balancer("mine").replace('"collections:OrderedDict"', "Mine")
    told = '"""Halves it.\n\n    As before.\n\n    Args:\n        factor: By it.\n    """'
    source = LOCAL.replace("class Mine:", f"class Mine:\n    {told}")
    source = source.replace("float", "float | None").replace("1.0", "float('inf')")
    site.add("own", code, header=source.replace("\n", "", 1) + HEADER)
    data = json.loads(command("show", "balancers", "mine", "--json").output)
    assert data["target"].endswith(":Mine")
    (setting,) = data["settings"]
    assert (setting["type"], setting["default"]) == ("float | None", "inf")
    assert data["about"] == "Halves it.\n\nAs before."
    shown = command("show", "balancers", "mine").output
    assert 'Halves it.\n\nAs before.\n\nfactor: float | None = "inf"\n    By it.' in shown
    refused = command("show", "balancers", "mine", "--set", "a=1")
    assert refused.exit_code == 2 and "--set: " in refused.stderr


def test_show_a_method_counts_its_parameters(command, monkeypatch):
    def count(plugins, name, overrides):
        return {"total": 5, "asked": [name, *overrides]}

    def describe(plugins, selected, overrides):
        return {"strides": [32, 4], "asked": [*selected, *overrides]}

    monkeypatch.setattr("mtlcore.runs.count_method_parameters", count)

    def operations(plugins, name, overrides):
        return {"flops": 7, "asked": [name, *overrides]}

    monkeypatch.setattr("mtlcore.runs.count_method_flops", operations)
    monkeypatch.setattr("mtlcore.runs.describe_backbone", describe)
    result = command("show", "methods", "good", "--set", "a=1", "--json")
    data = json.loads(result.output)
    assert data["backbone"] == {"strides": [32, 4], "asked": ["good/good", "a=1"]}
    assert data["preset"] == {"seed": 1}
    assert data["parameters"] == {"total": 5, "asked": ["good/good", "a=1"]}
    assert data["prediction"] == {"flops": 7, "asked": ["good/good", "a=1"]}
    assert "seed = 1" in command("show", "methods", "good").output


def test_options_of_the_group_choose_the_plugins(mtl, command):
    """These are the installed ones: what `command` has put on the path, too."""
    result = mtl("--no-plugin", "good", "list", "balancers", "--json")
    listed = [row["name"] for row in json.loads(result.stdout)]
    assert "equal" in listed
    assert "sign-vote" not in listed
    assert "sign-vote" in mtl("list", "balancers").stdout
    strict = mtl("--strict-plugins", "list")
    assert strict.exit_code == 1 and "no_such_solver" in strict.stderr


def test_list_and_show_take_plugin_files(command, local):
    two = local(balancer("mine").replace('"collections:OrderedDict"', "Mine"))
    three = local("@hookimpl\ndef mtl_datasets():\n    yield DatasetSpec(name='d', target=Mine)",
                  "other.py")  # fmt: skip
    rows = json.loads(command("list", "--plugin", two, "--plugin", three, "--json").output)
    found = {(row["kind"], row["name"]): row["plugin"] for row in rows}
    assert found["balancers", "mine"] == "my-balancer"
    assert found["datasets", "d"] == "other"
    data = json.loads(command("show", "balancer", "mine", "--plugin", two, "--json").output)
    assert (data["distribution"], data["settings"][0]["name"]) == (two, "factor")


@pytest.mark.parametrize(
    ("word", "said"), [("good", "name a plugin file"), ("gone.py", "no such file")]
)
def test_list_and_show_refuse_what_is_no_plugin_file(command, word, said):
    for words in (("list",), ("show", "balancers", "equal")):
        refused = command(*words, "--plugin", word)
        assert refused.exit_code == 2
        assert f"--plugin {word}: " in refused.stderr
        assert said in refused.stderr


def test_tables_are_cut_to_the_terminal_and_only_there():
    from mtlcore.cli.descriptions import table

    rows = [["name", "summary"], ["x", "a long summary"]]
    assert list(table(rows)) == ["name  summary", "x     a long summary"]
    assert list(table(rows, 12)) == ["name  sum...", "x     a l..."]
