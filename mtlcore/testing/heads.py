"""What holds for every head."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlcore.models import FeatureInfo, Head
from mtlcore.tasks import Task
from mtlcore.testing.base import prediction_shape, same, some_maps
from mtlcore.testing.tiny import TINY_TASKS

_MARK = 7.25


class HeadContract:
    """Subclass it, write `make`, and pytest checks the head.

    Attributes:
        task: that it predicts.
        features: announcements of backbones that it can read.
        size: of the input; a multiple of all their strides.
        unreached: beginnings of the names of parameters that the loss does not reach.
    """

    task: Task = TINY_TASKS[0]
    features: tuple[FeatureInfo, ...] = (FeatureInfo((6,), (4,)), FeatureInfo((7, 6), (8, 1)))
    size: tuple[int, int] = (16, 24)
    unreached: tuple[str, ...] = ()

    def make(self, task: Task, features: FeatureInfo) -> Head:
        """The head."""
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
                for parameter in head.parameters():
                    parameter.fill_(_MARK)
            head.reset_parameters()
            kept = [n for n, p in head.named_parameters() if bool((p == _MARK).any())]
            assert not kept, f"reset_parameters leaves {kept} as they were"

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
            head(self._maps(features)).square().sum().backward()
            lost = [
                name
                for name, p in head.named_parameters()
                if p.grad is None and not name.startswith(self.unreached)
            ]
            assert not lost, f"the loss does not reach {lost}"

    def _new(self, features: FeatureInfo) -> Head:
        torch.manual_seed(0)
        return self.make(self.task, features).train()

    def _maps(self, features: FeatureInfo) -> tuple[Tensor, ...]:
        return some_maps(features.channels, features.strides, 2, self.size)
