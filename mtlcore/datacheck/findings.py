"""What looks wrong in what was counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, final

import attrs
import numpy as np
from numpy.typing import NDArray

from mtlcore.data import Dataset
from mtlcore.datacheck.counting import Example, Examples, SplitCount, TaskCount
from mtlcore.datacheck.measuring import class_name

Level = Literal["wrong", "odd"]
_NAMED = 20  # pairs of samples that are read again to name them
_LISTED = 12  # classes that a line lists


@final
@attrs.frozen(kw_only=True)
class Finding:
    """Something that looks wrong.

    Args:
        level: "wrong" would end a training, or spoil it; "odd" may be meant.
        kind: a word for programs.
        split: where it is.
        task: whose labels are concerned; None: all, or the inputs.
        text: what it is and what to do, a sentence.
        samples: how many samples are concerned; 0: none in particular.
        values: how many of their values.
        files: the first of these samples.
    """

    level: Level
    kind: str
    split: str
    task: str | None = None
    text: str
    samples: int = 0
    values: int = 0
    files: tuple[Example, ...] = ()


@final
@attrs.frozen(kw_only=True)
class Counted:
    """A split that was read.

    Args:
        dataset: the split.
        count: what it holds.
        used: numbers of the samples that were read, in order.
        examples: how many of these are examples; the others repeat them.
    """

    dataset: Dataset
    count: SplitCount
    used: Sequence[int]
    examples: int

    def digests(self) -> NDArray[np.uint64]:
        """Return the digests of key and input of each example, (examples, 2)."""
        whole = self.count.digests or [np.zeros((0, 2), dtype=np.uint64)]
        return np.concatenate(whole)[: self.examples]

    def key(self, place: int) -> str:
        """Return the key of an example by its place, reading it again."""
        return self.dataset[self.used[place]].key


def find(splits: Mapping[str, Counted], size: tuple[int, int] | None) -> list[Finding]:
    """Return what looks wrong, what is worse first.

    Args:
        splits: name -> what was counted, training first.
        size: to which images are resized; None: to none.
    """
    found: list[Finding] = []
    for name, split in splits.items():
        found += _of_samples(name, split)
        found += _of_inputs(name, split, size)
        for task in split.count.tasks.values():
            found += _of_task(name, split, task)
    found += _of_classes(splits)
    found += _shared(splits)
    return sorted(found, key=lambda finding: finding.level != "wrong")


def _finding(
    level: Level, kind: str, split: str, text: str, of: Examples, task: str | None = None
) -> Finding:
    return Finding(
        level=level, kind=kind, split=split, task=task, text=text, samples=of.samples,
        values=of.values, files=tuple(of.first),
    )  # fmt: skip


def _of_samples(name: str, split: Counted) -> Iterator[Finding]:
    unreadable = split.count.unreadable
    if unreadable.samples:
        yield _finding("wrong", "unreadable", name, "samples that cannot be read", unreadable)
    digests = split.digests()
    named = _repeated(digests[:, 0])
    if named:
        text = "samples of one name, which messages and lists of labels cannot tell apart"
        yield _pairs("wrong", "same-name", name, text, split, named)
    # What has one name is told by it.
    same = [(a, b) for a, b in _repeated(digests[:, 1]) if digests[a, 0] != digests[b, 0]]
    if same:
        text = "samples whose input another sample of the split has too"
        yield _pairs("odd", "same-input", name, text, split, same)


def _pairs(
    level: Level, kind: str, name: str, text: str, split: Counted, pairs: Sequence[tuple[int, int]]
) -> Finding:
    files = tuple(
        Example(file=split.key(again), message=f"as {split.key(first)}")
        for first, again in pairs[:_NAMED]
    )
    return Finding(level=level, kind=kind, split=name, text=text, samples=len(pairs), files=files)


def _repeated(digests: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """Return places of what came before: (the first, the one that repeats it)."""
    order = np.argsort(digests, kind="stable")
    ordered = digests[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    lengths = np.diff(np.r_[starts, len(ordered)])
    pairs = []
    for start, length in zip(starts[lengths > 1], lengths[lengths > 1], strict=True):
        if ordered[start]:
            same = order[start : start + length].tolist()
            pairs += [(same[0], again) for again in same[1:]]
    return sorted(pairs, key=lambda pair: pair[1])


def _of_inputs(name: str, split: Counted, size: tuple[int, int] | None) -> Iterator[Finding]:
    inputs = split.count.inputs
    is_image = split.dataset.input_kind == "image" and bool(inputs.channels)
    if is_image and size is None and len(inputs.shapes) > 1:
        common = ", ".join(f"{shape} ({n})" for shape, n in inputs.shapes.most_common(4))
        yield Finding(
            level="odd", kind="sizes", split=name,
            text=f"images of {len(inputs.shapes)} sizes, {common}: they are one batch only where "
            "data.size is set",
        )  # fmt: skip
    if inputs.blank.samples:
        yield _finding("odd", "blank", name, "images of a single colour", inputs.blank)
    if inputs.low is not None and inputs.high is not None and split.count.read > 1:
        fixed = np.flatnonzero(inputs.low == inputs.high)
        if name == "train" and len(fixed):
            places = ", ".join(map(str, fixed[:_LISTED])) + (
                ", ..." if len(fixed) > _LISTED else ""
            )
            yield Finding(
                level="odd", kind="constant-input", split=name,
                text=f"{len(fixed)} of {len(inputs.low)} entries of the vectors have one value in "
                f"every sample (entries {places}, from 0)",
            )  # fmt: skip


def _of_task(name: str, split: Counted, count: TaskCount) -> Iterator[Finding]:
    task = count.task
    if count.outside.samples:
        yield _finding("wrong", "outside", name,
                       f"labels with values that the kind {task.kind!r} does not have",
                       count.outside, task.name)  # fmt: skip
    if count.wrong.samples:
        yield _finding("wrong", "label", name, "labels that cannot be used", count.wrong, task.name)
    if not count.labelled:
        if split.count.read:
            text = "no sample has a label of this task"
            level: Level = "wrong" if name in ("train", "val") else "odd"
            yield Finding(level=level, kind="no-labels", split=name, task=task.name, text=text)
        return
    if task.kind == "normals" and task.channels == 3 and count.channels[2].mean > 0:
        text = (
            "normals face away from the camera: their z is above 0 on average, and mtlcore's frame "
            "is x right, y down, z forward (scale and offset of z with the other sign turn them)"
        )
        yield Finding(level="odd", kind="facing-away", split=name, task=task.name, text=text)
    yield from _of_single_pixels(name, count)
    yield from _of_constants(name, split, count)


def _of_single_pixels(name: str, count: TaskCount) -> Iterator[Finding]:
    if count.task.layout != "map" or count.classes is None:
        return
    lone = np.flatnonzero((count.classes > 0) & (count.classes == count.samples_of)).tolist()
    if lone:
        classes = _classes(count, lone)
        yield _finding("wrong", "one-pixel", name,
                       f"classes that have a single pixel wherever they occur: {classes}; is it a "
                       "class, or a stray value?", count.single, count.task.name)  # fmt: skip
    elif count.single.samples:
        yield _finding("odd", "one-pixel", name, "labels in which a class has a single pixel",
                       count.single, count.task.name)  # fmt: skip


def _of_constants(name: str, split: Counted, count: TaskCount) -> Iterator[Finding]:
    task = count.task
    if count.labelled > 1 and not _varies(count):
        yield Finding(
            level="wrong" if name == "train" else "odd", kind="one-value", split=name,
            task=task.name,
            text=f"every label says the same, {_only(count)}: there is nothing to learn",
        )  # fmt: skip
        return
    # A picture without an edge, or of one class, is nothing odd.
    measured = task.layout == "map" and task.values != "share" and count.classes is None
    if measured and count.constant.samples:
        yield _finding("wrong", "constant", name, "maps that have one value everywhere",
                       count.constant, task.name)  # fmt: skip


def _varies(count: TaskCount) -> bool:
    if count.classes is not None:
        return int((count.classes > 0).sum()) > 1
    return any(values.high > values.low for values in count.channels if values.count)


def _only(count: TaskCount) -> str:
    if count.classes is not None:
        return f"class {class_name(count.task, int(count.classes.argmax()))}"
    return ", ".join(f"{values.low:g}" for values in count.channels[:_LISTED] if values.count)


def _of_classes(splits: Mapping[str, Counted]) -> Iterator[Finding]:
    """Find classes that training never shows, and those that another split does not."""
    train = splits.get("train")
    for name, split in splits.items() if train is not None else ():
        assert train is not None
        for task, count in split.count.tasks.items():
            shown = train.count.tasks[task]
            if count.classes is None or shown.classes is None or not count.labelled:
                continue
            counts = np.isin(np.arange(count.task.channels), count.task.counted)
            never = counts & (count.classes == 0)
            if split is not train and shown.labelled:
                new = np.flatnonzero(counts & (shown.classes == 0) & (count.classes > 0)).tolist()
                if new:
                    yield Finding(
                        level="wrong", kind="untrained-class", split=name, task=task,
                        text=f"{len(new)} classes that training never shows: "
                        f"{_classes(count, new)}",
                    )  # fmt: skip
                never &= shown.classes > 0
            if bool(never.any()):
                places = np.flatnonzero(never).tolist()
                yield Finding(
                    level="odd", kind="no-such-class", split=name, task=task,
                    text=f"{len(places)} of {count.task.channels} classes never occur: "
                    f"{_classes(count, places)}",
                )  # fmt: skip


def _classes(count: TaskCount, numbers: Sequence[int]) -> str:
    listed = ", ".join(class_name(count.task, number) for number in numbers[:_LISTED])
    return listed + (f", and {len(numbers) - _LISTED} more" if len(numbers) > _LISTED else "")


def _shared(splits: Mapping[str, Counted]) -> Iterator[Finding]:
    """Find what training has seen in the other splits."""
    train = splits.get("train")
    for name, split in splits.items() if train is not None else ():
        if train is None or split is train:
            continue
        seen, here = train.digests(), split.digests()
        by_name = _common(seen[:, 0], here[:, 0])
        if by_name:
            files = [Example(file=split.key(place)) for _, place in by_name[:_NAMED]]
            yield Finding(level="wrong", kind="shared", split=name, samples=len(by_name),
                          text="samples that are in train too: what is measured on them has been "
                          "seen in training", files=tuple(files))  # fmt: skip
        same = [(a, b) for a, b in _common(seen[:, 1], here[:, 1]) if seen[a, 0] != here[b, 0]]
        if same:
            is_image = split.dataset.input_kind == "image"
            files = [
                Example(file=split.key(b), message=f"as {train.key(a)}") for a, b in same[:_NAMED]
            ]
            yield Finding(level="wrong" if is_image else "odd", kind="shared-input", split=name,
                          text="samples whose input train has too, under another name",
                          samples=len(same), files=tuple(files))  # fmt: skip


def _common(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """Return places in both of what both have: of each in `other`, the first in `one`."""
    known, first = np.unique(one, return_index=True)
    if not len(known):
        return []
    at = np.searchsorted(known, other).clip(max=len(known) - 1)
    places = np.flatnonzero((known[at] == other) & (other != 0))
    return [(int(first[at[place]]), int(place)) for place in places]
