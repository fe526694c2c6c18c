"""What every backbone keeps, draws and derivatives of the search, and the tree that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from mtlcore.errors import UsageError
from mtlcore.models import Backbone
from mtlcore.standard.mlp import MLP
from mtlcore.standard.resnet import ResNet
from mtlcore.standard.unet import UNet
from mtlcore.tasks import Task
from mtlcore.testing import TINY_TASKS, BackboneContract
from mtlcore_ltb.backbone import LTB

NAMES = [task.name for task in TINY_TASKS]
VECTORS = partial(MLP, inputs=5, hidden=(6, 4))


@pytest.fixture(autouse=True)
def _a_seed() -> None:
    torch.manual_seed(0)


class TestLTB(BackboneContract):
    # The tree is kept; at first logits do not learn yet.
    unreached = ("logits.",)

    def make(self, tasks: Sequence[Task]) -> Backbone:
        return LTB(tasks, backbone=partial(UNet, width=1 / 32, decoder="none"), exchange_at=(0, 3))


class TestAGivenTree(BackboneContract):
    """Of which the third task is left out where there are fewer."""

    # Copies that no task goes on from.
    unreached = ("networks.task_normals.",)

    def make(self, tasks: Sequence[Task]) -> Backbone:
        row = tuple([0, 1, 1][: len(tasks)])
        encoder = partial(ResNet, depth=18, width=1 / 8)
        return LTB(tasks, backbone=encoder, exchange_at=(1, 4), tree=(row, row))


def searching(**settings: object) -> LTB:
    return LTB(TINY_TASKS, backbone=VECTORS, warmup=0.0, **settings)


def set_logits(backbone: LTB, number: int, rows: Sequence[Sequence[float]]) -> None:
    for task, row in zip(NAMES, rows, strict=True):
        with torch.no_grad():
            backbone._of(number, task).copy_(torch.tensor(row))


def maps(*values: float) -> dict[str, Tensor]:
    return {
        name: torch.full((2, 6), value, requires_grad=True)
        for name, value in zip(NAMES, values, strict=True)
    }


def test_copies_are_drawn_as_often_as_their_probabilities() -> None:
    """Whatever the temperature, which moves derivatives alone."""
    backbone = searching()
    probabilities = torch.tensor([0.2, 0.5, 0.3])
    set_logits(backbone, 0, [probabilities.log().tolist()] * 3)
    given = maps(0.0, 1.0, 2.0)
    counts = torch.zeros(3)
    for _ in range(1000):
        for x in backbone.exchange(0, given, NAMES).values():
            assert bool((x == x[0, 0]).all())  # one copy's map, whole
            counts[round(x[0, 0].item())] += 1
    torch.testing.assert_close(counts / counts.sum(), probabilities, rtol=0, atol=0.03)


def test_derivatives_are_those_of_the_soft_draw() -> None:
    backbone = searching(temperature=2.0, cold=2.0)
    set_logits(backbone, 0, [[0.3, -0.2, 0.1]] * 3)
    values = (0.5, 1.5, -2.0)
    given, task = maps(*values), NAMES[1]
    torch.manual_seed(5)
    x = backbone.exchange(0, given, [task])[task]
    logits = backbone._of(0, task)
    found = torch.autograd.grad(x.sum(), [logits, *given.values()])
    torch.manual_seed(5)
    gumbel = -torch.empty(3).exponential_().log()
    soft = ((logits + gumbel) / 2.0).softmax(0)
    expected = torch.autograd.grad((soft * torch.tensor(values)).sum() * x.numel(), logits)[0]
    torch.testing.assert_close(found[0], expected)
    hard = torch.nn.functional.one_hot(soft.argmax(), 3)
    for gradient, part in zip(found[1:], hard, strict=True):
        torch.testing.assert_close(gradient, torch.full_like(gradient, float(part)))


def test_the_temperature_falls_as_an_inverse_square_root() -> None:
    """With epochs / 20 / sqrt(epoch + 1) of LibMTL, of 200 epochs, up to the rounding of .705."""
    backbone = searching(temperature=10.0, cold=200 / 20 / 201**0.5)
    for epoch in (0, 1, 20, 100, 200):
        assert backbone.heat(epoch / 200) == pytest.approx(200 / 20 / (epoch + 1) ** 0.5)
    assert backbone.heat(2.0) == backbone.heat(1.0)


def test_copies_are_drawn_alike_before_logits_learn() -> None:
    backbone = LTB(TINY_TASKS, backbone=VECTORS, warmup=0.5, search=0.4)
    set_logits(backbone, 0, [[-50.0, 50.0, -50.0]] * 3)
    given = maps(0.0, 1.0, 2.0)
    backbone.at_progress(0.19)  # of the run: just before half of the search
    drawn = {x[0, 0].item() for _ in range(30) for x in backbone.exchange(0, given, NAMES).values()}
    assert drawn == {0.0, 1.0, 2.0}
    x = backbone.exchange(0, given, NAMES)[NAMES[0]]
    assert torch.autograd.grad(x.sum(), backbone._of(0, NAMES[0]), allow_unused=True) == (None,)
    backbone.at_progress(0.21)
    drawn = {x[0, 0].item() for _ in range(30) for x in backbone.exchange(0, given, NAMES).values()}
    assert drawn == {1.0}


def test_the_tree_is_the_likeliest_and_shared_stages_give_one_map() -> None:
    """Stage 1 goes on from copies 0, 2, 2 of stage 0; tasks from 0, 2, 1 of stage 1."""
    backbone = searching(search=0.5)
    set_logits(backbone, 0, [[2, 1, 0], [0, 1, 2], [0, 0, 1]])
    set_logits(backbone, 1, [[1, 0, 0], [0, 0, 1], [0, 1, 0]])
    assert backbone.tree() == [[0, 2, 2], [0, 2, 1]]
    assert backbone.branches() == {NAMES[0]: (0, 0), NAMES[1]: (2, 2), NAMES[2]: (2, 1)}
    backbone.at_progress(0.5)
    set_logits(backbone, 0, [[0, 0, 9]] * 3)  # which nobody asks any more
    assert backbone.tree() == [[0, 2, 2], [0, 2, 1]]
    x = torch.randn(3, 5)
    stages = [[backbone._network(name).layers[n : n + 2] for n in (0, 2)] for name in NAMES]
    for training in (True, False):
        features = backbone.train(training)(x, NAMES)
        for name, (first, second) in backbone.branches().items():
            expected = stages[second][1](stages[first][0](x))
            torch.testing.assert_close(features.of(name)[0], expected)


def test_the_tree_begins_from_scratch() -> None:
    backbone = searching()
    before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    assert backbone.at_progress(0.49) is None
    change = backbone.at_progress(0.5)
    assert change is not None
    assert change.reset_heads
    assert change.reset_balancer
    assert set(change.reset) == {name for name in before if name.startswith("networks.")}
    for name, parameter in backbone.named_parameters():
        assert torch.equal(parameter, before[name]) is name.startswith("logits."), name
    assert backbone.at_progress(0.9) is None


def test_a_run_may_train_the_tree_of_another() -> None:
    """Search in one, from its state the tree in the other, at its first step."""
    first = searching(search=1.0)
    set_logits(first, 1, [[1, 0, 0], [0, 0, 1], [0, 1, 0]])
    assert first.at_progress(0.999) is None
    second = searching(search=0.0)
    second.load_state_dict(first.state_dict())
    assert second.at_progress(0.0) is not None
    assert second.tree()[1] == [0, 2, 1]
    with pytest.raises(UsageError, match=r"name that run by initial\.run"):
        searching(search=0.0).at_progress(0.0)


def test_weights_of_a_file_are_not_lost_silently() -> None:
    class Pretrained(MLP):
        def facts(self) -> dict[str, str]:
            return {"weights": "somewhere.safetensors"}

    pretrained = partial(Pretrained, inputs=5, hidden=(6, 4))
    with pytest.raises(UsageError, match="weights are read of a file"):
        LTB(TINY_TASKS, backbone=pretrained)
    LTB(TINY_TASKS, backbone=pretrained, search=1.0)
    LTB(TINY_TASKS, backbone=pretrained, tree=((0, 0, 0), (0, 0, 1)))


@pytest.mark.parametrize("tree", [((0, 0, 0),), ((0, 0), (0, 0)), ((0, 0, 0), (0, 0, 3))])
def test_a_tree_of_another_shape_is_refused(tree: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(UsageError, match="it needs 2 rows, one for each stage, of 3 numbers"):
        LTB(TINY_TASKS, backbone=VECTORS, tree=tree)


def test_what_is_recorded_is_how_sure_each_copy_is() -> None:
    backbone = searching()
    set_logits(backbone, 0, [[0.0, 0.0, 0.0], [100.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    values = backbone.current_values()["branch/0"]
    assert values[NAMES[0]] == pytest.approx(1 / 3)
    assert values[NAMES[1]] == pytest.approx(1.0)
