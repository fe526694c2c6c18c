"""Texts of a table's column as tokens, with tasks from its other columns: per text, or per word."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, final

import attrs
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mtlcore.data import DataError, Dataset, Sample
from mtlcore.datasets.table_encoding import Target, read_tags
from mtlcore.datasets.table_rows import TableRows, tasks_of
from mtlcore.datasets.tables import ColumnNames, Form
from mtlcore.errors import MtlError, UsageError, describe
from mtlcore.loading import hub_file
from mtlcore.ranges import ProperFraction, Range, Seed
from mtlcore.tasks import Task

_SETTING = "data.tokenizer"
_FILE = "tokenizer.json"
#: Without a tokenizer: the ids of bytes begin behind that of padding, and this one ends a text.
_END = 257
#: A no-break space is part of a word.
_WORD = re.compile(r"[^ \t\r\n\f\v]+")


@final
class Texts(Dataset):
    """A table with a column of texts, whose rows are samples, and a task per other column.

    An input is the ids of the text's tokens, a vector of integers; `collate_inputs` pads those of a
    batch and makes the mask. Tasks, files and splits are those of the dataset `tabular`, and a
    further kind of task, "tagging", has a label for each word of the text. Its cell holds as many
    labels as the text has words, between spaces; in JSON lines both may be lists. The first token
    of a word has its label, its other tokens have none, and words behind the cut of `length` have
    no token. A label that is missing is no label of its word, an empty cell none of any.

    Files whose name ends in .conll, .conllu, .iob, .iob2, .bio or .bioes have a word per line, with
    its labels beside it, and an empty line between sentences. A row is a sentence, and columns are
    "0", "1", ... unless `columns` names them.

    Args:
        root: the folder the file lies in, a local path or an fsspec URL.
        split: "train" or "val"; with `{split}` in `file`, also "test".
        file: CSV, JSON lines, CoNLL or Parquet; `{split}` in its name stands for the split. Without
            `{split}`, training and validation share the rows of one file.
        text: the column of the texts, by name or number.
        targets: task name -> what the task predicts.
        tokenizer: that of the model: its local folder, a repository of the Hugging Face hub, or a
            file `tokenizer.json`. Unset: bytes of UTF-8 are tokens (1 to 256, 257 ends a text),
            for models that learn from scratch.
        length: number of tokens at which a text is cut off.
        columns: where the names of a CSV file come from: its first line ("header"), nowhere
            ("numbers": "0", "1", ...) or this list, which may name those of a CoNLL file too.
        delimiter: what stands between the cells of a CSV file; unset: as its first lines look.
        decimal: what stands before the decimals of a number; unset: as the file looks.
        encoding: of a CSV file; unset: UTF-8, or as its mark says.
        missing: texts that stand for a missing label, beside the empty text and NaN.
        val_fraction: fraction of the rows of a shared file that is kept for validation.
        seed: of the choice of these rows.

    Raises:
        UsageError: there is no root or no such split.
        ConfigError: a setting names a column that does not exist or cannot be used in this way.
        DataError: the file is missing or not a table, a value does not fit its column, or a text
            has not as many words as labels.
        MtlError: there is no such tokenizer.
    """

    splits = ("train", "val", "test")
    input_kind = "tokens"

    def __init__(
        self,
        root: str | None,
        split: str,
        *,
        file: str,
        text: str | int = "text",
        targets: dict[str, Target],
        tokenizer: str | None = None,
        length: Annotated[int, Range(ge=2, le=2**20)] = 128,
        columns: ColumnNames = "header",
        delimiter: str | None = None,
        decimal: Literal[".", ","] | None = None,
        encoding: str | None = None,
        missing: tuple[str, ...] = ("?",),
        val_fraction: ProperFraction = 0.2,
        seed: Seed = 0,
    ) -> None:
        form = Form(columns=columns, delimiter=delimiter, decimal=decimal, encoding=encoding)
        self._rows = TableRows(
            "texts", root, split, file, targets, form, missing, val_fraction, seed
        )
        self._texts = self._rows.texts_of(text, "text")
        self._tagged = {n: t for n, t in targets.items() if t.kind == "tagging"}
        self._tags = {
            name: self._rows.texts_of(target.columns[0], f"targets.{name}.column")
            for name, target in self._tagged.items()
        }
        self._length = length
        self._tokenizer = None if tokenizer is None else _tokenizer(tokenizer, length)

    @classmethod
    def describe(cls, root: str | None, **settings: Any) -> tuple[Task, ...]:
        """Return a task per entry of `targets`, in its order."""
        return tasks_of(settings["targets"])

    def collate_inputs(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """Pad to the longest text: "tokens", ids (B, L), and "mask" (B, L), true where one is."""
        tokens = pad_sequence(list(inputs), batch_first=True)
        lengths = torch.tensor([len(each) for each in inputs])
        return {"tokens": tokens, "mask": torch.arange(tokens.shape[1]) < lengths[:, None]}

    def __len__(self) -> int:
        return len(self._texts)

    def name_of(self, index: int) -> str | None:
        """Return the name of the file, which all rows have: lists of labels give numbers."""
        return PurePosixPath(self._rows.key(index)).stem

    def __getitem__(self, index: int) -> Sample:
        """Return one row; its key ends in its number in the file, from 1 and without the header.

        Raises:
            DataError: its text is empty, or has not as many words as labels.
        """
        index = range(len(self))[index]
        key, text = self._rows.key(index), self._texts[index]
        if not text:
            raise DataError(f"{key}: the text is empty; leave the row out")
        tokens = self._tokens(text)
        targets, valid = self._rows.targets(index), self._rows.valid(index)
        for name, target in self._tagged.items():
            cell = self._tags[name][index]
            if not self._rows.cells.is_missing(cell):
                try:
                    targets[name], valid[name] = self._labels(text, tokens, cell, target)
                except ValueError as error:
                    raise DataError(f"{key}: {name}: {error}") from error
        inputs = torch.tensor(tokens.ids, dtype=torch.int64)
        return Sample(inputs=inputs, targets=targets, valid=valid, key=key)

    def _tokens(self, text: str) -> _Tokens:
        if self._tokenizer is not None:
            encoded = self._tokenizer.encode(text)
            return _Tokens(encoded.ids, encoded.offsets)
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        for place, character in enumerate(text):
            data = character.encode("utf-8")
            ids += [byte + 1 for byte in data]
            places += [(place, place + 1)] * len(data)
        kept = self._length - 1
        return _Tokens([*ids[:kept], _END], [*places[:kept], (0, 0)])

    def _labels(
        self, text: str, tokens: _Tokens, cell: str, target: Target
    ) -> tuple[Tensor, Tensor]:
        """Return a label and a mask per token.

        Raises:
            ValueError: There are not as many labels as words, or one is no class.
        """
        labels = read_tags(_WORD.findall(cell), target, self._rows.cells)
        words = [match.span() for match in _WORD.finditer(text)]
        if len(labels) != len(words):
            raise ValueError(
                f"{len(labels)} labels for {len(words)} words ({text[:40]!r}); words and labels "
                "stand between spaces"
            )
        found = torch.full((len(tokens.ids),), -1)
        for place, label in zip(tokens.first_of(words), labels, strict=True):
            if place is not None:
                found[place] = label
        return found.clamp_min(0), found >= 0


@attrs.frozen
class _Tokens:
    """The tokens of a text.

    Args:
        ids: Of the tokens.
        places: Of each token, where in the text it begins and ends; (0, 0) where it is none of it.
    """

    ids: list[int]
    places: list[tuple[int, int]]

    def first_of(self, words: Sequence[tuple[int, int]]) -> list[int | None]:
        """Return the first token of each word; None where it has none.

        Args:
            words: Where in the text each begins and ends, in order. A token may begin with the
                space before its word, and may be of several words: it is of the first one then.
        """
        found: list[int | None] = [None] * len(words)
        number = 0
        for token, (begin, end) in enumerate(self.places):
            if begin == end:
                continue
            while number < len(words) and words[number][1] <= begin:
                number += 1
            if number < len(words) and words[number][0] < end and found[number] is None:
                found[number] = token
        return found


def _tokenizer(name: str, length: int) -> Tokenizer:
    """Return a tokenizer that cuts texts off and leaves padding to the batch.

    Raises:
        UsageError: It looks like a folder or file, and there is none.
        MtlError: There is no such tokenizer, or its file cannot be read.
    """
    place = Path(name).expanduser()
    file = place / _FILE if place.is_dir() else place
    if not file.is_file():
        if place.is_dir():
            raise UsageError(
                f"{_SETTING}: {name} holds no {_FILE}; "
                "transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) "
                "writes one"
            )
        if name.startswith(("/", ".", "~")) or name.endswith(".json"):
            raise UsageError(f"{_SETTING}: there is no folder or file {name}")
        found = hub_file(name, [_FILE], _SETTING)
        if found is None:
            raise MtlError(f"{_SETTING}: {name} on the Hugging Face hub holds no {_FILE}")
        file = Path(found.path)
    try:
        tokenizer: Tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise MtlError(f"{_SETTING}: {file} is no tokenizer ({describe(error)})") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    return tokenizer
