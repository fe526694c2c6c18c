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


# Labels of words

TAGS = {
    "tag": Target(kind="tagging", column="tags", classes=("O", "B-x", "I-x")),
    "kind": Target(kind="classification", column="kind", classes=("bad", "good")),
}
TAGGED = [
    {"text": "the film was fine", "tags": "O B-x ? O", "kind": "good"},
    {"text": ["unfine", "film"], "tags": ["I-x", "O"], "kind": None},
    {"text": "film", "tags": None, "kind": "bad"},
    {"text": "fine  \u00e4 film", "tags": "O I-x O", "kind": "good"},
]


@pytest.fixture
def tagged(tmp_path: Path) -> Path:
    """A file of 4 rows for training, and another one."""
    other = {"text": "was the film fine", "tags": "O O B-x O", "kind": "good"}
    for split, lines in (("train", TAGGED), ("val", [other])):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def tags_of(sample: Any) -> list[int]:
    return torch.where(sample.valid["tag"], sample.targets["tag"], -1).tolist()


class TestTaggedTexts(DatasetContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tagged):
        self.folder = tagged

    def make(self, split):
        return made(self.folder, split, file="{split}.jsonl", targets=TAGS)

    def tasks(self):
        return Texts.describe(None, targets=TAGS)


def test_the_first_byte_of_a_word_has_its_label(tagged: Path) -> None:
    dataset = made(tagged, file="{split}.jsonl", targets=TAGS)
    first = tags_of(dataset[0])
    assert first == [0, *[-1] * 3, 1, *[-1] * 8, 0, *[-1] * 4]  # "was" has none, nor has the end
    assert len(first) == len(dataset[0].inputs)
    assert tags_of(dataset[1]) == [2, *[-1] * 6, 0, *[-1] * 4]
    assert "tag" not in dataset[2].targets
    # Two spaces, and a letter of two bytes.
    assert tags_of(dataset[3]) == [0, *[-1] * 5, 2, -1, -1, 0, *[-1] * 4]
    short = made(tagged, file="{split}.jsonl", targets=TAGS, length=5)
    assert tags_of(short[0]) == [0, -1, -1, -1, -1]


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    """A tokenizer of parts of words, as BERT's is, that knows no ä."""
    known = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "the", "film", "was", "fine", "un", "##fine"]
    made_of = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(known)}, unk_token="[UNK]")
    )
    made_of.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made_of.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    made_of.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_the_first_part_of_a_word_has_its_label(tagged: Path, pieces: Path) -> None:
    dataset = made(tagged, file="{split}.jsonl", targets=TAGS, tokenizer=str(pieces))
    assert dataset[1].inputs.tolist() == [1, 8, 9, 5, 2]
    assert tags_of(dataset[0]) == [-1, 0, 1, -1, 0, -1]
    assert tags_of(dataset[1]) == [-1, 2, -1, 0, -1]
    assert tags_of(dataset[3]) == [-1, 0, 2, 0, -1]


def test_a_space_may_be_part_of_a_token(tagged: Path, tmp_path: Path) -> None:
    """Of GPT's and RoBERTa's tokenizers it is: a token of bytes begins with the space before."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: i for i, word in enumerate([*letters, "\u0120f", "\u0120w"])}
    made_of = Tokenizer(models.BPE(words, [("\u0120", "f"), ("\u0120", "w")]))
    made_of.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made_of.save(str(tmp_path / "bytes.json"))
    dataset = made(
        tagged, file="{split}.jsonl", targets=TAGS, tokenizer=str(tmp_path / "bytes.json")
    )
    found = tags_of(dataset[0])
    assert [found[place] for place in (0, 3, 4, 7)] == [0, 1, -1, -1]
    assert sorted(found, reverse=True)[:3] == [1, 0, 0]


def test_of_a_batch_padding_has_no_label(tagged: Path, pieces: Path) -> None:
    dataset = made(tagged, file="{split}.jsonl", targets=TAGS, tokenizer=str(pieces))
    tasks = Texts.describe(None, targets=TAGS)
    batch = collate([dataset[i] for i in range(4)], tasks, dataset.collate_inputs)
    assert batch.targets["tag"].shape == batch.inputs["tokens"].shape == (4, 6)
    assert batch.count == {"tag": 8, "kind": 3}
    assert not bool((batch.valid["tag"] & ~batch.inputs["mask"]).any())


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"text": "a film", "tags": "O"}, r"val\.jsonl:1: tag: 1 labels for 2 words \('a film'\)"),
        ({"text": "a", "tags": "B-y"}, r"val\.jsonl:1: tag: 'B-y' is none of the classes"),
    ],
)
def test_labels_that_do_not_fit_are_told(tagged: Path, row: dict[str, Any], told: str) -> None:
    (tagged / "val.jsonl").write_text(json.dumps(row | {"kind": "bad"}))
    dataset = made(tagged, "val", file="{split}.jsonl", targets=TAGS)
    with pytest.raises(DataError, match=told):
        dataset[0]


def test_conll_files_have_a_word_per_line(tmp_path: Path) -> None:
    (tmp_path / "train.conll").write_text(
        "-DOCSTART- -X- O\n\nthe DT O\nfilm NN B-x\n\n\nfine JJ ?\n"
    )
    (tmp_path / "val.conll").write_text("\nwas\tVB\tO\n")
    targets = {"tag": Target(kind="tagging", column="ner", classes=("O", "B-x"))}
    settings = {"file": "{split}.conll", "targets": targets, "columns": ("word", "pos", "ner")}
    dataset = made(tmp_path, text="word", **settings)
    assert len(dataset) == 2 and dataset[0].key.endswith("train.conll:1")
    assert bytes(i - 1 for i in dataset[0].inputs[:-1].tolist()) == b"the film"
    assert [tag for tag in tags_of(dataset[0]) if tag >= 0] == [0, 1]
    assert "tag" not in dataset[1].targets
    by_number = made(tmp_path, text="0", **{**settings, "columns": "header", "targets": {
        "tag": Target(kind="tagging", column=1, classes=("DT", "NN", "JJ", "VB"))}})  # fmt: skip
    assert [tag for tag in tags_of(by_number[0]) if tag >= 0] == [0, 1]
    assert tags_of(made(tmp_path, "val", text="word", **settings)[0])[0] == 0


def test_universal_dependencies_have_comments_and_words_of_several(tmp_path: Path) -> None:
    lines = [
        "# text = It isn't 10 000.",
        "1\tIt\tPRON",
        "2-3\tisn't\t_",
        "2\tis\tAUX",
        "3\tn't\tPART",
        "3.1\tnot\tPART",
        "4\t10 000\tNUM",
    ]
    (tmp_path / "a.conllu").write_text("\n".join([*lines, "", *lines, "", *lines]))
    classes = ("PRON", "AUX", "PART", "NUM")
    targets = {"pos": Target(kind="tagging", column="upos", classes=classes)}
    dataset = made(
        tmp_path, text="form", file="a.conllu", columns=("id", "form", "upos"), targets=targets
    )
    sample = dataset[0]
    labels = sample.targets["pos"][sample.valid["pos"]]
    assert labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a O\nb\n", r"a\.conll: line 2 has 1 cells, 2 were expected"),
        ("\n\n", r"a\.conll: holds no row"),
        ("a O x\n", r"data\.columns names 2 columns, and it has 3"),
    ],
)
def test_files_that_are_no_conll(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "a.conll").write_text(text)
    targets = {"tag": Target(kind="tagging", column="tag", classes=("O", "B-x"))}
    with pytest.raises(DataError, match=told):
        made(tmp_path, text="word", file="a.conll", columns=("word", "tag"), targets=targets)


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


TAGGING = """
[data.targets.tags]
kind = "tagging"
column = "tags"
classes = ["O", "B-x"]
"""


def test_a_run_learns_labels_of_words_and_of_texts(mtl: Any, folder: Path) -> None:
    """Words of praise and blame are tagged, in some rows; a classification beside."""
    tagged = [
        row
        | {
            "tags": None if i % 4 == 3 else
            ["B-x" if word in WORDS else "O" for word in row["text"].split()]
        }
        for i, row in enumerate(rows(64))
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, tagged)))
    file = folder / "tags.toml"
    text = CONFIG.format(root=folder, epochs=12)
    file.write_text(text.replace("[model.backbone]", TAGGING + "[model.backbone]", 1))
    done = mtl("run", str(file), "--set=balancer.name=unit-norm", "--out", str(folder / "run"))
    assert done.exit_code == 0, done.output
    summary = json.loads((folder / "run" / "summary.json").read_text())
    found = summary["final"]["val"]
    assert found["tags"]["entity_f1"] > 0.9 and found["kind"]["accuracy"] > 0.8
    assert summary["constants"]["global"]["tags"]["accuracy"] < found["tags"]["accuracy"]
    judged = mtl("eval", str(folder / "run"))
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
