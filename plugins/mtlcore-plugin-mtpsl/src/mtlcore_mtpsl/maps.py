"""Maps from one task to another, a whole network for each: two baselines of the MTPSL paper.

Li, Liu and Bilen, CVPR 2022, section 4, after Zamir et al., "Robust Learning Through Cross-Task
Consistency", CVPR 2020. Described in the paper and never released.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlcore.data import Batch
from mtlcore.features import FeatureInfo, Features
from mtlcore.losses import Loss, reduce_loss
from mtlcore.ranges import NonNegative
from mtlcore.standard.heads import ConvHead
from mtlcore.standard.losses import L1, BinaryCrossEntropy, Cosine, CrossEntropy
from mtlcore.standard.segnet import FILTERS, SegNetDecoder, SegNetEncoder, scaled
from mtlcore.tasks import Task
from mtlcore_mtpsl import encoding
from mtlcore_mtpsl.pairs import Pair, find_pairs, images, mapped_tasks
from mtlcore_mtpsl.rates import Rates
from mtlcore_mtpsl.weighted import WeightedLoss

_STRIDE = 32


class TaskMap(nn.Module):
    """A SegNet that reads one task, encoded, and gives another one's raw prediction.

    Args:
        source: the task that is read.
        target: the task that is predicted.
        width: factor on the filters.
    """

    def __init__(self, source: Task, target: Task, width: float) -> None:
        super().__init__()
        self.encoder = SegNetEncoder(width, channels=source.channels)
        self.decoder = SegNetDecoder(width)
        self.head = ConvHead(target, FeatureInfo((scaled(FILTERS[0], width),), (1,)))

    def forward(self, encoded: Tensor) -> Tensor:
        """Predict the target, (N, source.channels, H, W) -> (N, target.channels, H, W)."""
        height, width = encoded.shape[2:]
        # As the network's own inputs are padded, below and on the right; zeros mean "no label".
        read = self.encoder(F.pad(encoded, (0, -width % _STRIDE, 0, -height % _STRIDE)))
        prediction: Tensor = self.head([self.decoder(read.latent, read.indices).output])
        return prediction[:, :, :height, :width]


class _Maps(nn.Module):
    """A map for every ordered pair of tasks, and the losses by which they learn.

    Args:
        tasks: by name.
        features: of the backbone, whose width the maps share.
    """

    def __init__(self, tasks: Mapping[str, Task], features: FeatureInfo) -> None:
        super().__init__()
        self.tasks = dict(tasks)
        width = min(features.channels[0] / FILTERS[-1], 1.0)
        self.maps = nn.ModuleDict(
            {
                f"{source.key}_to_{target.key}": TaskMap(source, target, width)
                for source in tasks.values()
                for target in tasks.values()
                if source != target
            }
        )
        self.losses = nn.ModuleDict({task.key: _loss(task) for task in tasks.values()})

    def of(self, source: str, target: str) -> TaskMap:
        """Return the map of a pair."""
        network = self.maps[f"{self.tasks[source].key}_to_{self.tasks[target].key}"]
        assert isinstance(network, TaskMap)
        return network

    def error(self, raw: Tensor, target: str, batch: Batch, rows: Sequence[int]) -> Tensor:
        """Return the target's loss of raw predictions for these rows: per sample, added up."""
        loss = self.losses[self.tasks[target].key]
        assert isinstance(loss, Loss)
        labels, valid = batch.targets[target][rows], batch.valid[target][rows]
        return reduce_loss(loss, raw, labels, valid, "sample")[0] * len(rows)


def _loss(task: Task) -> Loss:
    """Return the standard loss of a task's kind, which is not necessarily the run's."""
    if encoding.has_classes(task):
        return CrossEntropy(task)
    if task.kind in ("edges", "saliency"):
        return BinaryCrossEntropy(task)
    return Cosine(task) if task.kind == "normals" else L1(task)


def _by_tasks(pairs: Sequence[Pair]) -> dict[tuple[str, str], list[int]]:
    """Return the rows of each pair of tasks."""
    rows: dict[tuple[str, str], list[int]] = {}
    for pair in pairs:
        rows.setdefault((pair.source, pair.target), []).append(pair.row)
    return rows


class _MapLoss(WeightedLoss):
    """A loss with a network for each pair of tasks, which the loss trains too."""

    def __init__(
        self,
        name: str,
        tasks: Sequence[Task],
        features: FeatureInfo,
        weight: float,
        views: int,
        rates: Rates,
    ) -> None:
        super().__init__(weight, views)
        self._rates = rates
        self.maps = _Maps(mapped_tasks(tasks, name), features)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the group of the maps."""
        return [self._rates.group(self.parameters())]

    def _pairs(self, batch: Batch, running: Collection[str]) -> list[Pair]:
        """Return the pairs of the view that carries the loss."""
        return find_pairs(batch, self.maps.tasks, self.views - 1, running)


@final
class DirectMap(_MapLoss):
    """The prediction of an unlabelled task, mapped to a labelled one, meets that one's label.

    For each sample and pair of an unlabelled task s and a labelled task t, with one SegNet per pair
    and L_t the standard loss of t's kind: `weight * L_t(map(prediction of s), label of t)`, added
    up over pairs and averaged over samples. Map and network learn it together. Tasks without a
    value per pixel take no part.

    Args:
        weight: of the loss; with 0 there is neither a second view nor any map.
        views: number of views of each image; the last one carries this loss, the first one the
            supervised losses.
        mapping: learning rate and schedule of the maps.

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
    ) -> None:
        super().__init__("direct-map", tasks, features, weight, views, mapping)

    def _sources(self, batch: Batch, running: Sequence[str]) -> Collection[str]:
        return {pair.source for pair in self._pairs(batch, running)}

    def _terms(
        self, batch: Batch, features: Features, predictions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        losses = []
        for (source, target), rows in _by_tasks(self._pairs(batch, predictions)).items():
            encoded = encoding.of_prediction(self.maps.tasks[source], predictions[source][rows])
            raw = self.maps.of(source, target)(encoded)
            losses.append(self.maps.error(raw, target, batch, rows))
        if not losses:
            return {}
        return {"direct_map": self._weight / images(batch) * torch.stack(losses).sum()}


@final
class PerceptualMap(_MapLoss):
    """The prediction and the label of a labelled task look alike when mapped to another task.

    For each sample and pair of a labelled task s and an unlabelled task t (all ordered pairs where
    a sample has all labels), with one SegNet per pair: `perceptual_map`, the mean absolute
    difference between `map(prediction of s)` and `map(label of s)`, both as probabilities, unit
    normals or plain values; it teaches the network and leaves the maps alone, as in Zamir et al.,
    whose maps are fixed. The maps learn by `perceptual_map_fit` from predictions of unlabelled
    tasks to labels of others, as both labels of a pair rarely come together; that in turn leaves
    the network alone. Both are added up over pairs and averaged over samples.

    What is not valid in the label of s is set to zero in both of its encodings. Tasks without a
    value per pixel take no part.

    Args:
        weight: of the network's term; with 0 there is neither a second view nor any map.
        views: number of views of each image; the last one carries this loss, the first one the
            supervised losses.
        mapping: learning rate and schedule of the maps.

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
    ) -> None:
        super().__init__("perceptual-map", tasks, features, weight, views, mapping)

    def _sources(self, batch: Batch, running: Sequence[str]) -> Collection[str]:
        fitted, taught = self._pairs(batch, running), self._taught(batch, running)
        return {pair.source for pair in [*fitted, *taught]}

    def _terms(
        self, batch: Batch, features: Features, predictions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        taught = [
            self._difference(pair, rows, batch, predictions)
            for pair, rows in _by_tasks(self._taught(batch, predictions)).items()
        ]
        fitted = [
            self._fit(pair, rows, batch, predictions)
            for pair, rows in _by_tasks(self._pairs(batch, predictions)).items()
        ]
        number = images(batch)
        terms = {}
        if taught:
            terms["perceptual_map"] = self._weight / number * torch.stack(taught).sum()
        if fitted:
            terms["perceptual_map_fit"] = torch.stack(fitted).sum() / number
        return terms

    def _difference(
        self,
        pair: tuple[str, str],
        rows: list[int],
        batch: Batch,
        predictions: Mapping[str, Tensor],
    ) -> Tensor:
        source, target = (self.maps.tasks[name] for name in pair)
        valid = batch.valid[source.name][rows]
        label = encoding.of_label(source, batch.targets[source.name][rows], valid)
        prediction = encoding.of_prediction(source, predictions[source.name][rows])
        network = self.maps.of(*pair)
        fixed = {name: weight.detach() for name, weight in network.named_parameters()}
        mapped = [
            encoding.values(target, torch.func.functional_call(network, fixed, (encoded,)))
            for encoded in (
                prediction * valid.unsqueeze(1),
                (label * valid.unsqueeze(1)).to(prediction.dtype),
            )
        ]
        return (mapped[0] - mapped[1]).abs().mean((1, 2, 3)).sum()

    def _fit(
        self,
        pair: tuple[str, str],
        rows: list[int],
        batch: Batch,
        predictions: Mapping[str, Tensor],
    ) -> Tensor:
        source, target = pair
        raw = predictions[source][rows].detach()
        mapped = self.maps.of(*pair)(encoding.of_prediction(self.maps.tasks[source], raw))
        return self.maps.error(mapped, target, batch, rows)

    def _taught(self, batch: Batch, running: Collection[str]) -> list[Pair]:
        """Return the pairs from labelled tasks to unlabelled ones; all if no label is missing."""
        # The pairs of unlabelled and labelled tasks, read the other way round.
        turned = self._pairs(batch, self.maps.tasks)
        return [
            Pair(pair.row, pair.target, pair.source) for pair in turned if pair.target in running
        ]
