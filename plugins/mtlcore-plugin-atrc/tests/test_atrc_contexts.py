"""Contexts against loops over places, and labels against what they stand for."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlcore.tasks import Task
from mtlcore_atrc.contexts import Context, Kind, make_context
from mtlcore_atrc.labels import Labels
from mtlcore_atrc.refinement import Refinement

CHANNELS, INNER, HEIGHT, WIDTH, WINDOW, LABELS = 6, 3, 4, 5, 3, 7
GATHERING: tuple[Kind, ...] = ("global", "local", "t-label", "s-label")


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def settled(module: nn.Module) -> nn.Module:
    """In float64 and evaluation, with norms that do something."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 1.5)
                if part.affine:
                    part.weight.uniform_(0.5, 1.5)
                    part.bias.normal_()
        for name, parameter in module.named_parameters():
            if name.endswith(("scale", "shift")):
                parameter.uniform_(0.5, 1.5)
    return module.double().eval()


def normed(prefix: str, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Batch norm of vectors (N, C) by running statistics."""
    x = (x - weights[f"{prefix}.running_mean"]) / (weights[f"{prefix}.running_var"] + 1e-5).sqrt()
    if f"{prefix}.weight" in weights:
        x = x * weights[f"{prefix}.weight"] + weights[f"{prefix}.bias"]
    return x


def projected(name: str, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Two layers of a query or key of vectors (N, C), before what ends them."""
    x = normed(
        f"{name}.layers.1", weights, x @ weights[f"{name}.layers.0.weight"][:, :, 0, 0].T
    ).relu()
    return normed(f"{name}.layers.4", weights, x @ weights[f"{name}.layers.3.weight"][:, :, 0, 0].T)


def values(weights: dict[str, Tensor], x: Tensor, scaled: bool) -> Tensor:
    x = normed("value.norm", weights, x @ weights["value.conv.weight"][:, :, 0, 0].T)
    return (x * weights["value.scale"] + weights["value.shift"] if scaled else x).relu()


def looped(kind: Kind, context: Context, target: Tensor, source: Tensor, labels: Tensor, scaled):
    """Of one sample, (C, h, w) and (labels, h w), place by place."""
    weights = dict(context.state_dict())
    places = [(y, x) for y in range(HEIGHT) for x in range(WIDTH)]
    found = torch.zeros(INNER, HEIGHT, WIDTH, dtype=torch.float64)
    queries = projected("query", weights, torch.stack([target[:, y, x] for y, x in places]))
    read = torch.stack([source[:, y, x] for y, x in places])
    if kind.endswith("label"):
        read = torch.stack([sum(a * s for a, s in zip(row, read, strict=True)) for row in labels])
    keys, gathered = projected("key", weights, read), values(weights, read, scaled)
    for query, (y, x) in zip(queries, places, strict=True):
        if kind == "global":
            alike = [F.softplus(query) @ F.softplus(key) for key in keys]
            shares = [one / sum(alike) for one in alike]
            found[:, y, x] = sum(a * v for a, v in zip(shares, gathered, strict=True))
            continue
        q = query.relu()
        if kind == "local":
            reach = WINDOW // 2
            around = [
                (y + dy, x + dx)
                for dy in range(-reach, reach + 1)
                for dx in range(-reach, reach + 1)
            ]
            pairs = [
                (keys[places.index(place)].relu(), gathered[places.index(place)])
                if place in places
                else (torch.zeros_like(q), torch.zeros_like(q))
                for place in around
            ]
        else:
            pairs = list(zip(keys.relu(), gathered, strict=True))
        powers = [math.exp(float(q @ key) / math.sqrt(INNER)) for key, _ in pairs]
        for power, (_, value) in zip(powers, pairs, strict=True):
            found[:, y, x] += power / sum(powers) * value
    return found


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("kind", GATHERING)
def test_contexts_are_those_of_a_loop_over_places(kind: Kind, scaled: bool) -> None:
    context = settled(make_context(kind, CHANNELS, INNER, WINDOW))
    target, source = torch.randn(2, 2, CHANNELS, HEIGHT, WIDTH, dtype=torch.float64)
    labels = torch.randn(2, LABELS, HEIGHT * WIDTH, dtype=torch.float64).softmax(2)
    with torch.no_grad():
        found = context(target, source, labels, scaled=scaled)
        for sample in range(2):
            one = (x[sample] for x in (target, source, labels))
            torch.testing.assert_close(found[sample], looped(kind, context, *one, scaled))


@pytest.mark.parametrize("kind", GATHERING)
def test_derivatives_of_contexts(kind: Kind) -> None:
    """Of a single sample, whose transposed gradients torch's batch norm misreads."""
    context = settled(make_context(kind, CHANNELS, INNER, WINDOW))
    target, source = torch.randn(2, 1, CHANNELS, 3, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.randn(1, 2, 12, dtype=torch.float64).softmax(2).requires_grad_()

    def gathered(*inputs: Tensor) -> Tensor:
        return context(*inputs, scaled=True)

    assert torch.autograd.gradcheck(gathered, (target, source, labels), atol=1e-4, eps=1e-7)


def test_places_beyond_the_border_take_a_part_of_the_softmax() -> None:
    """Of equal keys in a window of 9, five of nine are outside of the map at its corner."""
    context = settled(make_context("local", CHANNELS, INNER, 3))
    with torch.no_grad():
        for name in (
            "query.layers.4.bias",
            "query.layers.4.weight",
            "key.layers.4.bias",
            "key.layers.4.weight",
        ):
            context.get_parameter(name).zero_()
        x = torch.zeros(1, CHANNELS, 4, 5, dtype=torch.float64)
        whole = context(x, x, None, scaled=True)
    torch.testing.assert_close(whole[..., 0, 0], whole[..., 1, 1] * 4 / 9)
    torch.testing.assert_close(whole[..., 0, 2], whole[..., 1, 2] * 6 / 9)


def test_what_is_gathered_moves_with_the_map() -> None:
    """Local context away from the border, and labels' of places that are only reordered."""
    target, source = torch.randn(2, 1, CHANNELS, 8, 9, dtype=torch.float64)
    local = settled(make_context("local", CHANNELS, INNER, 3))
    moved = [x.roll((1, 2), (2, 3)) for x in (target, source)]
    with torch.no_grad():
        here = local(target, source, None, scaled=True)[..., 1:-3, 1:-4]
        there = local(*moved, None, scaled=True)[..., 2:-2, 3:-2]
    torch.testing.assert_close(here, there)
    order = torch.randperm(72)
    labels = torch.randn(1, LABELS, 72, dtype=torch.float64).softmax(2)

    def shuffled(x: Tensor) -> Tensor:
        return x.flatten(2)[:, :, order].reshape(x.shape)

    for kind in ("global", "t-label"):
        context = settled(make_context(kind, CHANNELS, INNER, 3))
        with torch.no_grad():
            plain = context(target, source, labels, scaled=True)
            other = context(shuffled(target), shuffled(source), labels[:, :, order], scaled=True)
        torch.testing.assert_close(shuffled(plain), other)


def test_global_attention_leaves_no_half_precision() -> None:
    """Its sums over places would be infinite there."""
    context = make_context("global", CHANNELS, INNER, 3)
    with torch.autocast("cpu", torch.float16):
        x = 50 * torch.randn(1, CHANNELS, 64, 64)
        found = context(x, x, None, scaled=True)
    assert found.dtype == torch.float32
    assert bool(found.isfinite().all())


def test_a_context_has_the_published_parameters() -> None:
    for kind in GATHERING:
        context = make_context(kind, 67, 33, 9)
        count = sum(p.numel() for p in context.parameters())
        assert count == 2 * (67 * 33 + 2 * 33 + 33 * 33 + 2 * 33) + 67 * 33 + 2 * 33
        assert count == 3 * 67 * 33 + 2 * 33**2 + 10 * 33


def test_everything_begins_as_published() -> None:
    """Contexts by Glorot and Bengio, predictions of labels narrowly, the norm of messages at 0."""
    context = make_context("global", 60, 30, 9)
    for weight, bound in ((context.query.layers[0].weight, 90), (context.key.layers[3].weight, 60)):
        limit = (6 / bound) ** 0.5
        assert 0.9 * limit < weight.abs().max().item() <= limit
    labels = Labels(Task(name="depth", kind="depth", channels=1), 60, 40)
    assert labels.logits.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not bool(labels.logits.bias.any())
    tasks = [Task(name=name, kind="depth", channels=1) for name in ("one", "two")]
    settings = {"channels": 30, "inner": 15, "window": 3, "dropout": 0.0}
    refinement = Refinement(tasks[0], tasks, {"one": ["local"], "two": ["global"]}, **settings)
    assert not bool(refinement.gathered[0].weight.any())
    assert not bool(refinement.gathered[0].bias.any())
    layers = [refinement.own, refinement.gathered[1], refinement.projections["task_two"]]
    for layer, inputs in zip(layers, (60, 60, 30), strict=True):
        assert 0.9 * inputs**-0.5 < layer.weight.abs().max().item() <= inputs**-0.5
    alone = Refinement(tasks[0], tasks, {"one": [], "two": []}, **settings)
    assert 0.9 * 30**-0.5 < alone.own.weight.abs().max().item() <= 30**-0.5
    assert {name for name, _ in alone.named_parameters()} == {
        "own.weight",
        "join.0.weight",
        "join.0.bias",
    }


def test_two_labels_of_a_share_are_its_probability() -> None:
    """The cross-entropy of two classes is the binary one of the difference of their logits."""
    labels = Labels(Task(name="edges", kind="edges", channels=1), 8, 40)
    logits = torch.randn(3, 2, 4, 5)
    prediction = labels.predict(logits)
    truth = torch.randint(2, (3, 4, 5))
    two = F.cross_entropy(logits.flip(1), truth, reduction="none")
    one = F.binary_cross_entropy_with_logits(prediction[:, 0], truth.float(), reduction="none")
    torch.testing.assert_close(one, two)


def test_labels_of_values_are_mixed() -> None:
    depth = Labels(Task(name="depth", kind="depth", channels=1), 8, 40)
    bins = depth.readout.values[:, 0]
    ends = [0.7 * (10 / 0.7) ** (number / 40) for number in range(41)]
    middles = [math.sqrt(a * b) for a, b in pairwise(ends)]
    torch.testing.assert_close(bins.detach(), torch.tensor(middles))
    logits = torch.randn(2, 40, 3, 4)
    expected = (logits.softmax(1) * bins[:, None, None]).sum(1, keepdim=True)
    torch.testing.assert_close(depth.predict(logits), expected)
    normals = Labels(Task(name="normals", kind="normals", channels=3), 8, 11)
    torch.testing.assert_close(normals.readout.values.norm(dim=1), torch.ones(11))
    assert normals.predict(torch.randn(2, 11, 3, 4)).shape == (2, 3, 3, 4)


def test_labels_of_classes_are_the_classes() -> None:
    logits = torch.randn(2, 6, 3, 4)
    dense = Labels(Task(name="parts", kind="segmentation", channels=6), 8, 40)
    assert torch.equal(dense.predict(logits), logits)
    whole = Labels(Task(name="scene", kind="classification", channels=6), 8, 40)
    torch.testing.assert_close(whole.predict(logits), logits.mean((2, 3)))
