"""What is counted of a split: inputs, and the labels of each task; parts are merged into a whole.

Memory does not grow with the samples, but for 16 bytes of each and for a few examples of whatever
is odd.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import final

import attrs
import numpy as np
from numpy.typing import NDArray

from mtlcore.datacheck.histograms import Values
from mtlcore.tasks import Task

#: Files that are named of each fault, and different sizes of inputs that are counted.
EXAMPLES, SIZES = 100, 1000


@attrs.frozen(kw_only=True)
class Example:
    """A sample with a fault.

    Args:
        file: the sample's key, or the file of its label.
        message: what is wrong with it; empty where the fault says it.
        count: how many of its values are concerned.
    """

    file: str
    message: str = ""
    count: int = 1

    def told(self) -> str:
        """Return a line about it; messages of readers begin with the file."""
        times = f" ({self.count:,} values)" if self.count > 1 else ""
        if not self.message:
            return f"{self.file}{times}"
        known = self.message.startswith(self.file)
        return f"{self.message}{times}" if known else f"{self.file}: {self.message}{times}"


@final
@attrs.define
class Examples:
    """Samples with one fault: how many there are, how many values, and the first few of them."""

    samples: int = 0
    values: int = 0
    first: list[Example] = attrs.field(factory=list)

    def add(self, example: Example) -> None:
        self.samples += 1
        self.values += example.count
        if len(self.first) < EXAMPLES:
            self.first.append(example)

    def merge(self, other: Examples) -> None:
        self.samples += other.samples
        self.values += other.values
        self.first = (self.first + other.first)[:EXAMPLES]


@final
class TaskCount:
    """What the labels of one task are.

    Args:
        task: the task.

    Attributes:
        labelled: samples with a valid label.
        elements: places that a label could be at, in samples that were read.
        valid: those where there is one.
        classes: how often each class occurs (pixels or samples), (channels,); None: has none.
        samples_of: in how many samples each class occurs.
        channels: the values of each channel; empty where there are classes.
        outside: samples with values that the kind does not have.
        wrong: labels that cannot be used for another reason, such as their shape.
        single: samples in which a class has a single pixel.
        constant: samples whose map has one value everywhere.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.labelled = self.elements = self.valid = 0
        has_classes = task.dtype == "int64"
        self.classes: NDArray[np.int64] | None = (
            np.zeros(task.channels, dtype=np.int64) if has_classes else None
        )
        self.samples_of: NDArray[np.int64] = np.zeros(task.channels, dtype=np.int64)
        self.channels = [] if has_classes else [Values() for _ in range(task.channels)]
        self.outside, self.wrong = Examples(), Examples()
        self.single, self.constant = Examples(), Examples()

    def merge(self, other: TaskCount) -> None:
        """Add what another part of the split has."""
        self.labelled += other.labelled
        self.elements += other.elements
        self.valid += other.valid
        self.samples_of = self.samples_of + other.samples_of
        if self.classes is not None and other.classes is not None:
            self.classes = self.classes + other.classes
        for mine, theirs in zip(self.channels, other.channels, strict=True):
            mine.merge(theirs)
        for name in ("outside", "wrong", "single", "constant"):
            getattr(self, name).merge(getattr(other, name))


@final
class InputCount:
    """What the inputs are.

    Attributes:
        shapes: shape of an input, or of each tensor in a tree -> number of samples.
        channels: values of each channel of images; of everything else nothing.
        lengths: of inputs that are sequences.
        blank: images of a single colour.
        low: least value of each entry of a vector, None until there is one; `high` the greatest.
    """

    def __init__(self) -> None:
        self.shapes: Counter[str] = Counter()
        self.channels: list[Values] = []
        self.lengths = Values()
        self.blank = Examples()
        self.low: NDArray[np.float64] | None = None
        self.high: NDArray[np.float64] | None = None

    def merge(self, other: InputCount) -> None:
        """Add what another part of the split has."""
        for shape, number in other.shapes.items():
            self.add_shape(shape, number)
        if len(self.channels) < len(other.channels):
            self.channels += [Values() for _ in range(len(other.channels) - len(self.channels))]
        for mine, theirs in zip(self.channels, other.channels, strict=False):
            mine.merge(theirs)
        self.lengths.merge(other.lengths)
        self.blank.merge(other.blank)
        if other.low is not None and other.high is not None:
            self.add_extent(other.low, other.high)

    def add_shape(self, shape: str, number: int = 1) -> None:
        """Count a shape; beyond so many different ones, they are one."""
        known = shape in self.shapes or len(self.shapes) < SIZES
        self.shapes[shape if known else "others"] += number

    def add_extent(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> None:
        """Take in the least and the greatest value of each entry; of one length all vectors are."""
        if self.low is None or self.high is None:
            self.low, self.high = low, high
        elif len(self.low) == len(low):
            self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)


@final
class SplitCount:
    """What is counted of a split.

    Args:
        tasks: of the run.

    Attributes:
        read: samples that were read.
        unreadable: those that were not.
        inputs: their inputs.
        tasks: task -> its labels.
        digests: of each sample's key and input, in order, (samples, 2); 0 where it was not read.
    """

    def __init__(self, tasks: tuple[Task, ...]) -> None:
        self.read = 0
        self.unreadable = Examples()
        self.inputs = InputCount()
        self.tasks: Mapping[str, TaskCount] = {task.name: TaskCount(task) for task in tasks}
        self.digests: list[NDArray[np.uint64]] = []

    def merge(self, other: SplitCount) -> None:
        """Add the part that follows."""
        self.read += other.read
        self.unreadable.merge(other.unreadable)
        self.inputs.merge(other.inputs)
        for name, task in self.tasks.items():
            task.merge(other.tasks[name])
        self.digests += other.digests
