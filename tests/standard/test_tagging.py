"""Labels per place of a sequence: head, loss and metric, and spans as CoNLL's evaluation finds."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from mtlcore.data import DataError, Sample, collate, complete
from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo
from mtlcore.standard.heads import LinearHead, TaggingHead
from mtlcore.standard.losses import MSE, CrossEntropy, Focal
from mtlcore.standard.metrics_sequences import SpanTags, TaggingMetric
from mtlcore.tasks import Task
from mtlcore.testing import HeadContract, LossContract, MetricContract

BIOES = ("O", *(f"{part}-{kind}" for part in "BIES" for kind in ("per", "loc")))
SPANS = Task(name="spans", kind="tagging", channels=len(BIOES), class_names=BIOES)
WORDS = Task(name="words", kind="tagging", channels=4)


class TestTaggingHead(HeadContract):
    task = WORDS
    features = (FeatureInfo((6,), (1,)), FeatureInfo((7, 6), (1, 1)))
    size = (12,)

    def make(self, task, features):
        return TaggingHead(task, features)


class TestTaggingHeadWithDropout(TestTaggingHead):
    features = (FeatureInfo((6, 6), (1, 0), main_map=0),)

    def make(self, task, features):
        return TaggingHead(task, features, dropout=0.5)


class TestCrossEntropy(LossContract):
    task = WORDS
    size = (7,)

    def make(self, task):
        return CrossEntropy(task, class_weights=(1.0, 2.0, 0.5, 1.0))


class TestFocal(TestCrossEntropy):
    def make(self, task):
        return Focal(task)


class TestValuesOfPlaces(LossContract):
    task = Task(name="scores", kind="regression", channels=2, layout="sequence")
    size = (7,)

    def make(self, task):
        return MSE(task)


class TestTaggingMetric(MetricContract):
    task = WORDS
    size = (9,)

    def make(self, task):
        return TaggingMetric(task)


class TestSpanMetric(TestTaggingMetric):
    task = SPANS


def scored(task: Task, said: list[list[str]], true: list[list[str]]) -> dict[str, float]:
    """The metric's values of sequences of class names; "-" is a place without a label."""
    longest = max(map(len, true))
    names = task.class_names
    logits = torch.zeros(len(true), task.channels, longest)
    target = torch.zeros(len(true), longest, dtype=torch.int64)
    valid = torch.zeros(len(true), longest, dtype=torch.bool)
    for row, (first, second) in enumerate(zip(said, true, strict=True)):
        for place, (guess, tag) in enumerate(zip(first, second, strict=True)):
            logits[row, names.index(guess), place] = 1
            if tag != "-":
                target[row, place], valid[row, place] = names.index(tag), True
    metric = TaggingMetric(task)
    metric.update(logits, target, valid)
    return metric.compute()


@pytest.mark.parametrize(
    ("true", "said", "counts"),
    [
        # right, predicted, labelled
        ("O B-per I-per O", "O B-per I-per O", (1, 1, 1)),
        ("O B-per I-per O", "O B-per O O", (0, 1, 1)),  # the end is wrong
        ("O B-per I-per O", "O O B-per O", (0, 1, 1)),  # the beginning is wrong
        ("B-per I-per O", "B-loc I-loc O", (0, 1, 1)),  # the type is wrong
        ("B-per B-per O", "B-per I-per O", (0, 1, 2)),  # two spans side by side
        ("O I-per I-per", "O B-per I-per", (1, 1, 1)),  # spans may begin with I, as in IOB1
        ("B-per I-loc O", "B-per B-loc O", (2, 2, 2)),  # another type is another span
        ("S-per S-per E-loc", "S-per B-per E-loc", (3, 3, 3)),
        ("B-per E-per I-per", "B-per E-per O", (1, 1, 2)),  # E ends a span
        ("B-per - I-per O", "B-per O I-per O", (1, 1, 1)),  # parts of words are not there
        ("O O", "O O", (0, 0, 0)),
    ],
)
def test_spans_are_right_as_a_whole(true: str, said: str, counts: tuple[int, ...]) -> None:
    values = scored(SPANS, [said.split()], [true.split()])
    right, predicted, labelled = counts
    assert values["entity_precision"] == pytest.approx(
        right / predicted if predicted else math.nan, nan_ok=True
    )
    assert values["entity_recall"] == pytest.approx(
        right / labelled if labelled else math.nan, nan_ok=True
    )
    both = predicted + labelled
    assert values["entity_f1"] == pytest.approx(2 * right / both if both else math.nan, nan_ok=True)


def conlleval(tags: list[str]) -> set[tuple[int, int, str]]:
    """Spans of a sequence, by the rules of conlleval written out tag by tag."""
    found, begun, before = set(), 0, "O"
    for place, tag in enumerate([*tags, "O"]):
        (was, kind_was), (now, kind) = ((*t.split("-"), "")[:2] for t in (before, tag))
        ends = was != "O" and (
            was in "ES" or now in "OBS" or kind_was != kind
        )  # "I" or "E" after "B" or "I" of the same type go on
        starts = now != "O" and (now in "BS" or was in "OES" or kind_was != kind)
        if ends:
            found.add((begun, place - 1, kind_was))
        begun, before = place if starts else begun, tag
    return found


def test_every_short_sequence_has_the_spans_of_conlleval() -> None:
    tags = SpanTags.of(BIOES)
    assert tags is not None
    for length in (1, 2, 3):
        for names in itertools.product(BIOES, repeat=length):
            classes = torch.tensor([BIOES.index(name) for name in names])
            first = torch.arange(length) == 0
            starts, last, kind = tags.spans(classes, first)
            places = starts.nonzero().flatten().tolist()
            found = {(p, int(last[p]), ("per", "loc")[int(kind[p])]) for p in places}
            assert found == conlleval(list(names)), names


def test_sequences_do_not_run_into_one_another() -> None:
    values = scored(SPANS, [["B-per"], ["I-per"]], [["B-per"], ["B-per"]])
    assert values["entity_f1"] == 1


def test_values_per_place() -> None:
    """2 of 3 places; F of the classes O: 2/3, B-per: 0, S-loc: 1."""
    values = scored(SPANS, [["O", "O", "S-loc"]], [["O", "B-per", "S-loc"]])
    assert values["accuracy"] == pytest.approx(2 / 3)
    assert values["macro_f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert next(iter(values)) == "entity_f1"


@pytest.mark.parametrize(
    ("names", "are"),
    [
        (("O", "B-x", "I-x"), True),
        (("O", "B", "I"), True),
        (("O", "B-x", "I-x", "L-x", "U-x"), True),
        (("NOUN", "VERB", "O"), False),
        (("B-x", "I-x"), False),
        (("O",), False),
        ((), False),
    ],
)
def test_which_classes_are_tags_of_spans(names: tuple[str, ...], are: bool) -> None:
    assert (SpanTags.of(names) is not None) == are


def test_letters_of_bilou_are_those_of_bioes() -> None:
    names = ("O", "B-x", "I-x", "L-x", "U-x")
    task = Task(name="t", kind="tagging", channels=5, class_names=names)
    values = scored(task, [["U-x", "B-x", "L-x", "I-x"]], [["U-x", "B-x", "I-x", "L-x"]])
    # U-x is right; B-x L-x is one span and I-x another, of which neither is B-x I-x L-x.
    assert (values["entity_precision"], values["entity_recall"]) == (1 / 3, 1 / 2)


# Samples and batches


def sample(length: int, labels: list[int] | None, key: str = "s") -> Sample:
    inputs = torch.arange(1, length + 1)
    if labels is None:
        return Sample(inputs=inputs, targets={}, valid={}, key=key)
    target = torch.tensor(labels)
    return Sample(
        inputs=inputs, targets={"words": target.clamp_min(0)}, valid={"words": target >= 0}, key=key
    )


def padded(inputs):
    tokens = torch.nn.utils.rnn.pad_sequence(list(inputs), batch_first=True)
    return {"tokens": tokens, "mask": tokens > 0}


def test_labels_are_padded_with_the_inputs_and_not_valid_there() -> None:
    batch = collate([sample(2, [3, -1]), sample(4, [0, 1, 2, 3]), sample(1, None)], [WORDS], padded)
    assert batch.targets["words"].tolist() == [[3, 0, 0, 0], [0, 1, 2, 3], [0, 0, 0, 0]]
    assert batch.valid["words"].sum(1).tolist() == [1, 4, 0]
    assert batch.count["words"] == 5
    assert batch.labelled["words"] == (True, True, False)


def test_they_are_padded_as_far_as_the_inputs_of_the_batch() -> None:
    def to_eight(inputs):
        return {
            "tokens": torch.stack([torch.nn.functional.pad(x, (0, 8 - len(x))) for x in inputs])
        }

    batch = collate([sample(2, [1, 1]), sample(3, None)], [WORDS], to_eight)
    assert batch.targets["words"].shape == batch.valid["words"].shape == (2, 8)


def test_labels_of_another_length_are_refused() -> None:
    with pytest.raises(DataError, match=r"words label has shape \(2,\).* where \(3,\) was"):
        collate([sample(3, [0, 1])], [WORDS], padded)


def test_inputs_that_are_no_sequences_are_refused() -> None:
    image = Sample(inputs={"a": torch.zeros(3), "b": torch.zeros(4)}, targets={}, valid={}, key="k")
    with pytest.raises(DataError, match="k: words has a label per place of a sequence"):
        collate([image], [WORDS])


def test_a_sample_is_complete_at_its_own_length() -> None:
    whole = complete(sample(3, None), [WORDS])
    assert whole.targets["words"].tolist() == [0, 0, 0]
    assert whole.valid["words"].tolist() == [False] * 3


def test_heads_refuse_what_they_do_not_predict() -> None:
    features = FeatureInfo((4,), (1,))
    with pytest.raises(UsageError, match="'words' has a value per place"):
        LinearHead(WORDS, features)
    with pytest.raises(UsageError, match="'x' has no value per place of a sequence"):
        TaggingHead(Task(name="x", kind="classification", channels=3), features)
    with pytest.raises(ValueError, match=r"a sequence \(B, C, L\) is needed"):
        TaggingHead(WORDS, features)([torch.zeros(2, 4)])
