"""What holds for every head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlcore.balancing import BalancerContext
from mtlcore.features import FeatureInfo
from mtlcore.models import Head
from mtlcore.tasks import Task
from mtlcore.testing.base import prediction_shape
from mtlcore.testing.maps import ReaderContract
from mtlcore.testing.tiny import TINY_TASKS


class HeadContract(ReaderContract):
    """Subclass it, write `make`, and pytest checks the head.

    Attributes:
        task: that it predicts.
        features: announcements of backbones that it can read.
        size: of the input, (height, width) or, for sequences, (length,); a multiple of all their
            strides.
        unreached: beginnings of the names of parameters that the loss does not reach. Those that do
            not require gradients need not be listed, and need not be drawn anew.
    """

    task: Task = TINY_TASKS[0]
    _what = "head"

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

    def _made(self, features: FeatureInfo) -> Head:
        return self.make(self.task, features)

    def _computed(self, module: Head, maps: Sequence[Tensor]) -> Tensor:
        prediction: Tensor = module(maps)
        return prediction

    def _after_step(self, module: Head) -> None:
        module.after_step(BalancerContext(tasks=(self.task.name,)))
