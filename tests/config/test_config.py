"""Configurations: layers, origins, what survives a change of name, and all errors at once."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import tomli_w

from mtlcore.config import Layer, annotated, file_layer, plugin_files, resolve, set_layer
from mtlcore.errors import ConfigError, UsageError
from mtlcore.plugins import KINDS, Plugins


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return Plugins(allow=())


def resolved(plugins: Plugins, *assignments: str, layers: tuple[Layer, ...] = ()):
    return resolve(plugins, (), [*layers, set_layer(assignments)])


def problems(plugins: Plugins, *assignments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        resolved(plugins, *assignments)
    return "\n".join(caught.value.problems)


def test_the_defaults_alone_are_runnable(plugins: Plugins) -> None:
    config = resolved(plugins)
    assert [task.name for task in config.tasks] == ["segmentation", "depth", "normals", "edges"]
    assert config.backbone.component.spec.name == "segnet"
    assert config.losses["depth"].component.spec.name == "l1"


def test_values_are_toml_where_they_are_toml_and_strings_elsewhere(plugins: Plugins) -> None:
    config = resolved(
        plugins, "data.size=96x128", "tasks=['depth']", "optimizer.lr=1e-3", "data.on_error=skip"
    )
    assert config.data.size == (96, 128)
    assert config.optimizer.settings["lr"] == 1e-3
    assert config.data.on_error == "skip"
    assert [task.name for task in config.tasks] == ["depth"]


def test_the_complete_configuration_resolves_to_itself(plugins: Plugins, tmp_path: Path) -> None:
    config = resolved(plugins, "optimizer.schedule.name=cosine", "tasks=['depth', 'normals']")
    file = tmp_path / "config.toml"
    file.write_text(tomli_w.dumps(dict(config.tree)))
    again = resolve(plugins, (), [file_layer(str(file))])
    assert again.tree == config.tree


def test_every_value_knows_its_origin(plugins: Plugins) -> None:
    layer = Layer("mine.toml", {"optimizer": {"lr": 0.1}})
    config = resolved(plugins, "seed=3", layers=(layer,))
    assert config.origins["optimizer.lr"] == "mine.toml"
    assert config.origins["seed"] == "--set"
    assert config.origins["balancer.name"] == "core"
    assert config.origins["optimizer.betas"] == "default of adam"
    text = annotated(tomli_w.dumps(dict(config.tree)), config.origins)
    assert "lr = 0.1  # mine.toml" in text
    assert tomllib.loads(text) == config.tree


def test_a_new_name_drops_the_earlier_settings(plugins: Plugins) -> None:
    first = Layer("a", {"balancer": {"name": "dwa", "temperature": 3.0}})
    config = resolved(plugins, "balancer.name=uncertainty", layers=(first,))
    assert "temperature" not in config.tree["balancer"]
    assert any("replaces dwa" in note for note in config.notes)


def test_the_learning_rate_survives_another_optimizer(plugins: Plugins) -> None:
    first = Layer("a", {"optimizer": {"name": "adamw", "lr": 0.5, "weight_decay": 0.2}})
    config = resolved(plugins, "optimizer.name=sgd", layers=(first,))
    assert config.optimizer.settings == {"lr": 0.5}


def test_the_cores_numbers_of_rooms_are_not_those_of_other_data(plugins: Plugins) -> None:
    assert resolved(plugins).data.train == 1600
    layer = Layer("a", {"data": {"name": "nyuv2", "root": "here"}})
    assert resolved(plugins, layers=(layer,)).data.train is None
    assert resolved(plugins, "data.train=7", layers=(layer,)).data.train == 7


def test_a_carried_setting_goes_where_the_new_component_has_none(plugins: Plugins) -> None:
    first = Layer("a", {"data": {"name": "folder", "spec": "x.toml", "root": "here"}})
    config = resolved(plugins, "data.name=rooms", layers=(first,))
    assert "spec" not in config.tree["data"]
    assert config.data.root == "here"


def test_a_setting_asked_for_is_never_dropped_silently(plugins: Plugins) -> None:
    assert "data.spec: unknown setting" in problems(plugins, "data.spec=x.toml")


def test_a_misspelt_key_of_data_is_told_what_there_is(plugins: Plugins) -> None:
    told = problems(plugins, "data.trian=3")
    assert "data.trian: unknown setting; did you mean 'train'" in told


def test_a_name_replaces_a_chain_and_says_so(plugins: Plugins) -> None:
    chain = Layer("a", {"balancer": {"chain": [{"name": "dwa"}, {"name": "equal"}]}})
    config = resolved(plugins, "balancer.name=equal", layers=(chain,))
    assert "chain" not in config.tree["balancer"]
    assert any("replaces the chain dwa > equal" in note for note in config.notes)


def test_a_chain_replaces_a_name(plugins: Plugins) -> None:
    chain = Layer("a", {"balancer": {"chain": [{"name": "dwa", "temperature": 1.0}]}})
    config = resolved(plugins, layers=(chain,))
    assert [link.component.spec.name for link in config.chain] == ["dwa"]
    assert config.chain[0].settings == {"temperature": 1.0}


def test_the_later_of_epochs_and_steps_counts(plugins: Plugins) -> None:
    assert resolved(plugins, "training.epochs=3").training.steps is None
    config = resolved(
        plugins, "training.steps=9", layers=(Layer("a", {"training": {"epochs": 3}}),)
    )
    assert (config.training.epochs, config.training.steps) == (None, 9)


def test_all_problems_are_reported_at_once(plugins: Plugins) -> None:
    text = problems(
        plugins,
        "optimzer.lr=1",
        "optimizer.leraning_rate=1",
        "training.epochs='three'",
        "model.backbone.name=segnot",
        "balancer.name=dwa",
        "balancer.temprature=2",
        "tasks=['depht']",
        "model.heads.sky.name=conv",
        "data.on_error=explode",
    )
    for line in (
        "optimzer: unknown; did you mean 'optimizer'?",
        "optimizer.leraning_rate: unknown setting",
        "training.epochs: expected int >= 1 | None, got 'three'",
        "model.backbone.name: no backbone 'segnot'; did you mean 'segnet'?",
        "balancer.temprature: unknown setting; did you mean 'temperature'?",
        "tasks: the dataset 'rooms' declares no task 'depht'; did you mean 'depth'?",
        "data.on_error: expected 'stop' | 'skip', got 'explode'",
    ):
        assert line in text


def test_a_loss_must_serve_its_task(plugins: Plugins) -> None:
    assert "'l1' does not serve tasks of kind 'normals'" in problems(
        plugins, "losses.normals.name=l1"
    )


def test_components_of_every_place_are_asked_for_their_settings(plugins: Plugins) -> None:
    config = resolved(plugins, "model.head.name=conv", "losses.edges.positive_weight=0.8")
    assert config.losses["edges"].settings == {"positive_weight": 0.8}
    assert "losses.depth.positive_weight: unknown setting" in problems(
        plugins, "losses.depth.positive_weight=0.8"
    )


def test_scales_are_factors_of_enlargement(plugins: Plugins) -> None:
    for wrong in ("[0.5, 1.0, 1.5]", "[]", "[nan, 1.0, 2.0]", "[1.0, inf]", "[-1.0]"):
        assert "data.augment.scales" in problems(plugins, f"data.augment.scales={wrong}")
    scales = "data.augment.scales=[1.0, 1.2, 1.5, 3.0]"
    assert resolved(plugins, scales).data.augment.scales == (1.0, 1.2, 1.5, 3.0)


def test_an_assignment_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="write it as path=value"):
        set_layer(["seed"])


def test_assignments_that_exclude_one_another_are_refused() -> None:
    with pytest.raises(ConfigError, match="seed was set to 3 before"):
        set_layer(["seed=3", "seed.x=4"])


def test_plugin_files_are_a_list(plugins: Plugins) -> None:
    with pytest.raises(ConfigError, match="plugins: expected a list"):
        resolve(plugins, (), [Layer("mine.toml", {"plugins": 3})])


@pytest.mark.parametrize("content", [None, "seed = "])
def test_an_unreadable_file_is_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "mine.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError, match=r"mine\.toml"):
        file_layer(str(file))


def test_a_method_keeps_what_it_requires(tmp_path: Path) -> None:
    file = tmp_path / "special.py"
    file.write_text(
        "from mtlcore import BalancerSpec, MethodSpec, hookimpl\n"
        "@hookimpl\n"
        "def mtl_balancers():\n"
        "    yield BalancerSpec(name='mine', target='mtlcore.standard.balancers:Equal')\n"
        "@hookimpl\n"
        "def mtl_methods():\n"
        "    yield MethodSpec(name='special', preset={'balancer': {'name': 'mine'}},\n"
        "                     requires=('balancers/mine',))\n"
    )
    assert resolve(Plugins(allow=()), [str(file)]).chain[0].component.spec.name == "mine"
    with pytest.raises(ConfigError, match=r"chain = \[\{name = \"mine\"\}, \{name = \"dwa\"\}\]"):
        resolve(Plugins(allow=()), [str(file)], [set_layer(["balancer.name=dwa"])])
    both = Layer("mine", {"balancer": {"chain": [{"name": "mine"}, {"name": "dwa"}]}})
    assert len(resolve(Plugins(allow=()), [str(file)], [both]).chain) == 2


def test_a_task_may_have_several_metrics(plugins: Plugins) -> None:
    several = 'metrics.edges=[{name="edges"}, {name="edges-ods", tolerance=0.02}]'
    config = resolved(plugins, several)
    names = [chosen.component.spec.name for chosen in config.metrics["edges"]]
    assert names == ["edges", "edges-ods"]
    assert config.metrics["edges"][1].settings == {"tolerance": 0.02}
    assert len(config.metrics["depth"]) == 1
    again = resolve(plugins, (), [Layer("itself", config.tree)])
    assert again.tree == config.tree


def test_metrics_in_a_list_are_checked_like_a_single_one(plugins: Plugins) -> None:
    found = problems(
        plugins,
        "metrics.depth=[]",
        'metrics.edges=[{name="edges"}, {name="depth"}]',
        'metrics.normals=[{name="normals", tolerance=1}]',
    )
    assert "metrics.depth: an empty list" in found
    assert "metrics.edges[1].name: 'depth' does not serve tasks of kind 'edges'" in found
    assert "metrics.normals[0].tolerance: unknown" in found


OWN_DEFAULTS = """
from __future__ import annotations

from mtlcore import BackboneSpec, BalancerSpec, MethodSpec, OptimizerSpec, hookimpl


def net(tasks, *, width: int = 8): ...
def bare_net(tasks, *, width: int): ...
def step(learner, *, lr: float = 0.5): ...
def bare_step(learner, *, lr: float): ...


@hookimpl
def mtl_backbones():
    yield BackboneSpec(name="net", target=net)
    yield BackboneSpec(name="bare-net", target=bare_net)


@hookimpl
def mtl_optimizers():
    yield OptimizerSpec(name="step", target=step)
    yield OptimizerSpec(name="bare-step", target=bare_step)
"""


@pytest.fixture
def own_defaults(tmp_path: Path) -> Layer:
    file = tmp_path / "own_defaults.py"
    file.write_text(OWN_DEFAULTS)
    return Layer("file", {"plugins": [str(file)]})


def test_a_plugins_own_default_goes_before_the_cores(own_defaults: Layer) -> None:
    names = ("model.backbone.name=net", "optimizer.name=step")
    config = resolved(Plugins(allow=()), *names, layers=(own_defaults,))
    assert config.backbone.settings == config.optimizer.settings == {}
    assert config.tree["model"]["backbone"] == {"name": "net", "width": 8}
    assert config.tree["optimizer"] == {"name": "step", "lr": 0.5}
    assert config.origins["model.backbone.width"] == "default of net"
    assert config.origins["optimizer.lr"] == "default of step"


def test_what_a_user_or_a_preset_set_is_carried_to_it(own_defaults: Layer) -> None:
    written = Layer("mine", {"model": {"backbone": {"width": 3}}, "optimizer": {"lr": 0.25}})
    names = ("model.backbone.name=net", "optimizer.name=step")
    config = resolved(Plugins(allow=()), *names, layers=(own_defaults, written))
    assert config.backbone.settings == {"width": 3}
    assert config.optimizer.settings == {"lr": 0.25}
    assert config.origins["model.backbone.width"] == "mine"
    assert config.origins["optimizer.lr"] == "mine"


def test_the_cores_values_fill_in_where_a_plugin_has_no_default(own_defaults: Layer) -> None:
    config = resolved(Plugins(allow=()), "optimizer.name=bare-step", layers=(own_defaults,))
    assert config.optimizer.settings == {"lr": 0.002}
    assert config.origins["optimizer.lr"] == "core"
    with pytest.raises(ConfigError, match=r"model\.backbone\.width: is required \(int\)"):
        resolved(Plugins(allow=()), "model.backbone.name=bare-net", layers=(own_defaults,))


def test_the_cores_values_are_those_of_all_its_components(plugins: Plugins) -> None:
    config = resolved(plugins, "model.backbone.name=unet", "optimizer.name=sgd")
    assert config.tree["model"]["backbone"]["width"] == 0.0625
    assert config.tree["optimizer"]["lr"] == 0.002
    assert config.origins["model.backbone.width"] == "core"


def test_a_file_of_which_nothing_is_in_use_is_told_of(own_defaults: Layer) -> None:
    (file,) = own_defaults.values["plugins"]
    (note,) = resolve(Plugins(allow=()), [file]).notes
    assert note == (
        f"{file}: nothing of it is in use; it provides backbones net, bare-net (named in "
        "model.backbone.name); optimizers step, bare-step (named in optimizer.name)"
    )
    used = set_layer(["optimizer.name=step"])
    assert resolve(Plugins(allow=()), [file], [used]).notes == ()
    (note,) = resolve(Plugins(allow=()), (), [own_defaults]).notes
    assert "nothing of it is in use" in note


def test_every_kind_of_an_unused_file_says_where_it_is_named() -> None:
    assert set(plugin_files._NAMED_IN) == set(KINDS)


def test_a_run_is_named_after_what_it_trains(own_defaults: Layer, tmp_path: Path) -> None:
    (file,) = own_defaults.values["plugins"]
    used = set_layer(["model.backbone.name=net"])
    assert resolve(Plugins(allow=()), [file], [used]).method == "default"
    vote = tmp_path / "some_votes.py"
    vote.write_text(
        "from mtlcore import BalancerSpec, hookimpl\n"
        "@hookimpl\n"
        "def mtl_balancers():\n"
        "    yield BalancerSpec(name='vote', target='mtlcore.standard.balancers:Equal')\n"
    )
    config = resolve(Plugins(allow=()), [file, str(vote)], [used])
    assert config.method == "vote"
    assert config.notes == ()


def test_plugin_files_of_all_layers_are_kept(own_defaults: Layer, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text("")
    config = resolve(Plugins(allow=()), [str(other)], [own_defaults, Layer("b", {"plugins": []})])
    assert config.tree["plugins"] == [str(other), *own_defaults.values["plugins"]]
    assert f"{other}: nothing of it is in use; it provides no component" in config.notes


def test_a_methods_preset_may_say_more_than_fewer_tasks_need(plugins: Plugins) -> None:
    """What it says of the others is dropped; what you say of them is told."""
    fewer = Layer("mine.toml", {"tasks": ["segmentation"]})
    preset = {"losses": {"depth": {"name": "mse"}}, "metrics": {"depth": [{"name": "depth"}]}}
    for origin, accepted in (("plugin somebody's", True), ("other.toml", False)):
        layers = (Layer(origin, preset), fewer)
        if accepted:
            tree = resolve(plugins, (), layers).tree
            assert list(tree["losses"]) == list(tree["metrics"]) == ["segmentation"]
        else:
            with pytest.raises(ConfigError, match=r"losses\.depth: the run has no such task"):
                resolve(plugins, (), layers)
