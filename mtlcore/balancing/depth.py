"""Below K backward passes: gradients at the end of the trunk stand for those of all of it.

What rows of the last blocks, or of the features, miss are mostly their lengths: the lower layers
of one task's gradient may be longer than another's. So now and then a step collects the rows of all
shared parameters as well, and their lengths correct the Gramian of the steps that follow.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Literal, final

import attrs
import torch
from torch import Tensor

from mtlcore.balancing.answers import split_weights

__all__ = ["DepthEstimate", "DepthSettings"]


@final
@attrs.frozen(kw_only=True)
class DepthSettings:
    """Of how much of the trunk gradients are compared, and how often that is held against all.

    Args:
        depth: "all": the balancer's own scope, for most all shared parameters, K passes. A number:
            the last so many blocks of the trunk (`Backbone.trunk_blocks`), a neck of all tasks
            among them; K passes run through these only, then one, of the weighted losses, through
            everything. "features": the maps that heads read; K passes run through the heads only.
        norms_every: Every so many steps the rows of all shared parameters are collected, decide
            that step, and correct the length of each task's row from then on: the geometric mean of
            what was measured and the correction before. None: the first step's correct the lengths
            of all rows alike, so that the update has the scale of the method.
        verify_every: Every so many steps the exact update is computed beside the one that is
            taken, and both are compared (`estimate_cosine`, `gramian_error` of the record).
    """

    depth: Literal["all", "features"] | int = "all"
    norms_every: int | None = None
    verify_every: int | None = None


@attrs.frozen(kw_only=True)
class EstimateError:
    """How far an update by the end of the trunk is from that by all of it.

    Args:
        cosine: Of the two updates of the shared parameters.
        gramian: Length of the difference of the two Gramians divided by that of the exact one.
    """

    cosine: float
    gramian: float


@final
class DepthEstimate:
    """Makes an estimate of the Gramian of all shared parameters from that of less.

    Args:
        settings: What is compared, and how often it is measured.
    """

    def __init__(self, settings: DepthSettings) -> None:
        self._settings = settings
        # Per task, the length of its whole row divided by that of its row here.
        self._scales: dict[str, float] = {}
        self._proposed: dict[str, float] = {}
        self._verifies = self._corrects = False
        self._may_be_disjoint = settings.depth == "features"

    @property
    def measures(self) -> bool:
        """Whether this step collects the rows of all shared parameters as well."""
        return self._verifies or self._corrects

    def begin(self, turn: int) -> None:
        """Begin a step.

        Args:
            turn: How many steps before asked for weights, counted from 0.
        """
        norms, verify = self._settings.norms_every, self._settings.verify_every
        self._corrects = not self._scales or (norms is not None and turn % norms == 0)
        self._verifies = verify is not None and turn % verify == 0

    def skip(self) -> None:
        """Begin a step that asks for no weights."""
        self._corrects = self._verifies = False

    def answer(
        self,
        tasks: Sequence[str],
        gramian: Tensor,
        exact: Tensor | None,
        weights: Callable[[Tensor], Tensor],
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor, EstimateError | None]:
        """Ask a balancer for weights.

        Args:
            tasks: Those that have a row.
            gramian: (K, K), of the rows at the end of the trunk.
            exact: (K, K), of the rows of all shared parameters, in a step that measures.
            weights: Gramian -> weights, as of `GramianBalancer`.
            generator: What it draws from; torch's global one for None.

        Returns:
            The answer, the Gramian that it is the answer to, and in a step that verifies how far
            the estimate is off.
        """
        if self._may_be_disjoint:
            self._warn_of_disjoint_maps(tasks, gramian)
        estimate = self._corrected(tasks, gramian)
        if exact is None:
            return weights(estimate), estimate, None
        if not self._scales:  # nothing to verify yet
            self._propose(tasks, gramian, exact)
            return weights(exact), exact, None
        # What decides is asked for last, as balancers keep what the last call left behind.
        first, decisive = (estimate, exact) if self._corrects else (exact, estimate)
        if not self._verifies:
            self._propose(tasks, gramian, exact)
            return weights(decisive), decisive, None
        drawn = torch.default_generator if generator is None else generator
        state = drawn.get_state()
        other = weights(first)
        drawn.set_state(state)
        answer = weights(decisive)
        error = EstimateError(
            cosine=_cosine(answer, other, exact),
            gramian=float((estimate - exact).norm() / exact.norm().clamp_min(_TINY)),
        )
        if self._corrects:
            self._propose(tasks, gramian, exact)
        return answer, decisive, error

    def commit(self) -> None:
        """Keep what was measured: the step was taken."""
        for task, ratio in self._proposed.items():
            # One batch's ratio alone is about as far off as what it is to correct.
            self._scales[task] = (self._scales.get(task, ratio) * ratio) ** 0.5
        self._proposed = {}

    def discard(self) -> None:
        """Drop what was measured: the step was skipped."""
        self._proposed = {}

    def reset(self) -> None:
        """Forget the lengths, which the next step measures anew."""
        self._scales, self._proposed = {}, {}

    def state_dict(self) -> dict[str, float]:
        """Return what is known of the lengths."""
        return dict(self._scales)

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what `state_dict` returned."""
        self._scales, self._proposed = dict(state), {}

    def _corrected(self, tasks: Sequence[str], gramian: Tensor) -> Tensor:
        known = self._scales
        if not known:
            return gramian
        # Of a task that was never measured, what the others have.
        usual = torch.tensor([*known.values()], dtype=torch.float64).log().mean().exp().item()
        scales = torch.tensor([known.get(t, usual) for t in tasks], dtype=torch.float64)
        return gramian * torch.outer(scales, scales)

    def _propose(self, tasks: Sequence[str], gramian: Tensor, exact: Tensor) -> None:
        here, all_of_it = gramian.diagonal(), exact.diagonal()
        if self._settings.norms_every is None:
            here, all_of_it = here.sum().expand(len(tasks)), all_of_it.sum().expand(len(tasks))
        ratios = (all_of_it / here).sqrt().tolist()
        # A task that reaches no shared parameter has no length to compare.
        self._proposed = {t: r for t, r in zip(tasks, ratios, strict=True) if 0 < r < float("inf")}

    def _warn_of_disjoint_maps(self, tasks: Sequence[str], gramian: Tensor) -> None:
        """Warn of tasks that read no map in common; once, at the first step."""
        self._may_be_disjoint = False
        lengths = gramian.diagonal()
        apart = (gramian == 0) & (lengths > 0) & (lengths > 0).unsqueeze(1)
        pairs = [(tasks[i], tasks[j]) for i, j in apart.nonzero().tolist() if i < j]
        if pairs:
            warnings.warn(
                f"balancer.depth: {' and '.join(pairs[0])} read no map in common"
                + (f" (nor do {len(pairs) - 1} other pairs)" if len(pairs) > 1 else "")
                + ", so at the features their gradients are orthogonal whatever they are; set "
                "balancer.depth to a number of blocks",
                stacklevel=2,
            )


_TINY = torch.finfo(torch.float64).tiny


def _cosine(first: Tensor, second: Tensor, gramian: Tensor) -> float:
    """Return the cosine of two weighted sums of rows with this Gramian."""
    a, b = (torch.tensor(split_weights(w)[0], dtype=torch.float64) for w in (first, second))
    lengths = (a @ gramian @ a) * (b @ gramian @ b)
    return float(a @ gramian @ b / lengths.sqrt().clamp_min(_TINY))
