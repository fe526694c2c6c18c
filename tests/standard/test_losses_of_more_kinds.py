"""Hu's depth loss, Huber, focal, multilabel and squared error: their formulas, worked out anew."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mtlcore.errors import UsageError
from mtlcore.losses import reduce_loss
from mtlcore.plugins import settings_of
from mtlcore.standard.losses import (
    L1,
    MSE,
    BinaryCrossEntropy,
    CrossEntropy,
    Focal,
    Huber,
    HuDepth,
    MultiLabel,
    NormalsL1,
)
from mtlcore.tasks import Task
from mtlcore.testing import LossContract, ScalarLossContract
from mtlcore.testing.base import draw_labels

SEGMENTATION = Task(name="segmentation", kind="segmentation", channels=5)
CLASSES = Task(name="classes", kind="classification", channels=5)
DEPTH = Task(name="depth", kind="depth", channels=1)
VALUES = Task(name="values", kind="regression", channels=3)
EDGES = Task(name="edges", kind="edges", channels=1)
NORMALS = Task(name="normals", kind="normals", channels=3)
LABELS = Task(name="labels", kind="multilabel", channels=4)


class TestHuDepth(ScalarLossContract):
    task = DEPTH
    size = (8, 9)

    def make(self, task):
        return HuDepth(task)

    def draw(self, batch, seed=0):
        """With so few holes that windows without one remain."""
        prediction, _, _ = super().draw(batch, seed)
        generator = torch.Generator().manual_seed(seed)
        target, valid = draw_labels(self.task, batch, self.size, generator, masked=0.05)
        return prediction, target.double(), valid


class TestHuDepthWithHoles(ScalarLossContract):
    task = DEPTH

    def make(self, task):
        return HuDepth(task)


class TestHuberDepth(LossContract):
    task = DEPTH

    def make(self, task):
        return Huber(task)


class TestHuberValues(TestHuberDepth):
    task = VALUES


class TestHuberEdges(TestHuberDepth):
    task = EDGES


class TestFocal(LossContract):
    task = SEGMENTATION

    def make(self, task):
        return Focal(task)


class TestFocalLabels(TestFocal):
    task = CLASSES


class TestFocalRoot(LossContract):
    task = SEGMENTATION

    def make(self, task):
        return Focal(task, gamma=0.5)


class TestMultiLabel(LossContract):
    task = LABELS

    def make(self, task):
        return MultiLabel(task)


class TestMSEDepth(LossContract):
    task = DEPTH

    def make(self, task):
        return MSE(task)


class TestMSEValues(TestMSEDepth):
    task = VALUES


class TestNormalsL1(LossContract):
    task = NORMALS

    def make(self, task):
        return NormalsL1(task)


class TestBinaryCrossEntropyPerElement(LossContract):
    task = EDGES

    def make(self, task):
        return BinaryCrossEntropy(task, divide_by="number")


def hu_by_convolution(prediction, target):
    """The three terms without any mask, on the places whose window lies in the image."""
    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=torch.float64)
    kernels = torch.stack([kernel, kernel.T]).unsqueeze(1)
    error = prediction - target
    slopes, normals = F.conv2d(error, kernels), []
    for depth in (prediction, target):
        steep = F.conv2d(depth, kernels)
        normals.append(torch.cat([-steep, torch.ones_like(steep[:, :1])], dim=1))
    return (
        (error.abs() + 0.5).log().mean()
        + 2 * (slopes.abs() + 0.5).log().mean()
        + (1 - torch.cosine_similarity(*normals, dim=1)).mean()
    )


def depths(seed=0, batch=2, size=(7, 8)):
    rng = torch.Generator().manual_seed(seed)
    shape = (batch, 1, *size)
    return [1 + 2 * torch.rand(shape, generator=rng, dtype=torch.float64) for _ in range(2)]


def test_hu_is_its_formula():
    prediction, target = depths()
    valid = torch.ones(2, 7, 8, dtype=torch.bool)
    found = HuDepth(DEPTH)(prediction, target, valid)
    torch.testing.assert_close(found, hu_by_convolution(prediction, target))


def test_hu_leaves_out_windows_with_a_hole():
    """A hole takes its pixel from the first mean and the nine windows around it from the others."""
    prediction, target = depths(batch=1, size=(12, 5))
    valid = torch.ones(1, 12, 5, dtype=torch.bool)
    valid[:, 6:] = False
    found = HuDepth(DEPTH)(prediction, target, valid)
    cut = [x[:, :, :6] for x in (prediction, target)]
    torch.testing.assert_close(found, hu_by_convolution(*cut))
    valid[:] = True
    valid[:, 3, 2] = False
    leaf = prediction.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(HuDepth(DEPTH)(leaf, target, valid), leaf)
    assert gradient[0, 0, 3, 2] == 0
    assert int((gradient != 0).sum()) == 12 * 5 - 1


def test_hu_survives_what_is_predicted_without_a_label():
    prediction, target = (x.float() for x in depths())
    valid = torch.ones(2, 7, 8, dtype=torch.bool)
    valid[:, 3, 3] = False
    prediction[:, :, 3, 3] = 1e30
    leaf = prediction.requires_grad_()
    (gradient,) = torch.autograd.grad(HuDepth(DEPTH)(leaf, target, valid), leaf)
    assert bool(gradient.isfinite().all())


def test_hu_without_a_whole_window_is_its_first_term():
    prediction, target = depths(size=(4, 4))
    valid = torch.zeros(2, 4, 4, dtype=torch.bool)
    valid[:, ::2, ::2] = True
    kept = valid.unsqueeze(1)
    expected = ((prediction - target).abs()[kept] + 0.5).log().mean()
    torch.testing.assert_close(HuDepth(DEPTH)(prediction, target, valid), expected)
    for size in ((1, 1), (2, 9), (9, 2)):
        prediction, target = depths(size=size)
        found = HuDepth(DEPTH)(prediction, target, torch.ones(2, *size, dtype=torch.bool))
        torch.testing.assert_close(found, ((prediction - target).abs() + 0.5).log().mean())


def test_hu_is_smallest_without_error():
    _, target = depths()
    valid = torch.ones(2, 7, 8, dtype=torch.bool)
    assert float(HuDepth(DEPTH)(target, target, valid)) == pytest.approx(3 * math.log(0.5))
    assert float(HuDepth(DEPTH, a=2.0)(target, target, valid)) == pytest.approx(3 * math.log(2))


def test_hu_from_zero_differs_by_a_constant_alone():
    """What the network learns is the same; without an error the loss is 0, and never below."""
    prediction, target = depths()
    valid = torch.rand(2, 7, 8, generator=torch.Generator().manual_seed(0)) > 0.02
    leaf, gradients = prediction.clone().requires_grad_(), []
    values = []
    for from_zero in (False, True):
        values.append(HuDepth(DEPTH, from_zero=from_zero)(leaf, target, valid))
        gradients += torch.autograd.grad(values[-1], leaf)
    assert torch.equal(*gradients)
    assert float((values[1] - values[0]).detach()) == pytest.approx(-3 * math.log(0.5))
    assert float(HuDepth(DEPTH, a=0.2, from_zero=True)(target, target, valid)) == pytest.approx(0)


def test_hu_in_half_precision_is_computed_in_single():
    prediction, target = (x.float() for x in depths())
    valid = torch.ones(2, 7, 8, dtype=torch.bool)
    half = prediction.bfloat16()
    found = HuDepth(DEPTH)(half, target, valid)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, HuDepth(DEPTH)(half.float(), target, valid))


def test_huber_is_its_formula():
    target = torch.zeros(1, 1, 1, 5, dtype=torch.float64)
    errors = torch.tensor([0.0, 0.2, -0.5, 0.8, -3.0], dtype=torch.float64)
    prediction = errors.reshape(target.shape)
    expected = [0.0, 0.02, 0.125, 0.5 * (0.8 - 0.25), 0.5 * (3 - 0.25)]
    assert Huber(DEPTH).elementwise(prediction, target).flatten().tolist() == pytest.approx(
        expected
    )
    wide = Huber(DEPTH, delta=10.0).elementwise(prediction, target).flatten()
    torch.testing.assert_close(wide, errors.square() / 2)


def test_huber_of_edges_is_of_probabilities():
    logit = torch.tensor([[[[-1.0, 4.0]]]], dtype=torch.float64)
    target = torch.ones_like(logit)
    far, near = (1 - 1 / (1 + math.exp(-z)) for z in (-1, 4))
    expected = [0.5 * (far - 0.25), 0.5 * near**2]
    assert Huber(EDGES).elementwise(logit, target).flatten().tolist() == pytest.approx(expected)


def test_focal_discounts_what_is_right():
    logits = torch.randn(3, 5, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    target = torch.randint(5, (3, 2, 2), generator=torch.Generator().manual_seed(1))
    p = logits.softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)
    for gamma in (0.5, 1.0, 2.0, 5.0):
        found = Focal(SEGMENTATION, gamma=gamma).elementwise(logits, target)
        torch.testing.assert_close(found, -((1 - p) ** gamma) * p.log())
    plain = Focal(SEGMENTATION, gamma=0.0).elementwise(logits, target)
    torch.testing.assert_close(plain, CrossEntropy(SEGMENTATION).elementwise(logits, target))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_finite_where_the_network_is_certain(gamma):
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    task = Task(name="two", kind="classification", channels=2)
    loss, _ = reduce_loss(
        Focal(task, gamma=gamma), logits, torch.tensor([0, 0]), torch.tensor([True, True])
    )
    assert float(loss.detach()) == pytest.approx(200.0)
    assert bool(torch.autograd.grad(loss, logits)[0].isfinite().all())


def test_multilabel_is_its_formula():
    logits, target = torch.tensor([[0.3, -2.0, 5.0, 0.0]]), torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    p = logits.sigmoid()
    expected = -(target * p.log() + (1 - target) * (1 - p).log())
    torch.testing.assert_close(MultiLabel(LABELS).elementwise(logits, target), expected)


def test_squared_error():
    prediction, target = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 4.0, 3.5]])
    assert MSE(VALUES).elementwise(prediction, target).tolist() == [[1.0, 4.0, 0.25]]


@pytest.mark.parametrize("make", [
    lambda: Huber(DEPTH, delta=0.0),
    lambda: Huber(DEPTH, delta=math.inf),
    lambda: HuDepth(DEPTH, a=0.0),
    lambda: Focal(CLASSES, gamma=-1.0),
])  # fmt: skip
def test_impossible_settings_are_refused(make):
    with pytest.raises(UsageError, match=r"of task '(depth|classes)' must"):
        make()


def test_settings_are_explained():
    for loss, names in {Huber: ["delta"], HuDepth: ["a", "from_zero"], Focal: ["gamma"]}.items():
        assert [s.name for s in settings_of(loss) if s.meaning] == names


def test_defaults_are_the_published_ones():
    """MTML's Huber and Hu's a, focal loss as in its paper, edges as in Vandenhende et al."""
    published = {Huber: 0.5, HuDepth: 0.5, Focal: 2.0, BinaryCrossEntropy: 0.95}
    for loss, value in published.items():
        assert settings_of(loss)[0].default == value, loss.__name__


@pytest.mark.parametrize("loss", [L1, MSE, Huber, MultiLabel, BinaryCrossEntropy])
def test_over_the_channels_of_a_map_it_is_the_mean(loss):
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.rand(2, 3, 4, 5, generator=generator) for _ in range(2))
    whole = loss(Task(name="maps", kind="heat", channels=3)).elementwise(prediction, target)
    alone = loss(Task(name="map", kind="heat", channels=1))
    parts = [alone.elementwise(prediction[:, c : c + 1], target[:, c : c + 1]) for c in range(3)]
    if isinstance(whole, tuple):  # with weights
        for found, channels in zip(whole, zip(*parts, strict=True), strict=True):
            torch.testing.assert_close(found, torch.stack(channels).mean(0))
    else:
        torch.testing.assert_close(whole, torch.stack(parts).mean(0))


def test_per_sample_one_without_labels_counts_as_zero():
    """Of a loss that is no sum over elements, too."""
    prediction, target = depths(batch=3)
    valid = torch.ones(3, 7, 8, dtype=torch.bool)
    valid[1] = False
    each = [HuDepth(DEPTH)(prediction[[i]], target[[i]], valid[[i]]) for i in (0, 2)]
    found, values = reduce_loss(HuDepth(DEPTH), prediction, target, valid, "sample")
    assert values is None
    torch.testing.assert_close(found, torch.stack(each).sum() / 3)


def test_normals_l1_is_the_mean_over_the_three_numbers_of_a_unit_vector():
    prediction = torch.tensor([0.0, 3.0, 4.0]).view(1, 3, 1, 1)
    target = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    found = NormalsL1(NORMALS).elementwise(prediction, target)
    assert found.flatten().tolist() == pytest.approx([(1 + 0.6 + 0.8) / 3])
    assert NormalsL1(NORMALS).elementwise(5 * target, target).item() == pytest.approx(0)


def test_binary_cross_entropy_over_the_number_of_pixels_is_vandenhendes():
    """Their balanced sum over all pixels divided by their number, worked out pixel by pixel."""
    rng = torch.Generator().manual_seed(0)
    prediction = torch.randn(2, 1, 4, 5, generator=rng)
    target = (torch.rand(2, 1, 4, 5, generator=rng) > 0.8).float()
    valid = torch.rand(2, 4, 5, generator=rng) > 0.2
    total = 0.0
    for z, t, kept in zip(
        prediction.flatten().tolist(), target.flatten().tolist(), valid.flatten(), strict=True
    ):
        p = 1 / (1 + math.exp(-z))
        total -= (0.95 * t * math.log(p) + 0.05 * (1 - t) * math.log(1 - p)) * bool(kept)
    loss = BinaryCrossEntropy(EDGES, divide_by="number")
    value, _ = reduce_loss(loss, prediction, target, valid)
    assert value.item() == pytest.approx(total / int(valid.sum()), rel=1e-5)
