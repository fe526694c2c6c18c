"""A setting that is another component: read, completed, refused by its path, made."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest
import tomli_w
import torch

from mtlcore import Nested, create
from mtlcore.config import Layer, RunConfig, annotated, resolve, set_layer
from mtlcore.engine.building import build_model, restoring
from mtlcore.errors import ConfigError, UsageError
from mtlcore.models import Backbone, WrappingBackbone
from mtlcore.plugins import Plugins, settings_of, structure
from mtlcore.standard.resnet import ResNet
from mtlcore.tasks import Task
from mtlcore.testing import TINY_TASKS, TinyBackbone

AROUND = '''
from collections.abc import Callable
from typing import Annotated

from mtlcore import BackboneSpec, Nested, hookimpl


@hookimpl
def mtl_backbones():
    from mtlcore.models import Backbone, WrappingBackbone

    class Around(WrappingBackbone):
        """Around one.

        Args:
            inner: what is inside.
            scale: of its maps.
        """

        def __init__(
            self,
            tasks,
            *,
            inner: Annotated[Callable[..., Backbone] | None, Nested("backbones")] = None,
            scale: float = 1.0,
        ):
            super().__init__()
            if inner is None:
                from mtlcore.testing import TinyBackbone as inner
            self.inner, self.scale = inner(tasks), scale
            self.out_channels, self.strides = self.inner.out_channels, self.inner.strides
            self.input_multiple, self.main_map = self.inner.input_multiple, self.inner.main_map

        def wrapped(self):
            return (self.inner,)

        def forward(self, inputs, tasks):
            return self.inner(inputs, tasks)

        def task_parameters(self, task):
            return self.inner.task_parameters(task)

    yield BackboneSpec(name="around", target=Around)
'''
INNER = 'model.backbone.inner={name="unet", width=0.03125, decoder="shared"}'


def takes(
    tasks: Sequence[Task],
    *,
    inner: Annotated[Callable[..., Backbone] | None, Nested("backbones")] = None,
) -> None:
    """Take a backbone.

    Args:
        inner: the backbone.
    """


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "around.py"
    path.write_text(AROUND)
    return str(path)


def resolved(file: str, *assignments: str) -> RunConfig:
    chosen = ("model.backbone.name=around", "tasks=['depth', 'normals']", "data.size=32x32")
    return resolve(Plugins(allow=()), [file], [set_layer([*chosen, *assignments])])


def problems(file: str, *assignments: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        resolved(file, *assignments)
    return list(caught.value.problems)


def test_its_type_is_said_in_words() -> None:
    (setting,) = settings_of(takes)
    assert setting.type == "a table that names one of mtl list backbones"


@pytest.mark.parametrize("value", [3, "unet", [], {}, {"width": 1.0}, {"name": 3}])
def test_what_names_nothing_is_refused(value: Any) -> None:
    found: list[str] = []
    structure(takes, {"inner": value}, "table", found)
    (problem,) = found
    assert problem.startswith("table.inner: expected a table that names one of mtl list backbones")


def test_it_is_made_with_its_settings(file: str) -> None:
    backbone = build_model(resolved(file, INNER)).backbone
    assert isinstance(backbone, WrappingBackbone)
    assert backbone.out_channels == (32, 2)
    (inner,) = backbone.wrapped()
    assert type(inner).__name__ == "UNet"
    assert not any(True for _ in inner.task_parameters("depth"))


def test_its_defaults_are_written_and_have_origins(file: str) -> None:
    config = resolved(file, 'model.backbone.inner={name="resnet"}')
    inner = config.tree["model"]["backbone"]["inner"]
    assert inner["depth"] == 50
    assert config.origins["model.backbone.inner.name"] == "--set"
    assert config.origins["model.backbone.inner.depth"] == "default of resnet"
    text = annotated(tomli_w.dumps(dict(config.tree)), config.origins)
    assert "[model.backbone.inner]" in text
    again = resolve(Plugins(allow=()), [file], [Layer("again", tomllib.loads(text))])
    assert again.tree["model"] == config.tree["model"]


def test_another_name_drops_the_settings_of_the_first(file: str) -> None:
    layers = [set_layer(["model.backbone.name=around", INNER]),
              set_layer(["model.backbone.inner.name=resnet"])]  # fmt: skip
    config = resolve(Plugins(allow=()), [file], layers)
    assert "decoder" not in config.tree["model"]["backbone"]["inner"]
    assert config.tree["model"]["backbone"]["inner"]["width"] == 1.0


def test_none_is_a_name_that_unsets_it(file: str) -> None:
    layers = [set_layer(["model.backbone.name=around", INNER]),
              set_layer(["model.backbone.inner.name=none"])]  # fmt: skip
    config = resolve(Plugins(allow=()), [file], layers)
    assert config.backbone.settings["inner"] is None
    assert isinstance(build_model(config).backbone.inner, TinyBackbone)
    (problem,) = problems(file, 'model.backbone.inner={name="none", width=1.0}')
    assert problem.startswith("model.backbone.inner.width: model.backbone.inner.name is 'none'")


def test_mistakes_inside_are_told_by_their_path(file: str) -> None:
    (problem,) = problems(file, 'model.backbone.inner={name="unett"}')
    assert problem.startswith("model.backbone.inner.name: ")
    assert "did you mean 'unet'" in problem
    (problem,) = problems(file, 'model.backbone.inner={name="unet", widht=0.5}')
    assert problem.startswith("model.backbone.inner.widht: unknown setting; did you mean 'width'")
    (problem,) = problems(file, 'model.backbone.inner={name="unet", width=-1}')
    assert problem.startswith("model.backbone.inner.width: expected float > 0")
    (problem,) = problems(file, "model.backbone.inner=unet")
    assert problem.startswith("model.backbone.inner: expected a table that names")


def test_a_component_may_hold_one_that_holds_one(file: str) -> None:
    inner = 'model.backbone.inner={name="around", inner={name="unet", width=0.03125}}'
    backbone = build_model(resolved(file, inner)).backbone
    assert type(backbone.inner.inner).__name__ == "UNet"
    (problem,) = problems(file, 'model.backbone.inner={name="around", inner={name="unet", x=1}}')
    assert problem.startswith("model.backbone.inner.inner.x: unknown setting")


def test_first_weights_inside_are_not_read_where_a_checkpoint_follows(file: str) -> None:
    config = resolved(file, 'model.backbone.inner={name="resnet", weights="gone.pth", width=1.0}')
    inner = restoring(config).backbone.settings["inner"]
    assert "weights" not in inner.settings
    assert inner.settings["width"] == 1.0
    assert "weights" in config.backbone.settings["inner"].settings


def test_the_file_of_a_component_inside_is_in_use(file: str, tmp_path: Path) -> None:
    chosen = ["model.backbone.name=around", 'model.backbone.inner={name="around"}']
    other = tmp_path / "other.py"
    other.write_text(AROUND.replace('name="around"', 'name="other"'))
    words = [*chosen[:1], 'model.backbone.inner={name="other"}']
    config = resolve(Plugins(allow=()), [file, str(other)], [set_layer(words)])
    assert not [note for note in config.notes if "nothing of it is in use" in note]
    unused = resolve(Plugins(allow=()), [file, str(other)], [set_layer(chosen)])
    assert [note for note in unused.notes if "other.py: nothing of it is in use" in note]


def test_create_makes_it_too() -> None:
    pytest.importorskip("mtlcore_atinet", reason="mtlcore-plugin-atinet is not installed")
    table = {"name": "resnet", "depth": 18, "width": 0.0625, "pyramid": True}
    with torch.device("meta"):
        backbone = create("backbones", "mtan", TINY_TASKS, encoder=table)
        plain = create("backbones", "mtan", TINY_TASKS, width=0.0625, encoder={"name": "none"})
    assert isinstance(backbone.encoder, ResNet)
    assert plain.out_channels == (32, 4)
    with pytest.raises(ConfigError, match=r"mtan.encoder.dept: unknown setting.*'depth'"):
        create("backbones", "mtan", TINY_TASKS, encoder=table | {"dept": 18})
    with pytest.raises(UsageError, match="resnett"):
        create("backbones", "mtan", TINY_TASKS, encoder={"name": "resnett"})
