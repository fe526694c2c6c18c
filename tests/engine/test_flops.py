"""Operations of a prediction: against layers counted one by one, and as a run tells them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mtlcore.engine import count_flops
from mtlcore.learner import Learner
from mtlcore.testing import tiny_batch, tiny_learner


def by_layer(learner: Learner, inputs: Tensor) -> int:
    """Two for each weight and each place of a convolution or linear layer that uses it."""
    found = []

    def seen(layer: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        places = output.numel() // layer.weight.shape[0]
        found.append(2 * layer.weight.numel() * places)

    layers = [m for m in learner.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(seen) for layer in layers]
    with torch.no_grad():
        learner.eval().model(inputs, list(learner.model.tasks))
    learner.train()
    for hook in hooks:
        hook.remove()
    return sum(found)


def test_operations_are_those_of_the_layers() -> None:
    learner, inputs = tiny_learner([]), tiny_batch().inputs
    assert isinstance(inputs, Tensor)
    one = inputs[:1]
    expected = by_layer(learner, one)
    assert expected > 0
    assert count_flops(learner, one) == expected
    assert count_flops(learner, torch.cat([one, one])) == 2 * expected


def test_counting_leaves_the_learner_as_it_was() -> None:
    learner, inputs = tiny_learner([]), tiny_batch().inputs
    part = next(m for m in learner.model.modules() if isinstance(m, nn.Conv2d))
    part.eval()
    modes = [module.training for module in learner.modules()]
    state = {name: x.clone() for name, x in learner.state_dict().items() if isinstance(x, Tensor)}
    stream = torch.get_rng_state()
    count_flops(learner, inputs)
    assert [module.training for module in learner.modules()] == modes
    assert torch.equal(torch.get_rng_state(), stream)
    for name, value in state.items():
        assert torch.equal(learner.state_dict()[name], value), name


def test_a_run_and_a_dry_run_tell_the_operations(tmp_path: Path, mtl) -> None:
    small = ["--set=data.train=2", "--set=data.val=2", "--set=training.batch_size=2"]
    small += ["--set=training.epochs=1", "--set=data.workers=0", "--set=tasks=['depth']"]
    result = mtl("run", "--dry-run", "--json", "--set=data.size=32x32", *small)
    told = json.loads(result.output)["flops"]
    mtl("run", "--out", str(tmp_path / "run"), "--set=data.size=32x64", *small)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["flops"] == pytest.approx(2 * told)
