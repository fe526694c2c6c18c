"""Opening a dataset of the library: from a folder, from files, or from the hub."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, final

import attrs
import datasets

from mtlcore.data import DataError
from mtlcore.errors import ConfigError, MtlError, UsageError, describe, did_you_mean
from mtlcore.loading import MissingFile, Root, open_root

#: What reads files without a program of their own.
BUILDERS = ("arrow", "csv", "imagefolder", "json", "parquet", "text")
DISK = "disk"
#: What the splits are called, where `split_names` does not say it.
_USUAL = {
    "train": ("train", "training"),
    "val": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}


@final
@attrs.frozen
class Place:
    """Which dataset of the library is meant.

    Args:
        source: "disk", one of `BUILDERS`, or a dataset of the hub.
        root: a folder or URL.
        files: of a builder, the files in it.
        config: of the hub, the configuration.
        revision: of the hub, the revision.
    """

    source: str
    root: str | None
    files: str | None
    config: str | None
    revision: str | None

    @property
    def told(self) -> str:
        """How messages name it."""
        if self.source == DISK:
            return str(self.root)
        if self.source in BUILDERS:
            return Root(str(self.root)).where(self.files or "")
        return self.source


def open_all(place: Place) -> Mapping[str, datasets.Dataset]:
    """Return the splits of a dataset by their names in the library.

    Raises:
        UsageError: there is no root, or no such place.
        ConfigError: settings that belong to another source.
        DataError: the files are no such dataset.
        MtlError: the hub cannot be reached, or has no such dataset.
    """
    problems = []
    if place.files is not None and place.source not in BUILDERS:
        problems.append(
            f"data.files: is for {', '.join(BUILDERS)}; data.source is {place.source!r}"
        )
    if place.source in BUILDERS and place.source != "imagefolder" and place.files is None:
        problems.append(f"data.files: name the files that {place.source!r} reads")
    hub_only = {"config": place.config, "revision": place.revision}
    if place.source in (DISK, *BUILDERS):
        problems += [
            f"data.{name}: is for datasets of the hub; data.source is {place.source!r}"
            for name, value in hub_only.items()
            if value is not None
        ]
    if problems:
        raise ConfigError(problems)
    return _opened(place)


@lru_cache(maxsize=4)
def _opened(place: Place) -> Mapping[str, datasets.Dataset]:
    datasets.disable_progress_bars()
    try:
        found = _from_disk(place) if place.source == DISK else _loaded(place)
    except MtlError:
        raise
    except Exception as error:  # the library raises what its libraries raise
        kind = DataError if place.source in (DISK, *BUILDERS) else MtlError
        hint = (
            ""
            if kind is DataError
            else (
                '; data.source is "disk", one of '
                + ", ".join(BUILDERS)
                + ", or a dataset of the hub"
            )
        )
        raise kind(f"{place.told}: {describe(error)}{hint}") from error
    return found if isinstance(found, Mapping) else {"train": found}


def _from_disk(place: Place) -> Any:
    root = open_root("hf", place.root, "the folder that save_to_disk wrote")
    if not (root.exists("dataset_dict.json") or root.exists("dataset_info.json")):
        raise MissingFile(
            f"{place.root}: holds nothing that save_to_disk wrote; data.source says how files are "
            f"read ({', '.join(BUILDERS)}), or names a dataset of the hub"
        )
    return datasets.load_from_disk(place.root)


def _loaded(place: Place) -> Any:
    if place.source not in BUILDERS:
        if place.root is not None:
            raise UsageError(f"data.root: {place.source!r} is fetched from the hub; leave it out")
        return datasets.load_dataset(place.source, place.config, revision=place.revision)
    root = open_root("hf", place.root, "the folder the files lie in")
    if place.source == "imagefolder":
        if not root.exists(""):
            raise MissingFile(f"{place.root}: no such directory")
        return datasets.load_dataset("imagefolder", data_dir=place.root, data_files=_files(place))
    return datasets.load_dataset(place.source, data_files=_files(place))


def _files(place: Place) -> Any:
    if place.files is None:
        return None
    root = Root(str(place.root))
    if "{split}" not in place.files:
        return root.where(place.files)
    found = {}
    for split, usual in _USUAL.items():
        for name in usual:
            path = place.files.replace("{split}", name)
            if "*" in path or root.exists(path):
                found[split] = root.where(path)
                break
    if not found:
        raise MissingFile(f"{root.where(place.files)}: there is no such file for any split")
    return found


def split_of(
    place: Place, splits: Mapping[str, Any], split: str, names: Mapping[str, str]
) -> str | None:
    """Return what a split is called in the library; None for validation that is not there.

    Raises:
        ConfigError: `split_names` names what there is not.
        UsageError: there is no such split.
    """
    unknown = [name for name in names if name not in _USUAL]
    if unknown:
        raise ConfigError([f"data.split_names.{unknown[0]}: no such split ({', '.join(_USUAL)})"])
    if split not in _USUAL:
        known = ", ".join(_USUAL)
        raise UsageError(f"hf has no split {split!r}, only {known}{did_you_mean(split, _USUAL)}")
    if split in names:
        if names[split] not in splits:
            raise ConfigError(
                [
                    f"data.split_names.{split}: {place.told} has no split {names[split]!r}"
                    f"{did_you_mean(names[split], splits)} (it has: {', '.join(splits)})"
                ]
            )
        return names[split]
    found = next((name for name in _USUAL[split] if name in splits), None)
    if found is None and split != "val":
        raise UsageError(
            f"hf has no split {split!r} here: {place.told} has {', '.join(splits)} "
            "(data.split_names says what they are)"
        )
    return found
