"""The usual metrics: known values, and that only the pooled labels matter, not their batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mtlcore.metrics import Metric
from mtlcore.standard import metrics as metrics_module
from mtlcore.standard.metrics import DepthMetric, EdgesMetric, NormalsMetric, SegmentationMetric
from mtlcore.tasks import Task

Data = tuple[Tensor, Tensor, Tensor]

SEGMENTATION = Task(name="segmentation", kind="segmentation", channels=3)
DEPTH = Task(name="depth", kind="depth", channels=1)
NORMALS = Task(name="normals", kind="normals", channels=3)
EDGES = Task(name="edges", kind="edges", channels=1)
METRICS: dict[str, tuple[Task, Callable[[Task], Metric]]] = {
    "segmentation": (SEGMENTATION, SegmentationMetric),
    "depth": (DEPTH, DepthMetric),
    "normals": (NORMALS, NormalsMetric),
    "edges": (EDGES, EdgesMetric),
}

# Of metrics_small.json: three images of different length; a class -1 and a depth of 0 are invalid.
Golden = Callable[[str], Any]


@pytest.fixture(params=METRICS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make(kind: str) -> Metric:
    task, metric = METRICS[kind]
    return metric(task)


def draw(kind: str, batch: int = 6, seed: int = 0) -> Data:
    """Prediction, target and mask of 8 x 9 pixels."""
    task, _ = METRICS[kind]
    rng = torch.Generator().manual_seed(seed)
    prediction = torch.randn(batch, task.channels, 8, 9, generator=rng)
    noise = torch.randn(prediction.shape, generator=rng)
    valid = torch.rand(batch, 8, 9, generator=rng) > 0.3
    if kind == "segmentation":
        return prediction, (prediction + noise).argmax(1), valid
    if kind == "depth":
        return prediction, prediction.abs() + 0.1, valid
    if kind == "normals":
        return prediction, F.normalize(prediction + 0.5 * noise, dim=1), valid
    return prediction, (prediction + noise > 1).float(), valid


def seen(kind: str, *batches: Data) -> Metric:
    metric = make(kind)
    for batch in batches:
        metric.update(*batch)
    return metric


def take(data: Data, index: list[int]) -> Data:
    prediction, target, valid = data
    return prediction[index], target[index], valid[index]


def assert_same(one: Metric, other: Metric) -> None:
    # An angle in float32 depends a little on where it lies in its tensor (vector instructions).
    assert one.compute() == pytest.approx(other.compute(), rel=1e-7, nan_ok=True)


def at_angles(degrees: Tensor, length: float = 1.0) -> Data:
    """Vectors at these angles to their targets: predictions, targets, everything valid."""
    angle = degrees.double().deg2rad()
    prediction = torch.stack([angle.sin(), torch.zeros_like(angle), -angle.cos()])
    target = torch.tensor([0.0, 0.0, -1.0]).reshape(1, 3, 1, 1).expand(1, 3, 1, len(degrees))
    valid = torch.ones(1, 1, len(degrees), dtype=torch.bool)
    return length * prediction.float().reshape(1, 3, 1, -1), target, valid


def test_batches_do_not_matter(kind: str) -> None:
    data = draw(kind)
    joint = seen(kind, data)
    assert_same(joint, seen(kind, *(take(data, [i]) for i in range(6))))
    assert_same(joint, seen(kind, take(data, [4, 5, 0, 2]), take(data, [3, 1])))


def test_order_does_not_matter(kind: str) -> None:
    data = draw(kind)
    assert_same(seen(kind, data), seen(kind, take(data, [5, 2, 0, 1, 4, 3])))


def test_merging_equals_seeing_all(kind: str) -> None:
    data = draw(kind)
    one, other = seen(kind, take(data, [0, 1, 2, 3])), seen(kind, take(data, [4, 5]))
    before = other.compute()
    one.merge(other)
    assert_same(one, seen(kind, data))
    assert other.compute() == before


def test_merging_with_one_that_saw_nothing(kind: str) -> None:
    data = draw(kind)
    one = make(kind)
    one.merge(seen(kind, data))
    one.merge(make(kind))
    assert_same(one, seen(kind, data))


def test_reset_forgets(kind: str) -> None:
    metric = seen(kind, draw(kind, seed=1))
    metric.reset()
    assert all(math.isnan(value) for value in metric.compute().values())
    metric.update(*draw(kind))
    assert_same(metric, seen(kind, draw(kind)))


def test_figures_are_those_announced(kind: str) -> None:
    metric = seen(kind, draw(kind))
    assert list(metric.compute()) == list(metric.higher_is_better)
    assert list(make(kind).compute()) == list(metric.higher_is_better)


def test_nothing_valid_is_nan(kind: str) -> None:
    prediction, target, valid = draw(kind)
    for metric in (make(kind), seen(kind, (prediction, target, torch.zeros_like(valid)))):
        assert all(math.isnan(value) for value in metric.compute().values())


@pytest.mark.parametrize("garbage", [1e9, -7.0, math.nan])
def test_masked_elements_have_no_say(kind: str, garbage: float) -> None:
    prediction, target, valid = draw(kind)
    spoilt = prediction.masked_fill(~valid.unsqueeze(1), garbage)
    assert not torch.equal(spoilt, prediction)
    assert seen(kind, (spoilt, target, valid)).compute() == seen(kind, draw(kind)).compute()


def test_direction_of_the_figures(kind: str) -> None:
    """The best prediction possible is at least as good in every figure as a noisy one."""
    noisy, target, valid = draw(kind)
    perfect = {
        "segmentation": lambda: F.one_hot(target, 3).movedim(-1, 1).float(),
        "edges": lambda: 20 * target - 10,
    }.get(kind, lambda: target)()
    best = seen(kind, (perfect, target, valid))
    worse = seen(kind, (noisy, target, valid)).compute()
    for name, value in best.compute().items():
        assert value > worse[name] if best.higher_is_better[name] else value < worse[name]


def test_updates_in_inference_mode_merge_outside(kind: str) -> None:
    data = draw(kind)
    with torch.inference_mode():
        one, other = seen(kind, take(data, [0, 1, 2])), seen(kind, take(data, [3, 4, 5]))
    one.merge(other)
    one.update(*data)
    assert_same(one, seen(kind, data, data))


def test_an_update_never_looks_at_values(kind: str) -> None:
    """Tensors without data refuse whatever would make the host wait for a device."""
    prediction, target, valid = draw(kind)
    seen(kind, (prediction.to("meta"), target.to("meta"), valid.to("meta")))


def test_no_graph_is_kept() -> None:
    prediction, target, valid = draw("depth")
    metric = seen("depth", (prediction.requires_grad_(), target, valid))
    assert not metric._sums.values.requires_grad  # type: ignore[attr-defined]


def one_hot_maps(classes: list[int]) -> Tensor:
    return F.one_hot(torch.tensor(classes), 3).T.reshape(1, 3, 1, -1).float()


def test_segmentation_known_values(golden: Golden) -> None:
    known = golden("metrics_small.json")
    metric = SegmentationMetric(SEGMENTATION)
    for image in known["images"]:
        target = torch.tensor(image["label"]).reshape(1, 1, -1)
        metric.update(one_hot_maps(image["pred"]), target.clamp_min(0), target >= 0)
    figures, expected = metric.compute(), known["global_metrics"]
    assert figures["miou"] == pytest.approx(expected["miou_nanmean"], rel=1e-12)
    assert figures["pixel_accuracy"] == pytest.approx(expected["acc"], rel=1e-12)
    # Pooled over the images, which differs from the mean of their figures.
    assert figures["miou"] != pytest.approx(known["per_image_averaged"]["miou"], rel=0.01)


def test_absent_class_is_left_out() -> None:
    target = torch.tensor([0, 0, 1, 1]).reshape(1, 1, 4)
    valid = torch.ones(1, 1, 4, dtype=torch.bool)
    metric = SegmentationMetric(SEGMENTATION)
    metric.update(one_hot_maps([0, 0, 1, 0]), target, valid)
    assert metric.compute()["miou"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    # Predicted though absent from the targets, it counts as missed.
    metric.reset()
    metric.update(one_hot_maps([0, 0, 1, 2]), target, valid)
    assert metric.compute()["miou"] == pytest.approx((1 + 1 / 2 + 0) / 3)


def test_segmentation_takes_single_labels() -> None:
    metric = SegmentationMetric(Task(name="scene", kind="classification", channels=3))
    valid = torch.tensor([True, True, True, False])
    metric.update(torch.eye(3)[[0, 1, 2, 2]], torch.tensor([0, 1, 1, 0]), valid)
    assert metric.compute()["pixel_accuracy"] == pytest.approx(2 / 3)


def test_depth_known_values(golden: Golden) -> None:
    known = golden("metrics_small.json")
    metric = DepthMetric(DEPTH)
    for image in known["images"]:
        target = torch.tensor(image["depth"]).reshape(1, 1, 1, -1)
        valid = target.squeeze(1) > 0
        safe = torch.where(valid.unsqueeze(1), target, 1.0)
        metric.update(torch.tensor(image["depth_pred"]).reshape(1, 1, 1, -1), safe, valid)
    figures, expected = metric.compute(), known["depth_global"]
    assert figures["abs_error"] == pytest.approx(expected["abs"], rel=1e-6)
    assert figures["rel_error"] == pytest.approx(expected["rel"], rel=1e-6)
    batches = known["depth_batch_averaged_bs1"]
    assert figures["abs_error"] != pytest.approx(batches["abs"], rel=0.01)


def test_depth_by_hand() -> None:
    """Off by a factor of exactly 1.25 is not within it, nor is half of the depth."""
    target = torch.tensor([1.0, 2.0, 4.0, 1.0]).reshape(1, 1, 1, 4)
    prediction = torch.tensor([1.25, 2.0, 2.0, -1.0]).reshape(1, 1, 1, 4)
    figures = seen("depth", (prediction, target, torch.ones(1, 1, 4, dtype=torch.bool))).compute()
    assert figures["abs_error"] == pytest.approx((0.25 + 2 + 2) / 4)
    assert figures["rel_error"] == pytest.approx((0.25 + 0.5 + 2) / 4)
    assert figures["rmse"] == pytest.approx(math.sqrt((0.0625 + 4 + 4) / 4))
    assert figures["delta1"] == 0.25


def test_depth_sums_do_not_drift() -> None:
    """In float32 a sum of a million small errors beside a large one would lose them."""
    target = torch.ones(1, 1, 1000, 1000)
    prediction = target + 0.5
    prediction[0, 0, 0, 0] = 1e9
    metric = DepthMetric(DEPTH)
    metric.update(prediction, target, torch.ones(1, 1000, 1000, dtype=torch.bool))
    expected = (1e9 - 1 + 0.5 * 999_999) / 1e6
    assert metric.compute()["abs_error"] == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("count", [1, 2, 7, 1000, 1001])
def test_median_within_its_resolution(count: int) -> None:
    rng = torch.Generator().manual_seed(count)
    degrees = 180 * torch.rand(count, generator=rng, dtype=torch.float64) ** 3
    metric = NormalsMetric(NORMALS)
    for part in degrees.chunk(3):
        metric.update(*at_angles(part))
    figures = metric.compute()
    assert abs(figures["median_angle"] - float(degrees.quantile(0.5))) <= 0.0051
    assert figures["mean_angle"] == pytest.approx(float(degrees.mean()), abs=1e-4)
    assert figures["within_22_5"] == pytest.approx(100 * float((degrees < 22.5).double().mean()))


@pytest.mark.parametrize("degrees", [0.0, 0.005, 0.02, 1.0, 89.99, 179.99, 180.0])
@pytest.mark.parametrize("length", [1e-6, 1.0, 1e6])
def test_angles_are_exact_at_the_ends(degrees: float, length: float) -> None:
    metric = NormalsMetric(NORMALS)
    metric.update(*at_angles(torch.tensor([degrees]), length))
    assert metric.compute()["mean_angle"] == pytest.approx(degrees, abs=5e-5)


def test_a_zero_normal_is_no_perfect_one() -> None:
    prediction, target, valid = at_angles(torch.zeros(4))
    figures = seen("normals", (torch.zeros_like(prediction), target, valid)).compute()
    assert figures["mean_angle"] == pytest.approx(90, abs=1e-4)
    assert figures["median_angle"] == pytest.approx(90)
    assert figures["within_30"] == 0


def test_nan_normals_are_misses() -> None:
    prediction, target, valid = at_angles(torch.tensor([1.0, 2.0, 3.0]))
    prediction[..., 1:] = math.nan
    figures = seen("normals", (prediction, target, valid)).compute()
    assert math.isnan(figures["mean_angle"])
    assert figures["median_angle"] == 180
    assert figures["within_30"] == pytest.approx(100 / 3)


def test_angle_limits_are_strict() -> None:
    # A vector at exactly 90 degrees is not below any limit; one just below 30 is below one.
    degrees = torch.tensor([11.2, 11.3, 22.4, 22.6, 29.9, 30.1, 90.0, 180.0])
    figures = seen("normals", at_angles(degrees)).compute()
    within = [figures[name] for name in ("within_11_25", "within_22_5", "within_30")]
    assert within == pytest.approx([100 * n / 8 for n in (1, 3, 5)])


def test_an_angle_at_a_limit_is_not_within_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Published protocols count angles below 11.25, 22.5 and 30 degrees, strictly."""
    prediction, target, valid = at_angles(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    exact = torch.tensor([11.25, 22.5, 30.0, 5.0]).reshape(1, 1, 4)
    monkeypatch.setattr(metrics_module, "_angle", lambda *_: exact)
    figures = seen("normals", (prediction, target, valid)).compute()
    within = [figures[name] for name in ("within_11_25", "within_22_5", "within_30")]
    assert within == [25.0, 50.0, 75.0]


def test_f1_is_the_best_over_the_thresholds() -> None:
    prediction, target, valid = draw("edges")
    probability, positive = prediction[:, 0].sigmoid()[valid], target[:, 0][valid] > 0.5
    best = 0.0
    for step in range(1, 100):
        predicted = probability >= step / 100
        hits = int((predicted & positive).sum())
        best = max(best, 2 * hits / (int(predicted.sum()) + int(positive.sum())))
    assert seen("edges", (prediction, target, valid)).compute()["f1"] == pytest.approx(best)
    assert 0.4 < best < 0.95


def test_f1_uses_one_threshold_for_the_split() -> None:
    """Each image alone could be perfect at a threshold of its own; together they are not."""
    logits = torch.tensor([0.9, 0.6, 0.4, 0.1]).logit().reshape(2, 1, 1, 2)
    target = torch.tensor([1.0, 0.0, 1.0, 0.0]).reshape(2, 1, 1, 2)
    valid = torch.ones(2, 1, 2, dtype=torch.bool)
    assert seen("edges", (logits, target, valid)).compute()["f1"] == pytest.approx(4 / 5)


def test_f1_without_positives_is_nan() -> None:
    prediction, target, valid = draw("edges")
    figures = seen("edges", (prediction, torch.zeros_like(target), valid)).compute()
    assert math.isnan(figures["f1"])


def test_f1_at_the_edge_of_its_rules() -> None:
    """A pixel at the threshold is predicted, and a target of one half is positive."""
    logits = torch.tensor([0.0, -0.02]).reshape(1, 1, 1, 2)
    target = torch.tensor([0.5, 0.4]).reshape(1, 1, 1, 2)
    valid = torch.ones(1, 1, 2, dtype=torch.bool)
    assert seen("edges", (logits, target, valid)).compute()["f1"] == 1
