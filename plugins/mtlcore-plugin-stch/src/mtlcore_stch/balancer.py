"""STCH as a balancer of losses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from torch import Tensor

from mtlcore.balancing import BalancerContext, LossBalancer, floats
from mtlcore.data import Batch
from mtlcore.errors import MtlError, UsageError
from mtlcore.ranges import Natural, Positive, Range
from mtlcore.tasks import Task, refuse_unknown_tasks

# Keeps logarithms of losses from minus infinity; the authors' value.
_SMALL = 1e-20


class STCH(LossBalancer):
    """Smooth Tchebycheff scalarization (Lin et al., ICML 2024, arXiv 2402.19078).

    A weighted maximum of the losses, made smooth by mu. Two forms are in print:

    * "log", of the authors' code for several tasks: the logarithms of the losses in units of their
      nadir, `K mu log sum_i exp(log(L_i / n_i) / mu)`, so that loss i weighs
      `K softmax_i(log(L / n) / mu) / L_i`. In the epochs before number `warmup` the sum of the
      logarithms is learnt from: loss i weighs 1 / L_i. So it is in epoch `warmup`, whose mean loss
      is n_i.
    * "plain", the paper's equation: `mu log sum_i exp(l_i (L_i - z_i) / mu)` with preferences l and
      references z; loss i weighs `l_i softmax_i(l (L - z) / mu)`.

    Weights are for trunk and heads alike. Those of "log" are on the scale of a sum of losses of
    about 1; those of "plain" sum to 1 / K at most with equal preferences. With mu = 1, the form
    "log" weighs by `1 / n_i`, up to a factor that all tasks have in common: only a smaller mu makes
    it a maximum.

    All is of the present tasks. A task that has no label in epoch `warmup` has its nadir from the
    first epoch after it that has one, and until that is over weighs 1 / L_i beside the maximum of
    the others. It reads the losses of tasks, so it stands first in a chain. What is reported as
    balanced losses is weight times loss.

    With "log", losses must not be negative. The result is not affine in the losses, so accumulated
    gradients differ from those of one large batch.

    Args:
        form: "log" or "plain".
        mu: how smooth the maximum is; towards 0 only the largest counts.
        warmup: with "log", number of epochs before the one whose mean losses are the nadir.
        preferences: with "plain", task name -> l, in parts of their sum over the present tasks; 1
            for others.
        references: with "plain", task name -> z, the least value that its loss can reach; 0 for
            others.

    Raises:
        UsageError: a preference or a reference is given with the form "log", which has none.
    """

    affine = False

    def __init__(
        self,
        *,
        form: Literal["log", "plain"] = "log",
        mu: Positive = 1.0,
        warmup: Natural = 4,
        preferences: dict[str, Positive] | None = None,
        references: dict[str, Annotated[float, Range()]] | None = None,
    ) -> None:
        super().__init__()
        self._named = {"preferences": dict(preferences or {}), "references": dict(references or {})}
        for setting, values in self._named.items():
            if values and form == "log":
                raise UsageError(
                    f"balancer.{setting}: the form 'log' has none; leave it out, or set "
                    "balancer.form = 'plain'"
                )
        self._form, self._mu, self._warmup = form, mu, warmup
        self.reset()

    def prepare(self, tasks: Sequence[Task], data: Iterable[Batch] | None = None) -> None:
        """Check the names of the tasks.

        Raises:
            UsageError: there is a preference or a reference for a task that the run does not have.
        """
        for setting, values in self._named.items():
            refuse_unknown_tasks(f"balancer.{setting}", values, tasks)

    def reset(self) -> None:
        # Per task the epoch whose mean loss is its nadir, the sum of its losses and their number.
        self._nadirs: dict[str, tuple[int, float, int]] = {}
        self._last: dict[str, float] = {}

    def transform(self, losses: dict[str, Tensor], context: BalancerContext) -> dict[str, Tensor]:
        """Weigh the losses.

        Raises:
            MtlError: with the form "log", a loss is negative; it has no logarithm.
        """
        weights = self._weights(floats(losses)[0], context.epoch)
        return {task: loss * weights[task] for task, loss in losses.items()}

    def after_step(self, context: BalancerContext) -> None:
        """Add the losses to the means of which the nadir is made."""
        self._last.update(self._weights(context.losses, context.epoch))
        if self._form == "plain" or context.epoch < self._warmup:
            return
        for task, loss in context.losses.items():
            epoch, total, number = self._nadirs.get(task, (context.epoch, 0.0, 0))
            if epoch == context.epoch:
                self._nadirs[task] = (epoch, total + loss, number + 1)

    def current_weights(self) -> dict[str, float]:
        """Return the weight of each task in the last step that had it."""
        return dict(self._last)

    def get_extra_state(self) -> dict[str, Any]:
        return {"nadirs": {t: list(found) for t, found in self._nadirs.items()}, "last": self._last}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._nadirs = {t: (int(e), total, int(n)) for t, (e, total, n) in state["nadirs"].items()}
        self._last = dict(state["last"])

    def _weights(self, losses: Mapping[str, float], epoch: int) -> dict[str, float]:
        if not all(map(math.isfinite, losses.values())):
            return dict.fromkeys(losses, 1.0)  # the step will be skipped
        return self._plain(losses) if self._form == "plain" else self._log(losses, epoch)

    def _plain(self, losses: Mapping[str, float]) -> dict[str, float]:
        given, references = self._named["preferences"], self._named["references"]
        total = sum(given.get(task, 1.0) for task in losses)
        parts = {task: given.get(task, 1.0) / total for task in losses}
        above = {t: parts[t] * (loss - references.get(t, 0.0)) for t, loss in losses.items()}
        return {task: parts[task] * share for task, share in self._shares(above).items()}

    def _log(self, losses: Mapping[str, float], epoch: int) -> dict[str, float]:
        below = [task for task, loss in losses.items() if loss < 0]
        if below:
            raise MtlError(
                f"balancer stch: the loss of {', '.join(below)} is negative and has no logarithm; "
                "choose another loss for it, or set balancer.form = 'plain'"
            )
        nadirs = self._known(losses, epoch)
        shares = self._shares(
            {task: math.log(losses[task] / nadir + _SMALL) for task, nadir in nadirs.items()}
        )
        factors = {task: len(shares) * share for task, share in shares.items()}
        return {task: factors.get(task, 1.0) / (loss + _SMALL) for task, loss in losses.items()}

    def _known(self, tasks: Iterable[str], epoch: int) -> dict[str, float]:
        """Return the nadirs that are complete."""
        found = {task: self._nadirs[task] for task in tasks if task in self._nadirs}
        return {
            task: max(total / number, _SMALL)
            for task, (gathered, total, number) in found.items()
            if epoch > gathered
        }

    def _shares(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the softmax of values over mu."""
        highest = max(values.values(), default=0.0)
        powers = {task: math.exp((x - highest) / self._mu) for task, x in values.items()}
        total = sum(powers.values())
        return {task: power / total for task, power in powers.items()}
