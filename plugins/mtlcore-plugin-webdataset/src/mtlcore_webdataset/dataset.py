"""Shards as a dataset whose samples can be read in any order."""

from __future__ import annotations

import bisect
import fnmatch
import io
import itertools
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import PurePosixPath
from typing import Any, final

import numpy as np

from mtlcore.data import DataError, Dataset, Sample
from mtlcore.datasets.described_labels import DescribedLabel, describe_labels
from mtlcore.datasets.random_numbers import kept_names
from mtlcore.errors import ConfigError, describe
from mtlcore.loading import MissingFile, Root, check_split, decode_image, is_array, open_root
from mtlcore.ranges import ProperFraction, Seed
from mtlcore.tasks import Task
from mtlcore_webdataset.index import open_index

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
_MOST = 100_000  # shards that a pattern may name
_AT_ONCE = 16  # shards whose headers are read at once


@final
class WebDataset(Dataset):
    """Photographs and labels in tar shards, as the library webdataset writes them.

    A sample is the files of a shard that follow one another and have one name up to the first dot:
    `000017.jpg`, `000017.seg.png`, `000017.cls`. Shards are plain tar archives. Where each file
    lies in its shard is found once and kept in the folder `MTLCORE_CACHE`, so that samples are read
    in any order, from a disk or by their bytes from a server: shuffling, resuming and several
    processes are those of any dataset.

    Args:
        root: the folder of the shards, a local path or an fsspec URL.
        split: "train", "val" or "test"; without `{split}` in `shards`, "train" or "val".
        shards: names of the shards, with `{split}`, numbers `{000000..000041}`, choices `{a,b}`,
            and `*` for anything.
        targets: task name -> a table: its `kind`; `file`, the ending of its file ("cls",
            "seg.png", "json:labels.age" for a value inside of one), unset: the task's name; and
            how its value is read. Maps have the keys of a task in a `dataset.toml` (`classes`,
            `values`, `scale`, `offset`, `invalid`, `unit`, `channels`), others `classes`,
            `channels`, `missing`, `unit` and `standardise`.
        image: endings of the photograph, the first of these that a sample has.
        val_fraction: fraction of the samples that is kept for validation where `shards` has no
            `{split}`, chosen by their names.
        seed: of that choice.
        stream: whether shards at a URL stay there, and of each sample only its files are fetched,
            every time; otherwise each shard is fetched whole, once, and kept.

    Raises:
        UsageError: there is no root or no such split.
        ConfigError: a setting is wrong; every problem with its path.
        DataError: there is no shard, or one is no tar archive.
    """

    splits = ("train", "val", "test")
    input_kind = "image"

    def __init__(
        self,
        root: str | None,
        split: str,
        *,
        shards: str,
        targets: dict[str, dict[str, Any]],
        image: tuple[str, ...] = ("jpg", "jpeg", "png", "webp"),
        val_fraction: ProperFraction = 0.2,
        seed: Seed = 0,
        stream: bool = False,
    ) -> None:
        self._root = open_root("webdataset", root, "the folder of the shards", keep=not stream)
        self._labels = describe_labels(targets, "file", {})
        self._image = image
        by_split = "{split}" in shards
        check_split("webdataset", split, self.splits if by_split else self.splits[:2])
        self._paths = _paths(self._root, shards.replace("{split}", split))
        # Of shards far away, most of the time is spent waiting for them.
        with ThreadPoolExecutor(_AT_ONCE if stream else 1) as threads:
            self._shards = list(threads.map(partial(open_index, self._root), self._paths))
        self._ends = list(itertools.accumulate(map(len, self._shards)))
        total = self._ends[-1]
        self._used = np.arange(total)
        if not by_split and total:
            names = [self._key(number) for number in range(total)]
            kept = kept_names(names, val_fraction, seed)
            self._used = np.flatnonzero([(name in kept) == (split == "val") for name in names])
        if not len(self._used):
            raise DataError(
                f"{self._root.where(self._paths[0])}: the {len(self._paths)} shard(s) of the split "
                f"{split!r} hold no sample for it"
            )

    @classmethod
    def describe(cls, root: str | None, **settings: Any) -> tuple[Task, ...]:
        """Return a task per entry of `targets`, in its order."""
        targets: Mapping[str, Any] = settings["targets"]
        return tuple(label.task for label in describe_labels(targets, "file", {}))

    def __len__(self) -> int:
        return len(self._used)

    def name_of(self, index: int) -> str | None:
        """Return the name of a sample without the folder."""
        return PurePosixPath(self._key(int(self._used[index]))).stem

    def __getitem__(self, index: int) -> Sample:
        """Return one sample.

        Raises:
            DataError: it has no photograph, or a file of it cannot be used.
        """
        number = int(self._used[index])
        shard, place = self._place(number)
        members = self._shards[shard].members(place)
        where = self._shards[shard].where
        ending = next((e for e in self._image if e in members), None)
        if ending is None:
            raise DataError(
                f"{where}: {self._key(number)} has no photograph ({', '.join(self._image)}), only "
                f"{', '.join(members)} (data.image)"
            )
        needed = {ending, *(label.field.partition(":")[0] for label in self._labels)}
        data = self._read(shard, {e: members[e] for e in members if e in needed})
        key = f"{where}/{self._key(number)}"
        inputs = decode_image(data[ending], f"{where}: {members[ending][0]}")
        size = (inputs.shape[1], inputs.shape[2])
        targets, valid, sources = {}, {}, {}
        for label in self._labels:
            own = label.field.partition(":")[0]
            if own not in data:
                continue
            source = f"{where}: {members[own][0]}"
            if label.files is not None:
                pair = label.map(data[own], source, data[ending], key, size)
            else:
                flat = label.flat(_value(label, data[own], source), source)
                if flat is None:
                    continue
                pair = flat
            targets[label.task.name], valid[label.task.name] = pair
            sources[label.task.name] = source
        return Sample(inputs=inputs, targets=targets, valid=valid, key=key, sources=sources)

    def _place(self, number: int) -> tuple[int, int]:
        shard = bisect.bisect_right(self._ends, number)
        return shard, number - (self._ends[shard - 1] if shard else 0)

    def _key(self, number: int) -> str:
        shard, place = self._place(number)
        return self._shards[shard].key(place)

    def _read(self, shard: int, members: Mapping[str, tuple[str, int, int]]) -> dict[str, bytes]:
        where = self._shards[shard].where
        parts = [(offset, offset + size) for _, offset, size in members.values()]
        read = self._root.read_parts(self._paths[shard], parts)
        found = dict(zip(members, read, strict=True))
        for ending, (name, _, size) in members.items():
            if len(found[ending]) != size:
                raise DataError(
                    f"{where}: {name}: the shard ends before it; it was changed since the data "
                    "was opened"
                )
        return found


def _value(label: DescribedLabel, data: bytes, where: str) -> Any:
    """Return the value of a label that is no map: a text, a part of JSON, or an array's numbers."""
    ending, _, inside = label.field.partition(":")
    try:
        if is_array(data):
            array = np.load(io.BytesIO(data), allow_pickle=False)
            return array.tolist() if array.ndim < 2 else array.reshape(-1).tolist()
        text = data.decode("utf-8-sig").strip()
        if ending.rpartition(".")[2] != "json":
            return text
        value = json.loads(text)
    except (ValueError, EOFError, RecursionError) as error:
        raise DataError(f"{where}: cannot be read: {describe(error)}") from error
    for part in inside.split(".") if inside else ():
        if not isinstance(value, dict):
            raise DataError(f"{where}: there is nothing at {inside!r} ({label.path}.file)")
        value = value.get(part)
        if value is None:
            return None
    return value


def _paths(root: Root, pattern: str) -> list[str]:
    """Return the shards that a pattern names, sorted within each of its choices.

    Raises:
        ConfigError: it names none, or too many.
        DataError: there is none.
    """
    paths: list[str] = []
    for path in _expanded(pattern):
        if "*" not in path:
            paths.append(path)
            continue
        folder, slash, name = path.rpartition("/")
        names = root.list(folder)
        paths += [f"{folder}{slash}{n}" for n in names if fnmatch.fnmatchcase(n, name)]
    if not paths:
        raise DataError(f"{root.where(pattern)}: there is no such shard (data.shards)")
    missing = next((path for path in paths if not root.exists(path)), None)
    if missing is not None:
        raise MissingFile(f"{root.where(missing)}: no such file or directory (data.shards)")
    return list(dict.fromkeys(paths))


def _expanded(pattern: str) -> list[str]:
    found = [pattern]
    while any(_RANGE.search(path) or _CHOICE.search(path) for path in found):
        further: list[str] = []
        for path in found:
            match = _RANGE.search(path) or _CHOICE.search(path)
            assert match is not None
            if match.re is _RANGE:
                first, last = match.groups()
                numbers = range(int(first), int(last) + 1)
                if not 0 < len(numbers) <= _MOST:
                    raise ConfigError([f"data.shards: {match[0]} are {len(numbers)} shards"])
                parts = [str(number).zfill(len(first)) for number in numbers]
            else:
                parts = match[1].split(",")
            further += [path[: match.start()] + part + path[match.end() :] for part in parts]
        if len(further) > _MOST:
            raise ConfigError([f"data.shards: {pattern!r} names more than {_MOST} shards"])
        found = further
    return found
