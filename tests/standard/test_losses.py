"""The usual losses: their formulas, their gradients, and that masked elements have no say."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mtlcore.data import safe_target
from mtlcore.errors import UsageError
from mtlcore.losses import Loss, Normalisation, reduce_loss
from mtlcore.standard.losses import L1, SHORTEST_NORMAL, BinaryCrossEntropy, Cosine, CrossEntropy
from mtlcore.tasks import Task

SIZE = (3, 4)
SEGMENTATION = Task(name="segmentation", kind="segmentation", channels=5)
CLASSES = Task(name="classes", kind="classification", channels=5)
DEPTH = Task(name="depth", kind="depth", channels=1)
REGRESSION = Task(name="regression", kind="regression", channels=3)
NORMALS = Task(name="normals", kind="normals", channels=3)
EDGES = Task(name="edges", kind="edges", channels=1)
LABELS = Task(name="labels", kind="multilabel", channels=4)

WEIGHTS = (0.5, 1.0, 2.0, 0.1, 3.0)
CASES: dict[str, tuple[Task, Callable[[], Loss]]] = {
    "cross-entropy": (SEGMENTATION, lambda: CrossEntropy(SEGMENTATION)),
    "weighted": (SEGMENTATION, lambda: CrossEntropy(SEGMENTATION, class_weights=WEIGHTS)),
    "classification": (CLASSES, lambda: CrossEntropy(CLASSES, class_weights=WEIGHTS)),
    "depth": (DEPTH, lambda: L1(DEPTH)),
    "regression": (REGRESSION, lambda: L1(REGRESSION)),
    "cosine": (NORMALS, lambda: Cosine(NORMALS)),
    "edges": (EDGES, lambda: BinaryCrossEntropy(EDGES)),
    "multilabel": (LABELS, lambda: BinaryCrossEntropy(LABELS, positive_weight=0.7)),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Task, Loss]:
    task, make = CASES[request.param]
    return task, make()


def draw(task: Task, batch: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction (float64), target with safe values where not valid, and mask."""
    rng = torch.Generator().manual_seed(seed)
    size = SIZE if task.layout == "map" else ()
    prediction = torch.randn(batch, task.channels, *size, generator=rng, dtype=torch.float64)
    shape = (batch, *task.target_shape(size))
    if task.dtype == "int64":
        target = torch.randint(task.channels, shape, generator=rng)
    else:
        target = torch.rand(shape, generator=rng, dtype=torch.float64) + 0.1
    if task.kind == "normals":
        target = torch.nn.functional.normalize(target - 0.6, dim=1)
    if task.kind in ("edges", "multilabel"):
        target = (target > 0.6).double()
    valid = torch.rand(batch, *task.valid_shape(size), generator=rng) > 0.4
    mask = valid if valid.dim() == target.dim() else valid.unsqueeze(1)
    return prediction, torch.where(mask, target, safe_target(task, size).to(target.dtype)), valid


def over_channels(valid: Tensor, prediction: Tensor) -> Tensor:
    """The mask with the shape of the prediction."""
    mask = valid if valid.shape == prediction.shape else valid.unsqueeze(1)
    return mask.expand_as(prediction)


def test_shape_is_that_of_the_mask(case: tuple[Task, Loss]) -> None:
    task, loss = case
    prediction, target, valid = draw(task, 2)
    result = loss.elementwise(prediction, target)
    for part in result if isinstance(result, tuple) else (result,):
        assert part.shape == valid.shape
        assert part.dtype == prediction.dtype


def test_never_looks_at_values(case: tuple[Task, Loss]) -> None:
    """Tensors without data refuse whatever would make the host wait for a device."""
    task, loss = case
    prediction, target, _ = draw(task, 2)
    loss.to("meta").elementwise(prediction.to("meta"), target.to("meta"))


@pytest.mark.parametrize("normalisation", ["valid", "sample"])
def test_gradients(case: tuple[Task, Loss], normalisation: Normalisation) -> None:
    task, loss = case
    prediction, target, valid = draw(task, 3)
    valid[1] = False

    def scalar(z: Tensor) -> Tensor:
        return reduce_loss(loss, z, target, valid, normalisation)[0]

    assert torch.autograd.gradcheck(scalar, prediction.requires_grad_())


@pytest.mark.parametrize("normalisation", ["valid", "sample"])
def test_masked_elements_have_no_say(case: tuple[Task, Loss], normalisation: Normalisation) -> None:
    task, loss = case
    prediction, target, valid = draw(task, 3)
    masked = ~over_channels(valid, prediction)
    assert masked.any()
    found = []
    for garbage in (0.0, -3.0, 1e6):
        z = prediction.masked_fill(masked, garbage).requires_grad_()
        value, _ = reduce_loss(loss, z, target, valid, normalisation)
        (gradient,) = torch.autograd.grad(value, z)
        assert (gradient[masked] == 0).all()
        assert gradient.isfinite().all()
        found.append((value.item(), gradient))
    assert len({value for value, _ in found}) == 1
    assert all(torch.equal(gradient, found[0][1]) for _, gradient in found)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4])
def test_finite_at_safe_values(case: tuple[Task, Loss], scale: float) -> None:
    task, loss = case
    size = SIZE if task.layout == "map" else ()
    prediction = (scale * draw(task, 2)[0].float()).requires_grad_()
    target = safe_target(task, size).expand(2, *task.target_shape(size))
    value, _ = reduce_loss(loss, prediction, target, torch.ones(2, *task.valid_shape(size)) > 0)
    (gradient,) = torch.autograd.grad(value, prediction)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_normalisations_differ_as_they_should() -> None:
    prediction = torch.tensor([[1.0, 2.0, 3.0], [8.0, 0.0, 0.0], [9.0, 9.0, 9.0]])
    valid = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    target = torch.zeros(3, 3)
    pooled, _ = reduce_loss(L1(REGRESSION), prediction, target, valid, "valid")
    per_sample, _ = reduce_loss(L1(REGRESSION), prediction, target, valid, "sample")
    assert pooled.item() == pytest.approx((1 + 2 + 3 + 8) / 4)
    assert per_sample.item() == pytest.approx((2 + 8 + 0) / 3)


def test_cross_entropy_by_hand() -> None:
    prediction, target, valid = draw(SEGMENTATION, 2)
    log_p = prediction.log_softmax(1)
    total = mass = 0.0
    for b, y, x in valid.nonzero().tolist():
        label = int(target[b, y, x])
        total -= WEIGHTS[label] * float(log_p[b, label, y, x])
        mass += WEIGHTS[label]
    loss = CrossEntropy(SEGMENTATION, class_weights=WEIGHTS)
    value, _ = reduce_loss(loss, prediction, target, valid)
    assert value.item() == pytest.approx(total / mass)


def test_equal_class_weights_change_nothing() -> None:
    prediction, target, valid = draw(CLASSES, 8)
    plain, _ = reduce_loss(CrossEntropy(CLASSES), prediction, target, valid)
    weighted = CrossEntropy(CLASSES, class_weights=(0.1,) * 5)
    assert reduce_loss(weighted, prediction, target, valid)[0].item() == pytest.approx(plain.item())


def test_class_weights_move_but_are_no_state() -> None:
    loss = CrossEntropy(CLASSES, class_weights=WEIGHTS)
    assert not loss.state_dict()
    moved = loss.to("meta").class_weights
    assert moved is not None and moved.is_meta


@pytest.mark.parametrize(
    "weights", [(1.0,), (1.0, 1.0, 1.0, 1.0, 0.0), (1.0, 1.0, 1.0, 1.0, math.nan)]
)
def test_class_weights_are_checked(weights: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match=r"class_weights.*'classes'"):
        CrossEntropy(CLASSES, class_weights=weights)


def test_l1_takes_the_mean_over_the_channels_of_a_map() -> None:
    flow = Task(name="flow", kind="flow", channels=2)
    prediction = torch.tensor([3.0, -1.0]).reshape(1, 2, 1, 1)
    assert L1(flow).elementwise(prediction, torch.zeros(1, 2, 1, 1)).tolist() == [[[2.0]]]


@pytest.mark.parametrize(("degrees", "expected"), [(0, 0.0), (60, 0.5), (90, 1.0), (180, 2.0)])
@pytest.mark.parametrize("length", [1e-3, 1.0, 1e3])
def test_cosine_depends_on_the_angle_alone(degrees: int, expected: float, length: float) -> None:
    angle = math.radians(degrees)
    prediction = length * torch.tensor([math.sin(angle), 0.0, -math.cos(angle)])
    target = torch.tensor([0.0, 0.0, -1.0])
    shape = (1, 3, 1, 1)
    value = Cosine(NORMALS).elementwise(prediction.reshape(shape), target.reshape(shape))
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_cosine_gradient_is_bounded_near_zero() -> None:
    target = torch.tensor([0.0, 0.0, -1.0]).reshape(1, 3, 1, 1)
    for length in (0.0, 1e-40, 1e-20, 1e-8, 1e-5, 1e-4, 1e-2):
        prediction = torch.tensor([length, 0.0, 0.0]).reshape(1, 3, 1, 1).requires_grad_()
        value = Cosine(NORMALS).elementwise(prediction, target).sum()
        (gradient,) = torch.autograd.grad(value, prediction)
        assert 0 < gradient.norm() <= 1.001 / SHORTEST_NORMAL


def test_cosine_of_large_half_precision_numbers() -> None:
    prediction = torch.tensor([0.0, 0.0, -1000.0], dtype=torch.float16).reshape(1, 3, 1, 1)
    target = torch.tensor([0.0, 0.0, -1.0]).reshape(1, 3, 1, 1)
    assert Cosine(NORMALS).elementwise(prediction, target).item() == pytest.approx(0, abs=1e-6)


def test_binary_cross_entropy_by_hand() -> None:
    prediction, target, valid = draw(EDGES, 2)
    total = mass = 0.0
    for b, y, x in valid.nonzero().tolist():
        p = 1 / (1 + math.exp(-float(prediction[b, 0, y, x])))
        positive = bool(target[b, 0, y, x])
        total -= 0.95 * math.log(p) if positive else 0.05 * math.log(1 - p)
        mass += 0.95 if positive else 0.05
    value, _ = reduce_loss(BinaryCrossEntropy(EDGES), prediction, target, valid)
    assert value.item() == pytest.approx(total / mass)


def test_binary_cross_entropy_is_published_sum_over_its_weights() -> None:
    prediction, target, valid = draw(EDGES, 2)
    valid[:] = True
    values, _ = BinaryCrossEntropy(EDGES).elementwise(prediction, target)
    published = float(values.sum()) / valid.numel()
    value, _ = reduce_loss(BinaryCrossEntropy(EDGES), prediction, target, valid)
    share = float(target.mean())
    assert published == pytest.approx(value.item() * (0.05 + 0.9 * share))


def test_even_weights_are_plain_binary_cross_entropy() -> None:
    prediction, target, valid = draw(LABELS, 5)
    value, _ = reduce_loss(
        BinaryCrossEntropy(LABELS, positive_weight=0.5), prediction, target, valid
    )
    plain = torch.nn.functional.binary_cross_entropy_with_logits(prediction[valid], target[valid])
    assert value.item() == pytest.approx(plain.item())


@pytest.mark.parametrize("weight", [0.0, 1.0, -0.5, math.nan])
def test_positive_weight_is_checked(weight: float) -> None:
    with pytest.raises(UsageError, match="positive_weight"):
        BinaryCrossEntropy(EDGES, positive_weight=weight)
