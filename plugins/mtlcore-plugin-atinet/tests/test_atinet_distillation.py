"""ATI-Net is MTAN until its distillation begins; what changes then, and what does not."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from mtlcore.features import Features
from mtlcore.models import Transition
from mtlcore.tasks import Task
from mtlcore_atinet.atinet import ATINet
from mtlcore_atinet.mtan import MTAN

WIDTH = 1 / 16
NAMES = ("red", "green", "blue")
TASKS = [Task(name=name, kind="depth", channels=1) for name in NAMES]


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 64, 64)


def scramble(network: ATINet) -> ATINet:
    """Move every parameter and running statistic away from where initialisation puts it."""
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name != "_extra_state" and tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor))
    return network


def assert_same(one: Features, other: Features) -> None:
    for task in NAMES:
        assert all(map(torch.equal, one.of(task), other.of(task)))


def gradients(network: ATINet, inputs: Tensor) -> dict[str, Tensor | None]:
    features = network(inputs, NAMES)
    sum(features.of(task)[-1].square().sum() for task in NAMES).backward()
    return {name: p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize("train", [True, False])
def test_is_mtan_before(train: bool) -> None:
    network, mtan, inputs = ATINet(TASKS, width=WIDTH), MTAN(TASKS, width=WIDTH), images()
    missing, unexpected = network.load_state_dict(mtan.state_dict(), strict=False)
    assert not unexpected
    assert {name.split(".")[0] for name in missing} == {"distillation", "_extra_state"}
    network.train(train)
    mtan.train(train)
    for _ in range(2):  # the second sees the running statistics that the first left
        assert_same(network(inputs, NAMES), mtan(inputs, NAMES))
    for name, tensor in mtan.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])


def test_has_mtans_weights_from_the_same_seed() -> None:
    torch.manual_seed(7)
    mtan = MTAN(TASKS, width=WIDTH).state_dict()
    torch.manual_seed(7)
    network = ATINet(TASKS, width=WIDTH).state_dict()
    assert all(torch.equal(tensor, network[name]) for name, tensor in mtan.items())


def test_distilled_map_reaches_the_decoder_from_all_that_was_added() -> None:
    # With running statistics: biases before a batch norm that normalises have no gradient.
    network = ATINet(TASKS, width=WIDTH, distil_from=0).eval()
    found = gradients(network, images(batch=4))
    added = {name: g for name, g in found.items() if name.startswith("distillation.")}
    assert len(added) == 96
    assert [name for name, g in added.items() if g is None or not g.any()] == []


def test_the_encoder_learns_through_the_distilled_map() -> None:
    """Attention reads maps before the last pooling, so that nothing else leads to the latent."""
    network = ATINet(TASKS, width=WIDTH, distil_from=0).eval()
    features = network(images(), NAMES)
    for task in NAMES:
        loss = features.of(task)[-1].square().sum()
        (gradient,) = torch.autograd.grad(loss, features.shared[0], retain_graph=True)
        assert bool(gradient.any()), task


def test_every_added_tensor_matters_for_every_task() -> None:
    network, inputs = ATINet(TASKS, width=WIDTH, distil_from=0).eval(), images()
    before = network(inputs, NAMES)
    for key in ("task_red", "task_green", "task_blue"):
        other = ATINet(TASKS, width=WIDTH, distil_from=0).eval()
        other.load_state_dict(network.state_dict())
        with torch.no_grad():
            other.get_submodule(f"distillation.read.{key}.0.0").weight.mul_(2)
        after = other(inputs, NAMES)
        assert torch.equal(before.shared[0], after.shared[0])  # still the encoder's own
        assert all(not torch.equal(before.of(task)[1], after.of(task)[1]) for task in NAMES)


def test_as_released_the_distilled_map_has_no_effect() -> None:
    network = ATINet(TASKS, width=WIDTH, distil_from=0, decoder_input="encoder")
    plain, inputs = ATINet(TASKS, width=WIDTH), images()
    plain.load_state_dict(network.state_dict() | {"_extra_state": {"distilling": False}})
    assert_same(network(inputs, NAMES), plain(inputs, NAMES))
    found = gradients(network, inputs)
    assert all((g is None) == name.startswith("distillation.") for name, g in found.items())


def test_one_task_has_nobody_to_listen_to() -> None:
    network = ATINet(TASKS[:1], width=WIDTH, distil_from=0)
    names = [name for name, _ in network.distillation.named_parameters()]
    assert not any(name.startswith("gates.") for name in names)
    assert network(images(), ["red"]).of("red")[-1].shape == (2, 4, 64, 64)


def test_begins_once_when_it_is_time() -> None:
    network = ATINet(TASKS, width=WIDTH)
    assert network.at_progress(0.0) is None
    assert network.at_progress(0.49) is None
    assert not network.distilling
    assert isinstance(network.at_progress(0.5), Transition)
    assert network.distilling
    assert network.at_progress(0.5) is None
    assert network.at_progress(1.0) is None


@pytest.mark.parametrize(
    ("reset", "prefix"), [("paper", "attention.masks."), ("released", "attention."), ("none", "-")]
)
def test_starts_anew_what_it_says_and_nothing_else(reset, prefix: str) -> None:
    network = scramble(ATINet(TASKS, width=WIDTH, reset=reset))
    before = {k: v.clone() for k, v in network.state_dict().items() if k != "_extra_state"}
    transition = network.at_progress(0.6)
    assert transition is not None
    after = network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    # Restarted batch norms forget their statistics too; counts of batches were 0 and are.
    floats = {k for k, v in before.items() if v.is_floating_point()}
    assert changed == {name for name in floats if name.startswith(prefix)}
    parameters = {name for name, _ in network.named_parameters()}
    assert len(transition.reset) == len(set(transition.reset))
    assert set(transition.reset) == changed & parameters
    assert transition.reset_heads == (reset == "released")
    assert not transition.reset_balancer


def test_masks_start_anew_as_in_construction_and_from_the_seed() -> None:
    network = scramble(ATINet(TASKS, width=1 / 4))
    torch.manual_seed(3)
    network.at_progress(0.5)
    layer = network.get_submodule("attention.masks.task_red.encoder.4.0.0")
    deviation = (2 / (256 + 128)) ** 0.5
    assert layer.weight.std().item() == pytest.approx(deviation, rel=0.05)
    other = scramble(ATINet(TASKS, width=1 / 4))
    torch.manual_seed(3)
    other.at_progress(0.5)
    weights = other.get_submodule("attention.masks.task_red.encoder.4.0.0").weight
    assert torch.equal(layer.weight, weights)


def test_can_ask_for_a_fresh_balancer() -> None:
    transition = ATINet(TASKS, width=WIDTH, reset_balancer=True).at_progress(0.5)
    assert transition is not None
    assert transition.reset_balancer


def test_from_the_start_nothing_starts_anew() -> None:
    network = ATINet(TASKS, width=WIDTH, distil_from=0)
    assert network.distilling
    assert network.at_progress(0.0) is None


def test_a_checkpoint_knows_whether_it_has_begun() -> None:
    network = ATINet(TASKS, width=WIDTH)
    network.at_progress(0.5)
    state = network.state_dict()
    state["_extra_state"] = json.loads(json.dumps(state["_extra_state"]))
    fresh = ATINet(TASKS, width=WIDTH)
    fresh.load_state_dict(state)
    assert fresh.at_progress(0.7) is None
    inputs = images()
    assert_same(fresh.eval()(inputs, NAMES), network.eval()(inputs, NAMES))
    assert fresh.distilling

    fresh.load_state_dict(ATINet(TASKS, width=WIDTH).state_dict())
    assert not fresh.distilling


@pytest.mark.parametrize("fraction", [-0.1, 1.5])
def test_must_begin_within_the_run(fraction: float) -> None:
    with pytest.raises(ValueError, match="distil_from"):
        ATINet(TASKS, width=WIDTH, distil_from=fraction)
