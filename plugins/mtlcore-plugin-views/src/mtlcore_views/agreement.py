"""Terms by which what a network makes of two views of an image agrees, without any label.

All look at the backbone's deepest shared map, averaged over its positions, or at its vector.
"""

from __future__ import annotations

import abc
import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlcore.data import Batch
from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo, Features
from mtlcore.losses import CrossTaskLoss
from mtlcore.models import AVERAGE, StepContext
from mtlcore.ranges import Channels, Decay, NonNegative, Positive
from mtlcore.tasks import Task


class Agreement(CrossTaskLoss, abc.ABC):
    """A term of vectors of two views of each image; no head runs for it.

    Args:
        name: of the term.
        weight: of it.
    """

    views = 2
    #: Images of a batch that the term needs.
    _least = 1

    def __init__(self, name: str, weight: float) -> None:
        super().__init__()
        self._name, self._weight = name, weight

    def needs(self, batch: Batch, tasks: Sequence[str]) -> Iterable[str]:
        """Return no task."""
        return ()

    def forward(
        self, batch: Batch, features: Features, predictions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Compute the term; there is none where the loss does not apply to so few images.

        Raises:
            UsageError: no map is shared by the tasks.
        """
        first, second = ([i for i, view in enumerate(batch.view) if view == n] for n in (0, 1))
        if len(first) < self._least:
            return {}
        term = self._term(pooled(features), batch, first, second)
        return {self._name: self._weight * term}

    @abc.abstractmethod
    def _term(
        self, vectors: Tensor, batch: Batch, first: Sequence[int], second: Sequence[int]
    ) -> Tensor:
        """Return the term.

        Args:
            vectors: (B, C) float32, of all samples.
            batch: with two views of every image.
            first: rows of views 0, (N,).
            second: rows of views 1 of the same images, (N,).
        """


@final
class SimCLR(Agreement):
    """Two views of an image find each other among all views of the batch (NT-Xent).

    Chen, Kornblith, Norouzi and Hinton, ICML 2020 (arXiv 2002.05709), eq. 1. With z = g(h) of unit
    length for each of the 2N views and j the other view of i's image, the term is the mean over i
    of

        -log  exp(z_i . z_j / temperature) / sum over k != i of exp(z_i . z_k / temperature)

    and g two linear layers with a ReLU between, the hidden one as wide as h. Of several processes
    each contrasts its own images. A batch of one image has no term.

    Args:
        tasks: the run's tasks.
        features: what heads read.
        weight: of the term.
        temperature: the paper has 0.1 on ImageNet and 0.5 on CIFAR-10.
        outputs: length of z.
    """

    _least = 2

    def __init__(
        self,
        tasks: Sequence[Task],
        features: FeatureInfo,
        *,
        weight: NonNegative = 1.0,
        temperature: Positive = 0.1,
        outputs: Channels = 128,
    ) -> None:
        super().__init__("simclr", weight)
        self._temperature = temperature
        self.projector = _plain(features.channels[0], outputs)

    def _term(
        self, vectors: Tensor, batch: Batch, first: Sequence[int], second: Sequence[int]
    ) -> Tensor:
        z = F.normalize(self.projector(vectors[[*first, *second]]), dim=1)
        logits = z @ z.t() / self._temperature
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        other = torch.arange(len(z), device=z.device).roll(len(first))
        return F.cross_entropy(logits.masked_fill(itself, -math.inf), other)


@final
class BYOL(Agreement):
    """A view's vector predicts what an average of the network makes of the other view.

    Grill et al., NeurIPS 2020 (arXiv 2006.07733), eq. 2. With z = g(h) of the network, z' = g'(h')
    of the averages of network and g, and a predictor q, the term is the mean over images and both
    orders of the two views of `2 - 2 cos(q(z_1), z'_2)`. g and q are a linear layer, batch norm,
    ReLU and a linear layer. g' is averaged here, by `1 - (1 - decay) (cos(pi t) + 1) / 2` at the
    fraction t of the run; the network's average is the run's (`training.ema`), which has one factor
    for the whole run, and is in evaluation mode.

    Args:
        tasks: the run's tasks.
        features: what heads read.
        weight: of the term.
        decay: factor on the average of the projector at the beginning; at the end it is 1.
        hidden: width of projector and predictor.
        outputs: length of z.
    """

    needs_teachers = (AVERAGE,)

    def __init__(
        self,
        tasks: Sequence[Task],
        features: FeatureInfo,
        *,
        weight: NonNegative = 1.0,
        decay: Decay = 0.996,
        hidden: Channels = 4096,
        outputs: Channels = 256,
    ) -> None:
        super().__init__("byol", weight)
        self._decay = decay
        self.projector = _normalised(features.channels[0], hidden, outputs)
        self.predictor = _normalised(outputs, hidden, outputs)
        self.average = copy.deepcopy(self.projector).requires_grad_(False)

    def _term(
        self, vectors: Tensor, batch: Batch, first: Sequence[int], second: Sequence[int]
    ) -> Tensor:
        found = self.predictor(self.projector(vectors[[*first, *second]]))
        with torch.no_grad():
            taught = pooled(self.teachers[AVERAGE].features(batch.inputs, ()))
            expected = self.average(taught[[*second, *first]])
        return 2 - 2 * F.cosine_similarity(found, expected, dim=1).mean()

    @torch.no_grad()
    def after_step(self, context: StepContext) -> None:
        """Move the projector's average towards the projector."""
        kept = 1 - (1 - self._decay) * (math.cos(math.pi * context.progress) + 1) / 2
        for average, current in zip(
            self.average.parameters(), self.projector.parameters(), strict=True
        ):
            average.lerp_(current, 1 - kept)


@final
class MTSS(Agreement):
    """Projected vectors of two views of an image point the same way: the mean of 1 - cosine.

    After Li, Hu, Sun, Zhao, Zhang and Lin, AIID 2021, "A Novel Multi-Task Self-Supervised
    Representation Learning Paradigm": likeness of two views is an auxiliary task beside the main
    ones, without pairs of different images. The tasks' losses are what keeps vectors apart. We know
    the paper by its abstract alone: the projector, two linear layers with a ReLU between, is ours.

    Args:
        tasks: the run's tasks.
        features: what heads read.
        weight: of the term.
        outputs: length of the projected vectors.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        features: FeatureInfo,
        *,
        weight: NonNegative = 1.0,
        outputs: Channels = 128,
    ) -> None:
        super().__init__("mtss", weight)
        self.projector = _plain(features.channels[0], outputs)

    def _term(
        self, vectors: Tensor, batch: Batch, first: Sequence[int], second: Sequence[int]
    ) -> Tensor:
        one, other = self.projector(vectors[first]), self.projector(vectors[second])
        return (1 - F.cosine_similarity(one, other, dim=1)).mean()


def pooled(features: Features) -> Tensor:
    """Return the deepest shared map (B, C, ...) averaged over its positions, (B, C) float32.

    Raises:
        UsageError: the tasks share no map.
    """
    if not features.shared:
        raise UsageError(
            "cross_task: two views are compared by what the tasks share, and this backbone has a "
            "network for each task; choose another backbone, or leave the loss out"
        )
    deepest = features.shared[0].float()
    return deepest.flatten(2).mean(2) if deepest.dim() > 2 else deepest


def _plain(channels: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, outputs))


def _normalised(channels: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(channels, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )
