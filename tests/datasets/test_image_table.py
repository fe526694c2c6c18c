"""Photographs with labels in a table, as people have them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mtlcore.data import DataError
from mtlcore.datasets.image_table import ImageTable
from mtlcore.datasets.table_encoding import Target
from mtlcore.errors import ConfigError, MtlError, UsageError
from mtlcore.testing import DatasetContract

TARGETS = {
    "attributes": Target(kind="multilabel", column=("smiles", "hat"), no=("-1",)),
    "kind": Target(kind="classification", column="kind", classes=("cat", "dog")),
    "age": Target(kind="regression", column="age", unit="years"),
}
HEAD = "file,smiles,hat,kind,age,set"
ROWS = [
    "a.png,1,-1,cat,3.5,train",
    "b.png,-1,,dog,,train",
    "c.png,,1,,7,training",
    "d.png,1.0,0,cat,NaN,valid",
    "e.png,true,false,dog,1,test",
]


def write(root, rows=ROWS, head=HEAD, name="labels.csv", delimiter=","):
    root.mkdir(exist_ok=True)
    text = "\n".join([head, *rows]) + "\n"
    (root / name).write_text(text.replace(",", delimiter))
    (root / "img").mkdir(exist_ok=True)
    for number, letter in enumerate("abcde"):
        values = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(values).save(root / "img" / f"{letter}.png")
    return str(root)


def make(root, split="train", **settings):
    settings = {"file": "labels.csv", "image": "img/{file}", "targets": TARGETS, "part": "set"
                } | settings  # fmt: skip
    return ImageTable(root, split, **settings)


class TestContract(DatasetContract):
    splits = ("train", "val", "test")

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path):
        self.root = write(tmp_path / "data")

    def make(self, split):
        return make(self.root, split)

    def tasks(self):
        return ImageTable.describe(self.root, targets=TARGETS)


def known(target, valid):
    pairs = zip(target.reshape(-1).tolist(), valid.reshape(-1).tolist(), strict=True)
    return [value if there else None for value, there in pairs]


def labels(dataset):
    return [{n: known(s.targets[n], s.valid[n]) for n in s.targets} for s in dataset]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_holes_classes_and_numbers(tmp_path, delimiter):
    root = write(tmp_path, delimiter=delimiter)
    assert labels(make(root)) == [
        {"attributes": [1, 0], "kind": [0], "age": [3.5]},
        {"attributes": [0, None], "kind": [1], "age": [None]},
        {"attributes": [None, 1], "kind": [None], "age": [7]},
    ]
    assert labels(make(root, "val")) == [{"attributes": [1, 0], "kind": [0], "age": [None]}]


def test_attributes_have_the_names_of_their_columns():
    attributes, kind, age = ImageTable.describe(None, targets=TARGETS)
    assert attributes.class_names == ("smiles", "hat") and kind.class_names == ("cat", "dog")
    assert age.unit == "years" and age.standardise


def test_names_without_endings_and_a_table_per_split(tmp_path):
    rows = [row.replace(".png", "") for row in ROWS]
    write(tmp_path, rows[:3], name="train.csv")
    root = write(tmp_path, rows[3:], name="val.csv")
    found = make(root, "val", file="{split}.csv", image="img/{file}.png", part=None)
    assert [found.name_of(i) for i in range(2)] == ["d", "e"]
    assert found[1].key.endswith("img/e.png")


def test_a_part_is_kept_by_the_names_of_photographs(tmp_path):
    rows = [f"{name}.png,1,0,cat,{i},x" for i, name in enumerate(["a", "b", "c", "d", "e"] * 3)]
    root = write(tmp_path, rows)
    parts = {
        split: [d.name_of(i) for i in range(len(d))]
        for split in ("train", "val")
        for d in [make(root, split, part=None, val_fraction=0.4, seed=3)]
    }
    assert not {*parts["train"]} & {*parts["val"]}
    assert len(parts["train"]) + len(parts["val"]) == 15
    root = write(tmp_path, [*rows, "z.png,1,0,cat,1,x"])
    again = make(root, "val", part=None, val_fraction=0.4, seed=3)
    assert len({*parts["val"]} ^ {again.name_of(i) for i in range(len(again))}) <= 2
    with pytest.raises(DataError, match="val_fraction"):
        make(write(tmp_path, rows[:1]), "val", part=None)


def test_other_words_for_the_parts(tmp_path):
    root = write(tmp_path, [row.rsplit(",", 1)[0] + f",{k}" for k, row in enumerate(ROWS)])
    with pytest.raises(DataError, match=r"no row is of the split 'train'.*'0', '1'.*data\.parts"):
        make(root)
    parts = {"train": ("0", "1", "4"), "val": ("2", "3")}
    assert len(make(root, parts=parts)) == 3 and len(make(root, "val", parts=parts)) == 2


def test_what_is_wrong_is_told_with_its_place(tmp_path):
    root = write(tmp_path)
    for changed, said in (
        ({"image": "img/{fiel}"}, r"data\.image: .*no column 'fiel'; did you mean 'file'"),
        ({"image": "img"}, "data.image: 'img' names no column"),
        ({"part": "sett"}, "data.part: .*no column 'sett'"),
        ({"parts": {"tarin": ("x",)}}, "data.parts.tarin"),
        ({"part": None, "parts": {"train": ("x",)}}, "data.parts: says what"),
        ({"delimiter": ",,"}, "data.delimiter"),
    ):
        with pytest.raises(ConfigError, match=said):
            make(root, **changed)
    plain = {"attributes": Target(kind="multilabel", column="smiles")}
    with pytest.raises(DataError, match=r"labels\.csv: column 'smiles' holds '-1'.*target's no"):
        make(root, targets=plain)
    with pytest.raises(ValueError, match="no: is for a multilabel"):
        Target(kind="regression", column="age", no=("-1",))
    with pytest.raises(UsageError, match="no split 'test'"):
        make(root, "test", part=None)
    (tmp_path / "img" / "b.png").unlink()
    with pytest.raises(DataError, match=r"b\.png: no such file.*row 2 of .*labels\.csv"):
        make(root)[1]
    with pytest.raises(DataError, match="row 2: column 'file' names no file"):
        make(write(tmp_path, [ROWS[0], ",1,1,cat,3,train"]))
    with pytest.raises(DataError, match="leads out of"):
        make(write(tmp_path, ["../../x.png,1,1,cat,3,train"]))[0]


@settings(settings.get_profile("fast"))
@given(st.data())
def test_any_changed_table_is_read_or_told(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("any")
    write(root)
    text = bytearray((root / "labels.csv").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place : place + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=4))
    (root / "labels.csv").write_bytes(bytes(text))
    try:
        dataset = make(str(root))
        for sample in (dataset[i] for i in range(len(dataset))):
            assert torch.isfinite(sample.inputs).all()
    except MtlError as error:
        assert "labels.csv" in str(error) or "img/" in str(error) or "data." in str(error)
