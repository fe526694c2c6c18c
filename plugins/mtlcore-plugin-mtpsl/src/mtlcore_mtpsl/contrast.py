"""MTPSL's joint space under other objectives, the paper's contrastive and discriminator baselines.

Both were described in the paper and never released; what it leaves open is said where it is chosen.
Neither has MTPSL's regulariser: that other images are pushed away takes its place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlcore.data import Batch
from mtlcore.features import FeatureInfo, Features
from mtlcore.ranges import NonNegative
from mtlcore.standard.losses import unit_vectors
from mtlcore.tasks import Task
from mtlcore_mtpsl.joint import JointSpace, Mapped
from mtlcore_mtpsl.mapping import distance
from mtlcore_mtpsl.pairs import mapped_tasks, weights
from mtlcore_mtpsl.rates import Rates
from mtlcore_mtpsl.weighted import WeightedLoss


@final
class Contrastive(WeightedLoss):
    """Mapped prediction and label attract if they are of one image, and repel otherwise.

    With d(a, b) the mean over positions of 1 - cosine, a pair's loss is in the form "absolute"

        d(m_s, m_t) + mean over m of max(0, margin - d(m_s, m))

    where m runs over the mapped labels of all other images of the batch, whatever their pair; and
    in the form "relative", which is how we read section 3.2 of the paper (Li, Liu and Bilen, CVPR
    2022),

        mean over m of max(0, margin + d(m_s, m_t) - d(m_s, m))

    where m runs over the mapped labels of other images in the space of the same pair: an image's
    own label is to be nearer than others, by the margin, however near it is. Both are added up over
    an image's pairs and averaged over images; the mean over m is 0 where there is no m. The paper
    gives no margin.

    Args:
        weight: of the loss; with 0 there is neither a second view nor any mapping.
        form: whether distances are penalised by themselves or against one another.
        margin: "absolute": distance beyond which other images no longer repel; "relative": by how
            much they must be farther. Distances of ReLU maps are at most 1.
        views: number of views of each image; the last one carries this loss, the first one the
            supervised losses.
        mapping: learning rate and schedule of the mapping without FiLM.
        film: the same for FiLM.

    Raises:
        UsageError: fewer than two tasks have a value per pixel.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        features: FeatureInfo,
        *,
        weight: NonNegative = 1.0,
        form: Literal["absolute", "relative"] = "absolute",
        margin: NonNegative = 0.5,
        views: Literal[1, 2] = 2,
        mapping: Rates = Rates(),
        film: Rates = Rates(),
    ) -> None:
        super().__init__(weight, views)
        self._margin, self._relative, self._rates = margin, form == "relative", (mapping, film)
        self.space = JointSpace(
            mapped_tasks(tasks, "contrastive"), features.channels[0], "same", None, self.views - 1
        )

    def _sources(self, batch: Batch, running: Sequence[str]) -> Collection[str]:
        return self.space.sources(batch, running)

    def _terms(
        self, batch: Batch, features: Features, predictions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        mapped = self.space(batch, predictions)
        if mapped is None:
            return {}
        counts = self._weight * weights(mapped.pairs, batch, "sum", mapped.sources)
        losses = distance(mapped.sources, mapped.targets)
        others = other_images(mapped)
        near = self._margin - _distances(mapped.sources, mapped.targets)
        if self._relative:
            others, near = others & _same_pair(mapped), near + losses[:, None]
        repelled = (near.clamp_min(0) * others).sum(1) / others.sum(1).clamp_min(1)
        losses = repelled if self._relative else losses + repelled
        return {"contrastive": (counts * losses).sum()}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the groups of the mapping without FiLM and of FiLM."""
        return self.space.network.groups(*self._rates)


@final
class Discriminator(WeightedLoss):
    """A discriminator between pairs of maps from one image and pairs from two images.

    Of m_s and m_t, a mapped prediction and label, D tells how likely they are of one image. Two
    terms, both cross-entropies: `discriminator_fit`, by which D alone learns to accept a prediction
    with the label of its own image and to refuse it with that of another; and `discriminator`, by
    which mapping and network, but not D, learn to have their pairs accepted.

    Deviations from Li, Liu and Bilen, CVPR 2022, who alternate updates of both and give no
    architecture: here both are taken in the same step, each with the gradients at what the other
    was before it, and D is two 3x3 convolutions, a mean over positions and a linear layer. A batch
    without a second image that has a pair teaches D nothing and has neither term.

    Args:
        weight: of the mapping's and the network's term; with 0 nothing is mapped and D rests, and
            there is no second view.
        views: number of views of each image; the last one carries this loss, the first one the
            supervised losses.
        mapping: learning rate and schedule of the mapping without FiLM.
        film: the same for FiLM.
        judge: the same for D.

    Raises:
        UsageError: fewer than two tasks have a value per pixel.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        features: FeatureInfo,
        *,
        weight: NonNegative = 1.0,
        views: Literal[1, 2] = 2,
        mapping: Rates = Rates(),
        film: Rates = Rates(),
        judge: Rates = Rates(),
    ) -> None:
        super().__init__(weight, views)
        self._rates = mapping, film, judge
        channels = features.channels[0]
        self.space = JointSpace(
            mapped_tasks(tasks, "discriminator"), channels, "same", None, self.views - 1
        )
        self.judge = Judge(channels)

    def _sources(self, batch: Batch, running: Sequence[str]) -> Collection[str]:
        return self.space.sources(batch, running)

    def _terms(
        self, batch: Batch, features: Features, predictions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        mapped = self.space(batch, predictions)
        if mapped is None or len({pair.row for pair in mapped.pairs}) < 2:
            return {}
        first, second = other_images(mapped).nonzero().unbind(1)
        one, other = mapped.sources.detach(), mapped.targets.detach()
        accepted = F.softplus(-self.judge(one, other)).mean()
        refused = F.softplus(self.judge(one[first], other[second])).mean()
        fixed = {name: weight.detach() for name, weight in self.judge.named_parameters()}
        verdict = torch.func.functional_call(self.judge, fixed, (mapped.sources, mapped.targets))
        counts = self._weight * weights(mapped.pairs, batch, "sum", verdict)
        return {
            "discriminator": (counts * F.softplus(-verdict)).sum(),
            "discriminator_fit": (accepted + refused) / 2,
        }

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the groups of the mapping without FiLM, of FiLM and of the discriminator."""
        mapping, film, judge = self._rates
        groups = self.space.network.groups(mapping, film)
        return [*groups, judge.group(self.judge.parameters())]


class Judge(nn.Module):
    """Two maps of the joint space -> the logit of their being of one image.

    Args:
        channels: of each map; a quarter as many are hidden.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 4)
        self.layers = nn.Sequential(
            nn.Conv2d(2 * channels, hidden, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.LeakyReLU(0.2),
        )
        self.output = nn.Linear(hidden, 1)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the logits for two maps (N, C, h, w) each, (N,)."""
        logit: Tensor = self.output(self.layers(torch.cat([one, other], dim=1)).mean((2, 3)))
        return logit.squeeze(1)


def other_images(mapped: Mapped) -> Tensor:
    """Return for every source whether each target is of another image: (P, P) boolean."""
    rows = torch.tensor([pair.row for pair in mapped.pairs], device=mapped.sources.device)
    return rows[:, None] != rows[None, :]


def _same_pair(mapped: Mapped) -> Tensor:
    """Return for every source whether each target is of the same two tasks: (P, P) boolean."""
    pairs = [(pair.source, pair.target) for pair in mapped.pairs]
    kinds = torch.tensor([pairs.index(pair) for pair in pairs], device=mapped.sources.device)
    return kinds[:, None] == kinds[None, :]


def _distances(ones: Tensor, others: Tensor) -> Tensor:
    """`distance` of every map to every other: (P, C, h, w), (Q, C, h, w) -> (P, Q)."""
    one, other = (unit_vectors(maps).flatten(1) for maps in (ones, others))
    positions = ones.shape[2] * ones.shape[3]
    return 1 - one @ other.t() / positions
