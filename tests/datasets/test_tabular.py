"""Tables: what becomes an input, what becomes a label, and the published census."""

import gzip
import io
import pickle
import sys
import tomllib
import zipfile
from pathlib import Path

import attrs
import fsspec
import numpy as np
import pytest
import torch

from mtlcore.config import DataConfig
from mtlcore.data import DataError, collate
from mtlcore.datasets.table_encoding import Target
from mtlcore.datasets.tabular import Tabular
from mtlcore.errors import ConfigError, UsageError
from mtlcore.plugins import structure
from mtlcore.testing import DatasetContract

PROJECT = Path(__file__).resolve().parents[2]

TRAIN = """age,city,code,rich,size,a,b
20,Oslo,1,no,1.5,0,1
30, Rome ,2,yes,2.5,1,1
?,Oslo,2,no,,0,?
40,?,1,,0.5,1,0
"""
VAL = """age,city,code,rich,size,a,b
,Paris,3,yes,-1,1,1
50,Rome,1,no,7,0,0
"""
TARGETS = {
    "rich": Target(kind="classification", column="rich", classes=("no", "yes")),
    "size": Target(kind="regression", column="size", unit="m"),
    "flags": Target(kind="multilabel", column=("a", 6)),
}
SETTINGS = {"file": "{split}.csv", "targets": TARGETS, "categorical": ("code",)}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "train.csv").write_text(TRAIN)
    (tmp_path / "val.csv").write_text(VAL)
    return tmp_path


def inputs(dataset):
    return torch.stack([dataset[i].inputs for i in range(len(dataset))]).numpy()


class TestContract(DatasetContract):
    samples = 4

    @pytest.fixture(autouse=True)
    def _files(self, root):
        self.root = str(root)

    def make(self, split):
        return Tabular(self.root, split, **SETTINGS)

    def tasks(self):
        return Tabular.describe(self.root, **SETTINGS)


# Age, whether it is missing, then the places of city ("", Oslo, Rome) and code (1, 2).
AGE = (np.array([20, 30, 40]) - 30) / np.sqrt(200 / 3)
ENCODED = np.array(
    [
        [AGE[0], 0, 0, 1, 0, 1, 0],
        [AGE[1], 0, 0, 0, 1, 0, 1],
        [0, 1, 0, 1, 0, 0, 1],
        [AGE[2], 0, 1, 0, 0, 1, 0],
    ]
)


def test_inputs_are_fitted_on_the_training_rows(root):
    train, val = (Tabular(str(root), split, **SETTINGS) for split in ("train", "val"))
    np.testing.assert_allclose(inputs(train), ENCODED, atol=1e-6)
    # Paris and code 3 were not seen: no place is theirs.
    fifty = 20 / np.sqrt(200 / 3)
    wanted = [[0, 1, 0, 0, 0, 0, 0], [fifty, 0, 0, 0, 1, 1, 0]]
    np.testing.assert_allclose(inputs(val), wanted, atol=1e-6)
    assert Tabular.input_width(str(root), **SETTINGS) == 7


def test_labels_are_read_by_kind(root):
    tasks = Tabular.describe(None, **SETTINGS)
    assert [(t.name, t.kind, t.channels, t.class_names, t.unit) for t in tasks] == [
        ("rich", "classification", 2, ("no", "yes"), ""),
        ("size", "regression", 1, (), "m"),
        ("flags", "multilabel", 2, (), ""),
    ]
    dataset = Tabular(str(root), "train", **SETTINGS)
    batch = collate([dataset[i] for i in range(4)], tasks)
    assert batch.inputs.shape == (4, 7)
    assert batch.targets["rich"].tolist() == [0, 1, 0, 0]
    assert batch.valid["rich"].tolist() == [True, True, True, False]
    assert batch.targets["size"].tolist() == [[1.5], [2.5], [0.0], [0.5]]
    assert batch.valid["size"].tolist() == [[True], [True], [False], [True]]
    assert batch.targets["flags"].tolist() == [[0, 1], [1, 1], [0, 0], [1, 0]]
    assert batch.valid["flags"][2].tolist() == [True, False]
    assert batch.count == {"rich": 3, "size": 3, "flags": 7}
    assert batch.keys == tuple(f"{root}/train.csv:{row}" for row in (1, 2, 3, 4))


def test_which_columns_are_inputs_can_be_said(root):
    def width(**settings):
        return Tabular.input_width(str(root), **{**SETTINGS, **settings})

    assert width(inputs=("age",)) == 2
    assert width(inputs=("city", 2)) == 5
    assert width(ignore=("age", 1)) == 2
    assert width(categorical=()) == 6  # code is one number
    # The label of a task that is not learnt is no input either: it is another column's.
    assert width(targets={"rich": TARGETS["rich"]}) == 7 + 2 + 1 + 2


def test_otherwise_is_the_class_of_the_rest(root):
    target = Target(
        kind="classification", column="city", classes=("other", "Oslo"), otherwise="other"
    )
    dataset = Tabular(str(root), "train", **{**SETTINGS, "targets": {"oslo": target}})
    samples = [dataset[i] for i in range(4)]
    assert [int(s.targets["oslo"]) for s in samples][:3] == [1, 0, 1]
    assert [bool(s.valid["oslo"]) for s in samples] == [True, True, True, False]


def test_one_file_is_shared_out_by_a_hash(tmp_path):
    rows = "".join(f"{i},{i % 3}\n" for i in range(2000))
    (tmp_path / "all.csv").write_text("x,y\n" + rows)
    target = Target(kind="classification", column="y", classes=("0", "1", "2"))
    settings = {"file": "all.csv", "targets": {"y": target}}

    def keys(split, **more):
        dataset = Tabular(str(tmp_path), split, **settings, **more)
        return [dataset[i].key for i in range(len(dataset))]

    train, val = keys("train"), keys("val")
    assert len({*train, *val}) == len(train) + len(val) == 2000
    assert len(val) == pytest.approx(400, rel=0.15)
    assert len(keys("val", val_fraction=0.5)) == pytest.approx(1000, rel=0.1)
    assert keys("val", seed=1) != val
    with pytest.raises(UsageError, match=r"no split 'test', only train, val \(data.file has no"):
        keys("test")
    with pytest.raises(ConfigError, match=r"data\.val_fraction: 1\.0 must lie between"):
        keys("val", val_fraction=1.0)


def test_a_file_without_names(root):
    bare = TRAIN.partition("\n")[2]
    (root / "bare.csv").write_text(bare)
    numbered = {
        "rich": Target(kind="classification", column=3, classes=("no", "yes")),
        "rest": Target(kind="regression", column=(4, "5", 6)),
    }
    named = {
        "rich": Target(kind="classification", column="r", classes=("no", "yes")),
        "rest": Target(kind="regression", column=("s", "t", "u")),
    }
    # Codes are numbers here, of mean 1.5 and deviation 0.5.
    wanted = np.column_stack([ENCODED[:, :2], [-1, 1, 1, -1], ENCODED[:, 2:5]])
    for columns, targets in (("numbers", numbered), (tuple("opqrstu"), named)):
        dataset = Tabular(
            str(root), "val", file="bare.csv", columns=columns, targets=targets, val_fraction=1e-9
        )
        assert len(dataset) == 0
        train = Tabular(
            str(root), "train", file="bare.csv", columns=columns, targets=targets, val_fraction=1e-9
        )
        np.testing.assert_allclose(inputs(train), wanted, atol=1e-6)


def as_parquet(path):
    pa = pytest.importorskip("pyarrow", reason="Parquet files are written and read with pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet", reason="as above")
    columns = {
        "age": pa.array([20, 30, None, 40], pa.int64()),
        "city": pa.array(["Oslo", "Rome", "Oslo", None]),
        "code": pa.array([1, 2, 2, 1], pa.int8()),
        "rich": pa.array(["no", "yes", "no", None]),
        "size": pa.array([1.5, 2.5, None, 0.5], pa.float32()),
        "a": pa.array([False, True, False, True]),
        "b": pa.array([1, 1, None, 0], pa.int32()),
    }
    parquet.write_table(pa.table(columns), path)


def test_parquet_is_read_like_csv(root):
    as_parquet(root / "train.parquet")
    as_parquet(root / "val.parquet")
    settings = {**SETTINGS, "file": "{split}.parquet"}
    packed, plain = Tabular(str(root), "train", **settings), Tabular(str(root), "train", **SETTINGS)
    np.testing.assert_allclose(inputs(packed), inputs(plain), atol=1e-6)
    for i in range(4):
        for task in TARGETS:
            torch.testing.assert_close(packed[i].targets[task], plain[i].targets[task])
            assert torch.equal(packed[i].valid[task], plain[i].valid[task])
    with pytest.raises(ConfigError, match=r"data\.columns: a Parquet file names"):
        Tabular(str(root), "train", **settings, columns="numbers")
    data = (root / "train.parquet").read_bytes()
    (root / "train.parquet").write_bytes(data[:100])
    with pytest.raises(DataError, match=r"train.parquet: no Parquet table: "):
        Tabular(str(root), "train", **settings)


def test_without_pyarrow_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match=r"x.parquet: .*pip install 'mtlcore\[parquet\]'"):
        Tabular(str(tmp_path), "train", **{**SETTINGS, "file": "x.parquet"})


def test_packed_files_archives_and_memory_are_read_alike(root, tmp_path):
    plain = inputs(Tabular(str(root), "train", **SETTINGS))
    for split, text in (("train", TRAIN), ("val", VAL)):
        (root / f"{split}.csv.gz").write_bytes(gzip.compress(text.encode()))
    packed = Tabular(str(root), "train", **{**SETTINGS, "file": "{split}.csv.gz"})
    np.testing.assert_array_equal(inputs(packed), plain)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("sub/train.csv", TRAIN)
    fsspec.filesystem("memory").pipe_file(f"/{tmp_path.name}/train.csv", TRAIN.encode())
    for url in (f"zip://sub::{tmp_path}/a.zip", f"memory://{tmp_path.name}"):
        np.testing.assert_array_equal(inputs(Tabular(url, "train", **SETTINGS)), plain)


def test_a_table_that_changed_is_read_again(root):
    first = Tabular(str(root), "train", **SETTINGS)
    (root / "train.csv").write_text(TRAIN + "50,Rome,1,no,1,0,0\n")
    assert (len(first), len(Tabular(str(root), "train", **SETTINGS))) == (4, 5)


def test_a_copy_has_the_same_rows(root):
    dataset = Tabular(str(root), "val", **SETTINGS)
    np.testing.assert_array_equal(inputs(pickle.loads(pickle.dumps(dataset))), inputs(dataset))


def test_quotes_blank_lines_and_marks_of_encoding(root):
    text = TRAIN.replace("Rome ", '"Rome, the ""old"""').replace("\n", "\r\n\r\n")
    (root / "train.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    dataset = Tabular(str(root), "train", **SETTINGS)
    assert len(dataset) == 4
    np.testing.assert_allclose(inputs(dataset), ENCODED, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("40,?,1,", "40,?,"), r"train.csv: no CSV table: row 4 has 6 cells, not 7"),
        (("age,city", "age,age"), r"train.csv: no CSV table: its columns' names are not different"),
        (("yes", "maybe"), r"column 'rich' holds 'maybe'; a classification label is one of 'no', "),
        (("2.5", "inf"), r"column 'size' holds 'inf'; a regression label is a finite number"),
        (("0,1\n", "0,2\n"), r"column 'b' holds '2'; a multilabel label is 0, 1, false or true"),
        (("Rome", '"Rome'), r"train.csv: no CSV table: "),
    ],
)
def test_values_that_do_not_fit_are_named(root, change, message):
    assert change[0] in TRAIN
    (root / "train.csv").write_text(TRAIN.replace(*change))
    with pytest.raises(DataError, match=message):
        Tabular(str(root), "train", **SETTINGS)


def test_other_files_are_refused(root):
    for data, message in (
        (b"", r"train.csv: no CSV table: its columns"),
        (TRAIN.partition("\n")[0].encode(), r"train.csv: holds no row"),
        (b"\xff\xfe\x00", r"train.csv: no CSV table: .*utf-"),
        (gzip.compress(TRAIN.encode())[:-12], r"train.csv: no CSV table: "),
        (TRAIN.replace("age", "years").encode(), r"val.csv: has other columns than .*train.csv"),
    ):
        (root / "train.csv").write_bytes(data)
        with pytest.raises(DataError, match=message):
            Tabular(str(root), "val", **SETTINGS)
    (root / "train.csv").unlink()
    with pytest.raises(DataError, match=r"train.csv: no such file"):
        Tabular(str(root), "train", **SETTINGS)
    with pytest.raises(UsageError, match=r"data\.root: tabular"):
        Tabular(None, "train", **SETTINGS)


def test_a_word_among_numbers_of_validation_is_named(root):
    (root / "val.csv").write_text(VAL.replace("50", "old"))
    with pytest.raises(DataError, match=r"val.csv: column 'age' holds numbers in training, but 'o"):
        Tabular(str(root), "val", **SETTINGS)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"inputs": ("agee",)}, r"data\.inputs: .*no column 'agee'; did you mean 'age'"),
        ({"ignore": (7,)}, r"data\.ignore: .*train.csv has no column 7 \(it has 7, numbered from"),
        ({"inputs": ("rich",)}, r"data\.inputs: 'rich' holds a label"),
        ({"categorical": ("ct",)}, r"data\.categorical: .*no column 'ct'"),
        (
            {"targets": {"x": Target(kind="regression", column="szie")}},
            r"data\.targets\.x\.column: .*no column 'szie'; did you mean 'size'",
        ),
        (
            {"targets": {"X": Target(kind="regression", column="size")}},
            r"data\.targets\.X: task name 'X'",
        ),
        ({"targets": {}}, r"data\.targets: name at least one task"),
    ],
)
def test_settings_that_do_not_fit_are_named(root, settings, problem):
    with pytest.raises(ConfigError, match=problem):
        Tabular(str(root), "train", **{**SETTINGS, **settings})


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ({"kind": "regression", "column": []}, "column: names none"),
        ({"kind": "regression", "column": 1, "classes": ["a"]}, "classes and otherwise are for"),
        ({"kind": "classification", "column": [1, 2], "classes": ["a", "b"]}, "has one column"),
        ({"kind": "classification", "column": 1, "classes": ["a", "a"]}, "two or more different"),
        (
            {"kind": "classification", "column": 1, "classes": ["a", "b"], "otherwise": "c"},
            "'c' is none of the classes",
        ),
    ],
)
def test_targets_are_checked_with_the_configuration(target, problem):
    problems = []
    structure(Tabular, {"file": "x", "targets": {"y": target}}, "data", problems)
    assert len(problems) == 1
    assert problems[0].startswith("data.targets.y: ")
    assert problem in problems[0]


def test_a_column_without_any_number_is_one_category(root):
    (root / "train.csv").write_text(
        TRAIN.replace("20,", ",").replace("30,", "?,").replace("40,", ",")
    )
    with_gaps = {**SETTINGS, "inputs": ("age",)}
    np.testing.assert_array_equal(inputs(Tabular(str(root), "train", **with_gaps)), np.ones((4, 1)))


def test_a_constant_column_is_zero(root):
    text = io.StringIO()
    text.write("x,y\n" + "3,1\n" * 5)
    (root / "train.csv").write_text(text.getvalue())
    target = Target(kind="regression", column="y")
    dataset = Tabular(str(root), "train", file="{split}.csv", targets={"y": target})
    np.testing.assert_array_equal(inputs(dataset), np.zeros((5, 1)))


# --------------------------------------------------------------------------------- the census

EXAMPLE = tomllib.loads((PROJECT / "examples" / "census-income.toml").read_text())


def example_settings():
    core = {field.name for field in attrs.fields(DataConfig)}
    problems = []
    given = {key: value for key, value in EXAMPLE["data"].items() if key not in core}
    settings = structure(Tabular, given, "data", problems)
    assert problems == []
    return settings


def test_the_example_has_the_tasks_it_learns():
    names = [task.name for task in Tabular.describe(None, **example_settings())]
    assert names == EXAMPLE["tasks"]


@pytest.fixture(scope="module")
def census(real_data):
    root = str(real_data("census_income"))
    return [Tabular(root, split, **example_settings()) for split in ("train", "val")]


def test_the_census_holds_what_is_known_of_it(census):
    train, val = census
    assert len(train) + len(val) == 99_762
    assert train[0].inputs.shape == (EXAMPLE["model"]["backbone"]["inputs"],)
    samples = [dataset[i] for dataset in (train, val) for i in range(0, len(dataset), 5)]
    batch = collate(samples, Tabular.describe(None, **example_settings()))
    for task, share in (("income", 0.062), ("never_married", 0.432)):
        assert batch.count[task] == len(samples)
        assert float(batch.targets[task].double().mean()) == pytest.approx(share, abs=0.01)
    # Means of 0 and deviations of 1 over all rows, of which these are a fifth.
    numbers = batch.inputs[:, :8].double()
    torch.testing.assert_close(
        numbers.mean(0), torch.zeros(8, dtype=torch.double), atol=0.05, rtol=0
    )
    torch.testing.assert_close(numbers.std(0), torch.ones(8, dtype=torch.double), atol=0.2, rtol=0)
