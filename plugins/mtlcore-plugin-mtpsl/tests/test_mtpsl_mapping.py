"""The mapping network: its size, its codes, and that one batch gives what one by one gives."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mtlcore.data import Batch
from mtlcore.features import FeatureInfo, Features
from mtlcore.models import count_parameters
from mtlcore.tasks import Task
from mtlcore.testing import tiny_batch
from mtlcore.testing.base import close, scramble
from mtlcore_mtpsl import encoding
from mtlcore_mtpsl.mapping import Code, MappingNetwork, Use
from mtlcore_mtpsl.mtpsl import MTPSL

NYUV2 = (
    Task(name="segmentation", kind="segmentation", channels=13),
    Task(name="depth", kind="depth", channels=1),
    Task(name="normals", kind="normals", channels=3),
)
CITYSCAPES = (
    Task(name="segmentation", kind="segmentation", channels=7),
    Task(name="inverse_depth", kind="inverse-depth", channels=1),
)
FIVE = (
    *NYUV2,
    Task(name="edges", kind="edges", channels=1),
    Task(name="albedo", kind="albedo", channels=3),
)
SIZE = (64, 96)


def number(value: Tensor) -> float:
    return float(value.detach())


def named(tasks: Sequence[Task]) -> dict[str, Task]:
    return {task.name: task for task in tasks}


@pytest.mark.parametrize(
    ("tasks", "total", "film", "inputs"),
    [
        (NYUV2, 14_819_328, 50_688, [7_680, 768, 1_920]),
        (CITYSCAPES, 14_780_160, 16_896, [4_224, 768]),
    ],
)
def test_it_is_as_large_as_published(
    tasks: Sequence[Task], total: int, film: int, inputs: list[int]
) -> None:
    with torch.device("meta"):
        network = MappingNetwork(named(tasks), 512, "same")
    assert count_parameters(network.parameters()) == total
    assert count_parameters(network.film_parameters()) == film
    assert count_parameters(network.other_parameters()) == total - film
    assert len(list(network.film_parameters())) == 26
    layers = [network.inputs[task.key] for task in tasks]
    assert [count_parameters(layer.parameters()) for layer in layers] == inputs


def test_other_codes_have_other_modulations() -> None:
    def film(code: Code) -> int:
        with torch.device("meta"):
            network = MappingNetwork(named(NYUV2), 512, code)
        return count_parameters(network.film_parameters())

    assert [film("same"), film("different"), film("none")] == [50_688, 50_688, 0]


def test_pairs_are_numbered_by_rows_without_the_diagonal() -> None:
    network = MappingNetwork(named(NYUV2), 8, "same")
    names = [task.name for task in NYUV2]
    order = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    for role in (0, 1):
        uses = [Use("depth", 0, (names[s], names[t]), role) for s, t in order]
        assert [network.code_of(use) for use in uses] == list(range(6))
    network = MappingNetwork(named(NYUV2), 8, "different")
    uses = [Use("depth", 0, (names[s], names[t]), role) for role in (0, 1) for s, t in order]
    # A target is mapped by the code of [t, s]: as the source of the pair turned round is.
    assert [network.code_of(use) for use in uses] == [*range(6), 2, 4, 0, 5, 1, 3]


@pytest.mark.parametrize(("code", "distinct"), [("same", 20), ("different", 20), ("none", 1)])
def test_each_ordered_pair_has_a_code_of_its_own(code: Code, distinct: int) -> None:
    """One and the same map, under every pair: as many images as there are codes."""
    torch.manual_seed(0)
    network = MappingNetwork(named(FIVE), 64, code)
    scramble(network.film_parameters())
    maps = {"depth": torch.rand(1, 1, *SIZE)}
    uses = [Use("depth", 0, pair, role) for pair in permutations(named(FIVE), 2) for role in (0, 1)]
    found = network(maps, uses)
    assert found.shape == (40, 64, 2, 3)
    apart = (found[:, None] - found[None]).abs().flatten(2).amax(2) > 1e-4
    groups = {tuple(row) for row in apart.tolist()}
    assert len(groups) == distinct
    if code != "none":
        assert {network.code_of(use) for use in uses} == set(range(distinct))


def test_before_it_learns_the_modulation_changes_nothing() -> None:
    torch.manual_seed(0)
    network = MappingNetwork(named(FIVE), 64, "same")
    maps = {"depth": torch.rand(1, 1, *SIZE)}
    uses = [Use("depth", 0, pair, 0) for pair in permutations(named(FIVE), 2)]
    found = network(maps, uses)
    assert torch.equal(found, found[:1].expand_as(found))


def one_by_one(network: MappingNetwork, maps: Tensor, task: Task, code: int | None) -> Tensor:
    """The published arithmetic, written out: one map (1, C, H, W) through batch norms in training.

    It takes nothing from the network but its parameters.
    """
    state = dict(network.named_parameters())

    def unit(x: Tensor, at: str, modulated: bool) -> Tensor:
        x = F.conv2d(x, state[f"{at}.conv.weight"], state[f"{at}.conv.bias"], padding=1)
        x = F.batch_norm(
            x, None, None, state[f"{at}.weight"], state[f"{at}.bias"], training=True, eps=1e-5
        )
        if modulated:
            assert code is not None
            matrix = state[f"{at}.film.gamma"]
            hot = F.one_hot(torch.tensor([code]), matrix.shape[1]).to(x.dtype)
            gamma, beta = F.linear(hot, matrix), F.linear(hot, state[f"{at}.film.beta"])
            x = gamma[:, :, None, None] * x + beta[:, :, None, None]
        return F.relu(x)

    maps = unit(maps, f"inputs.{task.key}", False)
    for level, units in enumerate((2, 2, 3, 3, 3)):
        for number in range(units):
            maps = unit(maps, f"levels.{level}.{number}", code is not None)
        maps = F.max_pool2d(maps, 2, 2)
    return maps


@pytest.mark.parametrize("code", ["same", "different", "none"])
def test_one_batch_is_one_by_one(code: Code) -> None:
    """In float64, values and all gradients: of the parameters and of what is mapped."""
    torch.manual_seed(0)
    network = MappingNetwork(named(FIVE), 16, code).double()
    scramble(network.parameters())
    encoded = {
        task.name: torch.rand(2, task.channels, 32, 64, dtype=torch.float64, requires_grad=True)
        for task in FIVE
    }
    uses = []
    for row in range(2):
        for pair in permutations(encoded, 2):
            uses += [Use(name, row, pair, role) for role, name in enumerate(pair)]
    slopes = torch.randn(len(uses), 16, 1, 2, dtype=torch.float64)
    leaves = [*network.parameters(), *encoded.values()]
    whole = network(encoded, uses)
    gradients = torch.autograd.grad((whole * slopes).sum(), leaves)
    single = torch.cat(
        [
            one_by_one(
                network,
                encoded[use.task][use.index : use.index + 1],
                named(FIVE)[use.task],
                None if code == "none" else network.code_of(use),
            )
            for use in uses
        ]
    )
    assert close(whole, single, 1e-10)
    for found, expected in zip(
        gradients, torch.autograd.grad((single * slopes).sum(), leaves), strict=True
    ):
        # Biases in front of a norm have a gradient of zero, up to rounding.
        assert number((found - expected).abs().max()) < 1e-8


def reference(
    loss: MTPSL, batch: Batch, features: Features, predictions: dict[str, Tensor], **weights: float
) -> Tensor:
    """Eq. (4) sample by sample and pair by pair, on views 1."""
    network = loss.space.network
    names = [task.name for task in NYUV2]
    total = torch.zeros((), dtype=torch.float64)

    def far(a: Tensor, b: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(a, b, dim=1, eps=1e-12).mean()

    for row in range(len(batch) // 2, len(batch)):
        labelled = [name for name in names if bool(batch.valid[name][row].any())]
        sources = [name for name in names if name not in labelled] or labelled
        for number, (s, t) in enumerate((s, t) for s in names for t in names if s != t):
            if s not in sources or t not in labelled:
                continue
            task = named(NYUV2)
            prediction = encoding.of_prediction(task[s], predictions[s][row : row + 1])
            label = encoding.of_label(
                task[t], batch.targets[t][row : row + 1], batch.valid[t][row : row + 1]
            ).double()
            m_s = one_by_one(network, prediction, task[s], number)
            m_t = one_by_one(network, label, task[t], number)
            f = features.shared[0][row : row + 1].detach()
            pair = far(m_s, m_t)
            pair = pair + weights["regulariser"] * (far(m_s, f) + far(m_t, f))
            total = total + weights["weight"] * pair / (len(batch) // 2)
    return total


@pytest.mark.parametrize("absent", [[], ["depth"], ["segmentation", "normals"]])
def test_the_whole_loss_is_one_by_one(absent: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradients in float64; draws of classes are replaced by their probabilities."""
    monkeypatch.setattr(encoding, "_drawn", lambda logits: logits.softmax(1))
    torch.manual_seed(0)
    loss = MTPSL(NYUV2, FeatureInfo((16, 4), (32, 1)), weight=2.0, regulariser=0.5).double()
    scramble(loss.parameters())
    batch = tiny_batch(4, tasks=NYUV2, size=(32, 64), views=(0, 0, 1, 1), absent=absent)
    shared = torch.rand(4, 16, 1, 2, dtype=torch.float64, requires_grad=True)
    predictions = {
        task.name: torch.randn(4, task.channels, 32, 64, dtype=torch.float64, requires_grad=True)
        for task in NYUV2
    }
    features = Features(shared=(shared,))
    leaves = [shared, *predictions.values(), *loss.parameters()]
    terms = loss(batch, features, copy.copy(predictions))
    assert set(terms) == {"mtpsl", "mtpsl_regulariser"}
    found = torch.stack([*terms.values()]).sum()
    expected = reference(loss, batch, features, predictions, weight=2.0, regulariser=0.5)
    assert number((found - expected).abs()) < 1e-10
    both = [torch.autograd.grad(value, leaves, allow_unused=True) for value in (found, expected)]
    assert both[0][0] is None  # the regulariser's feature
    for one, other in zip(*both, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert number((one - other).abs().max()) < 1e-8
    reached = [g is not None for g in both[0][1:4]]
    assert reached == [not absent or task.name in absent for task in NYUV2]


# ResNet-18


def resnet_one_by_one(network: MappingNetwork, maps: Tensor, task: Task, code: int) -> Tensor:
    """ResNet-18 written out for one map, in torchvision's order, with FiLM after the norms."""
    state = dict(network.named_parameters())

    def normed(x: Tensor, at: str, stride: int, modulated: bool) -> Tensor:
        weight = state[f"{at}.conv.weight"]
        x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2)
        x = F.batch_norm(
            x, None, None, state[f"{at}.weight"], state[f"{at}.bias"], training=True, eps=1e-5
        )
        if modulated:
            gamma, beta = (state[f"{at}.film.{part}"][:, code] for part in ("gamma", "beta"))
            x = gamma[:, None, None] * x + beta[:, None, None]
        return x

    maps = F.relu(normed(maps, f"inputs.{task.key}", 2, False))
    maps = F.max_pool2d(maps, 3, 2, 1)
    for level in range(4):
        for number in range(2):
            at, stride = f"levels.{level}.{number}", 2 if level and not number else 1
            past = maps if stride == 1 else normed(maps, f"{at}.shortcut", 2, False)
            inner = F.relu(normed(maps, f"{at}.first", stride, True))
            maps = F.relu(normed(inner, f"{at}.second", 1, True) + past)
    return maps


def test_the_residual_mapping_is_resnet_18_with_an_input_layer_per_task() -> None:
    with torch.device("meta"):
        network = MappingNetwork(named(FIVE), 512, "different", encoder="resnet-18")
    planes = 4 * (64 + 128 + 256 + 512)
    assert count_parameters(network.film_parameters()) == 2 * 20 * planes
    first = {task.name: 64 * task.channels * 49 + 2 * 64 for task in FIVE}
    for task in FIVE:
        assert count_parameters(network.inputs[task.key].parameters()) == first[task.name]
    # The published encoder has 11,176,512 with its first convolution of three channels.
    rest = 11_176_512 - (64 * 3 * 49 + 2 * 64)
    assert count_parameters(network.other_parameters()) == rest + sum(first.values())


def test_one_batch_of_the_residual_mapping_is_one_by_one() -> None:
    torch.manual_seed(0)
    network = MappingNetwork(named(FIVE), 16, "different", encoder="resnet-18").double()
    scramble(network.parameters())
    encoded = {
        task.name: torch.rand(2, task.channels, 64, 96, dtype=torch.float64, requires_grad=True)
        for task in FIVE
    }
    uses = [
        Use(name, row, pair, role)
        for row in range(2)
        for pair in permutations(encoded, 2)
        for role, name in enumerate(pair)
    ]
    slopes = torch.randn(len(uses), 16, 2, 3, dtype=torch.float64)
    leaves = [*network.parameters(), *encoded.values()]
    whole = network(encoded, uses)
    gradients = torch.autograd.grad((whole * slopes).sum(), leaves)
    single = torch.cat(
        [
            resnet_one_by_one(
                network,
                encoded[use.task][use.index : use.index + 1],
                named(FIVE)[use.task],
                network.code_of(use),
            )
            for use in uses
        ]
    )
    assert close(whole, single, 1e-9)
    expected = torch.autograd.grad((single * slopes).sum(), leaves)
    for found, other in zip(gradients, expected, strict=True):
        assert number((found - other).abs().max()) < 1e-7
