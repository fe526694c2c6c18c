"""Texts of a table's column as tokens, with tasks from its other columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, final

import attrs
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mtlcore.data import DataError, Dataset, Sample
from mtlcore.datasets.table_encoding import Target
from mtlcore.datasets.tables import ColumnNames
from mtlcore.datasets.tabular import Tabular
from mtlcore.errors import MtlError, UsageError, describe
from mtlcore.loading import hub_file
from mtlcore.ranges import ProperFraction, Range, Seed
from mtlcore.tasks import Task

_SETTING = "data.tokenizer"
_FILE = "tokenizer.json"
#: Without a tokenizer: the ids of bytes begin behind that of padding, and this one ends a text.
_END = 257


@final
class Texts(Dataset):
    """A table with a column of texts, whose rows are samples, and a task per other column.

    An input is the ids of the text's tokens, a vector of integers; `collate_inputs` pads those of a
    batch and makes the mask. Tasks, files and splits are those of the dataset `tabular`.

    Args:
        root: the folder the file lies in, a local path or an fsspec URL.
        split: "train" or "val"; with `{split}` in `file`, also "test".
        file: CSV, JSON lines or Parquet; `{split}` in its name stands for the split. Without
            `{split}`, training and validation share the rows of one file.
        text: the column of the texts, by name or number.
        targets: task name -> what the task predicts.
        tokenizer: that of the model: its local folder, a repository of the Hugging Face hub, or a
            file `tokenizer.json`. Unset: bytes of UTF-8 are tokens (1 to 256, 257 ends a text),
            for models that learn from scratch.
        length: number of tokens at which a text is cut off.
        columns: where a CSV file's names come from: its first line ("header"), nowhere ("numbers":
            "0", "1", ...) or this list.
        delimiter: what stands between the cells of a CSV file; unset: as its first lines look.
        decimal: what stands before the decimals of a number; unset: as the file looks.
        encoding: of a CSV file; unset: UTF-8, or as its mark says.
        missing: texts that stand for a missing label, beside the empty text and NaN.
        val_fraction: fraction of the rows of a shared file that is kept for validation.
        seed: of the choice of these rows.

    Raises:
        UsageError: there is no root or no such split.
        ConfigError: a setting names a column that does not exist or cannot be used in this way.
        DataError: the file is missing or not a table, or a value does not fit its column.
        MtlError: there is no such tokenizer.
    """

    splits = Tabular.splits
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
        self._rows = Tabular(
            root,
            split,
            file=file,
            targets=targets,
            inputs=(),
            columns=columns,
            delimiter=delimiter,
            decimal=decimal,
            encoding=encoding,
            missing=missing,
            val_fraction=val_fraction,
            seed=seed,
        )
        self._texts = self._rows.texts_of(text, "text")
        self._length = length
        self._tokenizer = None if tokenizer is None else _tokenizer(tokenizer, length)

    @classmethod
    def describe(cls, root: str | None, **settings: Any) -> tuple[Task, ...]:
        """Return a task per entry of `targets`, in its order."""
        return Tabular.describe(root, targets=settings["targets"])

    def collate_inputs(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """Pad to the longest text: "tokens", ids (B, L), and "mask" (B, L), true where one is."""
        tokens = pad_sequence(list(inputs), batch_first=True)
        lengths = torch.tensor([len(each) for each in inputs])
        return {"tokens": tokens, "mask": torch.arange(tokens.shape[1]) < lengths[:, None]}

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        """Return one row; its key ends in its number in the file, from 1 and without the header.

        Raises:
            DataError: its text is empty.
        """
        row = self._rows[index]
        text = self._texts[range(len(self))[index]]
        if not text:
            raise DataError(f"{row.key}: the text is empty; leave the row out")
        if self._tokenizer is None:
            data = [byte + 1 for byte in text.encode("utf-8")]
            ids = [*data[: self._length - 1], _END]
        else:
            ids = self._tokenizer.encode(text).ids
        return attrs.evolve(row, inputs=torch.tensor(ids, dtype=torch.int64))


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
