"""COCO's annotations: instances with polygons or runs, as a class per pixel."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any, final
from weakref import WeakValueDictionary

import attrs
import torch

from mtlcore.data import DataError, Dataset, Sample
from mtlcore.datasets.coco_masks import mask_of, painted
from mtlcore.datasets.random_numbers import kept_names
from mtlcore.errors import ConfigError, did_you_mean, shown
from mtlcore.loading import Root, check_split, decode_image, open_root, stored_turned
from mtlcore.ranges import ProperFraction, Seed
from mtlcore.storage import decoded
from mtlcore.tasks import Task

_TASK, _BACKGROUND = "segmentation", "background"


@final
class Coco(Dataset):
    """Photographs with instances in COCO's JSON form, as a class per pixel.

    Task: segmentation. The classes are the background and the categories of the file in the order
    of their numbers, whatever gaps these have. Where instances lie over one another the smaller one
    is seen. A crowd has no label where no instance is. Masks are those of COCO's own library to the
    pixel, which is not needed.

    Args:
        root: the folder with annotations and photographs, a local path or an fsspec URL.
        split: "train", "val" or "test"; without `{split}` in `annotations`, "train" or "val".
        annotations: the JSON file; `{split}` stands for the split.
        images: the folder in which `file_name` of a photograph lies; `{split}` likewise.
        split_names: split -> what `{split}` stands for, such as {val = "valid"}; unset: its name.
        classes: names of the categories that are classes; unset: all. Other ones are background.
        background: whether pixels of no instance are a class; else they have no label.
        val_fraction: fraction of the photographs of a file without `{split}` that is kept for
            validation, chosen by their names.
        seed: of that choice.

    Raises:
        UsageError: there is no root or no such split.
        ConfigError: `classes` names what is no category.
        DataError: the file is missing or not of COCO's form; the message names the entry.
    """

    splits = ("train", "val", "test")
    input_kind = "image"

    def __init__(
        self,
        root: str | None,
        split: str,
        *,
        annotations: str = "annotations/instances_{split}2017.json",
        images: str = "{split}2017",
        split_names: dict[str, str] | None = None,
        classes: tuple[str, ...] = (),
        background: bool = True,
        val_fraction: ProperFraction = 0.2,
        seed: Seed = 0,
    ) -> None:
        self._root = _open_root(root)
        check_split("coco", split, self.splits if "{split}" in annotations else self.splits[:2])
        names = _split_names(self.splits, split_names)
        train = _read(self._root, annotations.replace("{split}", names["train"]))
        part = _read(self._root, annotations.replace("{split}", names[split]))
        if part.categories != train.categories:
            raise DataError(f"{part.where}: categories: are not those of {train.where}")
        self._annotations = part
        self._classes = _class_numbers(part, classes, background)
        self._background = 0 if background else -1
        self._folder = images.replace("{split}", names[split]).rstrip("/")
        if "{split}" in annotations:
            self._used = list(range(len(part.images)))
        else:
            kept = kept_names((image.file for image in part.images), val_fraction, seed)
            self._used = [
                i for i, image in enumerate(part.images) if (image.file in kept) == (split == "val")
            ]
        if not self._used:
            raise DataError(
                f"{part.where}: no image of {len(part.images)} is left for the split {split!r}"
            )

    @classmethod
    def describe(
        cls,
        root: str | None,
        *,
        annotations: str = "annotations/instances_{split}2017.json",
        split_names: dict[str, str] | None = None,
        classes: tuple[str, ...] = (),
        background: bool = True,
        **settings: Any,
    ) -> tuple[Task, ...]:
        """Return the task, with the categories of the training file as its classes."""
        files = _open_root(root)
        names = _split_names(cls.splits, split_names)
        path = annotations.replace("{split}", names["train"])
        categories = _categories(files, path)
        chosen = classes or tuple(categories.values())
        unknown = [name for name in chosen if name not in categories.values()]
        if unknown:
            raise ConfigError(
                f"data.classes: {files.where(path)} has no category {name!r}"
                f"{did_you_mean(name, categories.values())}"
                for name in unknown
            )
        names_of = ((_BACKGROUND,) if background else ()) + tuple(chosen)
        task = Task(name=_TASK, kind="segmentation", channels=len(names_of), class_names=names_of)
        return (task,)

    def __len__(self) -> int:
        return len(self._used)

    def name_of(self, index: int) -> str | None:
        """Return the name of a photograph's file."""
        return PurePosixPath(self._annotations.images[self._used[index]].file).stem

    def __getitem__(self, index: int) -> Sample:
        """Return one photograph with its classes.

        Raises:
            DataError: the photograph cannot be read or has another size than the file says, or an
                annotation is no mask.
        """
        image = self._annotations.images[self._used[index]]
        path = f"{self._folder}/{image.file}" if self._folder else image.file
        key = self._root.where(path)
        data = self._root.read_bytes(path)
        inputs = decode_image(data, key)
        size = (inputs.shape[1], inputs.shape[2])
        if size != image.size:
            turned = stored_turned(data)
            reason = f"; its EXIF orientation {turned[0]} turns it" if turned else ""
            raise DataError(
                f"{key}: is {size[0]}x{size[1]} where {self._annotations.where} says "
                f"{image.size[0]}x{image.size[1]} (height x width){reason}"
            )
        masks, crowds = [], []
        for number, category, is_crowd, segmentation in json.loads(image.instances):
            try:
                mask = mask_of(segmentation, *size)
            except ValueError as error:
                where = f"{self._annotations.where}: annotations[{number}].segmentation"
                raise DataError(f"{where}: {error}") from error
            if is_crowd:
                crowds.append(mask)
            elif category in self._classes:
                masks.append((self._classes[category], mask))
        classes = torch.from_numpy(painted(masks, crowds, self._background, size))
        valid = classes >= 0
        return Sample(
            inputs=inputs,
            targets={_TASK: classes.clamp_min(0)},
            valid={_TASK: valid},
            key=key,
            sources={_TASK: f"{self._annotations.where}: {image.file}"},
        )


@attrs.frozen
class _Image:
    """A photograph; its instances are JSON, which takes a tenth of the memory of objects."""

    file: str
    size: tuple[int, int]
    instances: bytes


@final
@attrs.frozen(eq=False)
class _Annotations:
    where: str
    categories: Mapping[int, str]
    images: tuple[_Image, ...]


# Files that some dataset holds: both splits of a run may read the same one.
_held: WeakValueDictionary[tuple[str, bytes], _Annotations] = WeakValueDictionary()


def _open_root(root: str | None) -> Root:
    return open_root("coco", root, "the folder with annotations and photographs")


def _split_names(splits: tuple[str, ...], given: Mapping[str, str] | None) -> dict[str, str]:
    unknown = sorted({*(given or {})} - {*splits})
    if unknown:
        raise ConfigError(
            f"data.split_names.{name}: no such split ({', '.join(splits)})" for name in unknown
        )
    return {**{name: name for name in splits}, **(given or {})}


def _class_numbers(
    part: _Annotations, classes: tuple[str, ...], background: bool
) -> dict[int, int]:
    """Return category -> class."""
    order = list(classes) or list(part.categories.values())
    return {
        number: order.index(name) + background
        for number, name in part.categories.items()
        if name in order
    }


def _read(root: Root, path: str) -> _Annotations:
    where, data = root.where(path), root.read_bytes(path)
    key = (where, hashlib.sha256(data).digest())
    found = _held.get(key)
    if found is None:
        tree = _tree(data, where)
        found = _held[key] = _Annotations(where, _read_categories(tree, where), ())
        found = _held[key] = attrs.evolve(found, images=tuple(_images(tree, found)))
    return found


def _categories(root: Root, path: str) -> dict[int, str]:
    where, data = root.where(path), root.read_bytes(path)
    held = _held.get((where, hashlib.sha256(data).digest()))
    return dict(held.categories) if held is not None else dict(_parsed_categories(data, where))


@lru_cache(maxsize=4)
def _parsed_categories(data: bytes, where: str) -> tuple[tuple[int, str], ...]:
    return tuple(_read_categories(_tree(data, where), where).items())


def _tree(data: bytes, where: str) -> Mapping[str, Any]:
    try:
        tree: Any = decoded(data, "JSON")
    except ValueError as error:
        raise DataError(f"{where}: no JSON: {error}") from error
    lists: dict[str, Any] = tree if isinstance(tree, dict) else {}
    for name in ("images", "annotations", "categories"):
        if not isinstance(lists.get(name), list):
            raise DataError(f"{where}: has no list {name!r}, as annotations of COCO have")
    return lists


def _entries(
    tree: Mapping[str, Any], part: str, where: str, **types: type | tuple[type, ...]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the entries of a list with their numbers, after a look at their keys."""
    for number, entry in enumerate(tree[part]):
        if not isinstance(entry, dict):
            raise DataError(f"{where}: {part}[{number}]: is {shown(entry)}, no object")
        for key, expected in types.items():
            value = entry.get(key)
            if not isinstance(value, expected) or isinstance(value, bool):
                raise DataError(f"{where}: {part}[{number}].{key}: is {shown(value)}")
        yield number, entry


def _read_categories(tree: Mapping[str, Any], where: str) -> dict[int, str]:
    found: dict[int, str] = {}
    for number, entry in _entries(tree, "categories", where, id=int, name=str):
        if entry["id"] in found or entry["name"] in found.values():
            raise DataError(
                f"{where}: categories[{number}]: another one has the id {entry['id']} or the name "
                f"{entry['name']!r} too"
            )
        found[entry["id"]] = entry["name"]
    if not found:
        raise DataError(f"{where}: categories: there is none")
    return dict(sorted(found.items()))


def _images(tree: Mapping[str, Any], of: _Annotations) -> Iterator[_Image]:
    where = of.where
    listed = list(_entries(tree, "images", where, id=(int, str), file_name=str, height=int,
                           width=int))  # fmt: skip
    by_image: dict[int | str, list[tuple[int, int, bool, Any]]] = {}
    for number, image in listed:
        if image["id"] in by_image:
            raise DataError(f"{where}: images[{number}].id: {image['id']!r} is another one's too")
        by_image[image["id"]] = []
    kinds: dict[str, Any] = {"image_id": (int, str), "category_id": int}
    for number, entry in _entries(tree, "annotations", where, **kinds):
        if entry["image_id"] not in by_image:
            raise DataError(
                f"{where}: annotations[{number}].image_id: there is no image {entry['image_id']!r}"
            )
        if entry["category_id"] not in of.categories:
            raise DataError(
                f"{where}: annotations[{number}].category_id: there is no category "
                f"{entry['category_id']}"
            )
        instance = (number, entry["category_id"], bool(entry.get("iscrowd", 0)),
                    entry.get("segmentation"))  # fmt: skip
        by_image[entry["image_id"]].append(instance)
    for _, image in listed:
        instances = json.dumps(by_image[image["id"]]).encode()
        yield _Image(image["file_name"], (image["height"], image["width"]), instances)
