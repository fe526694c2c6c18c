"""The contracts of the losses of one task: per element, and of a whole batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlcore.losses import Loss, Normalisation, ScalarLoss, reduce_loss
from mtlcore.tasks import Task
from mtlcore.testing.base import (
    check_groups,
    close,
    draw_labels,
    mask_labels,
    prediction_shape,
    same,
    spread,
    through_checkpoint,
)

_NORMALISATIONS: tuple[Normalisation, ...] = ("valid", "sample")


class _TaskLossContract:
    """What the losses of one task have in common.

    Attributes:
        task: that the loss serves.
        size: of a map, (height, width), or of a sequence, (length,).
        differentiable: whether its gradient is that of its value (checked in float64).
    """

    task: Task
    size: tuple[int, ...] = (4, 5)
    differentiable: bool = True

    def make(self, task: Task) -> Loss | ScalarLoss:
        """Return the loss."""
        raise NotImplementedError

    def draw(self, batch: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Raw predictions and labels in float64 (safe where not valid), and masks."""
        generator = torch.Generator().manual_seed(seed)
        shape = prediction_shape(self.task, batch, self.size)
        prediction = torch.randn(shape, generator=generator, dtype=torch.float64)
        target, valid = draw_labels(self.task, batch, self.size, generator)
        return prediction, target.double() if target.is_floating_point() else target, valid

    def test_finite_at_safe_values(self) -> None:
        """Otherwise a missing label makes the gradient NaN: masking cannot undo 0 / 0."""
        loss = self._new()
        drawn, target, valid = self.draw(3)
        nothing = torch.zeros_like(valid)
        safe = mask_labels(self.task, target, nothing, self.size)
        some = nothing.clone()
        some.view(-1)[0] = True  # a reduction needs one valid element
        for prediction in (drawn, torch.zeros_like(drawn), 50 * drawn):
            value, gradient = self._reduced(loss, prediction, safe, some)
            assert math.isfinite(value), "the loss is not finite where labels are missing"
            assert bool(gradient.isfinite().all()), (
                "the gradient is not finite where labels are missing"
            )

    def test_masked_elements_leave_no_trace(self) -> None:
        """Otherwise the network learns from labels that do not exist."""
        loss = self._new()
        prediction, target, valid = self.draw(4)
        kept = spread(valid, prediction)
        elsewhere = torch.where(kept, prediction, 3 - 2 * prediction)
        for normalisation in _NORMALISATIONS:
            value, gradient = self._reduced(loss, prediction, target, valid, normalisation)
            other, gradient_there = self._reduced(loss, elsewhere, target, valid, normalisation)
            assert math.isclose(value, other, rel_tol=1e-9), (
                f"predictions where nothing is valid change the loss ({value} becomes {other})"
            )
            assert close(gradient, gradient_there, 1e-9), (
                "predictions where nothing is valid change the gradient elsewhere"
            )
            assert not bool(gradient[~kept].any()), "a masked element has a gradient"

    def test_samples_without_labels_leave_no_trace(self) -> None:
        """Otherwise partly labelled data trains on unlabelled samples."""
        loss = self._new()
        prediction, target, valid = self.draw(3)
        valid[1] = False
        target = mask_labels(self.task, target, valid, self.size)
        for normalisation in _NORMALISATIONS:
            value, gradient = self._reduced(loss, prediction, target, valid, normalisation)
            assert math.isfinite(value), "a sample without labels makes the loss infinite or NaN"
            assert bool(gradient.isfinite().all()), "... and the gradient not finite"
            assert not bool(gradient[1].any()), "a sample without labels has a gradient"

    def test_inputs_stay_as_they_were(self) -> None:
        """Otherwise metrics and other losses read something else."""
        loss = self._new()
        tensors = self.draw(3)
        before = [x.clone() for x in tensors]
        reduce_loss(loss, *tensors)
        for name, was, now in zip(("prediction", "target", "mask"), before, tensors, strict=True):
            assert same(was, now), f"the {name} was edited in place"

    def test_gradient(self) -> None:
        """Otherwise the network does not go down the loss that is reported."""
        if not self.differentiable:
            return
        loss = self._new()
        prediction, target, valid = self.draw(2)

        def value(x: Tensor) -> Tensor:
            return reduce_loss(loss, x, target, valid)[0]

        assert torch.autograd.gradcheck(
            value, prediction.requires_grad_(), raise_exception=False
        ), "the gradient is not the derivative of the loss"

    def test_one_label_is_enough(self) -> None:
        """Otherwise a batch with few labels is 0 / 0, and its step is lost."""
        loss = self._new()
        prediction, target, valid = self.draw(2)
        for place in valid.flatten().nonzero().flatten().tolist():
            alone = torch.zeros_like(valid)
            alone.view(-1)[place] = True
            labels = mask_labels(self.task, target, alone, self.size)
            value, gradient = self._reduced(loss, prediction, labels, alone)
            assert math.isfinite(value), f"with one label the loss is {value}"
            assert bool(gradient.isfinite().all()), "with one label the gradient is not finite"

    def test_single_precision(self) -> None:
        """Otherwise training, which is in float32, fails or overflows."""
        loss = self.make(self.task)
        prediction, target, valid = self.draw(3)
        labels = target.float() if target.is_floating_point() else target
        for factor in (1.0, 1e-6, 100.0):
            leaf = (factor * prediction).float().requires_grad_()
            value, _ = reduce_loss(loss, leaf, labels, valid)
            value.backward()  # type: ignore[no-untyped-call]
            assert leaf.grad is not None and bool(leaf.grad.isfinite().all()), (
                f"not finite in float32 for predictions of about {factor}"
            )
            exact, _ = self._reduced(self._new(), factor * prediction, target, valid)
            assert math.isclose(float(value.detach()), exact, rel_tol=1e-4), (
                f"{float(value.detach())} in float32, {exact} in float64"
            )

    def test_its_groups_are_of_its_own_parameters(self) -> None:
        """Otherwise a learning rate is set for what belongs to others, or for nothing."""
        check_groups(self._new())

    def test_state_comes_back(self) -> None:
        """Otherwise a resumed run, or one after a skipped step, goes on with another loss."""
        loss = self._new()
        for seed in (1, 2):
            reduce_loss(loss, *self.draw(3, seed))
        state = through_checkpoint({"loss": dict(loss.state_dict())})["loss"]
        restored = self._new()
        restored.load_state_dict(state)
        one, other = (self._reduced(x, *self.draw(3))[0] for x in (loss, restored))
        assert same(one, other), (
            f"restored from its state, the loss is {other} instead of {one}: keep what it learns "
            "in buffers"
        )

    def test_order_of_samples_does_not_matter(self) -> None:
        """Otherwise shuffling changes what is learnt from a batch."""
        loss = self._new()
        prediction, target, valid = self.draw(4)
        order = torch.tensor([2, 0, 3, 1])
        value, gradient = self._reduced(loss, prediction, target, valid)
        other, moved = self._reduced(loss, prediction[order], target[order], valid[order])
        assert math.isclose(value, other, rel_tol=1e-9), "another order, another loss"
        assert close(gradient[order], moved, 1e-9), "another order, another gradient"

    def _new(self) -> Loss | ScalarLoss:
        torch.manual_seed(0)
        return self.make(self.task).double()

    def _reduced(
        self,
        loss: Loss | ScalarLoss,
        prediction: Tensor,
        target: Tensor,
        valid: Tensor,
        normalisation: Normalisation = "valid",
    ) -> tuple[float, Tensor]:
        """Return the scalar and its gradient at the prediction."""
        leaf = prediction.clone().requires_grad_()
        value, _ = reduce_loss(loss, leaf, target, valid, normalisation)
        (gradient,) = torch.autograd.grad(value, leaf)
        return float(value.detach()), gradient


class LossContract(_TaskLossContract):
    """Subclass it, set `task`, write `make`, and pytest checks the elementwise loss."""

    def make(self, task: Task) -> Loss:
        """Return the loss."""
        raise NotImplementedError

    def test_map_is_shaped_like_the_mask(self) -> None:
        """Otherwise multiplying it with the mask broadcasts, and the mean is of other things."""
        loss = self._elementwise()
        prediction, target, valid = self.draw(3)
        result = loss.elementwise(prediction, target)
        for part in result if isinstance(result, tuple) else (result,):
            assert part.shape == valid.shape, (
                f"a map of shape {tuple(part.shape)} for a mask of {tuple(valid.shape)}"
            )

    def test_samples_do_not_see_one_another(self) -> None:
        """Otherwise a label counts differently in another batch."""
        loss = self._elementwise()
        prediction, target, _ = self.draw(3)
        whole = loss.elementwise(prediction, target)
        for i in range(3):
            alone = loss.elementwise(prediction[i : i + 1], target[i : i + 1])
            for one, all_ in zip(
                alone if isinstance(alone, tuple) else (alone,),
                whole if isinstance(whole, tuple) else (whole,),
                strict=True,
            ):
                assert close(one[0], all_[i], 1e-9), "a sample's map depends on its batch"

    def _elementwise(self) -> Loss:
        loss = self._new()
        assert isinstance(loss, Loss), f"{type(loss).__name__} is no Loss"
        return loss


class ScalarLossContract(_TaskLossContract):
    """Subclass it, set `task`, write `make`, and pytest checks the loss of whole batches."""

    def make(self, task: Task) -> ScalarLoss:
        """Return the loss."""
        raise NotImplementedError

    def test_is_a_scalar(self) -> None:
        """Otherwise it cannot be balanced against the other tasks' losses."""
        loss = self._new()
        assert isinstance(loss, ScalarLoss), f"{type(loss).__name__} is no ScalarLoss"
        value = loss(*self.draw(3))
        assert value.shape == (), f"a tensor of shape {tuple(value.shape)}"
        assert bool(value.isfinite()), "not finite"
