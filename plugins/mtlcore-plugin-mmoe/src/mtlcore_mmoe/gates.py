"""Gates: how much of each expert a task's mixture has."""

from __future__ import annotations

import abc
from typing import Literal, final

import attrs
import torch
from torch import Tensor, nn

from mtlcore.errors import UsageError
from mtlcore.ranges import Count, NonNegative, Positive
from mtlcore_mmoe.layers import initialise

# Keeps the logarithm of a probability of 0, and the inverse of a sum of 0, finite.
_EPSILON = 1e-6
# Logits of the selectors' weights begin within these bounds, as Keras draws them by default.
_WEIGHT_BOUND = 0.05


@final
@attrs.frozen(kw_only=True)
class Gate:
    """What weighs the experts of a mixture.

    Args:
        name: "softmax": every expert has a weight, as in MMoE, CGC and PLE; "dselect-k": in the end
            at most `k` experts have one.
        k: For "dselect-k": the largest number of experts that keep a weight, which is the number of
            selectors.
        gamma: For "dselect-k": width of the interval in which the step from 0 to 1 is smooth; the
            smaller it is, the sooner a selector decides.
        entropy: For "dselect-k": factor on the selectors' entropy, a term beside the tasks' losses
            that lets them decide sooner.
        static: For "dselect-k": whether the weights are the same for all samples; otherwise they
            are computed of each.
    """

    name: Literal["softmax", "dselect-k"] = "softmax"
    k: Count = 2
    gamma: Positive = 1.0
    entropy: NonNegative = 1e-6
    static: bool = False

    def make(self, inputs: int, experts: int) -> ExpertGate:
        """Return a gate.

        Args:
            inputs: Number of values that it reads of each sample.
            experts: Number of experts that it weighs.

        Raises:
            UsageError: There are too few experts to select from.
        """
        if self.name == "softmax":
            return SoftmaxGate(inputs, experts)
        if experts < 2 or self.k > experts:
            raise UsageError(
                f"model.backbone.gate.k: {self.k} of {experts} experts; dselect-k selects some of "
                "two or more: let k be smaller, or the number of experts larger"
            )
        return DSelectK(inputs, experts, self)


class ExpertGate(nn.Module, abc.ABC):
    """A gate."""

    @abc.abstractmethod
    def forward(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Weigh the experts.

        Args:
            inputs: (B, C), what it reads of each sample.

        Returns:
            Weights (B, E), and terms by name, scalars that are added to the loss; none in
            evaluation mode.
        """


@final
class SoftmaxGate(ExpertGate):
    """The gate of MMoE and of PLE: `softmax(W x)`, without a bias.

    Args:
        inputs: number of values C that it reads of each sample.
        experts: number of experts E.
    """

    def __init__(self, inputs: int, experts: int) -> None:
        super().__init__()
        self.logits = nn.Linear(inputs, experts, bias=False)
        initialise(self)

    def forward(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Weigh the experts: (B, C) -> (B, E), positive and with the sum 1; no terms."""
        return self.logits(inputs).softmax(-1), {}


@final
class DSelectK(ExpertGate):
    """DSelect-k: k selectors, each of which comes to select one expert.

    Hazimeh et al., NeurIPS 2021 (arXiv 2106.03760). A selector has a number z_b for each of the
    `m = ceil(log2 E)` binary digits of an expert's number, and gives the expert with the digits d_b

        r = prod_b S(z_b) if d_b else 1 - S(z_b)

    with the smooth step S. The expert's weight is the sum of r over the selectors, each with its
    part of a softmax. S is exactly 0 or 1 outside of an interval of the width gamma, so that r
    becomes exactly 0 or 1.

    Terms are `gate_entropy`, the factor times the selectors' entropy, and, unless E is a power of
    two, `gate_reach`, the sum over selectors of the inverse of what they give to experts that
    exist: 1 each as soon as all weight is on these. Both are means over samples.

    Args:
        inputs: number of values C that it reads of each sample.
        experts: number of experts E.
        settings: of the gate.
    """

    codes: Tensor

    def __init__(self, inputs: int, experts: int, settings: Gate) -> None:
        super().__init__()
        self._settings = settings
        bits = (experts - 1).bit_length()
        digits = [[bool(number >> bit & 1) for bit in range(bits)] for number in range(experts)]
        self.register_buffer("codes", torch.tensor(digits), persistent=False)
        self._misses = experts < 2**bits
        selectors, bound = settings.k, settings.gamma / 100
        if settings.static:
            self.digits = nn.Parameter(torch.empty(selectors, bits).uniform_(-bound, bound))
            first = torch.empty(selectors).uniform_(-_WEIGHT_BOUND, _WEIGHT_BOUND)
            self.parts = nn.Parameter(first)
        else:
            self.of_digits = nn.Linear(inputs, selectors * bits)
            self.of_parts = nn.Linear(inputs, selectors)
            for layer, limit in ((self.of_digits, bound), (self.of_parts, _WEIGHT_BOUND)):
                nn.init.uniform_(layer.weight, -limit, limit)
                nn.init.uniform_(layer.bias, -limit, limit)

    def forward(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Weigh the experts: (B, C) -> (B, E), not negative, and the terms in training mode."""
        count = len(inputs)
        if self._settings.static:
            z, parts = self.digits.unsqueeze(0), self.parts.unsqueeze(0)
        else:
            parts = self.of_parts(inputs)
            z = self.of_digits(inputs).unflatten(1, (self._settings.k, -1))
        step = smooth_step(z, self._settings.gamma).unsqueeze(2)
        selected = torch.where(self.codes, step, 1 - step).prod(-1)  # (B, k, E)
        weights = (parts.softmax(-1).unsqueeze(-1) * selected).sum(1)
        return weights.expand(count, -1), self._terms(selected) if self.training else {}

    def _terms(self, selected: Tensor) -> dict[str, Tensor]:
        entropy = -(selected * (selected + _EPSILON).log()).sum((1, 2)).mean()
        terms = {"gate_entropy": self._settings.entropy * entropy}
        if self._misses:
            terms["gate_reach"] = (1 / (selected.sum(-1) + _EPSILON)).sum(1).mean()
        return terms


def smooth_step(inputs: Tensor, gamma: float) -> Tensor:
    """Compute the step that is a cubic polynomial within gamma / 2 of 0: 0 below it, 1 above.

    Hazimeh et al., ICML 2020 (arXiv 2002.07772).

    Args:
        inputs: of any shape.
        gamma: width of the interval in which it is neither 0 nor 1.
    """
    t = (inputs / gamma).clamp(-0.5, 0.5)
    return 0.5 + 1.5 * t - 2 * t**3
