"""Balancers of losses: equal, fixed, uncertainty, DWA, RLW, GLS."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from mtlcore.balancing import BalancerContext, LossBalancer
from mtlcore.data import Batch
from mtlcore.errors import MtlError, UsageError
from mtlcore.ranges import Count, LearningRate, NonNegative, Positive, Range
from mtlcore.tasks import Task, refuse_unknown_tasks


class Equal(LossBalancer):
    """The plain sum of the losses: every weight is 1."""

    def transform(self, losses: dict[str, Tensor], context: BalancerContext) -> dict[str, Tensor]:
        return losses


class Fixed(LossBalancer):
    """A weighted sum with constant weights.

    Args:
        weights: task name -> weight; a task that is not named has the weight 1.
    """

    def __init__(self, *, weights: dict[str, NonNegative]) -> None:
        super().__init__()
        self._weights = dict(weights)

    def prepare(self, tasks: Sequence[Task], data: Iterable[Batch] | None = None) -> None:
        """Check the names of the tasks.

        Raises:
            UsageError: there is a weight for a task that the run does not have.
        """
        refuse_unknown_tasks("balancer.weights", self._weights, tasks)

    def transform(self, losses: dict[str, Tensor], context: BalancerContext) -> dict[str, Tensor]:
        return {task: loss * self._weights.get(task, 1.0) for task, loss in losses.items()}

    def current_weights(self) -> dict[str, float]:
        return dict(self._weights)


#: e^-s fits into single precision.
LogVariance = Annotated[float, Range(ge=-80, le=80)]
Form = Literal["kendall", "mtml", "half-log", "revised", "by-kind"]


class Uncertainty(LossBalancer):
    """Weights by learnt homoscedastic uncertainty (Kendall et al. 2018), s = log sigma^2.

    Four forms are in print, and they are not the same objective:

    * "kendall": exp(-s) L / 2 + s / 2 (the paper's regression form; MTAN and Nash-MTL's code)
    * "mtml": exp(-s) L + s (the MTML paper)
    * "half-log": exp(-s) L + s / 2 (the paper's classification form; Aligned-MTL's code)
    * "revised": exp(-s) L / 2 + log(1 + exp(s)) (Liebel & Koerner 2018, ln(1 + sigma^2))

    The paper's own objective for tasks of both sorts (eq. 10) is "by-kind": "half-log" where labels
    are classes or probabilities, whose loss is a cross entropy (segmentation, classification,
    edges, saliency, several labels), and "kendall" where they are measured (depth, normals,
    regression, and kinds that the core does not know, unless their labels are class numbers).

    A task without labels in a step does not change its s.

    Args:
        form: one of the four, or "by-kind".
        initial: initial value of s.
        lr: learning rate of s; unset: the run's.
    """

    def __init__(
        self,
        *,
        form: Form = "kendall",
        initial: LogVariance = 0.0,
        lr: LearningRate | None = None,
    ) -> None:
        super().__init__()
        self._form, self._initial, self._lr = form, initial, lr
        self._keys: dict[str, str] = {}
        self._forms: dict[str, Form] = {}
        self.log_variance = nn.ParameterDict()

    def prepare(self, tasks: Sequence[Task], data: Iterable[Batch] | None = None) -> None:
        for task in tasks:
            self._keys[task.name] = task.key
            self._forms[task.name] = self._form_of(task)
            if task.key not in self.log_variance:
                self.log_variance[task.key] = nn.Parameter(torch.tensor(self._initial))

    def parameter_groups(self) -> Iterator[dict[str, Any]]:
        """Return a group without weight decay, which would pull the variances towards 1."""
        group: dict[str, Any] = {"params": self.log_variance.values(), "weight_decay": 0.0}
        yield group if self._lr is None else {**group, "lr": self._lr}

    def transform(self, losses: dict[str, Tensor], context: BalancerContext) -> dict[str, Tensor]:
        return {task: self._weighed(task, loss) for task, loss in losses.items()}

    def current_weights(self) -> dict[str, float]:
        return {
            task: self._half(task) * math.exp(-float(self.log_variance[key].detach()))
            for task, key in self._keys.items()
        }

    def _form_of(self, task: Task) -> Form:
        if self._form != "by-kind":
            return self._form
        return "half-log" if task.dtype == "int64" or task.values == "share" else "kendall"

    def _half(self, task: str) -> float:
        """Return the factor on exp(-s) in a task's form."""
        return 0.5 if self._forms[task] in ("kendall", "revised") else 1.0

    def _weighed(self, task: str, loss: Tensor) -> Tensor:
        s: Tensor = self.log_variance[self._keys[task]]
        weighed = self._half(task) * torch.exp(-s) * loss
        if self._forms[task] == "revised":
            return weighed + nn.functional.softplus(s)
        return weighed + (s if self._forms[task] == "mtml" else 0.5 * s)


class DWA(LossBalancer):
    """Dynamic weight average (Liu et al. 2019, eq. 7): slowly falling losses weigh more.

    lambda_i = K softmax_i(w / T) with w_i = L_i(t-1) / L_i(t-2), where L_i(t) is the mean training
    loss of period t. A period is an epoch, as in the paper; until two are complete, all
    weights are 1. With `window` a period is that many steps, and the weights change at each step.
    That is the form of the code behind Nash-MTL's tables, with 25 steps, which starts from losses
    of 1 where this waits for two windows.

    Args:
        temperature: T; larger is closer to equal weights.
        window: number of steps in a period; unset: an epoch.
    """

    def __init__(self, *, temperature: Positive = 2.0, window: Count | None = None) -> None:
        super().__init__()
        if temperature <= 0:
            raise UsageError(f"balancer.temperature: {temperature} is not above 0")
        if window is not None and window < 1:
            raise UsageError(f"balancer.window: {window} is not a number of steps")
        self._temperature, self._window = temperature, window
        self._tasks: tuple[str, ...] = ()
        self.reset()

    def prepare(self, tasks: Sequence[Task], data: Iterable[Batch] | None = None) -> None:
        self._tasks = tuple(task.name for task in tasks)

    def reset(self) -> None:
        self._epoch: int | None = None
        self._running: dict[str, list[float]] = {}  # this epoch's losses as [sum, number]
        self._means: dict[str, list[float]] = {}  # means of the last two epochs
        self._recent: dict[str, list[float]] = {}  # the last two windows of losses

    def transform(self, losses: dict[str, Tensor], context: BalancerContext) -> dict[str, Tensor]:
        weights = self._weights(self._means_at(context.epoch))
        return {task: loss * weights.get(task, 1.0) for task, loss in losses.items()}

    def after_step(self, context: BalancerContext) -> None:
        if context.epoch != self._epoch:
            self._means, self._running = self._means_at(context.epoch), {}
            self._epoch = context.epoch
        for task, loss in context.losses.items():
            if self._window is not None:
                self._recent[task] = [*self._recent.get(task, []), loss][-2 * self._window :]
            else:
                total, number = self._running.get(task, [0.0, 0])
                self._running[task] = [total + loss, number + 1]

    def current_weights(self) -> dict[str, float]:
        return self._weights(self._means)

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "epoch": self._epoch,
            "running": self._running,
            "means": self._means,
            "recent": self._recent,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._epoch, self._running = state["epoch"], dict(state["running"])
        self._means, self._recent = dict(state["means"]), dict(state["recent"])

    def _means_at(self, epoch: int) -> dict[str, list[float]]:
        """Means of the last two epochs before `epoch`; the running one counts once it is over."""
        if self._epoch is None or epoch <= self._epoch:
            return self._means
        ended = {task: total / number for task, (total, number) in self._running.items()}
        return self._means | {
            task: [*self._means.get(task, []), mean][-2:] for task, mean in ended.items()
        }

    def _weights(self, means: dict[str, list[float]]) -> dict[str, float]:
        ratios = {task: self._ratio(task, means) for task in self._tasks}
        known = {task: ratio for task, ratio in ratios.items() if ratio is not None}
        # A task without a history weighs 1 and takes no part in the softmax of the others.
        highest = max(known.values(), default=0.0)
        powers = {t: math.exp((r - highest) / self._temperature) for t, r in known.items()}
        total = sum(powers.values())
        return {
            task: len(powers) * powers[task] / total if task in powers else 1.0
            for task in self._tasks
        }

    def _ratio(self, task: str, means: dict[str, list[float]]) -> float | None:
        if self._window is not None:
            recent = self._recent.get(task, [])
            if len(recent) < 2 * self._window:
                return None
            before, last = sum(recent[: self._window]), sum(recent[self._window :])
        elif len(means.get(task, [])) < 2:
            return None
        else:
            before, last = means[task]
        return last / before if before > 0 else 1.0


class RLW(LossBalancer):
    """Random loss weighting (Lin et al., TMLR 2022): in every step K softmax(z), z ~ N(0, 1).

    The paper's weights sum to 1; these sum to the number of present tasks K, so that their mean is
    the plain sum of the losses. Every micro-batch of an accumulated step draws its own weights.
    """

    def transform(self, losses: dict[str, Tensor], context: BalancerContext) -> dict[str, Tensor]:
        drawn = torch.randn(len(losses), generator=self.random(context))
        weights = (len(losses) * drawn.softmax(0)).tolist()
        return {
            task: loss * weight
            for (task, loss), weight in zip(losses.items(), weights, strict=True)
        }


# A loss below this counts as this much: the gradient of a geometric mean has no bound at 0.
SMALLEST_LOSS = 1e-20


class GLS(LossBalancer):
    """Geometric loss strategy (Chennupati et al., MultiNet++, CVPRW 2019): G = (prod L_i)^(1/K).

    With `focus`, the paper's focused loss strategy, the geometric mean of all present losses is
    multiplied by that of the m present focused ones, so that G = prod_i L_i^{p_i} with p_i = 1 / K,
    and 1 / m more for a focused task; a step without focused tasks has the mean of all alone.

    Each present loss becomes L_i p_i G / L_i with the factor held constant: the gradient of the sum
    of these is exactly that of G, and the sum is G, or 2 G with focused tasks. Computed from
    logarithms in float64, so that a product of many small losses does not vanish. Unlike the sum of
    the losses, G weighs tasks by 1 / L_i and its gradient is K times smaller where all losses are
    alike; the factor is kept. A focused G is of the second degree in the losses: they should be of
    about 1 at first.

    Losses must not be negative (the Hu depth loss can be). The result is not affine in the losses,
    so accumulated gradients differ from those of one large batch.

    Args:
        focus: names of the focused tasks.
    """

    affine = False

    def __init__(self, *, focus: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._focus = tuple(dict.fromkeys(focus))

    def prepare(self, tasks: Sequence[Task], data: Iterable[Batch] | None = None) -> None:
        """Check the names of the tasks.

        Raises:
            UsageError: a task to focus on is none of the run's.
        """
        refuse_unknown_tasks("balancer.focus", self._focus, tasks)

    def transform(self, losses: dict[str, Tensor], context: BalancerContext) -> dict[str, Tensor]:
        """Scale the losses so that the gradient of their sum is that of G.

        Raises:
            MtlError: a loss is negative; it has no logarithm.
        """
        values = torch.stack([loss.detach().double() for loss in losses.values()])
        if bool((values < 0).any()):
            names = [task for task, value in zip(losses, values.tolist(), strict=True) if value < 0]
            raise MtlError(
                f"balancer gls: the loss of {', '.join(names)} is negative, and a geometric mean "
                "needs positive ones; choose another loss for it"
            )
        focused = values.new_tensor([task in self._focus for task in losses])
        powers = 1 / len(losses) + focused / focused.sum().clamp_min(1)
        logs = values.clamp_min(SMALLEST_LOSS).log()
        factors = (powers @ logs - logs).exp() * powers
        return {
            task: loss * factor.to(loss.dtype)
            for (task, loss), factor in zip(losses.items(), factors, strict=True)
        }
