"""Rows of a dataset of the library as samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, final

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mtlcore.data import DataError, Dataset, Sample
from mtlcore.datasets.described_labels import DescribedLabel, describe_labels
from mtlcore.datasets.random_numbers import kept_names
from mtlcore.errors import ConfigError, MtlError, describe, did_you_mean
from mtlcore.inputs import Inputs
from mtlcore.loading import decode_image
from mtlcore.ranges import ProperFraction, Range, Seed
from mtlcore.tasks import Task
from mtlcore_hf.columns import Numbers, Words, image_bytes
from mtlcore_hf.opening import Place, open_all, split_of


@final
class HuggingFace(Dataset):
    """A dataset of Hugging Face's library, whose rows are samples, with a task per target.

    The inputs are an image, a text or numbers: one of `image`, `text` and `numbers` names them.
    Where the data has no validation split, a part of the training rows is kept for it.

    Args:
        root: a folder or URL; of the hub, none.
        split: "train", "val" or "test".
        source: "disk" for a folder that `save_to_disk` wrote; "csv", "json", "parquet", "arrow",
            "text" or "imagefolder" for files in the root; or a dataset of the hub, "owner/name".
        files: the files that are read, in the root, with `{split}` and `*`.
        config: of the hub, the name of the dataset's configuration.
        revision: of the hub, a branch, tag or commit.
        split_names: split -> its name in the data; unset: what is usual ("validation", "dev", ...).
        image: the column of the images: images of the library, or paths inside the root.
        text: the column of the texts.
        numbers: columns of numbers and classes, which are made a vector.
        targets: task name -> a table: its `kind`; `column`, unset: the task's name; and how its
            value is read. Maps, which are images too, have the keys of a task in a `dataset.toml`
            (`classes`, `values`, `scale`, `offset`, `invalid`, `unit`, `channels`), others
            `classes` (unset: those that the data names), `channels`, `missing`, `unit` and
            `standardise`.
        tokenizer: of texts: the folder or file of a `tokenizer.json`; unset: bytes of UTF-8 are
            tokens (1 to 256, 257 ends a text).
        length: number of tokens at which a text is cut off.
        val_fraction: fraction of the training rows that is kept where there is no validation split.
        seed: of that choice.

    Raises:
        UsageError: there is no root or no such split.
        ConfigError: a setting is wrong; every problem with its path.
        DataError: the files are no such dataset.
        MtlError: the hub cannot be reached.
    """

    splits = ("train", "val", "test")

    def __init__(
        self,
        root: str | None,
        split: str,
        *,
        targets: dict[str, dict[str, Any]],
        source: str = "disk",
        files: str | None = None,
        config: str | None = None,
        revision: str | None = None,
        split_names: dict[str, str] | None = None,
        image: str | None = None,
        text: str | None = None,
        numbers: tuple[str, ...] = (),
        tokenizer: str | None = None,
        length: Annotated[int, Range(ge=2, le=2**20)] = 128,
        val_fraction: ProperFraction = 0.2,
        seed: Seed = 0,
    ) -> None:
        self.input_kind = _kind(image, text, numbers)
        self._root = root
        place = Place(source, root, files, config, revision)
        every = open_all(place)
        names = split_names or {}
        train = every[split_of(place, every, "train", names) or "train"]
        own = split_of(place, every, split, names)
        holds_out = split_of(place, every, "val", names) is None
        rows = every[own] if own is not None else train
        self._where = f"{place.told} ({own or 'train'})"
        self._labels = _labels(targets, train, place)
        self._image, self._text = image, text
        used = [*([image] if image else []), *([text] if text else []), *numbers]
        _check_columns(train, used, place, "data." + self._setting)
        if rows.features.keys() != train.features.keys():
            raise DataError(f"{self._where}: has other columns than {place.told} (train)")
        self._numbers = Numbers(train, numbers, place.told) if numbers else None
        self._words = Words(tokenizer, length) if text is not None else None
        columns = list(dict.fromkeys([*used, *(label.field for label in self._labels)]))
        self._table = _undecoded(rows.select_columns(columns))
        self._rows = np.arange(len(rows))
        if holds_out and split != "test":
            kept = kept_names(map(str, range(len(rows))), val_fraction, seed)
            in_val = [str(row) in kept for row in range(len(rows))]
            self._rows = np.flatnonzero([there == (split == "val") for there in in_val])
        if not len(self._rows):
            raise DataError(f"{self._where}: no row of {len(rows)} is left for {split!r}")

    @classmethod
    def describe(cls, root: str | None, **settings: Any) -> tuple[Task, ...]:
        """Return a task per entry of `targets`, in its order."""
        place = Place(settings.get("source", "disk"), root, settings.get("files"),
                      settings.get("config"), settings.get("revision"))  # fmt: skip
        every = open_all(place)
        train = every[split_of(place, every, "train", settings.get("split_names") or {}) or "train"]
        return tuple(label.task for label in _labels(settings["targets"], train, place))

    @classmethod
    def kind_of_inputs(cls, root: str | None, **settings: Any) -> str:
        """Return "image", "tokens" or "vector", as a column is named for one of these."""
        return _kind(settings.get("image"), settings.get("text"), settings.get("numbers", ()))

    def collate_inputs(self, inputs: Sequence[Inputs]) -> Inputs:
        """Pad texts to the longest: "tokens", ids (B, L), and "mask" (B, L), true where one is."""
        if self._words is None:
            return super().collate_inputs(inputs)
        tokens = pad_sequence(list(inputs), batch_first=True)
        lengths = torch.tensor([len(each) for each in inputs])
        return {"tokens": tokens, "mask": torch.arange(tokens.shape[1]) < lengths[:, None]}

    def __len__(self) -> int:
        return len(self._rows)

    def name_of(self, index: int) -> str | None:
        """Return the number of a row, from 0."""
        return str(self._rows[index])

    def __getitem__(self, index: int) -> Sample:
        """Return one row; its key ends in its number, from 0.

        Raises:
            DataError: its input or a label cannot be used; the message names row and column.
        """
        number = int(self._rows[index])
        key = f"{self._where}/{number}"
        try:
            row = self._table[number]
        except MtlError:
            raise
        except Exception as error:  # whatever is in the row, the row is at fault
            raise DataError(f"{key}: the row cannot be read: {describe(error)}") from error
        photograph, size, inputs = b"", (0, 0), self._vector(row, key)
        if inputs is None:
            where = f"{key}: column {self._image!r}"
            photograph = image_bytes(row[str(self._image)], self._root, where)
            inputs = decode_image(photograph, where)
            size = (inputs.shape[1], inputs.shape[2])
        targets, valid, sources = {}, {}, {}
        for label in self._labels:
            where = f"{key}: column {label.field!r}"
            value = row[label.field]
            if label.files is None:
                pair = label.flat(value, where)
            elif value is None:
                pair = None
            else:
                data = image_bytes(value, self._root, where)
                pair = label.map(data, where, photograph, key, size)
            if pair is not None:
                targets[label.task.name], valid[label.task.name] = pair
                sources[label.task.name] = where
        return Sample(inputs=inputs, targets=targets, valid=valid, key=key, sources=sources)

    @property
    def _setting(self) -> str:
        return {"image": "image", "tokens": "text", "vector": "numbers"}[self.input_kind]

    def _vector(self, row: dict[str, Any], key: str) -> Tensor | None:
        if self._words is not None:
            return self._words.ids(row[str(self._text)], f"{key}: column {self._text!r}")
        return None if self._numbers is None else self._numbers.vector(row, key)


def _kind(image: str | None, text: str | None, numbers: Sequence[str]) -> str:
    given = [kind for kind, value in (("image", image), ("tokens", text), ("vector", numbers))
             if value]  # fmt: skip
    if len(given) != 1:
        message = (
            "data.image: name the input: the column of an image (data.image), of a text "
            "(data.text), or columns of numbers (data.numbers), one of these"
        )
        raise ConfigError([message])
    return given[0]


def _labels(
    targets: Mapping[str, Any], train: datasets.Dataset, place: Place
) -> tuple[DescribedLabel, ...]:
    classes = {
        name: tuple(feature.names)
        for name, feature in train.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    labels = describe_labels(targets, "column", classes)
    for label in labels:
        _check_columns(train, [label.field], place, f"{label.path}.column")
    return labels


def _check_columns(
    train: datasets.Dataset, columns: Sequence[str], place: Place, setting: str
) -> None:
    known = list(train.features)
    unknown = [name for name in columns if name not in known]
    if unknown:
        raise ConfigError(
            f"{setting}: {place.told} has no column {name!r}{did_you_mean(name, known)} (it has: "
            f"{', '.join(known)})"
            for name in unknown
        )


def _undecoded(table: datasets.Dataset) -> datasets.Dataset:
    """Return a table whose images are the contents of their files, as they were stored."""
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return table
