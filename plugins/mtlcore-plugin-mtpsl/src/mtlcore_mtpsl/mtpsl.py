"""MTPSL: cross-task consistency in a joint space of each pair of tasks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, final

from torch import Tensor

from mtlcore.data import Batch
from mtlcore.features import FeatureInfo, Features
from mtlcore.ranges import NonNegative, Width
from mtlcore.tasks import Task
from mtlcore_mtpsl.joint import JointSpace
from mtlcore_mtpsl.mapping import Code, Encoder, distance, joint_feature
from mtlcore_mtpsl.pairs import Normalisation, mapped_tasks, weights
from mtlcore_mtpsl.rates import Rates
from mtlcore_mtpsl.weighted import WeightedLoss


@final
class MTPSL(WeightedLoss):
    """Pull mapped predictions of unlabelled tasks to mapped labels of labelled ones.

    Li, Liu and Bilen, CVPR 2022 (arXiv 2111.14893), eq. 4. For each sample and each pair of an
    unlabelled task s and a labelled task t (all ordered pairs where a sample has all labels), with
    m_s and m_t the prediction of s and the label of t mapped into the pair's joint space, f the
    backbone's deepest map and d the mean over positions of 1 - cosine:

        weight * (d(m_s, m_t) + regulariser * (d(m_s, f) + d(m_t, f)))

    added up over pairs and averaged over samples. Gradients reach the mapping through both maps,
    the network through m_s alone, and f not at all. The two sums are the terms `mtpsl` and
    `mtpsl_regulariser`. Tasks without a value per pixel take no part.

    Where paper and released code differ, the defaults are the code's (its weight on Cityscapes):

    | setting | paper | code |
    | --- | --- | --- |
    | `weight` | 1 | 2 on NYUv2, 1 on Cityscapes |
    | `regulariser` | 1 | 0.5 |
    | `normalisation` | "mean" | "sum" |
    | `code` | "different" | "same" |
    | `views` | not said | 2 |

    The paper's 1 / (number of labelled tasks) of the supervised losses is a setting of the run,
    `training.normalisation = "labelled"`; with one label per image it is 1. The mapping follows the
    backbone's width; where the deepest map has another size than the joint space, it is averaged to
    that.

    Args:
        weight: of both terms; with 0 there is neither a second view nor any mapping.
        regulariser: weight of the distances to the backbone's map; 0: none.
        normalisation: "sum" adds up a sample's pairs; "mean" divides by its number of unlabelled
            tasks.
        code: what the mapping is conditioned on: "same", the pair; "different", from which of its
            tasks to which (the paper's matrix, K(K - 1) codes either way); "none", nothing.
        views: number of views of each image; the last one carries this loss, the first one the
            supervised losses.
        width: factor on the filters of the mapping; unset: that of the backbone's deepest map.
        encoder: of the mapping: that of SegNet, or ResNet-18 as the paper has it on PASCAL-Context.
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
        regulariser: NonNegative = 0.5,
        normalisation: Normalisation = "sum",
        code: Code = "same",
        views: Literal[1, 2] = 2,
        width: Width | None = None,
        encoder: Encoder = "segnet",
        mapping: Rates = Rates(),
        film: Rates = Rates(),
    ) -> None:
        super().__init__(weight, views)
        self._regulariser = regulariser
        self._normalisation: Normalisation = normalisation
        self._rates = mapping, film
        self.space = JointSpace(
            mapped_tasks(tasks, "mtpsl"), features.channels[0], code, width, self.views - 1, encoder
        )

    def _sources(self, batch: Batch, running: Sequence[str]) -> Collection[str]:
        return self.space.sources(batch, running)

    def _terms(
        self, batch: Batch, features: Features, predictions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        mapped = self.space(batch, predictions)
        if mapped is None:
            return {}
        one, other = mapped.sources, mapped.targets
        counts = self._weight * weights(mapped.pairs, batch, self._normalisation, one)
        terms = {"mtpsl": (counts * distance(one, other)).sum()}
        if self._regulariser:
            f = joint_feature(features, [(pair.row, pair.source) for pair in mapped.pairs], one)
            far = distance(one, f) + distance(other, f)
            terms["mtpsl_regulariser"] = self._regulariser * (counts * far).sum()
        return terms

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the groups of the mapping without FiLM and of FiLM."""
        return self.space.network.groups(*self._rates)
