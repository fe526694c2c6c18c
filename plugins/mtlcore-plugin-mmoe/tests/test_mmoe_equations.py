"""The networks against their equations, computed without them, and against published numbers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtlcore.models import count_parameters
from mtlcore.standard.mlp import MLP
from mtlcore.standard.resnet import ResNet
from mtlcore.tasks import Task
from mtlcore_mmoe.backbones import CGC, PLE, MixtureBackbone, MMoE
from mtlcore_mmoe.extraction import Extraction, Plan
from mtlcore_mmoe.gates import Gate

F64 = torch.float64
NAMES = ("red", "green", "blue")


def tasks(count: int = 3) -> list[Task]:
    return [Task(name=name, kind="classification", channels=2) for name in NAMES[:count]]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.fixture(autouse=True)
def _a_seed() -> None:
    torch.manual_seed(0)


def scrambled(backbone: MixtureBackbone) -> MixtureBackbone:
    """In double precision; biases that are 0 at first would hide a mistake."""
    backbone = backbone.double()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return backbone


class Reference:
    """The equations on vectors, in numpy, from the tensors of a network."""

    def __init__(self, backbone: MixtureBackbone) -> None:
        self.state = {name: x.numpy() for name, x in backbone.state_dict().items()}

    def stack(self, path: str, x: np.ndarray) -> np.ndarray:
        for number in range(0, 20, 2):
            if f"{path}.{number}.weight" in self.state:
                weight = self.state[f"{path}.{number}.weight"]
                x = np.maximum(x @ weight.T + self.state[f"{path}.{number}.bias"], 0)
        return x

    def gate(self, path: str, x: np.ndarray) -> np.ndarray:
        logits = np.exp(x @ self.state[f"{path}.logits.weight"].T)
        return logits / logits.sum(1, keepdims=True)

    def mixed(self, x: np.ndarray, levels: int, shared: int, own: int) -> dict[str, np.ndarray]:
        streams: dict[str, np.ndarray] = dict.fromkeys(NAMES, x)
        stream = x
        for n in range(levels):
            at = f"mixtures.0.levels.{n}"
            of_all = [self.stack(f"{at}.shared.{i}", stream) for i in range(shared)]
            of_task = {
                name: [self.stack(f"{at}.own.task_{name}.{i}", streams[name]) for i in range(own)]
                for name in NAMES
            }
            new = {
                name: self.weighed(
                    self.gate(f"{at}.gates.task_{name}", streams[name]), of_task[name] + of_all
                )
                for name in NAMES
            }
            if n < levels - 1:
                everybody = [f for name in NAMES for f in of_task[name]] + of_all
                stream = self.weighed(self.gate(f"{at}.shared_gate", stream), everybody)
            streams = new
        return streams

    @staticmethod
    def weighed(weights: np.ndarray, experts: Sequence[np.ndarray]) -> np.ndarray:
        return np.sum([weights[:, [i]] * f for i, f in enumerate(experts)], axis=0)


@pytest.mark.parametrize(
    ("make", "levels", "shared", "own"),
    [
        (partial(MMoE, experts=3), 1, 3, 0),
        (partial(CGC, shared=2, own=1), 1, 2, 1),
        (partial(PLE, shared=1, own=2, levels=3), 3, 1, 2),
    ],
    ids=["mmoe", "cgc", "ple"],
)
def test_mixtures_are_those_of_the_equations(make, levels: int, shared: int, own: int) -> None:
    backbone = scrambled(make(tasks(), inputs=6, hidden=(5, 4), tower=(3,)))
    x = drawn(7, 6)
    reference = Reference(backbone)
    expected = reference.mixed(x.numpy(), levels, shared, own)
    with torch.no_grad():
        features = backbone(x, NAMES)
    for name in NAMES:
        tower = reference.stack(f"towers.task_{name}.0", expected[name])
        np.testing.assert_allclose(features.of(name)[0].numpy(), tower, rtol=1e-10)
    assert features.shared == ()


def test_numbers_of_weights_are_the_papers() -> None:
    """MMoE's paper: 100 x 16 x 8 + 16 x 8 x 2 in experts and towers, as it counts them."""
    backbone = MMoE(tasks(2), inputs=100, tower=(8,))
    layers = [
        part
        for name, part in backbone.named_modules()
        if isinstance(part, nn.Linear) and ".gates." not in name
    ]
    assert sum(layer.weight.numel() for layer in layers) == 13_056
    gates = 2 * 100 * 8
    biases = 8 * 16 + 2 * 8
    assert count_parameters(backbone.parameters()) == 13_056 + gates + biases


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        # Experts (6 + 1) x 4 each, gates 6 x 5 each.
        (partial(CGC, shared=3, own=2), (3 + 3 * 2) * 28 + 3 * 30),
        # The second level reads 4 values: experts 20, gates 4 x 5; the shared gate reads 6, of 9.
        (partial(PLE, shared=3, own=2), 9 * 28 + 3 * 30 + 6 * 9 + 9 * 20 + 3 * 20),
    ],
)
def test_numbers_of_parameters(make, expected: int) -> None:
    assert count_parameters(make(tasks(), inputs=6, hidden=(4,)).parameters()) == expected


def test_ple_of_one_level_is_cgc() -> None:
    made = []
    for make in (CGC, partial(PLE, levels=1)):
        torch.manual_seed(3)
        made.append(make(tasks(), inputs=4))
    one, other = made
    assert one.state_dict().keys() == other.state_dict().keys()
    x = torch.randn(5, 4)
    assert torch.equal(one(x, NAMES).of("blue")[0], other(x, NAMES).of("blue")[0])


def test_one_expert_is_hard_sharing() -> None:
    backbone = scrambled(MMoE(tasks(), experts=1, inputs=4, hidden=(3,)))
    shared = MLP(tasks(), inputs=4, hidden=(3,)).double()
    shared.layers.load_state_dict(backbone.mixtures[0].levels[0].shared[0].state_dict())
    x = drawn(5, 4)
    expected = shared(x, NAMES).of("red")[0]
    for name in NAMES:
        torch.testing.assert_close(backbone(x, NAMES).of(name)[0], expected)


def test_a_map_is_mixed_as_a_whole() -> None:
    """Of one pixel, convolutions are linear layers and the mean over pixels is the pixel."""
    encoder = partial(ResNet, depth=18, width=1 / 16, pyramid=True)
    backbone = CGC(tasks(), shared=2, own=1, encoder=encoder).eval()
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        maps, features = backbone.encoder(x, NAMES).shared, backbone(x, NAMES)
        weights = backbone.gate_values(x, NAMES)
        for place, mixture in enumerate(backbone.mixtures):
            level = mixture.levels[0]
            experts = [*level.own["task_green"], *level.shared]
            logits = level.gates["task_green"].logits(maps[place].mean((2, 3)))
            torch.testing.assert_close(weights["green"][place], logits.softmax(1))
            expected = sum(
                expert(maps[place]) * weights["green"][place][:, i, None, None, None]
                for i, expert in enumerate(experts)
            )
            torch.testing.assert_close(features.of("green")[place], expected)
    assert [x.shape for x in features.of("red")] == [x.shape for x in maps]
    assert backbone.out_channels == backbone.encoder.out_channels


def test_first_weights_are_those_of_variance_scaling() -> None:
    backbone = MMoE(tasks(), experts=4, inputs=400, hidden=(100,))
    first = torch.cat([e[0].weight for e in backbone.mixtures[0].levels[0].shared])
    assert first.std().item() == pytest.approx(1 / 20, rel=0.02)
    assert first.abs().max() < 2 / 20 / 0.8796 + 1e-6
    assert not any(bool(e[0].bias.any()) for e in backbone.mixtures[0].levels[0].shared)


@pytest.mark.parametrize(("levels", "own"), [(1, 0), (1, 2), (2, 2), (3, 1), (4, 1)])
def test_what_is_a_tasks_own_is_exactly_what_no_other_loss_reaches(levels: int, own: int) -> None:
    plan = Plan(shared=2, own=own, levels=levels, gate=Gate())
    mixture = Extraction({n: f"task_{n}" for n in NAMES}, 4, (5,), plan, maps=False).double()
    named = dict(mixture.named_parameters())
    found = mixture(drawn(8, 4), NAMES)
    reached: dict[str, set[str]] = {name: set() for name in named}
    for task in NAMES:
        loss = found.mixed[task].square().sum()
        rows = torch.autograd.grad(loss, [*named.values()], retain_graph=True, allow_unused=True)
        for name, row in zip(named, rows, strict=True):
            if row is not None and bool(row.any()):
                reached[name].add(task)
    owned = {id(p): task for task in NAMES for p in mixture.task_parameters(task)}
    for name, parameter in named.items():
        owner = owned.get(id(parameter))
        assert reached[name] == ({owner} if owner else set(NAMES)), name


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("learns", [True, False], ids=["of an encoder", "of the input"])
def test_every_path_crosses_the_cut_once(levels: int, learns: bool) -> None:
    """What reads the input is an encoder's map, or the input itself, which nothing precedes."""
    plan = Plan(shared=2, own=1, levels=levels, gate=Gate())
    mixture = Extraction({n: f"task_{n}" for n in NAMES}, 4, (5,), plan, maps=False).double()
    x = drawn(6, 4).requires_grad_(learns)
    owned = {id(p) for task in NAMES for p in mixture.task_parameters(task)}
    shared = [p for p in mixture.parameters() if id(p) not in owned] + ([x] if learns else [])
    found = mixture(x, NAMES)
    for task in NAMES:
        loss = (found.mixed[task] * drawn(6, 5, seed=4)).sum()
        whole = torch.autograd.grad(loss, shared, retain_graph=True)
        at_cut = torch.autograd.grad(loss, found.cut, retain_graph=True, allow_unused=True)
        pairs = [(c, g) for c, g in zip(found.cut, at_cut, strict=True) if g is not None]
        through = torch.autograd.grad(
            [c for c, _ in pairs], shared, [g for _, g in pairs], retain_graph=True
        )
        for one, other in zip(whole, through, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("make", [MMoE, CGC])
def test_a_new_task_adds_and_changes_nothing_of_the_others(make) -> None:
    few, more = (make(tasks(count), inputs=4) for count in (2, 3))
    missing, unexpected = more.load_state_dict(few.state_dict(), strict=False)
    assert not unexpected
    assert missing
    assert all(".task_blue." in name for name in missing)
    x = torch.randn(3, 4)
    assert torch.equal(few(x, NAMES[:2]).of("red")[0], more(x, NAMES).of("red")[0])


def test_gate_values_are_of_the_last_level_and_sum_to_one() -> None:
    backbone = PLE(tasks(), inputs=4, shared=3, own=2).eval()
    values = backbone.gate_values(torch.randn(6, 4), ["red", "blue"])
    assert set(values) == {"red", "blue"}
    (weights,) = values["blue"]
    assert weights.shape == (6, 5)
    torch.testing.assert_close(weights.sum(1), torch.ones(6))
