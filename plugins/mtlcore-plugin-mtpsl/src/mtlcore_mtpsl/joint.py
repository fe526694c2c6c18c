"""Predictions and labels of a batch, mapped into the joint spaces of their pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import torch
from torch import Tensor, nn

from mtlcore.data import Batch
from mtlcore.tasks import Task
from mtlcore_mtpsl import encoding
from mtlcore_mtpsl.mapping import Code, Encoder, MappingNetwork, Use
from mtlcore_mtpsl.pairs import Pair, find_pairs

# Row, role (prediction 0, label 1), and for which target classes are drawn.
_Key = tuple[int, int, str | None]


@attrs.frozen
class Mapped:
    """The pairs of a batch with their two maps.

    Args:
        pairs: all of them.
        sources: mapped predictions (P, C, h, w).
        targets: mapped labels (P, C, h, w).
    """

    pairs: Sequence[Pair]
    sources: Tensor
    targets: Tensor


class JointSpace(nn.Module):
    """Finds the pairs of a batch and maps both sides of each, all in one pass.

    Args:
        tasks: by name.
        channels: of the joint space.
        code: see `MappingNetwork`.
        width: see `MappingNetwork`.
        view: whose samples are mapped.
        encoder: see `MappingNetwork`.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        channels: int,
        code: Code,
        width: float | None,
        view: int,
        encoder: Encoder = "segnet",
    ) -> None:
        super().__init__()
        self.tasks, self._view = dict(tasks), view
        self.network = MappingNetwork(tasks, channels, code, width, encoder)

    def sources(self, batch: Batch, running: Sequence[str]) -> set[str]:
        """Return those of the running tasks whose predictions are mapped."""
        return {pair.source for pair in find_pairs(batch, self.tasks, self._view, running)}

    def forward(self, batch: Batch, predictions: Mapping[str, Tensor]) -> Mapped | None:
        """Return the mapped pairs; None if there are none."""
        pairs = find_pairs(batch, self.tasks, self._view, predictions)
        if not pairs:
            return None
        encoded, uses = encode(self.tasks, pairs, batch, predictions)
        maps = self.network(encoded, uses)
        return Mapped(pairs, maps[: len(pairs)], maps[len(pairs) :])


def encode(
    tasks: Mapping[str, Task],
    pairs: Sequence[Pair],
    batch: Batch,
    predictions: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], list[Use]]:
    """Encode every map that the pairs need; return them with their uses, sources before targets.

    A label is encoded once for all pairs that use it, and so is a prediction, except that classes
    are drawn anew for every pair.
    """
    places: dict[str, dict[_Key, int]] = {name: {} for name in tasks}
    predicted: dict[str, list[int]] = {name: [] for name in tasks}
    labelled: dict[str, list[int]] = {name: [] for name in tasks}
    uses = []
    for pair in pairs:
        draw = pair.target if encoding.has_classes(tasks[pair.source]) else None
        uses.append(_place(places, predicted, pair, pair.source, (pair.row, 0, draw)))
    uses += [_place(places, labelled, pair, pair.target, (pair.row, 1, None)) for pair in pairs]
    encoded = {}
    some = next(iter(predictions.values()))
    for name, task in tasks.items():
        parts = []
        if rows := predicted[name]:
            parts.append(encoding.of_prediction(task, predictions[name][rows]))
        if rows := labelled[name]:
            label = encoding.of_label(task, batch.targets[name][rows], batch.valid[name][rows])
            parts.append(label.to(some.dtype))
        if parts:
            encoded[name] = torch.cat(parts)
    return encoded, uses


def _place(
    places: dict[str, dict[_Key, int]], rows: dict[str, list[int]], pair: Pair, task: str, key: _Key
) -> Use:
    """Return the use of a map, adding it to those of its task if it is not among them."""
    if key not in places[task]:
        places[task][key] = len(places[task])
        rows[task].append(pair.row)
    return Use(task, places[task][key], (pair.source, pair.target), key[1])
