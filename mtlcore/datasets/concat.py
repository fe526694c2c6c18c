"""Several datasets as one, each with labels for its own tasks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, final

import attrs

from mtlcore.data import Dataset, Sample
from mtlcore.datasets.sources import Source, read_source
from mtlcore.errors import ConfigError, UsageError
from mtlcore.inputs import Inputs
from mtlcore.plugins import Plugins
from mtlcore.tasks import Task

_SPLITS = ("train", "val", "test")


@final
class Concat(Dataset):
    """The samples of several datasets, one dataset after the other.

    A sample has the labels of its own dataset; labels of all other tasks are missing. Tasks of the
    same name are one task and must agree in everything (kind, channels, class names, unit ...).
    `tasks` renames tasks of a source, to keep two apart or to make them one. Set `data.size` if
    images differ in size.

        [[data.sources]]
        name = "nyuv2"
        root = "nyuv2"
        [[data.sources]]
        name = "rooms"
        samples = 800
        size = [288, 384]
        tasks = { segmentation = "room_parts" }
        splits = ["train"]

    A source may be any dataset of mtlcore or of an installed plugin.

    Args:
        root: of the sources that name no root of their own.
        split: of every source.
        sources: one table per dataset: its name, its root, `tasks` (new names for some of its
            tasks), `splits` (in which it takes part; by default in all) and its own settings. A
            rendered dataset takes `samples` (per split) and `size`.

    Raises:
        ConfigError: a source is wrong, or two tasks of the same name differ.
        DataError: raised by one of the datasets.
        UsageError: raised by one of the datasets.
    """

    splits = _SPLITS

    def __init__(
        self, root: str | None, split: str, *, sources: tuple[dict[str, Any], ...]
    ) -> None:
        every = _sources(root, sources)
        _merged(every)
        opened = [source for source in every if source.splits is None or split in source.splits]
        if not opened:
            raise UsageError(f"data.sources: none of them takes part in the split {split!r}")
        self._opened = opened
        self._datasets = [source.open(split) for source in opened]
        self._starts = list(accumulate(map(len, self._datasets), initial=0))
        asked = [name for dataset in self._datasets for name in dataset.needs_teachers]
        self.needs_teachers = tuple(dict.fromkeys(asked))

    @classmethod
    def describe(cls, root: str | None, **settings: Any) -> tuple[Task, ...]:
        """Return the tasks of all sources, in the order of their first occurrence."""
        return _merged(_sources(root, settings["sources"]))

    @classmethod
    def default_size(cls, root: str | None, **settings: Any) -> tuple[int, int] | None:
        """Return the size that the sources suggest, if all that suggest one agree."""
        sizes = {
            source.target.default_size(source.root, **source.settings)
            for source in _sources(root, settings["sources"])
        } - {None}
        return sizes.pop() if len(sizes) == 1 else None

    @classmethod
    def kind_of_inputs(cls, root: str | None, **settings: Any) -> str:
        """Return the kind of inputs of all sources.

        Raises:
            ConfigError: they differ in it.
        """
        kinds: dict[str, str] = {}
        for source in _sources(root, settings["sources"]):
            kind = source.target.kind_of_inputs(source.root, **source.settings)
            kinds.setdefault(kind, f"{source.path} ({source.name}) gives {kind}")
        if len(kinds) > 1:
            raise ConfigError(
                [f"data.sources: inputs must be of one kind: {', '.join(kinds.values())}"]
            )
        return next(iter(kinds))

    def collate_inputs(self, inputs: Sequence[Inputs]) -> Inputs:
        """Make a batch's inputs as the first source does."""
        return self._datasets[0].collate_inputs(inputs)

    def __len__(self) -> int:
        return self._starts[-1]

    def name_of(self, index: int) -> str | None:
        """Return what the sample's own dataset calls it."""
        which, inside = self._place(index)
        return self._datasets[which].name_of(inside)

    def __getitem__(self, index: int) -> Sample:
        """Return a sample of one of the datasets, its labels under the new names of their tasks.

        Raises:
            DataError: raised by the dataset.
        """
        which, inside = self._place(index)
        dataset = self._datasets[which]
        if dataset.needs_teachers:
            dataset.teachers = {name: self.teachers[name] for name in dataset.needs_teachers}
        return self._opened[which].here(dataset[inside])

    def _place(self, index: int) -> tuple[int, int]:
        """Return the number of a sample's dataset, and its own number there."""
        index = range(len(self))[index]
        which = bisect_right(self._starts, index) - 1
        return which, index - self._starts[which]


def _sources(root: str | None, tables: Sequence[Mapping[str, Any]]) -> list[Source]:
    plugins = Plugins.from_environment()
    problems: list[str] = [] if tables else ["data.sources: name at least one dataset"]
    parsed = [
        read_source(table, f"data.sources[{number}]", root, plugins, problems, _SPLITS)
        for number, table in enumerate(tables)
    ]
    if problems:
        raise ConfigError(problems)
    return [source for source in parsed if source is not None]


def _merged(sources: Sequence[Source]) -> tuple[Task, ...]:
    """All tasks, each once."""
    tasks: dict[str, Task] = {}
    homes: dict[str, str] = {}
    problems = []
    for source in sources:
        for task in source.tasks():
            same = tasks.setdefault(task.name, task)
            home = homes.setdefault(task.name, f"{source.path} ({source.name})")
            differing = [
                field.name
                for field in attrs.fields(Task)
                if getattr(task, field.name) != getattr(same, field.name)
            ]
            if differing:
                problems.append(
                    f"{source.path}.tasks: {source.name!r} and {home} both have a task "
                    f"{task.name!r}, but of different {', '.join(differing)}; give one of them "
                    f'another name, tasks = {{ {task.name} = "..." }}'
                )
    if problems:
        raise ConfigError(problems)
    return tuple(tasks.values())
