"""The constants: nothing that ignores the image does better on the labels they come from."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mtlcore.engine.constant_baselines import ConstantFit, Extent
from mtlcore.standard.metrics import DepthMetric, EdgesMetric, NormalsMetric, SegmentationMetric
from mtlcore.standard.metrics_vectors import TopAccuracy
from mtlcore.tasks import Task

SEGMENTATION = Task(name="segmentation", kind="segmentation", channels=4)
SCENE = Task(name="scene", kind="classification", channels=4)
DEPTH = Task(name="depth", kind="depth", channels=1)
AGE = Task(name="age", kind="regression", channels=2)
NORMALS = Task(name="normals", kind="normals", channels=3)
EDGES = Task(name="edges", kind="edges", channels=1)
TAGS = Task(name="tags", kind="multilabel", channels=3)
TASKS = (SEGMENTATION, SCENE, DEPTH, AGE, NORMALS, EDGES, TAGS)
H, W = 3, 5
EXTENTS: tuple[Extent, ...] = ("global", "pixel")


def draw(task: Task, batch: int = 9, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Targets and mask; one pixel is never labelled."""
    rng = torch.Generator().manual_seed(seed)
    shape = (batch, *task.target_shape((H, W)))
    valid = torch.rand(batch, *task.valid_shape((H, W)), generator=rng) > 0.3
    if task.layout == "map":
        valid[:, 1, 2] = False
    if task.dtype == "int64":
        # Not every class is as frequent as the others.
        return (torch.rand(shape, generator=rng) ** 2 * task.channels).long(), valid
    target = torch.rand(shape, generator=rng) + 0.1
    if task.kind == "normals":
        target = F.normalize(target - 0.4, dim=1)
    if task.kind in ("edges", "multilabel"):
        target = (target > 0.7).float()
    return target, valid


def fitted(task: Task, *batches: tuple[Tensor, Tensor]) -> ConstantFit:
    fit = ConstantFit([task])
    for target, valid in batches:
        fit.update({task.name: target}, {task.name: valid})
    return fit


def constant(fit: ConstantFit, kind_of: Extent, task: Task) -> Tensor:
    found = fit.predict(kind_of, task)
    assert found is not None
    return found


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_shape_and_type(task: Task) -> None:
    fit = fitted(task, draw(task))
    shape = (task.channels, H, W) if task.layout == "map" else (task.channels,)
    for kind_of in EXTENTS if task.layout == "map" else EXTENTS[:1]:
        found = constant(fit, kind_of, task)
        assert found.shape == shape
        assert found.dtype == torch.float32
        assert found.isfinite().all()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_batches_and_order_do_not_matter(task: Task) -> None:
    target, valid = draw(task)
    order = [4, 8, 0, 2, 6, 1, 3, 7, 5]
    one = fitted(task, (target, valid))
    other = fitted(task, *((target[[i]], valid[[i]]) for i in order))
    for kind_of in EXTENTS if task.layout == "map" else EXTENTS[:1]:
        torch.testing.assert_close(
            constant(one, kind_of, task), constant(other, kind_of, task), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_masked_labels_have_no_say(task: Task) -> None:
    target, valid = draw(task)
    mask = valid if valid.dim() == target.dim() else valid.unsqueeze(1)
    other = torch.where(mask, target, torch.zeros_like(target) + 3)
    assert not torch.equal(target, other)
    one, spoilt = fitted(task, (target, valid)), fitted(task, (other, valid))
    for kind_of in EXTENTS if task.layout == "map" else EXTENTS[:1]:
        assert torch.equal(constant(one, kind_of, task), constant(spoilt, kind_of, task))


@pytest.mark.parametrize(
    "task", [t for t in TASKS if t.layout == "map"], ids=lambda task: task.name
)
def test_pixel_without_labels_takes_the_global_constant(task: Task) -> None:
    fit = fitted(task, draw(task))
    everywhere, each = constant(fit, "global", task), constant(fit, "pixel", task)
    assert torch.equal(each[:, 1, 2], everywhere[:, 1, 2])
    assert not torch.equal(each, everywhere)
    assert (everywhere == everywhere[:, :1, :1]).all()


def hits(guess: Tensor, target: Tensor, valid: Tensor) -> int:
    return int(((guess == target) & valid).sum())


def test_no_other_class_hits_more() -> None:
    target, valid = draw(SEGMENTATION)
    fit = fitted(SEGMENTATION, (target, valid))
    everywhere = constant(fit, "global", SEGMENTATION).argmax(0)
    others = [hits(torch.tensor(c), target, valid) for c in range(4)]
    assert hits(everywhere, target, valid) == max(others) > min(others)
    each = constant(fit, "pixel", SEGMENTATION).argmax(0)
    for y in range(H):
        for x in range(W):
            column, mask = target[:, y, x], valid[:, y, x]
            best = max(hits(torch.tensor(c), column, mask) for c in range(4))
            assert hits(each[y, x], column, mask) == best
    assert hits(each, target, valid) > hits(everywhere, target, valid)


def test_equal_classes_give_the_lowest() -> None:
    target = torch.tensor([3, 1, 1, 3, 2])
    fit = fitted(SCENE, (target, torch.ones(5, dtype=torch.bool)))
    assert constant(fit, "global", SCENE).tolist() == [0, 3, 1, 2]


def test_no_other_two_classes_hit_more() -> None:
    target = torch.tensor([2] * 4 + [0] * 3 + [3] * 3 + [1] * 2)
    valid = torch.ones(12, dtype=torch.bool)
    metric = TopAccuracy(SCENE, k=2)
    logits = constant(fitted(SCENE, (target, valid)), "global", SCENE)
    metric.update(logits.expand(12, -1), target, valid)
    assert metric.compute() == {"top2_accuracy": 7 / 12}


def test_no_other_depth_errs_less() -> None:
    target, valid = draw(DEPTH, batch=8)
    fit = fitted(DEPTH, (target, valid))
    labels = target[:, 0][valid]
    best = min(float((labels - guess).abs().sum()) for guess in labels)
    value = constant(fit, "global", DEPTH)[0, 0, 0]
    assert float((labels - value).abs().sum()) == pytest.approx(best)
    each = constant(fit, "pixel", DEPTH)
    for y in range(H):
        for x in range(W):
            labels = target[:, 0, y, x][valid[:, y, x]]
            errors = [float((labels - guess).abs().sum()) for guess in labels]
            if errors:
                mine = float((labels - each[0, y, x]).abs().sum())
                assert mine == pytest.approx(min(errors), abs=1e-6)


def test_regression_has_a_median_per_value() -> None:
    target, valid = draw(AGE)
    found = constant(fitted(AGE, (target, valid)), "global", AGE)
    for channel in range(2):
        labels = target[valid[:, channel], channel]
        assert found[channel] == labels.median()


def test_no_other_direction_is_closer() -> None:
    target, valid = draw(NORMALS)
    fit = fitted(NORMALS, (target, valid))
    found = constant(fit, "global", NORMALS)[:, 0, 0]
    assert float(found.norm()) == pytest.approx(1)
    labels = target.movedim(1, -1)[valid]
    others = F.normalize(torch.randn(2000, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    best = float((labels @ found).mean())
    assert best >= float((labels @ others.T).mean(0).max())
    torch.testing.assert_close(constant(fit, "pixel", NORMALS).norm(dim=0), torch.ones(H, W))


@pytest.mark.parametrize("task", [EDGES, TAGS], ids=lambda task: task.name)
def test_base_rate_has_the_least_cross_entropy(task: Task) -> None:
    target, valid = draw(task)
    found = constant(fitted(task, (target, valid)), "global", task).flatten(
        1 if task is EDGES else 0
    )
    for channel in range(task.channels):
        mask = valid if task is EDGES else valid[:, channel]
        labels = target[:, channel][mask]
        logit = found[channel].flatten()[0]
        assert float(logit.sigmoid()) == pytest.approx(float(labels.mean()), abs=1e-6)

        def entropy(z: Tensor, labels: Tensor = labels) -> float:
            return float(F.binary_cross_entropy_with_logits(z.expand_as(labels), labels))

        assert entropy(logit) <= min(entropy(logit + 0.05), entropy(logit - 0.05))


def test_rates_of_zero_and_one_have_finite_logits() -> None:
    target = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    found = constant(fitted(TAGS, (target, torch.ones(2, 3) > 0)), "global", TAGS)
    assert found.isfinite().all()
    assert found[0] < -10 and found[1] > 10 and found[2] == 0


def test_usable_by_the_metrics() -> None:
    metrics = (
        (SEGMENTATION, SegmentationMetric),
        (DEPTH, DepthMetric),
        (NORMALS, NormalsMetric),
        (EDGES, EdgesMetric),
    )
    for task, make in metrics:
        target, valid = draw(task)
        fit = fitted(task, (target, valid))
        for kind_of in EXTENTS:
            metric = make(task)
            metric.update(constant(fit, kind_of, task).expand(9, -1, -1, -1), target, valid)
            assert not any(math.isnan(value) for value in metric.compute().values())


def test_kinds_without_a_rule_have_no_constant() -> None:
    flow = Task(name="flow", kind="flow", channels=2)
    odd = Task(name="odd", kind="segmentation", channels=2, dtype="float32")
    target, valid = torch.zeros(2, 2, H, W), torch.ones(2, H, W, dtype=torch.bool)
    for task in (flow, odd):
        assert not ConstantFit.supports(task)
        assert fitted(task, (target, valid)).predict("global", task) is None
    assert all(ConstantFit.supports(task) for task in TASKS)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_without_labels_there_is_no_constant(task: Task) -> None:
    target, valid = draw(task)
    for fit in (ConstantFit([task]), fitted(task, (target, torch.zeros_like(valid)))):
        assert fit.predict("global", task) is None
        assert fit.predict("pixel", task) is None


@pytest.mark.parametrize("task", [SCENE, AGE, TAGS], ids=lambda task: task.name)
def test_only_maps_have_one_per_pixel(task: Task) -> None:
    assert fitted(task, draw(task)).predict("pixel", task) is None


def test_a_value_without_labels_is_nan() -> None:
    target, valid = draw(AGE)
    valid[:, 1] = False
    found = constant(fitted(AGE, (target, valid)), "global", AGE)
    assert found.isnan().tolist() == [False, True]


def test_opposite_normals_have_no_mean_direction() -> None:
    up = torch.tensor([0.0, -1.0, 0.0]).reshape(1, 3, 1, 1)
    fit = fitted(NORMALS, (torch.cat([up, -up]), torch.ones(2, 1, 1, dtype=torch.bool)))
    assert fit.predict("global", NORMALS) is None


def test_sizes_that_differ_leave_the_global_constant() -> None:
    small = (torch.full((1, 1, 2, 2), 3.0), torch.ones(1, 2, 2, dtype=torch.bool))
    large = (torch.full((1, 1, 3, 2), 5.0), torch.ones(1, 3, 2, dtype=torch.bool))
    fit = fitted(DEPTH, small, large, small)
    assert fit.predict("pixel", DEPTH, (2, 2)) is None
    with pytest.raises(ValueError, match="'depth' differ in size"):
        fit.predict("global", DEPTH)
    found = fit.predict("global", DEPTH, (4, 7))
    assert found is not None
    assert torch.equal(found, torch.full((1, 4, 7), 3.0))


def test_a_sample_of_another_size() -> None:
    fit = fitted(EDGES, draw(EDGES))
    assert fit.predict("pixel", EDGES, (H + 1, W)) is None
    found = fit.predict("global", EDGES, (H + 1, W))
    assert found is not None and found.shape == (1, H + 1, W)


def test_what_is_kept_does_not_follow_the_batch() -> None:
    target, valid = draw(DEPTH)
    fit = fitted(DEPTH, (target, valid))
    before = constant(fit, "pixel", DEPTH)
    target.fill_(9)
    valid.fill_(True)
    assert torch.equal(constant(fit, "pixel", DEPTH), before)
