"""Tables of JSON lines: what stands for what, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mtlcore.data import DataError
from mtlcore.datasets.table_encoding import Target
from mtlcore.datasets.tabular import Tabular
from mtlcore.errors import ConfigError

ROWS: list[dict[str, Any]] = [
    {"age": 20, "city": "Oslo", "rich": False, "note": "ä, b;\tc"},
    {"age": 30.5, "city": " Rome ", "rich": True, "size": 1e-3},
    {"age": None, "city": "Oslo", "rich": None, "note": 'a "quoted" text\nof two lines'},
    {"city": "Rome", "rich": True, "size": -2},
]
TARGETS = {
    "rich": Target(kind="multilabel", column="rich"),
    "size": Target(kind="regression", column="size"),
}


def opened(folder: Path, name: str = "rows.jsonl", **settings: Any) -> Tabular:
    given = {"file": name, "targets": TARGETS, "val_fraction": 1e-6, "inputs": ("age", "city")}
    return Tabular(str(folder), "train", **(given | settings))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson", "rows.jsonl.gz"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_values_are_those_of_a_table(tmp_path: Path, name: str, encoding: str) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    data = "\r\n".join([lines[0], "", *lines[1:], ""]).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    table = opened(tmp_path, name)
    inputs = torch.stack([table[i].inputs for i in range(4)])
    # Age, whether it is missing, and two cities.
    assert inputs.shape == (4, 4)
    assert inputs[:, 1].tolist() == [0, 0, 1, 1]
    assert inputs[:, 2].tolist() == [1, 0, 1, 0] and inputs[1, 0] == -inputs[0, 0]
    rich = [(table[i].targets["rich"].item(), bool(table[i].valid["rich"])) for i in range(4)]
    assert rich == [(0, True), (1, True), (0, False), (1, True)]
    assert [bool(table[i].valid["size"]) for i in range(4)] == [False, True, False, True]
    assert table[1].targets["size"].item() == pytest.approx(1e-3)
    rows = table._rows
    notes = rows.texts_of("note", "text")
    assert notes == [ROWS[0]["note"], "", ROWS[2]["note"], ""]
    with pytest.raises(ConfigError, match=r"data\.text: .* no column 'nodes'; did you mean 'note'"):
        rows.texts_of("nodes", "text")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", r"rows\.jsonl: line 2: "),
        ("[1]", r"line 2: \[1\] is no object"),
        ('{"age": [1]}', r"line 2: 'age' is \[1\]; a cell is a text, a number, true or false, or"),
        ("[" * 100_000, r"rows\.jsonl: line 2: "),
    ],
)
def test_other_lines_are_told_by_their_number(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]) + "\n" + line)
    with pytest.raises(DataError, match=told):
        opened(tmp_path)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n{}\n")
    with pytest.raises(DataError, match="holds no row"):
        opened(tmp_path)
    (tmp_path / "rows.jsonl").write_bytes(b'{"age": "\xff"}')
    with pytest.raises(DataError, match=r"rows\.jsonl: no JSON lines: 'utf-8' codec"):
        opened(tmp_path)
    (tmp_path / "rows.jsonl.gz").write_bytes(b"\x1f\x8b broken")
    with pytest.raises(DataError, match=r"no JSON lines"):
        opened(tmp_path, "rows.jsonl.gz")
    with pytest.raises(ConfigError, match=r"data\.columns: JSON lines name their columns"):
        opened(tmp_path, columns="numbers")
    with pytest.raises(ConfigError, match=r"data\.encoding: unknown encoding: utf-9"):
        opened(tmp_path, encoding="utf-9")
