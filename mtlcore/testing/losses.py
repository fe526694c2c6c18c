"""What holds for every loss: per element, of a whole batch, between tasks."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtlcore.data import Batch
from mtlcore.losses import CrossTaskLoss, Loss, Normalisation, ScalarLoss, reduce_loss
from mtlcore.models import FeatureInfo, Features
from mtlcore.tasks import Task
from mtlcore.testing.base import (
    close,
    draw_labels,
    mask_labels,
    prediction_shape,
    same,
    scramble,
    some_maps,
    spread,
    through_checkpoint,
)
from mtlcore.testing.tiny import TINY_TASKS, tiny_batch

_NORMALISATIONS: tuple[Normalisation, ...] = ("valid", "sample")


class _TaskLossContract:
    """What the losses of one task have in common.

    Attributes:
        task: that the loss serves.
        size: of a map.
        differentiable: whether its gradient is that of its value (checked in float64).
    """

    task: Task
    size: tuple[int, int] = (4, 5)
    differentiable: bool = True

    def make(self, task: Task) -> Loss | ScalarLoss:
        """The loss."""
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
        """The scalar and its gradient at the prediction."""
        leaf = prediction.clone().requires_grad_()
        value, _ = reduce_loss(loss, leaf, target, valid, normalisation)
        (gradient,) = torch.autograd.grad(value, leaf)
        return float(value.detach()), gradient


class LossContract(_TaskLossContract):
    """Subclass it, set `task`, write `make`, and pytest checks the elementwise loss."""

    def make(self, task: Task) -> Loss:
        """The loss."""
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
        """The loss."""
        raise NotImplementedError

    def test_is_a_scalar(self) -> None:
        """Otherwise it cannot be balanced against the other tasks' losses."""
        loss = self._new()
        assert isinstance(loss, ScalarLoss), f"{type(loss).__name__} is no ScalarLoss"
        value = loss(*self.draw(3))
        assert value.shape == (), f"a tensor of shape {tuple(value.shape)}"
        assert bool(value.isfinite()), "not finite"


class CrossTaskLossContract:
    """Subclass it, write `make`, and pytest checks the loss between tasks.

    Attributes:
        tasks: of the run.
        features: what the backbone announces.
        size: of the input; a multiple of all its strides.
        views: number of the view of each sample of the batch; as many as the loss asks for.
    """

    tasks: tuple[Task, ...] = TINY_TASKS
    features: FeatureInfo = FeatureInfo((6, 5), (2, 2))
    size: tuple[int, int] = (8, 12)
    views: tuple[int, ...] = (0, 0, 0, 0)

    def make(self, tasks: Sequence[Task], features: FeatureInfo) -> CrossTaskLoss:
        """The loss."""
        raise NotImplementedError

    def batch(self, absent: Sequence[str] = ()) -> Batch:
        """A batch in which some tasks have no label."""
        return tiny_batch(
            len(self.views), tasks=self.tasks, size=self.size, absent=absent, views=self.views
        )

    def test_needs_names_tasks_of_the_step(self) -> None:
        """Otherwise a head is asked for that does not exist or has stopped learning."""
        loss = self._new()
        for absent in ((), self._names()[:1], self._names()):
            for asked in (self._names(), self._names()[1:], []):
                needed = list(loss.needs(self.batch(absent), asked))
                assert set(needed) <= set(asked), f"needs {needed} of the tasks {asked}"

    def test_terms_are_finite_scalars(self) -> None:
        """Otherwise every step is skipped, with whatever labels are missing."""
        loss = self._new()
        for absent in ((), self._names()[:1], self._names()[1:], self._names()):
            batch = self.batch(absent)
            features, predictions = self._forward(loss, batch)
            terms = loss(batch, features, predictions)
            for name, term in terms.items():
                assert term.shape == (), f"{name} has shape {tuple(term.shape)}"
                assert bool(term.isfinite()), f"{name} is not finite without labels of {absent}"
            if not terms:
                continue
            leaves = [*predictions.values(), *features.shared, *loss.parameters()]
            leaves += [x for maps in features.per_task.values() for x in maps]
            total = torch.stack([*terms.values()]).sum()
            gradients = torch.autograd.grad(total, leaves, allow_unused=True)
            found = [g for g in gradients if g is not None]
            assert found, f"nothing learns from {', '.join(terms)}"
            assert all(bool(g.isfinite().all()) for g in found), "a gradient is not finite"

    def test_runs_with_the_tasks_that_still_learn(self) -> None:
        """Otherwise the run stops where a task stopped early, or is not among those of a step."""
        loss = self._new()
        batch = self.batch()
        for asked in (self._names()[1:], self._names()[:1], []):
            features, predictions = self._forward(loss, batch, asked)
            for name, term in loss(batch, features, predictions).items():
                assert bool(term.isfinite()), f"{name} is not finite for the tasks {asked}"

    def test_applies_to_the_whole_batch(self) -> None:
        """Otherwise the loss is without effect where every task has its labels."""
        loss = self._new()
        batch = self.batch()
        assert loss(batch, *self._forward(loss, batch)), "no term, although nothing is missing"

    def test_asks_for_the_views_that_it_reads(self) -> None:
        """Otherwise the loader makes too few of them, or some for nothing."""
        asked, given = self._new().views, max(self.views) + 1
        assert asked == given, f"it asks for {asked} views; the batch of this test has {given}"

    def test_everything_of_it_learns(self) -> None:
        """Otherwise a part of it stays as it was drawn."""
        loss = self._new()
        batch = self.batch()
        terms = loss(batch, *self._forward(loss, batch))
        named = dict(loss.named_parameters())
        if not named:
            return
        total = torch.stack([*terms.values()]).sum()
        gradients = torch.autograd.grad(total, [*named.values()], allow_unused=True)
        for name, gradient in zip(named, gradients, strict=True):
            assert gradient is not None, f"{name} has no gradient, although nothing is missing"

    def test_its_groups_are_of_its_own_parameters(self) -> None:
        """Otherwise a learning rate is set for what belongs to others, or set twice."""
        loss = self._new()
        own = {id(parameter) for parameter in loss.parameters()}
        groups: list[dict[str, Any]] = getattr(loss, "parameter_groups", list)()
        grouped = [id(parameter) for group in groups for parameter in group["params"]]
        assert len(grouped) == len(set(grouped)), "a parameter is in two groups"
        assert set(grouped) <= own, "a group holds a parameter that is not the loss's own"

    def test_state_comes_back(self) -> None:
        """Otherwise a resumed run goes on with another loss."""
        loss = self._new()
        batch = self.batch()
        state = self._forward(loss, batch)
        scramble(loss.parameters())
        loss(batch, *state)
        restored = self._new()
        restored.load_state_dict(through_checkpoint({"loss": dict(loss.state_dict())})["loss"])
        terms = []
        for one in (loss, restored):
            torch.manual_seed(1)
            terms.append(one(batch, *state))
        assert same(*terms), "restored from its state, the loss gives other terms"

    def test_missing_labels_leave_no_trace(self) -> None:
        """Otherwise the network learns from the values that stand in for missing labels."""
        loss = self._new()
        batch = self.batch(self._names()[:1])
        other = copy.deepcopy(batch)
        for task in self.tasks:
            changed = draw_labels(
                task, len(batch), self.size, torch.Generator().manual_seed(9), masked=0
            )[0]
            target = batch.targets[task.name]
            mask = spread(batch.valid[task.name], target)
            other.targets[task.name] = torch.where(mask, target, changed)
        state = self._forward(loss, batch)
        torch.manual_seed(1)
        first = loss(batch, *state)
        torch.manual_seed(1)
        second = loss(other, *state)
        assert same(first, second), "labels that are not valid change a term"

    def test_inputs_stay_as_they_were(self) -> None:
        """Otherwise the supervised losses read something else."""
        loss = self._new()
        batch = self.batch()
        features, predictions = self._forward(loss, batch)
        everything = (batch.inputs, batch.targets, batch.valid, features.shared,
                      dict(features.per_task), predictions)  # fmt: skip
        before = copy.deepcopy(everything)
        loss(batch, features, predictions)
        assert same(everything, before), "the batch, a map or a prediction was edited in place"

    def _names(self) -> list[str]:
        return [task.name for task in self.tasks]

    def _new(self) -> CrossTaskLoss:
        torch.manual_seed(0)
        return self.make(self.tasks, self.features).train()

    def _forward(
        self, loss: CrossTaskLoss, batch: Batch, asked: Sequence[str] | None = None
    ) -> tuple[Features, dict[str, Tensor]]:
        """Random features, and the predictions that the loss says it needs."""
        torch.manual_seed(0)
        info = self.features
        shared = some_maps(info.channels, info.strides, len(batch), self.size)
        needed = set(loss.needs(batch, self._names() if asked is None else asked))
        predictions = {
            task.name: torch.randn(prediction_shape(task, len(batch), self.size))
            for task in self.tasks
            if task.name in needed
        }
        for leaf in (*shared, *predictions.values()):
            leaf.requires_grad_()
        return Features(shared=shared, cut=shared), predictions
