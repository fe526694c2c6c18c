"""Several datasets as one, each with labels for its own tasks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, final

import attrs

from mtlcore.data import Dataset, Sample
from mtlcore.errors import ConfigError, MtlError, UsageError, did_you_mean
from mtlcore.inputs import Inputs
from mtlcore.plugins import Plugins, structure
from mtlcore.tasks import Task

_OWN_KEYS = ("name", "root", "tasks", "splits")
_SPLITS = ("train", "val", "test")


@attrs.frozen
class _Source:
    """One of the datasets, not opened yet.

    Args:
        path: of its table in the configuration.
        name: of the dataset.
        target: its class.
        root: where it lies.
        settings: its own, converted.
        renamed: its tasks' names and what they are called here.
        splits: in which it takes part; None: in all.
    """

    path: str
    name: str
    target: type[Dataset]
    root: str | None
    settings: Mapping[str, Any]
    renamed: Mapping[str, str]
    splits: tuple[str, ...] | None

    def tasks(self) -> tuple[Task, ...]:
        """Its tasks under the names they have here."""
        declared = self.target.describe(self.root, **self.settings)
        names = [task.name for task in declared]
        unknown = [name for name in self.renamed if name not in names]
        if unknown:
            raise ConfigError(
                f"{self.path}.tasks.{name}: {self.name!r} declares no such task"
                f"{did_you_mean(name, names)} (it has: {', '.join(names)})"
                for name in unknown
            )
        here = [self.renamed.get(name, name) for name in names]
        if len(set(here)) < len(here):
            raise ConfigError([f"{self.path}.tasks: gives two tasks of {self.name!r} one name"])
        try:
            return tuple(
                attrs.evolve(task, name=name) for task, name in zip(declared, here, strict=True)
            )
        except ValueError as error:
            raise ConfigError([f"{self.path}.tasks: {error}"]) from error


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
        self._renamed = [source.renamed for source in opened]
        self._datasets = [_open(source, split) for source in opened]
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
        sample = dataset[inside]
        renamed = self._renamed[which]
        return attrs.evolve(
            sample,
            targets={renamed.get(name, name): t for name, t in sample.targets.items()},
            valid={renamed.get(name, name): v for name, v in sample.valid.items()},
        )

    def _place(self, index: int) -> tuple[int, int]:
        """Return the number of a sample's dataset, and its own number there."""
        index = range(len(self))[index]
        which = bisect_right(self._starts, index) - 1
        return which, index - self._starts[which]


def _sources(root: str | None, tables: Sequence[Mapping[str, Any]]) -> list[_Source]:
    plugins = Plugins.from_environment()
    problems: list[str] = [] if tables else ["data.sources: name at least one dataset"]
    parsed = []
    for number, table in enumerate(tables):
        path = f"data.sources[{number}]"
        name, own_root = table.get("name"), table.get("root", root)
        renamed, splits = table.get("tasks", {}), table.get("splits")
        problems += _wrong_types(path, name, own_root, renamed, splits)
        if not isinstance(name, str):
            continue
        try:
            target = plugins.get("datasets", name).load()
        except MtlError as error:
            problems.append(f"{path}.name: {error}")
            continue
        given = {key: value for key, value in table.items() if key not in _OWN_KEYS}
        settings = structure(target, given, path, problems)
        parsed.append(_Source(path, name, target, own_root, settings, renamed, splits))
    if problems:
        raise ConfigError(problems)
    return parsed


def _wrong_types(path: str, name: Any, root: Any, renamed: Any, splits: Any) -> Iterator[str]:
    if not isinstance(name, str):
        yield f"{path}.name: name a dataset, one of mtl list datasets (got {name!r})"
    if not isinstance(root, str | None):
        yield f"{path}.root: expected a folder or URL, got {root!r}"
    if not isinstance(renamed, Mapping) or not all(isinstance(n, str) for n in renamed.values()):
        yield f"{path}.tasks: expected a table of new names, got {renamed!r}"
    listed = isinstance(splits, list | tuple) and all(split in _SPLITS for split in splits)
    if splits is not None and not (listed and splits):
        yield f"{path}.splits: expected some of {', '.join(_SPLITS)}, got {splits!r}"


def _merged(sources: Sequence[_Source]) -> tuple[Task, ...]:
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


def _open(source: _Source, split: str) -> Dataset:
    make: Callable[..., Dataset] = source.target
    try:
        return make(source.root, split, **source.settings)
    except ValueError as error:
        raise ConfigError([f"{source.path}: {error}"]) from error
