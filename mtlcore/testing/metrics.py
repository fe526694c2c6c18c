"""What holds for every metric."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlcore.metrics import Metric
from mtlcore.tasks import Task
from mtlcore.testing.base import draw_labels, mask_labels, prediction_shape, same, spread

_SAMPLES = 7
Drawn = tuple[Tensor, Tensor, Tensor]


class MetricContract:
    """Subclass it, set `task`, write `make`, and pytest checks the metric.

    Attributes:
        task: that it judges.
        size: of a map, (height, width), or of a sequence, (length,).
        tolerance: relative, for sums in another order.
    """

    task: Task
    size: tuple[int, ...] = (4, 6)
    tolerance: float = 1e-6

    def make(self, task: Task) -> Metric:
        """Return a new metric."""
        raise NotImplementedError

    def draw(self, batch: int, seed: int = 0) -> Drawn:
        """Return raw predictions, labels (safe where not valid) and masks."""
        generator = torch.Generator().manual_seed(seed)
        shape = prediction_shape(self.task, batch, self.size)
        prediction = torch.randn(shape, generator=generator)
        return prediction, *draw_labels(self.task, batch, self.size, generator)

    def test_every_value_says_whether_higher_is_better(self) -> None:
        """Otherwise a report colours a value the wrong way round, or leaves it out."""
        metric = self.make(self.task)
        metric.update(*self.draw(_SAMPLES))
        values = metric.compute()
        assert list(values) == list(metric.higher_is_better), (
            f"compute gives {list(values)}, higher_is_better has {list(metric.higher_is_better)}"
        )
        for name, value in values.items():
            assert isinstance(value, float), f"{name} is a {type(value).__name__}, not a float"
            assert math.isfinite(value), f"{name} is {value} on ordinary data"

    def test_batches_do_not_matter(self) -> None:
        """Otherwise values change with the batch size: they are means of batch means."""
        drawn = self.draw(_SAMPLES)
        expected = self._values([drawn])
        for lengths in ([1] * _SAMPLES, [3, 4], [6, 1]):
            parts = self._split(drawn, lengths)
            self._compare(self._values(parts), expected, f"batches of {lengths}")

    def test_order_does_not_matter(self) -> None:
        """Otherwise values depend on how a split is listed."""
        drawn = self.draw(_SAMPLES)
        parts = self._split(drawn, [2, 4, 1])
        self._compare(self._values(parts[::-1]), self._values(parts), "another order")

    def test_merging_is_seeing_everything(self) -> None:
        """Otherwise several processes report other values than one."""
        drawn = self.draw(_SAMPLES)
        first, second = self._split(drawn, [3, 4])
        one, other, nothing = self._fed([first]), self._fed([second]), self._fed([])
        before = other.compute()
        one.merge(other)
        one.merge(nothing)
        self._compare(one.compute(), self._values([drawn]), "merging")
        self._compare(other.compute(), before, "being merged")
        nothing.merge(one)
        self._compare(nothing.compute(), self._values([drawn]), "merging into an empty one")

    def test_computing_changes_nothing(self) -> None:
        """Otherwise looking at values half-way spoils those at the end."""
        first, second = self._split(self.draw(_SAMPLES), [3, 4])
        metric = self._fed([first])
        metric.compute()
        metric.update(*second)
        metric.compute()
        self._compare(metric.compute(), self._values([first, second]), "computing before")

    def test_reset_forgets_everything(self) -> None:
        """Otherwise an evaluation contains the one before."""
        metric = self._fed([self.draw(_SAMPLES, seed=1)])
        metric.reset()
        drawn = self.draw(_SAMPLES)
        metric.update(*drawn)
        self._compare(metric.compute(), self._values([drawn]), "what was seen before a reset")

    def test_nothing_valid_is_nan(self) -> None:
        """Otherwise a split without labels gets a value, perhaps a perfect one."""
        prediction, target, valid = self.draw(2)
        nothing = torch.zeros_like(valid)
        unlabelled = mask_labels(self.task, target, nothing, self.size)
        after_reset = self._fed([(prediction, target, valid)])
        after_reset.reset()
        for metric in (self._fed([]), self._fed([(prediction, unlabelled, nothing)]), after_reset):
            for name, value in metric.compute().items():
                assert math.isnan(value), f"{name} is {value} where nothing valid was seen"

    def test_masked_elements_leave_no_trace(self) -> None:
        """Otherwise a model is judged where there is no label."""
        prediction, target, valid = self.draw(_SAMPLES)
        elsewhere = torch.where(spread(valid, prediction), prediction, 3 - 2 * prediction)
        self._compare(
            self._values([(elsewhere, target, valid)]),
            self._values([(prediction, target, valid)]),
            "a prediction where nothing is valid",
        )

    def test_inputs_stay_as_they_were(self) -> None:
        """Otherwise what is computed after the metric reads something else."""
        tensors = self.draw(2)
        before = [x.clone() for x in tensors]
        self._fed([tensors])
        assert same(list(tensors), before), "the prediction, target or mask was edited in place"

    def _fed(self, parts: list[Drawn]) -> Metric:
        metric = self.make(self.task)
        for part in parts:
            metric.update(*part)
        return metric

    def _values(self, parts: list[Drawn]) -> dict[str, float]:
        return self._fed(parts).compute()

    def _compare(self, computed: dict[str, float], expected: dict[str, float], what: str) -> None:
        for name, value in expected.items():
            assert math.isclose(computed[name], value, rel_tol=self.tolerance, abs_tol=1e-12), (
                f"{what} changes {name} from {value} to {computed[name]}"
            )

    @staticmethod
    def _split(drawn: Drawn, lengths: list[int]) -> list[Drawn]:
        prediction, target, valid = (torch.split(x, lengths) for x in drawn)
        return list(zip(prediction, target, valid, strict=True))
