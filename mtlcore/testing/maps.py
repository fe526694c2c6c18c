"""What holds for everything that reads the maps of a backbone: heads and necks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.features import FeatureInfo
from mtlcore.testing.base import (
    changes,
    check_groups,
    close,
    gradients_of,
    same,
    some_maps,
    state_of,
    through_checkpoint,
)

_MARK = 7.25
_MANY = 24  # values, whose deviation is about that of the distribution


class ReaderContract:
    """The common part of `HeadContract` and `NeckContract`.

    Attributes:
        features: announcements of backbones that it can read.
        size: of the input; a multiple of all their strides.
        unreached: beginnings of the names of parameters that the loss does not reach. Those that do
            not require gradients need not be listed, and need not be drawn anew.
    """

    features: tuple[FeatureInfo, ...] = (FeatureInfo((6,), (4,)), FeatureInfo((7, 6), (8, 1)))
    size: tuple[int, ...] = (16, 24)
    unreached: tuple[str, ...] = ()
    _what = "module"

    def test_reset_draws_every_parameter_anew(self) -> None:
        """Otherwise what starts anew still knows what it learnt before."""
        for features in self.features:
            module = self._new(features)
            with torch.no_grad():
                for parameter in _learning(module).values():
                    parameter.fill_(_MARK)
            module.reset_parameters()
            kept = [n for n, p in _learning(module).items() if bool((p == _MARK).any())]
            assert not kept, f"reset_parameters leaves {kept} as they were"

    def test_reset_is_starting_anew(self) -> None:
        """Otherwise what starts anew learns worse than what is new, or remembers itself."""
        for features in self.features:
            module = self._new(features)
            fresh = {name: p.detach().clone() for name, p in module.named_parameters()}
            torch.manual_seed(1)
            others = dict(self._made(features).named_parameters())
            drawn = [name for name, p in fresh.items() if not same(p, others[name].detach())]
            before = {name: b.clone() for name, b in module.named_buffers()}
            with torch.no_grad():
                for parameter in _learning(module).values():
                    parameter.fill_(_MARK)
            module.reset_parameters()
            first = {name: p.detach().clone() for name, p in module.named_parameters()}
            module([10 * x for x in self._maps(features)])
            module.reset_parameters()
            for name, parameter in _learning(module).items():
                if name not in drawn:
                    assert same(parameter.detach(), fresh[name]), (
                        f"reset_parameters gives {name} other values than a new {self._what} has"
                    )
                    continue
                assert not same(parameter.detach(), first[name]), (
                    f"reset_parameters gives {name} the same values each time"
                )
                if parameter.numel() >= _MANY:
                    size, usual = (float(x.detach().std()) for x in (parameter, fresh[name]))
                    assert usual / 2 < size < 2 * usual, (
                        f"reset_parameters draws {name} with a deviation of {size}, a new "
                        f"{self._what}'s is {usual}"
                    )
            moved = changes(before, dict(module.named_buffers()))
            assert not moved, f"reset_parameters leaves {moved} as they were"

    def test_the_features_are_reached(self) -> None:
        """Otherwise the backbone learns nothing from the task."""
        for features in self.features:
            module = self._new(features)
            maps = [x.requires_grad_() for x in self._maps(features)]
            loss = self._computed(module, maps).square().sum()
            gradients = torch.autograd.grad(loss, maps, allow_unused=True)
            assert any(g is not None and bool(g.any()) for g in gradients), (
                "the prediction does not depend on the features in a way that can be learnt from"
            )

    def test_samples_do_not_see_one_another_in_evaluation(self) -> None:
        """Otherwise metrics depend on how the validation split is cut into batches."""
        for features in self.features:
            module = self._used(features)
            maps = self._maps(features)
            with torch.no_grad():
                together = self._computed(module, maps)
                single = [[x[i : i + 1] for x in maps] for i in range(2)]
                apart = torch.cat([self._computed(module, one) for one in single])
            assert close(together, apart, 1e-4), "a sample's prediction depends on its batch"

    def test_its_groups_are_of_its_own_parameters(self) -> None:
        """Otherwise a learning rate is set for what belongs to others, or for nothing."""
        check_groups(self._new(self.features[0]))

    def test_state_comes_back(self) -> None:
        """Otherwise a resumed run goes on with another network."""
        for features in self.features:
            module = self._used(features)
            self._after_step(module)
            state = through_checkpoint({"module": dict(module.state_dict())})["module"]
            torch.manual_seed(5)
            restored = self._made(features).eval()
            restored.load_state_dict(state)
            maps = self._maps(features)
            with torch.no_grad():
                assert same(self._computed(module, maps), self._computed(restored, maps)), (
                    f"a {self._what} restored from its state predicts something else"
                )

    def test_a_forward_pass_changes_buffers_only(self) -> None:
        """Otherwise a step that is skipped leaves its trace: the core restores buffers alone."""
        for features in self.features:
            for training in (True, False):
                module = self._new(features).train(training)
                before = state_of(module)
                module(self._maps(features))
                allowed = {name for name, _ in module.named_buffers()} if training else set()
                moved = sorted(set(changes(before, state_of(module))) - allowed)
                mode = "training" if training else "evaluation"
                assert not moved, f"a forward pass in {mode} changes {moved}"

    def test_the_features_stay_as_they_were(self) -> None:
        """Otherwise who reads the maps next reads something else."""
        for features in self.features:
            module, maps = self._new(features), self._maps(features)
            before = [x.clone() for x in maps]
            self._computed(module, maps)
            assert same(list(maps), before), "a map was edited in place"

    def test_every_parameter_is_reached(self) -> None:
        """Otherwise parts of it never learn; list in `unreached` what is meant so."""
        for features in self.features:
            module = self._new(features)
            named = _learning(module)
            loss = self._computed(module, self._maps(features)).square().sum()
            gradients = gradients_of(loss, list(named.values()))
            lost = [
                name
                for name, gradient in zip(named, gradients, strict=True)
                if gradient is None and not name.startswith(self.unreached)
            ]
            assert not lost, f"the loss does not reach {lost}"

    def _made(self, features: FeatureInfo) -> Any:
        raise NotImplementedError

    def _computed(self, module: Any, maps: Sequence[Tensor]) -> Tensor:
        """Return all that it computes, as one tensor with a row per sample."""
        raise NotImplementedError

    def _after_step(self, module: Any) -> None:
        """Let it know of a step, if it may."""

    def _new(self, features: FeatureInfo) -> Any:
        torch.manual_seed(0)
        return self._made(features).train()

    def _used(self, features: FeatureInfo) -> Any:
        """In evaluation mode, its running statistics those of a few batches."""
        module = self._new(features)
        with torch.no_grad():
            for _ in range(2):
                module(self._maps(features))
        return module.eval()

    def _maps(self, features: FeatureInfo) -> tuple[Tensor, ...]:
        return some_maps(features.channels, features.strides, 2, self.size)


def _learning(module: nn.Module) -> dict[str, Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
