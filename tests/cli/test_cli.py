"""The command line: what people read, and with which exit code."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from mtlcore.cli import main
from mtlcore.plugins import Plugins


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return Plugins(entry_points=())


def mtl(plugins: Plugins, *arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, obj=plugins)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "--set", "optimizer.wieght_decay=1"],
            "optimizer.wieght_decay: unknown setting; did you mean 'weight_decay'?",
        ),
        (["run", "--set", "seed=x"], "seed: expected int, got 'x'"),
        (["run", "--set", "training=3"], "training: expected a table"),
        (["run", "--set", "balancer.chain=3"], "balancer.chain: expected a list"),
        (["run", "--set", "model.backbone.width=0"], "backbone 'segnet': width 0.0 must be"),
        (["run", "--set", "device=quantum"], "device: 'quantum' is not usable here"),
        (["run", "--set", "data.train=0"], "the split 'train' of rooms holds no sample"),
        (["run", "--plugin", "pcgrd"], "no plugin or method 'pcgrd'"),
        (["run", "--plugin", "mtml"], "pip install mtlcore-plugin-mtml"),
        (["run", "gone.toml"], "gone.toml: cannot read the configuration"),
        (["run", "--resume"], "--resume needs --out"),
        (["show", "balancers", "dwaa"], "did you mean 'dwa'?"),
        (["config", "--set", "balancer.name=nope"], "balancer.name: no balancer 'nope'"),
    ],
)
def test_mistakes_end_in_a_message(
    plugins: Plugins, tmp_path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = mtl(plugins, *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.startswith("mtl: ")
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_traceback_is_shown_where_asked_for(plugins: Plugins) -> None:
    result = mtl(plugins, "--traceback", "run", "--set", "seed=x")
    assert result.exception is not None
    assert "seed: expected int" in str(result.exception)


def test_config_shows_origins(plugins: Plugins) -> None:
    result = mtl(plugins, "config", "--set", "seed=4")
    assert result.exit_code == 0
    assert "seed = 4  # --set" in result.stdout
    data = json.loads(mtl(plugins, "config", "--seed", "5", "--json").stdout)
    assert data["config"]["seed"] == 5
    assert data["origins"]["seed"] == "options"
