"""The command line: what people read, and with which exit code."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from click.testing import Result

from mtlcore.plugins import Plugins

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return Plugins(entry_points=())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "--set", "optimizer.wieght_decay=1"],
            "optimizer.wieght_decay: unknown setting; did you mean 'weight_decay'?",
        ),
        (["run", "--set", "seed=x"], "seed: expected int >= 0 and < 4611686018427387904, got 'x'"),
        (["run", "--set", "training=3"], "training: expected a table"),
        (["run", "--set", "balancer.chain=3"], "balancer.chain: expected a list"),
        (["run", "--set", "model.backbone.width=0"], "model.backbone.width: expected float > 0"),
        (["run", "--set", "device=quantum"], "device: 'quantum' is not usable here"),
        (["run", "--set", "data.train=0"], "data.train: expected int >= 1"),
        (["run", "--plugin", "pcgrd"], "no plugin or method 'pcgrd'"),
        (["run", "--plugin", "mtml"], "pip install mtlcore-plugin-mtml"),
        (["run", "gone.toml"], "gone.toml: cannot read the configuration"),
        (["run", "--resume"], "--resume needs --out"),
        (["show", "balancers", "dwaa"], "did you mean 'dwa'?"),
        (["config", "--set", "balancer.name=nope"], "balancer.name: no balancer 'nope'"),
    ],
)
def test_mistakes_end_in_a_message(
    mtl: Command,
    plugins: Plugins,
    tmp_path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = mtl(*arguments, plugins=plugins)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.startswith("mtl: ")
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_traceback_is_shown_where_asked_for(mtl: Command, plugins: Plugins) -> None:
    result = mtl("--traceback", "run", "--set", "seed=x", plugins=plugins)
    assert result.exception is not None
    assert "seed: expected int" in str(result.exception)


def test_config_shows_origins(mtl: Command, plugins: Plugins) -> None:
    result = mtl("config", "--set", "seed=4", plugins=plugins)
    assert result.exit_code == 0
    assert "seed = 4  # --set" in result.stdout
    data = json.loads(mtl("config", "--seed", "5", "--json", plugins=plugins).stdout)
    assert data["config"]["seed"] == 5
    assert data["origins"]["seed"] == "options"
