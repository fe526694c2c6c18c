"""Metrics of labels per place of a sequence: of each label, and of the spans that they make."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import final

import attrs
import torch
from torch import Tensor

from mtlcore.metrics import Metric
from mtlcore.standard.metrics import Pool
from mtlcore.tasks import Task

_OUTSIDE = "O"
_PART = re.compile(r"([BIESLU])(?:[-_](.+))?")
#: BILOU has other letters for the same: the last place of a span, and a span of one.
_SAME = {"L": "E", "U": "S"}
_PREFIXES = "OBIES"


@final
@attrs.frozen
class SpanTags:
    """Which classes begin, continue and end spans: tags of IOB, BIO, BIOES or BILOU.

    Args:
        prefixes: of each class, its place in "OBIES".
        types: of each class, the number of its type; -1 outside.
    """

    prefixes: Tensor
    types: Tensor

    @classmethod
    def of(cls, names: Sequence[str]) -> SpanTags | None:
        """Return those of classes by their names, such as "O", "B-place" and "I-place".

        None where one of the names is no such tag, or there is no "O" or no other.
        """
        found = [_PART.fullmatch(name) for name in names]
        parts = [match for match in found if match]
        outside = [name for name, match in zip(names, found, strict=True) if not match]
        if outside != [_OUTSIDE] or not parts:
            return None
        types = {kind: number for number, kind in enumerate(dict.fromkeys(p[2] for p in parts))}
        prefixes = [_PREFIXES.index(_SAME.get(m[1], m[1]) if m else _OUTSIDE) for m in found]
        return cls(torch.tensor(prefixes), torch.tensor([types[m[2]] if m else -1 for m in found]))

    def spans(self, tags: Tensor, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find the spans of sequences that stand one behind another, as CoNLL's evaluation does.

        A span goes on over places of its type, as long as none of them begins another one: what
        begins with "I" or "E" is a span too.

        Args:
            tags: (N,) class of each place.
            first: (N,) whether a sequence begins there.

        Returns:
            (N,) whether a span begins at a place; (N,) the number of the last place of the span
            that begins there, meaningless elsewhere; (N,) the type.
        """
        if not len(tags):
            return first, tags, tags
        prefix, kind = (known.to(tags.device)[tags] for known in (self.prefixes, self.types))
        outside, begin, _, end, single = (prefix == number for number in range(len(_PREFIXES)))
        before_outside, before_ends = _shifted(outside, True), _shifted(end | single, False)
        other = kind != _shifted(kind, -1)
        starts = ~outside & (first | begin | single | before_outside | before_ends | other)
        # The last place before the next one that is outside, starts a span or begins a sequence.
        stops = torch.cat([(outside | starts | first)[1:], starts.new_ones(1)])
        places = torch.arange(len(tags), device=tags.device)
        last = torch.where(stops, places, len(tags)).flip(0).cummin(0).values.flip(0)
        return starts, last, kind


@final
class TaggingMetric(Metric):
    """Of classes per place: hits, F-measures, and where classes mark spans, whole spans.

    Classes that are tags of IOB, BIO, BIOES or BILOU ("O", "B-place", "I-place", ...) make spans;
    one that is predicted counts if beginning, end and type are those of one of the labels.
    `entity_precision` is the part of the predicted spans that count, `entity_recall` the part of
    the labels' spans that are found, and `entity_f1` = 2 TP / (predicted + true), of all types
    together (Tjong Kim Sang and De Meulder, CoNLL 2003; spans as their `conlleval` finds them).
    Places without a valid label, such as padding and further parts of words, are as if they were
    not there.

    `accuracy` is the part of the places whose largest logit is that of their class, which is the
    micro F-measure of all classes too. `macro_f1` is the mean over classes of
    2 TP / (2 TP + FP + FN); classes that occur neither in the labels nor in the predictions are
    left out, and so are those that the task ignores. All are fractions.
    """

    higher_is_better: Mapping[str, bool]

    def __init__(self, task: Task) -> None:
        self._classes, self._counted = task.channels, list(task.counted)
        self._confusion = Pool(task.channels**2, torch.int64)
        self._tags = SpanTags.of(task.class_names)
        # Spans that are right, all that were predicted, and all that are labelled.
        self._spans = Pool(3, torch.int64)
        names = ("entity_f1", "entity_precision", "entity_recall") if self._tags else ()
        self.higher_is_better = dict.fromkeys((*names, "accuracy", "macro_f1"), True)

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        """Accumulate a batch: logits (B, C, L), classes (B, L) int64, mask (B, L)."""
        said = prediction.argmax(1)
        self._confusion.count(target * self._classes + said, valid)
        if self._tags is None:
            return
        rows = torch.arange(len(valid), device=valid.device)[:, None].expand_as(valid)[valid]
        first = rows != _shifted(rows, -1)
        starts, last, kind = self._tags.spans(said[valid], first)
        true_starts, true_last, true_kind = self._tags.spans(target[valid], first)
        right = starts & true_starts & (last == true_last) & (kind == true_kind)
        self._spans.add(torch.stack([right.sum(), starts.sum(), true_starts.sum()]))

    def compute(self) -> dict[str, float]:
        """Return the values, 0 to 1; NaN where there is nothing that could be right."""
        # Rows are the labels, columns the predictions.
        confusion = self._confusion.values.cpu().double().reshape(self._classes, self._classes)
        hits, both = confusion.diagonal(), (confusion.sum(0) + confusion.sum(1))[self._counted]
        right, occurs = hits[self._counted], both > 0
        places = {
            "accuracy": float(hits.sum() / confusion.sum()),
            "macro_f1": float((2 * right[occurs] / both[occurs]).mean()),
        }
        if self._tags is None:
            return places
        found, said, true = self._spans.values.tolist()
        return {
            "entity_f1": 2 * found / (said + true) if said + true else math.nan,
            "entity_precision": found / said if said else math.nan,
            "entity_recall": found / true if true else math.nan,
            **places,
        }

    def merge(self, other: Metric) -> None:
        """Add the other's counts."""
        assert isinstance(other, TaggingMetric)
        self._confusion.merge(other._confusion)
        self._spans.merge(other._spans)

    def reset(self) -> None:
        """Drop everything that was accumulated."""
        self._confusion.reset()
        self._spans.reset()


def _shifted(values: Tensor, first: float) -> Tensor:
    """Return what stands one place before; `first` before the first."""
    return torch.cat([values.new_full((1,), first), values[:-1]])
