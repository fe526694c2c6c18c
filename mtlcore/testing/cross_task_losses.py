"""The contract of losses between tasks."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlcore.balancing import BalancerContext
from mtlcore.data import Batch
from mtlcore.features import FeatureInfo, Features
from mtlcore.losses import CrossTaskLoss, Normalisation
from mtlcore.tasks import Task
from mtlcore.teachers import Teacher
from mtlcore.testing.base import (
    check_groups,
    draw_labels,
    gradients_of,
    prediction_shape,
    same,
    scramble,
    some_maps,
    spread,
    state_of,
    through_checkpoint,
)
from mtlcore.testing.tiny import TINY_TASKS, tiny_batch, tiny_learner

_NORMALISATIONS: tuple[Normalisation, ...] = ("valid", "sample")


class CrossTaskLossContract:
    """Subclass it, write `make`, and pytest checks the cross-task loss.

    A loss that names teachers in `needs_teachers` gets tiny ones that know all tasks; one that
    `needs_losses` gets those of predictions that depend on the features.

    Attributes:
        tasks: of the run.
        features: channels and strides of the backbone's maps.
        size: height and width of the input, multiples of all strides.
        views: for each sample of the batch the number of its view; as many views as the loss asks
            for.
    """

    tasks: tuple[Task, ...] = TINY_TASKS
    features: FeatureInfo = FeatureInfo((6, 5), (2, 2))
    size: tuple[int, int] = (8, 12)
    views: tuple[int, ...] = (0, 0, 0, 0)

    def make(self, tasks: Sequence[Task], features: FeatureInfo) -> CrossTaskLoss:
        """Return the loss."""
        raise NotImplementedError

    def batch(self, absent: Sequence[str] = ()) -> Batch:
        """Return a batch in which some tasks have no label."""
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
            gradients = gradients_of(total, leaves)
            reached = [g for g in gradients if g is not None]
            assert reached, f"nothing learns from {', '.join(terms)}"
            assert all(bool(g.isfinite().all()) for g in reached), "a gradient is not finite"

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
        named = {name: p for name, p in loss.named_parameters() if p.requires_grad}
        if not named:
            return
        total = torch.stack([*terms.values()]).sum()
        gradients = gradients_of(total, [*named.values()])
        for name, gradient in zip(named, gradients, strict=True):
            assert gradient is not None, f"{name} has no gradient, although nothing is missing"

    def test_its_groups_are_of_its_own_parameters(self) -> None:
        """Otherwise a learning rate is set for what belongs to others, or for nothing."""
        check_groups(self._new())

    def test_state_comes_back(self) -> None:
        """Otherwise a resumed run goes on with another loss."""
        loss = self._new()
        batch = self.batch()
        state = self._forward(loss, batch)
        scramble(loss.parameters())
        loss(batch, *state)
        loss.after_step(BalancerContext(tasks=tuple(self._names())))
        restored = self._new()
        restored.load_state_dict(through_checkpoint({"loss": dict(loss.state_dict())})["loss"])
        restored.losses = loss.losses
        terms = []
        for one in (loss, restored):
            torch.manual_seed(1)
            terms.append(one(batch, *state))
        assert same(*terms), "restored from its state, the loss gives other terms"

    def test_teachers_are_none_of_its_own(self) -> None:
        """Otherwise a frozen model is in checkpoints, counted as parameters, or trained."""
        loss = self._new()
        asked = loss.needs_teachers
        if not asked:
            return
        batch = self.batch()
        models = [tiny_learner(tasks=self.tasks, seed=n).model for n in range(len(asked))]
        loss.teachers = dict(zip(asked, map(Teacher, models), strict=True))
        before = [state_of(model) for model in models]
        terms = loss(batch, *self._forward(loss, batch))
        if terms:
            torch.stack([*terms.values()]).sum().backward()  # type: ignore[no-untyped-call]
        assert same(before, [state_of(model) for model in models]), "a teacher changed"
        theirs = {id(p) for model in models for p in model.parameters()}
        own = [name for name, p in loss.named_parameters() if id(p) in theirs]
        assert not own, f"{own} are parameters of a teacher"

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
        # Detached ones share their values, and can be copied where a prediction is computed.
        seen = {task: x.detach() for task, x in predictions.items()}
        everything = (batch.inputs, batch.targets, batch.valid, features.shared,
                      dict(features.per_task), seen)  # fmt: skip
        before = copy.deepcopy(everything)
        loss(batch, features, predictions)
        assert same(everything, before), "the batch, a map or a prediction was edited in place"

    def _names(self) -> list[str]:
        return [task.name for task in self.tasks]

    def _new(self) -> CrossTaskLoss:
        torch.manual_seed(0)
        loss = self.make(self.tasks, self.features).train()
        loss.teachers = {
            name: Teacher(tiny_learner(tasks=self.tasks, seed=number).model)
            for number, name in enumerate(loss.needs_teachers)
        }
        return loss

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
        if loss.needs_losses:
            predictions = {task: self._read(shared, x) for task, x in predictions.items()}
            loss.losses = {
                task: (x.square() * spread(batch.valid[task], x)).sum() / batch.count[task]
                for task, x in predictions.items()
                if batch.count[task]
            }
        return Features(shared=shared, cut=shared), predictions

    def _read(self, maps: Sequence[Tensor], prediction: Tensor) -> Tensor:
        """Return a prediction of this shape that depends on the maps, as a head's does."""
        found = prediction.detach()
        for x in maps:
            read = x if x.dim() == 4 else x[:, :, None, None]
            weight = torch.randn(prediction.shape[1], x.shape[1], 1, 1)
            read = F.interpolate(F.conv2d(read, weight), self.size, mode="bilinear")
            found = found + (read if prediction.dim() == 4 else read.mean((2, 3)))
        return found
