"""The dataset of texts: tokens, masks, labels of a table, and a whole run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from mtlcore.data import DataError, collate
from mtlcore.datasets.table_encoding import Target
from mtlcore.errors import ConfigError, MtlError, UsageError
from mtlcore.testing import DatasetContract
from mtlcore_transformers.texts import Texts

TARGETS = {
    "kind": Target(kind="classification", column="kind", classes=("bad", "good")),
    "score": Target(kind="regression", column="score"),
}
WORDS = ("bad", "awful", "good", "fine")


def rows(number: int = 24) -> list[dict[str, Any]]:
    """Texts that say what their labels are; a third of the kinds is missing."""
    return [
        {
            "text": f"the film {'was ' * (i % 3)}{WORDS[i % 4]} {i}, ä",
            "kind": None if i % 3 == 2 else "bad" if i % 4 < 2 else "good",
            "score": i % 4,
        }
        for i in range(number)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = ["text,kind,score", *(f'"{r["text"]}",{r["kind"] or ""},{r["score"]}' for r in rows())]
    (tmp_path / "rows.csv").write_text("\n".join(lines), "utf-8")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows())), "utf-8")
    return tmp_path


def made(folder: Path, split: str = "train", **settings: Any) -> Texts:
    return Texts(str(folder), split, **{"file": "rows.csv", "targets": TARGETS, **settings})


class TestTexts(DatasetContract):
    @pytest.fixture(autouse=True)
    def _folder(self, folder):
        self.folder = folder

    def make(self, split):
        return made(self.folder, split)

    def tasks(self):
        return Texts.describe(None, targets=TARGETS)


def test_bytes_are_tokens_without_a_tokenizer(folder: Path) -> None:
    whole, short = made(folder), made(folder, length=4)
    first = whole[0]
    text = rows()[int(first.key.rpartition(":")[2]) - 1]["text"]
    assert bytes(i - 1 for i in first.inputs[:-1].tolist()).decode() == text
    assert first.inputs[-1] == 257 and first.inputs.dtype == torch.int64
    assert short[0].inputs.tolist() == [*first.inputs[:3].tolist(), 257]


@pytest.mark.parametrize("file", ["rows.jsonl", "rows.csv"])
def test_labels_and_masks(folder: Path, file: str) -> None:
    dataset = made(folder, file=file)
    tasks = Texts.describe(None, targets=TARGETS)
    samples = [dataset[i] for i in range(6)]
    batch = collate(samples, tasks, dataset.collate_inputs)
    for number, key in enumerate(batch.keys):
        row = rows()[int(key.rpartition(":")[2]) - 1]
        assert bool(batch.valid["kind"][number]) == (row["kind"] is not None)
        assert batch.targets["score"][number].item() == row["score"]
        length = len(row["text"].encode()) + 1
        assert batch.inputs["mask"][number].tolist() == [
            place < length for place in range(batch.inputs["tokens"].shape[1])
        ]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A folder with a tokenizer of words, which pads to 16 by itself."""
    words = {word: i for i, word in enumerate(["[PAD]", "[CLS]", "[UNK]", "the", "film", *WORDS])}
    made_of = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made_of.pre_tokenizer = pre_tokenizers.Whitespace()
    made_of.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", 1)]
    )
    made_of.enable_padding(length=16)
    folder = tmp_path / "tokens"
    folder.mkdir()
    made_of.save(str(folder / "tokenizer.json"))
    return folder


def test_a_tokenizer_of_the_model(folder: Path, tokenizer: Path) -> None:
    for place in (tokenizer, tokenizer / "tokenizer.json"):
        dataset = made(folder, tokenizer=str(place), length=3)
        assert dataset[0].inputs.tolist() == [1, 3, 4]  # no padding, cut off
    longer = made(folder, tokenizer=str(tokenizer))
    assert len({len(longer[i].inputs) for i in range(6)}) > 1


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        ({"text": "txt"}, ConfigError, r"data\.text: .*no column 'txt'; did you mean 'text'"),
        (
            {"tokenizer": "/no/where"},
            UsageError,
            r"tokenizer: there is no folder or file /no/where",
        ),
        (
            {"tokenizer": "nobody/nothing"},
            MtlError,
            r"tokenizer: tokenizer\.json of nobody/nothing",
        ),
        ({"tokenizer": "."}, UsageError, r"holds no tokenizer\.json; .*save_pretrained"),
        ({"tokenizer": __file__}, MtlError, r"is no tokenizer"),
        ({"file": "none.csv"}, DataError, r"none\.csv: no such file"),
    ],
)
def test_what_cannot_be_is_refused(
    folder: Path, settings: dict[str, Any], error: Any, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(error, match=told):
        made(folder, **settings)


def test_an_empty_text_is_told_of(folder: Path) -> None:
    (folder / "rows.csv").write_text("text,kind,score\n,bad,1\nx,good,2\ny,bad,3\n")
    dataset = made(folder, val_fraction=0.01)
    with pytest.raises(DataError, match=r"rows\.csv:1: the text is empty; leave the row out"):
        dataset[0]


CONFIG = """
[data]
name = "texts"
root = "{root}"
file = "rows.jsonl"
workers = 0
length = 40
[data.targets.kind]
kind = "classification"
column = "kind"
classes = ["bad", "good"]
[data.targets.score]
kind = "regression"
column = "score"
[model.backbone]
name = "transformers-text"
model = "bert"
layer_decay = 0.9
[model.backbone.config]
vocab_size = 258
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
intermediate_size = 64
max_position_embeddings = 40
[optimizer]
lr = 2e-3
[training]
epochs = {epochs}
batch_size = 4
"""


def run(mtl: Any, folder: Path, epochs: int, *more: str) -> Any:
    file = folder / f"{epochs}.toml"
    file.write_text(CONFIG.format(root=folder, epochs=epochs))
    done = mtl("run", str(file), "--out", str(folder / f"run{epochs}"), *more)
    assert done.exit_code == 0, done.output
    return json.loads((folder / f"run{epochs}" / "summary.json").read_text())


def test_a_run_of_texts_learns_and_is_used(mtl: Any, folder: Path) -> None:
    summary = run(mtl, folder, 8)
    assert summary["final"]["val"]["kind"]["accuracy"] == 1
    judged = mtl("eval", str(folder / "run8"))
    assert judged.exit_code == 0, judged.output


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (
            "--set=model.backbone.name=unet",
            "'unet' reads image inputs, and the dataset 'texts' gives",
        ),
        ("--set=data.length=60", "data.length: the texts have"),
        ("--set=model.backbone.config.vocab_size=90", "data.tokenizer: the texts have token"),
    ],
)
def test_what_does_not_fit_is_told_before_the_first_step(
    mtl: Any, folder: Path, option: str, told: str
) -> None:
    long = {"text": "long " * 30, "kind": "bad", "score": 0}
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(long | {"score": i}) for i in range(9)))
    file = folder / "texts.toml"
    file.write_text(CONFIG.format(root=folder, epochs=1))
    done = mtl("run", str(file), "--dry-run", option)
    assert done.exit_code == 2, done.output
    assert told in done.stderr and "Traceback" not in done.stderr
