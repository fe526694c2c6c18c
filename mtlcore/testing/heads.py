"""What holds for every head."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from mtlcore.balancing import BalancerContext
from mtlcore.features import FeatureInfo
from mtlcore.models import Head
from mtlcore.tasks import Task
from mtlcore.testing.base import (
    changes,
    check_groups,
    close,
    gradients_of,
    prediction_shape,
    same,
    some_maps,
    state_of,
    through_checkpoint,
)
from mtlcore.testing.tiny import TINY_TASKS

_MARK = 7.25
_MANY = 24  # values, whose deviation is about that of the distribution


class HeadContract:
    """Subclass it, write `make`, and pytest checks the head.

    Attributes:
        task: that it predicts.
        features: announcements of backbones that it can read.
        size: of the input; a multiple of all their strides.
        unreached: beginnings of the names of parameters that the loss does not reach. Those that do
            not require gradients need not be listed, and need not be drawn anew.
    """

    task: Task = TINY_TASKS[0]
    features: tuple[FeatureInfo, ...] = (FeatureInfo((6,), (4,)), FeatureInfo((7, 6), (8, 1)))
    size: tuple[int, int] = (16, 24)
    unreached: tuple[str, ...] = ()

    def make(self, task: Task, features: FeatureInfo) -> Head:
        """Return the head."""
        raise NotImplementedError

    def test_shape(self) -> None:
        """Otherwise predictions and labels cannot be compared."""
        for features in self.features:
            for dtype in (torch.float32, torch.float64):
                head = self._new(features).to(dtype)
                prediction = head([x.to(dtype) for x in self._maps(features)])
                expected = prediction_shape(self.task, 2, self.size)
                assert tuple(prediction.shape) == expected, (
                    f"prediction {tuple(prediction.shape)}, expected {expected} from {features}"
                )
                assert prediction.dtype == dtype, f"{dtype} in, {prediction.dtype} out"
                assert bool(prediction.isfinite().all()), f"not finite in {dtype}"

    def test_reset_draws_every_parameter_anew(self) -> None:
        """Otherwise a head that starts anew still knows what it learnt before."""
        for features in self.features:
            head = self._new(features)
            with torch.no_grad():
                for parameter in _learning(head).values():
                    parameter.fill_(_MARK)
            head.reset_parameters()
            kept = [n for n, p in _learning(head).items() if bool((p == _MARK).any())]
            assert not kept, f"reset_parameters leaves {kept} as they were"

    def test_reset_is_starting_anew(self) -> None:
        """Otherwise a head that starts anew learns worse than a new one, or remembers itself."""
        for features in self.features:
            head = self._new(features)
            fresh = {name: p.detach().clone() for name, p in head.named_parameters()}
            drawn = [name for name, p in fresh.items() if bool((p != p.flatten()[0]).any())]
            before = {name: b.clone() for name, b in head.named_buffers()}
            with torch.no_grad():
                for parameter in _learning(head).values():
                    parameter.fill_(_MARK)
            head.reset_parameters()
            first = {name: p.detach().clone() for name, p in head.named_parameters()}
            head([10 * x for x in self._maps(features)])
            head.reset_parameters()
            for name, parameter in _learning(head).items():
                if name not in drawn:
                    assert same(parameter.detach(), fresh[name]), (
                        f"reset_parameters gives {name} other values than a new head has"
                    )
                    continue
                assert not same(parameter.detach(), first[name]), (
                    f"reset_parameters gives {name} the same values each time"
                )
                if parameter.numel() >= _MANY:
                    size, usual = (float(x.detach().std()) for x in (parameter, fresh[name]))
                    assert usual / 2 < size < 2 * usual, (
                        f"reset_parameters draws {name} with a deviation of {size}, a new head's "
                        f"is {usual}"
                    )
            moved = changes(before, dict(head.named_buffers()))
            assert not moved, f"reset_parameters leaves {moved} as they were"

    def test_the_features_are_reached(self) -> None:
        """Otherwise the backbone learns nothing from the task."""
        for features in self.features:
            head = self._new(features)
            maps = [x.requires_grad_() for x in self._maps(features)]
            gradients = torch.autograd.grad(head(maps).square().sum(), maps, allow_unused=True)
            assert any(g is not None and bool(g.any()) for g in gradients), (
                "the prediction does not depend on the features in a way that can be learnt from"
            )

    def test_samples_do_not_see_one_another_in_evaluation(self) -> None:
        """Otherwise metrics depend on how the validation split is cut into batches."""
        for features in self.features:
            head = self._used(features)
            maps = self._maps(features)
            with torch.no_grad():
                together = head(maps)
                apart = torch.cat([head([x[i : i + 1] for x in maps]) for i in range(2)])
            assert close(together, apart, 1e-4), "a sample's prediction depends on its batch"

    def test_its_groups_are_of_its_own_parameters(self) -> None:
        """Otherwise a learning rate is set for what belongs to others, or for nothing."""
        check_groups(self._new(self.features[0]))

    def test_state_comes_back(self) -> None:
        """Otherwise a resumed run goes on with another head."""
        for features in self.features:
            head = self._used(features)
            head.after_step(BalancerContext(tasks=(self.task.name,)))
            state = through_checkpoint({"head": dict(head.state_dict())})["head"]
            torch.manual_seed(5)
            restored = self.make(self.task, features).eval()
            restored.load_state_dict(state)
            maps = self._maps(features)
            with torch.no_grad():
                assert same(head(maps), restored(maps)), (
                    "a head restored from its state predicts something else"
                )

    def test_a_forward_pass_changes_buffers_only(self) -> None:
        """Otherwise a step that is skipped leaves its trace: the core restores buffers alone."""
        for features in self.features:
            for training in (True, False):
                head = self._new(features).train(training)
                before = state_of(head)
                head(self._maps(features))
                allowed = {name for name, _ in head.named_buffers()} if training else set()
                moved = sorted(set(changes(before, state_of(head))) - allowed)
                mode = "training" if training else "evaluation"
                assert not moved, f"a forward pass in {mode} changes {moved}"

    def test_the_features_stay_as_they_were(self) -> None:
        """Otherwise the next task's head reads something else."""
        for features in self.features:
            head, maps = self._new(features), self._maps(features)
            before = [x.clone() for x in maps]
            head(maps)
            assert same(list(maps), before), "a map was edited in place"

    def test_every_parameter_is_reached(self) -> None:
        """Otherwise parts of the head never learn; list in `unreached` what is meant so."""
        for features in self.features:
            head = self._new(features)
            named = _learning(head)
            loss = head(self._maps(features)).square().sum()
            gradients = gradients_of(loss, list(named.values()))
            lost = [
                name
                for name, gradient in zip(named, gradients, strict=True)
                if gradient is None and not name.startswith(self.unreached)
            ]
            assert not lost, f"the loss does not reach {lost}"

    def _new(self, features: FeatureInfo) -> Head:
        torch.manual_seed(0)
        return self.make(self.task, features).train()

    def _used(self, features: FeatureInfo) -> Head:
        """In evaluation mode, its running statistics those of a few batches."""
        head = self._new(features)
        with torch.no_grad():
            for _ in range(2):
                head(self._maps(features))
        return head.eval()

    def _maps(self, features: FeatureInfo) -> tuple[Tensor, ...]:
        return some_maps(features.channels, features.strides, 2, self.size)


def _learning(head: Head) -> dict[str, Parameter]:
    return {name: p for name, p in head.named_parameters() if p.requires_grad}
