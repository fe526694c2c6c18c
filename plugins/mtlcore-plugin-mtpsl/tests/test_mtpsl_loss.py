"""What the losses compare, who learns from it, and what has no influence.

One file: its tests hold all five losses to the same batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations

import attrs
import pytest
import torch
from torch import Tensor

from mtlcore.data import Batch
from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo, Features
from mtlcore.learner import Learner
from mtlcore.losses import CrossTaskLoss
from mtlcore.optimizers import Schedule
from mtlcore.tasks import Task
from mtlcore.testing import TINY_TASKS, TinyBackbone, tiny_batch, tiny_learner
from mtlcore.testing.base import draw_labels, same, spread, state_of
from mtlcore_mtpsl import encoding
from mtlcore_mtpsl.consistency import Consistency
from mtlcore_mtpsl.contrast import Contrastive, Discriminator
from mtlcore_mtpsl.maps import DirectMap, PerceptualMap
from mtlcore_mtpsl.mtpsl import MTPSL
from mtlcore_mtpsl.pairs import find_pairs
from mtlcore_mtpsl.rates import Rates

NAMES = tuple(task.name for task in TINY_TASKS)
INFO = FeatureInfo(TinyBackbone.out_channels, TinyBackbone.strides)
VIEWS = (0, 0, 0, 1, 1, 1)
ALL: tuple[Callable[..., CrossTaskLoss], ...] = (
    MTPSL,
    Consistency,
    DirectMap,
    PerceptualMap,
    Contrastive,
    Discriminator,
)
every_loss = pytest.mark.parametrize("make", ALL)


def number(value: Tensor) -> float:
    return float(value.detach())


def new(make: Callable[..., CrossTaskLoss], **settings: object) -> CrossTaskLoss:
    torch.manual_seed(0)
    return make(TINY_TASKS, INFO, **settings).train()


def one_label(batch: Batch, labels: Sequence[str]) -> Batch:
    """Of each sample only the named task's labels."""
    rows = list(labels) * (len(batch) // len(labels))
    valid, known, count = {}, {}, {}
    for name, mask in batch.valid.items():
        kept = torch.tensor([label == name for label in rows])
        valid[name] = mask & kept.view(-1, *[1] * (mask.dim() - 1))
        known[name] = tuple(bool(flag) for flag in kept)
        count[name] = int(valid[name][[i for i, v in enumerate(batch.view) if v == 0]].sum())
    return attrs.evolve(batch, valid=valid, labelled=known, count=count)


def twice(batch: Batch) -> Batch:
    """Every sample of the batch two times."""
    return attrs.evolve(
        batch,
        inputs=batch.inputs.repeat(2, 1, 1, 1),
        targets={name: torch.cat([target, target]) for name, target in batch.targets.items()},
        valid={name: torch.cat([valid, valid]) for name, valid in batch.valid.items()},
        count={name: 2 * count for name, count in batch.count.items()},
        labelled={name: flags * 2 for name, flags in batch.labelled.items()},
        view=batch.view * 2, keys=batch.keys * 2, meta=batch.meta * 2,
    )  # fmt: skip


# Pairs


def test_pairs_lead_from_unlabelled_to_labelled_tasks() -> None:
    batch = one_label(tiny_batch(6, views=VIEWS), ["depth", "segmentation", "normals"])
    found = find_pairs(batch, NAMES, 1, NAMES)
    assert [(pair.row, pair.source, pair.target) for pair in found] == [
        (3, "segmentation", "depth"),
        (3, "normals", "depth"),
        (4, "depth", "segmentation"),
        (4, "normals", "segmentation"),
        (5, "segmentation", "normals"),
        (5, "depth", "normals"),
    ]
    assert {pair.row for pair in find_pairs(batch, NAMES, 0, NAMES)} == {0, 1, 2}
    assert {pair.source for pair in find_pairs(batch, NAMES, 1, ["depth"])} == {"depth"}


def test_full_supervision_gives_all_ordered_pairs_and_none_gives_none() -> None:
    batch = tiny_batch(2, views=(0, 1))
    found = find_pairs(batch, NAMES, 1, NAMES)
    assert sorted((pair.source, pair.target) for pair in found) == sorted(permutations(NAMES, 2))
    assert find_pairs(tiny_batch(2, views=(0, 1), absent=NAMES), NAMES, 1, NAMES) == []


# Encodings


def encoded_pair(kind: str, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    task = Task(name="task", kind=kind, channels=channels)
    target, valid = draw_labels(task, 2, (6, 7), torch.Generator().manual_seed(0))
    raw = torch.randn(2, channels, 6, 7)
    label = encoding.of_label(task, target, valid)
    return encoding.of_prediction(task, raw), label, raw, valid


def test_classes_are_drawn_by_their_probability_and_pass_gradients() -> None:
    task = TINY_TASKS[0]
    torch.manual_seed(0)
    raw = torch.tensor([2.0, 0.0, 1.0, -1.0]).view(1, 4, 1, 1).expand(1, 4, 200, 200)
    leaf = raw.clone().requires_grad_()
    drawn = encoding.of_prediction(task, leaf)
    assert set(drawn.detach().unique().round(decimals=5).tolist()) <= {0.0, 1.0}
    assert torch.allclose(drawn.sum(1), torch.ones(1, 200, 200))
    shares = drawn.detach().mean((0, 2, 3))
    assert torch.allclose(shares, raw[0, :, 0, 0].softmax(0), atol=0.01)
    (gradient,) = torch.autograd.grad((drawn * torch.rand_like(drawn)).sum(), leaf)
    assert bool((gradient != 0).any())
    assert not torch.equal(drawn, encoding.of_prediction(task, leaf))
    _, label, _, valid = encoded_pair("segmentation", 4)
    assert torch.equal(label.sum(1), valid.float())


@pytest.mark.parametrize("kind", ["depth", "inverse-depth"])
def test_depth_is_relative_to_its_largest_value_in_the_sample(kind: str) -> None:
    prediction, label, raw, valid = encoded_pair(kind, 1)
    assert torch.allclose(prediction, raw / raw.amax((1, 2, 3), keepdim=True))
    assert torch.allclose(label.amax((1, 2, 3)), torch.ones(2))
    assert bool((label[~valid.unsqueeze(1)] == 0).all())


def test_normals_lie_between_zero_and_one() -> None:
    prediction, label, raw, valid = encoded_pair("normals", 3)
    length = (2 * prediction - 1).norm(dim=1)
    assert torch.allclose(length, torch.ones_like(length), atol=1e-5)
    assert torch.allclose(2 * prediction - 1, raw / raw.norm(dim=1, keepdim=True), atol=1e-5)
    assert bool((label.movedim(1, -1)[~valid] == 0.5).all())


def test_edges_are_probabilities_and_anything_else_is_relative_to_its_largest_size() -> None:
    prediction, label, raw, valid = encoded_pair("edges", 1)
    assert torch.allclose(prediction, raw.sigmoid())
    assert set(label.unique().tolist()) <= {0.0, 1.0}
    prediction, label, raw, valid = encoded_pair("albedo", 3)
    assert torch.allclose(prediction.abs().amax((1, 2, 3)), torch.ones(2))
    assert torch.allclose(prediction.sign(), raw.sign())
    assert bool((label.movedim(1, -1)[~valid] == 0).all())


# Who learns


def gradients_of_heads(learner: Learner, terms: Mapping[str, Tensor]) -> dict[str, bool]:
    """Per task whether the terms' sum gives its head a gradient that is not zero."""
    found = {}
    for name in NAMES:
        parameters = list(learner.model.head(name).parameters())
        total = torch.stack([*terms.values()]).sum()
        row = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
        found[name] = any(g is not None and bool(g.any()) for g in row)
    return found


@pytest.mark.parametrize("make", [MTPSL, Consistency, DirectMap, Contrastive, Discriminator])
def test_an_unlabelled_tasks_head_learns_from_the_cross_task_term_alone(
    make: Callable[..., CrossTaskLoss],
) -> None:
    learner = tiny_learner(cross_task=[new(make)])
    found = learner(tiny_batch(6, views=VIEWS, absent=["depth"]), NAMES)
    assert set(found.raw) == {"segmentation", "normals"}
    supervised = gradients_of_heads(learner, found.balanced)
    assert supervised == {"segmentation": True, "depth": False, "normals": True}
    assert gradients_of_heads(learner, found.cross)["depth"]
    without = tiny_learner()
    assert "depth" not in without(tiny_batch(6, views=VIEWS, absent=["depth"]), NAMES).raw


def test_a_labelled_tasks_head_learns_from_the_perceptual_term() -> None:
    learner = tiny_learner(cross_task=[new(PerceptualMap)])
    found = learner(tiny_batch(6, views=VIEWS, absent=["depth"]), NAMES)
    term = {"it": found.cross["perceptual_map"]}
    assert gradients_of_heads(learner, term) == {
        "segmentation": True, "depth": False, "normals": True,
    }  # fmt: skip
    own = list(learner.cross_task.parameters())
    row = torch.autograd.grad(term["it"], own, retain_graph=True, allow_unused=True)
    assert all(g is None for g in row)  # the maps are fixed for it
    fit = found.cross["perceptual_map_fit"]
    everything = [*learner.model.parameters()]
    row = torch.autograd.grad(fit, everything, retain_graph=True, allow_unused=True)
    assert all(g is None for g in row)  # and the network for theirs
    assert any(
        g is not None and bool(g.any()) for g in torch.autograd.grad(fit, own, allow_unused=True)
    )


def test_the_discriminator_and_those_that_convince_it_learn_apart() -> None:
    learner = tiny_learner(cross_task=[new(Discriminator)])
    (loss,) = learner.cross_task
    assert isinstance(loss, Discriminator)
    found = learner(tiny_batch(6, views=VIEWS, absent=["depth"]), NAMES).cross
    judge, space = list(loss.judge.parameters()), list(loss.space.parameters())

    def reached(term: str, parameters: list[torch.nn.Parameter]) -> bool:
        row = torch.autograd.grad(found[term], parameters, retain_graph=True, allow_unused=True)
        return any(g is not None and bool(g.any()) for g in row)

    assert reached("discriminator_fit", judge)
    assert not reached("discriminator_fit", [*space, *learner.model.parameters()])
    assert reached("discriminator", space)
    assert reached("discriminator", list(learner.model.backbone.parameters()))
    assert not reached("discriminator", judge)


def test_the_discriminator_accepts_pairs_of_one_image_and_refuses_those_of_two() -> None:
    """Both terms by hand, for a judge that is fairly sure of everything."""
    loss = new(Discriminator, views=1)
    assert isinstance(loss, Discriminator)
    with torch.no_grad():
        loss.judge.output.bias.fill_(2.0)
    batch = tiny_batch(3, size=(64, 64), absent=["depth"])
    depth = {"depth": torch.randn(3, 1, 64, 64)}
    terms = loss(batch, Features(), depth)
    mapped = loss.space(batch, depth)
    assert mapped is not None and len(mapped.pairs) == 6
    accepted, refused = [], []
    for i, one in enumerate(mapped.pairs):
        for j, other in enumerate(mapped.pairs):
            logit = loss.judge(mapped.sources[i : i + 1], mapped.targets[j : j + 1])
            if i == j:
                accepted.append(-logit.sigmoid().log())
            elif one.row != other.row:
                refused.append(-(1 - logit.sigmoid()).log())
    assert len(refused) == 6 * 4
    fit = (torch.cat(accepted).mean() + torch.cat(refused).mean()) / 2
    assert number(terms["discriminator_fit"]) == pytest.approx(number(fit), rel=1e-4)
    convinced = torch.cat(accepted).sum() / 3
    assert number(terms["discriminator"]) == pytest.approx(number(convinced), rel=1e-4)


def test_the_discriminator_tells_images_apart_when_it_is_trained() -> None:
    """Its two terms move the way they should: fitting lowers the one, convincing the other."""
    loss = new(Discriminator, views=1)
    assert isinstance(loss, Discriminator)
    batch = tiny_batch(4, tasks=TINY_TASKS, size=(64, 64), absent=["depth"])
    torch.manual_seed(2)
    predictions = {task.name: torch.randn(4, task.channels, 64, 64) for task in TINY_TASKS}
    optimizer = torch.optim.Adam(loss.judge.parameters(), lr=1e-2)
    values = []
    for _ in range(60):
        torch.manual_seed(3)
        terms = loss(batch, Features(), predictions)
        values.append(number(terms["discriminator_fit"]))
        optimizer.zero_grad()
        terms["discriminator_fit"].backward()
        optimizer.step()
    assert values[-1] < 0.9 * values[0]


def test_contrast_is_between_different_images_alone() -> None:
    """With one image there is nothing to repel: the loss is the distance of its own pairs."""
    torch.manual_seed(0)
    loss = new(Contrastive, views=1, margin=1.0)
    assert isinstance(loss, Contrastive)
    alone = tiny_batch(1, size=(64, 64), absent=["depth"])
    predictions = {task.name: torch.randn(1, task.channels, 64, 64) for task in TINY_TASKS}
    (value,) = loss(alone, Features(), {"depth": predictions["depth"]}).values()
    mapped = loss.space(alone, {"depth": predictions["depth"]})
    assert mapped is not None
    cosine = torch.nn.functional.cosine_similarity(mapped.sources, mapped.targets, dim=1)
    expected = (1 - cosine.mean((1, 2))).sum()
    assert number(value) == pytest.approx(number(expected), abs=1e-5)
    # The same image twice: its other copy repels with 1 - d, so every pair's loss is 1.
    both = twice(tiny_batch(1, size=(64, 64), absent=["depth"]))
    depth = predictions["depth"].repeat(2, 1, 1, 1)
    mapped = loss.space(both, {"depth": depth})
    assert mapped is not None and len(mapped.pairs) == 4
    (value,) = loss(both, Features(), {"depth": depth}).values()
    far = 1 - torch.nn.functional.cosine_similarity(mapped.sources, mapped.targets, dim=1)
    own = far.mean((1, 2))
    near = []
    for i, pair in enumerate(mapped.pairs):
        others = [j for j, other in enumerate(mapped.pairs) if other.row != pair.row]
        d = [
            1 - torch.nn.functional.cosine_similarity(
                mapped.sources[i], mapped.targets[j], dim=0
            ).mean()
            for j in others
        ]  # fmt: skip
        near.append(torch.stack([1 - x for x in d]).mean())
    expected = (own + torch.stack(near)).sum() / 2
    assert number(value) == pytest.approx(number(expected), abs=1e-4)


def test_relative_contrast_is_between_images_in_the_space_of_one_pair() -> None:
    """Worked out pair by pair: each own distance against those of others, and nothing else."""
    loss = new(Contrastive, views=1, form="relative", margin=0.3)
    assert isinstance(loss, Contrastive)
    labels = ["depth", "segmentation", "depth", "depth", "normals"]
    batch = one_label(tiny_batch(5, size=(64, 64)), labels)
    predictions = {task.name: torch.randn(5, task.channels, 64, 64) for task in TINY_TASKS}
    torch.manual_seed(1)  # classes are drawn
    (value,) = loss(batch, Features(), predictions).values()
    torch.manual_seed(1)
    mapped = loss.space(batch, predictions)
    assert mapped is not None and len(mapped.pairs) == 2 * 5

    def far(i: int, j: int) -> float:
        one, other = mapped.sources[i], mapped.targets[j]
        return 1 - number(torch.nn.functional.cosine_similarity(one, other, dim=0).mean())

    total, told_apart = 0.0, 0
    for i, pair in enumerate(mapped.pairs):
        others = [
            j
            for j, other in enumerate(mapped.pairs)
            if other.row != pair.row and (other.source, other.target) == (pair.source, pair.target)
        ]
        # Three images have depth: their pairs have two others each; the rest has none.
        assert len(others) == (2 if pair.target == "depth" else 0)
        terms = [max(0.0, 0.3 + far(i, i) - far(i, j)) for j in others]
        told_apart += len(terms)
        total += sum(terms) / len(terms) if terms else 0.0
    assert told_apart == 12
    assert number(value) == pytest.approx(total / 5, abs=1e-5)
    alone = one_label(tiny_batch(2, size=(64, 64)), ["depth", "segmentation"])
    two = {name: raw[:2] for name, raw in predictions.items()}
    assert number(loss(alone, Features(), two)["contrastive"]) == 0


def test_the_direct_map_is_learnt_with_the_network() -> None:
    learner = tiny_learner(cross_task=[new(DirectMap)])
    batch = one_label(tiny_batch(6, views=VIEWS), ["depth", "depth", "normals"])
    found = learner(batch, NAMES).cross
    (loss,) = learner.cross_task
    assert isinstance(loss, DirectMap)
    names = {
        name.split(".")[2]
        for (name, _), g in zip(
            loss.named_parameters(),
            torch.autograd.grad(found["direct_map"], list(loss.parameters()), allow_unused=True),
            strict=True,
        )
        if g is not None and bool(g.any())
    }
    to_depth = {"task_segmentation_to_task_depth", "task_normals_to_task_depth"}
    to_normals = {"task_segmentation_to_task_normals", "task_depth_to_task_normals"}
    assert names == to_depth | to_normals


def test_the_regularisers_feature_gets_no_gradient() -> None:
    """Through predictions alone: the network is not moved to where its feature is."""
    loss = new(MTPSL, weight=1.0, regulariser=0.5)
    batch = tiny_batch(6, views=VIEWS, absent=["depth"])
    feature = torch.randn(6, 6, 4, 6, requires_grad=True)
    prediction = torch.randn(6, 1, 8, 12, requires_grad=True)
    terms = loss(batch, Features(shared=(feature,)), {"depth": prediction})
    found = torch.autograd.grad(
        terms["mtpsl_regulariser"], [feature, prediction], allow_unused=True
    )
    assert found[0] is None
    assert found[1] is not None
    moved = loss(batch, Features(shared=(feature + 1,)), {"depth": prediction})
    assert not torch.equal(moved["mtpsl_regulariser"], terms["mtpsl_regulariser"])
    assert torch.equal(moved["mtpsl"], terms["mtpsl"])


def test_consistency_moves_both_views() -> None:
    """Each towards the other; with mirrored views one gradient is the other's mirror image."""
    loss = new(Consistency)
    batch = tiny_batch(4, views=(0, 0, 1, 1), absent=["depth"])
    depth = torch.randn(4, 1, 8, 12, requires_grad=True)
    value = loss(batch, Features(), {"depth": depth})["consistency"]
    (gradient,) = torch.autograd.grad(value, depth)
    difference = depth.detach()[2:] - depth.detach()[:2].flip(-1)
    torch.testing.assert_close(gradient[2:], 2 * difference / difference.numel())
    torch.testing.assert_close(gradient[:2], -gradient[2:].flip(-1))


def test_the_perceptual_term_is_of_valid_pixels_alone() -> None:
    """A prediction that is right there costs nothing, and learns nothing elsewhere."""
    loss = new(PerceptualMap, views=1)
    batch = one_label(tiny_batch(2, size=(64, 64)), ["normals"])
    valid = spread(batch.valid["normals"], batch.targets["normals"])
    noise = torch.randn(2, 3, 64, 64)
    right = torch.where(valid, 3 * batch.targets["normals"], noise)
    terms = loss(batch, Features(), {"normals": right})
    assert number(terms["perceptual_map"]) == pytest.approx(0, abs=1e-5)
    noise.requires_grad_()
    term = loss(batch, Features(), {"normals": noise})["perceptual_map"]
    assert number(term) > 0.01
    (gradient,) = torch.autograd.grad(term, noise)
    assert bool(gradient[valid].any())
    assert not bool(gradient[~valid].any())


def test_the_perceptual_term_leads_from_the_tasks_that_run_to_all_others() -> None:
    """A labelled task that has stopped learning has no prediction; what is mapped to needs none."""
    loss = new(PerceptualMap, views=1)
    batch = tiny_batch(2, size=(64, 64), absent=["depth"])
    predictions = {"segmentation": torch.randn(2, 4, 64, 64)}
    assert set(loss.needs(batch, ["segmentation"])) == {"segmentation"}
    terms = loss(batch, Features(), predictions)
    assert set(terms) == {"perceptual_map"}
    predictions["depth"] = torch.randn(2, 1, 64, 64)
    assert set(loss(batch, Features(), predictions)) == {"perceptual_map", "perceptual_map_fit"}


# What has no influence


@every_loss
@pytest.mark.parametrize("absent", [["depth"], ["segmentation"], ["normals", "depth"], []])
def test_labels_outside_valid_never_influence_anything(
    make: Callable[..., CrossTaskLoss], absent: list[str]
) -> None:
    """Terms and every gradient of a whole learner, bit for bit, whatever is written there."""
    batch = tiny_batch(6, views=VIEWS, absent=absent, size=(16, 24))
    generator = torch.Generator().manual_seed(9)
    changed = {}
    for task in TINY_TASKS:
        noise = draw_labels(task, 6, (16, 24), generator, masked=0)[0]
        mask = spread(batch.valid[task.name], batch.targets[task.name])
        changed[task.name] = torch.where(mask, batch.targets[task.name], noise)
    other = attrs.evolve(batch, targets=changed)
    assert not same(batch.targets, other.targets)

    def learnt(one: Batch) -> list[object]:
        learner = tiny_learner(cross_task=[new(make)])
        torch.manual_seed(5)
        found = learner(one, NAMES)
        losses = [*found.balanced.values(), *found.cross.values()]
        total = torch.stack(losses).sum()
        rows = torch.autograd.grad(total, list(learner.parameters()), allow_unused=True)
        return [found.raw, found.cross, *rows]

    for one, another in zip(learnt(batch), learnt(other), strict=True):
        assert one is another is None or same(one, another)


@every_loss
def test_without_a_label_supervised_losses_are_absent(
    make: Callable[..., CrossTaskLoss],
) -> None:
    loss = new(make)
    learner = tiny_learner(cross_task=[loss])
    found = learner(tiny_batch(6, views=VIEWS, absent=NAMES), NAMES)
    assert found.raw == {}
    assert set(found.cross) <= {"consistency"}  # it needs no label at all


@every_loss
def test_with_weight_zero_nothing_is_asked_for(make: Callable[..., CrossTaskLoss]) -> None:
    loss = new(make, weight=0.0)
    assert loss.views == 1
    batch = tiny_batch(4, absent=["depth"])
    assert list(loss.needs(batch, NAMES)) == []
    assert loss(batch, Features(), {}) == {}
    learner, plain = tiny_learner(cross_task=[loss]), tiny_learner()
    before = torch.get_rng_state()
    found, expected = learner(batch, NAMES), plain(batch, NAMES)
    assert same(found.raw, expected.raw)
    assert found.cross == {}
    assert same(state_of(learner.model), state_of(plain.model))
    assert torch.equal(before, torch.get_rng_state())


# Settings


@every_loss
def test_the_weight_is_a_factor(make: Callable[..., CrossTaskLoss]) -> None:
    batch = tiny_batch(6, views=VIEWS, absent=["depth"])
    terms = []
    for weight in (1.0, 2.0):
        learner = tiny_learner(cross_task=[new(make, weight=weight)])
        torch.manual_seed(4)
        terms.append(learner(batch, NAMES).cross)
    for name, value in terms[0].items():
        factor = 1.0 if name.endswith("_fit") else 2.0
        assert math.isclose(number(terms[1][name]), factor * number(value), rel_tol=1e-5)


def test_normalisation_divides_by_the_number_of_unlabelled_tasks() -> None:
    learners = [
        tiny_learner(cross_task=[new(MTPSL, normalisation=kind)]) for kind in ("sum", "mean")
    ]
    for absent, unlabelled in ((["depth"], 1), (["depth", "normals"], 2), ([], 3)):
        batch = tiny_batch(6, views=VIEWS, absent=absent)
        terms = []
        for learner in learners:
            torch.manual_seed(4)
            terms.append(learner(batch, NAMES).cross)
        for name, value in terms[0].items():
            assert number(value) / unlabelled == pytest.approx(number(terms[1][name]), rel=1e-5)


def test_samples_without_a_pair_count_in_the_mean() -> None:
    loss = new(MTPSL, views=1)
    prediction = torch.randn(2, 1, 8, 12)
    feature = torch.randn(2, 6, 4, 6)
    both = one_label(tiny_batch(2), ["normals", "normals"])
    first = attrs.evolve(both, labelled={**both.labelled, "normals": (True, False)})
    whole = loss(both, Features(shared=(feature,)), {"depth": prediction})
    part = loss(first, Features(shared=(feature,)), {"depth": prediction})
    second = attrs.evolve(both, labelled={**both.labelled, "normals": (False, True)})
    rest = loss(second, Features(shared=(feature,)), {"depth": prediction})
    for name in whole:
        assert number(part[name] + rest[name]) == pytest.approx(number(whole[name]), rel=1e-5)


@pytest.mark.parametrize("make", [MTPSL, Consistency, DirectMap, PerceptualMap])
def test_terms_are_means_over_images(
    make: Callable[..., CrossTaskLoss], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every image twice: the same terms. Draws of classes are replaced by their probabilities."""
    monkeypatch.setattr(encoding, "_drawn", lambda logits: logits.softmax(1))
    loss = new(make)
    batch = tiny_batch(4, views=(0, 0, 1, 1), size=(64, 64), absent=["depth"])
    feature = torch.randn(4, 6, 2, 2)
    predictions = {task.name: torch.randn(4, task.channels, 64, 64) for task in TINY_TASKS}
    once = loss(batch, Features(shared=(feature,)), predictions)
    repeated = {name: raw.repeat(2, 1, 1, 1) for name, raw in predictions.items()}
    both = loss(twice(batch), Features(shared=(feature.repeat(2, 1, 1, 1),)), repeated)
    assert once.keys() == both.keys()
    for name, value in once.items():
        assert number(both[name]) == pytest.approx(number(value), rel=1e-4), name


def test_without_regulariser_there_is_no_such_term() -> None:
    learner = tiny_learner(cross_task=[new(MTPSL, regulariser=0.0)])
    assert set(learner(tiny_batch(6, views=VIEWS), NAMES).cross) == {"mtpsl"}


def test_one_view_carries_everything_where_that_is_asked_for() -> None:
    learner = tiny_learner(cross_task=[new(MTPSL, views=1)])
    assert learner.views == 1
    assert set(learner(tiny_batch(4), NAMES).cross) == {"mtpsl", "mtpsl_regulariser"}


def test_consistency_of_equal_views_is_zero_and_of_others_is_not() -> None:
    loss = new(Consistency)
    batch = tiny_batch(4, views=(0, 0, 1, 1), absent=["depth"])
    assert [meta["flip"] for meta in batch.meta] == [False, False, True, True]
    depth = torch.randn(2, 1, 8, 12)
    mirrored = {"depth": torch.cat([depth, depth.flip(-1)])}
    assert number(loss(batch, Features(), mirrored)["consistency"]) == 0
    value = number(loss(batch, Features(), {"depth": torch.cat([depth, depth])})["consistency"])
    assert value == pytest.approx(number((depth - depth.flip(-1)).square().mean()), rel=1e-5)


def test_what_is_learnt_has_rates_of_its_own() -> None:
    schedule = Schedule(name="step", at=(0.25,), gamma=0.1)
    loss = new(MTPSL, mapping=Rates(lr=0.5), film=Rates(lr=0.25, schedule=schedule))
    learner = tiny_learner(cross_task=[loss])
    groups = learner.parameter_groups()
    assert isinstance(loss, MTPSL)
    film = {id(p) for p in loss.space.network.film_parameters()}
    assert [group.get("lr") for group in groups] == [None, 0.5, 0.25]
    assert [group.get("schedule") for group in groups] == [None, None, schedule]
    assert {id(p) for p in groups[2]["params"]} == film
    assert not {id(p) for p in groups[0]["params"]} & {id(p) for p in loss.parameters()}
    for make, number in ((DirectMap, 1), (PerceptualMap, 1), (Contrastive, 2), (Discriminator, 3)):
        learner = tiny_learner(cross_task=[new(make, mapping=Rates(lr=0.5))])
        groups = learner.parameter_groups()
        assert len(groups) == 1 + number
        assert groups[1]["lr"] == 0.5
        assert "lr" not in groups[0]


# What fits


def test_a_deepest_map_of_another_size_is_averaged() -> None:
    """The joint space has as many channels as the backbone's map, whatever SegNet's would have."""
    info = FeatureInfo((24, 3), (8, 1))
    loss = MTPSL(TINY_TASKS, info, views=1)
    feature = torch.randn(2, 24, 8, 8)
    batch = tiny_batch(2, size=(64, 64), absent=["depth"])
    prediction = {"depth": torch.randn(2, 1, 64, 64)}
    terms = loss(batch, Features(shared=(feature,)), prediction)
    mapped = loss.space(batch, prediction)
    assert mapped is not None
    assert mapped.sources.shape == (4, 24, 2, 2)
    coarse = feature.reshape(2, 24, 2, 4, 2, 4).mean((3, 5))
    averaged = loss(batch, Features(shared=(coarse,)), prediction)
    assert torch.allclose(terms["mtpsl_regulariser"], averaged["mtpsl_regulariser"], atol=1e-5)


@pytest.mark.parametrize("make", [MTPSL, DirectMap, PerceptualMap, Contrastive, Discriminator])
def test_tasks_without_pixels_are_refused_where_fewer_than_two_are_left(
    make: Callable[..., CrossTaskLoss],
) -> None:
    scene = Task(name="scene", kind="classification", channels=4)
    with pytest.raises(UsageError, match="depth, scene"):
        make([TINY_TASKS[1], scene], INFO)
    loss = make([*TINY_TASKS, scene], INFO)
    batch = tiny_batch(6, views=VIEWS, tasks=[*TINY_TASKS, scene], absent=["scene"])
    assert "scene" not in list(loss.needs(batch, [*NAMES, "scene"]))
