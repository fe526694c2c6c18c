"""Tables as pandas, R and spreadsheets write them."""

import gzip
import io
import itertools
import warnings

import numpy as np
import pytest

from mtlcore.data import DataError
from mtlcore.datasets.tabular import Tabular, Target
from mtlcore.errors import ConfigError

FLAGS = {"t": Target(kind="multilabel", column=("p", "q"))}
CLASS = {"t": Target(kind="classification", column="y", classes=("0", "1", "2"))}
VALUE = {"t": Target(kind="regression", column="v")}


@pytest.fixture
def table(tmp_path):
    """Write both splits alike; return the training samples and the notes."""

    def table(text, targets, **settings):
        data = text if isinstance(text, bytes) else text.encode()
        for split in ("train", "val"):
            (tmp_path / f"{split}.csv").write_bytes(data)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            rows = Tabular(str(tmp_path), "train", file="{split}.csv", targets=targets, **settings)
        return [rows[i] for i in range(len(rows))], [str(note.message) for note in seen]

    return table


def labels(samples):
    """Lists of labels, None where there is none."""
    pairs = [(np.atleast_1d(s.targets["t"]), np.atleast_1d(s.valid["t"])) for s in samples]
    return [[float(x) if known else None for x, known in zip(*pair, strict=True)] for pair in pairs]


@pytest.mark.parametrize(
    ("zero", "one", "none"),
    [*itertools.product(["0", "0.0", "0.00", "False", "0e0"], ["1", "1.0", "+1", "true"], ["nan"]),
     ("0", "1.0", ""), ("0", "1", "NaN"), ("0.0", "1", "NAN"), ("0", "1", "?")],
)  # fmt: skip
def test_flags_may_be_written_in_any_way(table, zero, one, none):
    samples, _ = table(f"x,p,q\n1,{zero},{one}\n2,{none},{zero}\n3,{one},{one}\n", FLAGS)
    assert labels(samples) == [[0, 1], [None, 0], [1, 1]]


@pytest.mark.parametrize("flag", ["2", "-1.0", "0.5", "yes", "inf"])
def test_other_flags_are_refused_with_the_way_out(table, flag):
    with pytest.raises(DataError, match=rf"column 'p' holds '{flag}'; .*data\.missing names texts"):
        table(f"x,p,q\n1,{flag},1\n", FLAGS)
    samples, _ = table(f"x,p,q\n1,{flag},1\n2,1,1\n", FLAGS, missing=(flag,))
    assert labels(samples) == [[None, 1], [1, 1]]


@pytest.mark.parametrize("text", ["1", "1.0", "01", "1.", "+1", " 1 "])
def test_classes_that_are_numbers_may_be_written_in_any_way(table, text):
    samples, _ = table(f"x,y\n1,{text}\n2,nan\n3,2.0\n", CLASS)
    assert labels(samples) == [[1], [None], [2]]


def test_a_class_is_its_own_text_first(table):
    exact = {"t": Target(kind="classification", column="y", classes=("1", "1.0", "nan", "02"))}
    samples, _ = table("x,y\n1,1\n2,1.0\n3,nan\n4,2\n5,NaN\n", exact)
    assert labels(samples) == [[0], [1], [2], [3], [None]]
    with pytest.raises(DataError, match=r"holds '1\.00'"):
        table("x,y\n1,1.00\n", exact)
    rest = {"t": Target(kind="classification", column="y", classes=("1", "b"), otherwise="b")}
    samples, _ = table("x,y\n1,1.0\n2,c\n3,nan\n", rest)
    assert labels(samples) == [[0], [1], [None]]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("decimal", [".", ","])
def test_delimiter_and_decimal_comma_are_found(table, delimiter, decimal):
    rows = [["x", "word", "v"], ["1", "a", "2.5"], ["2.25", "b", "-3"], ["3", "a", "1e3"]]
    if delimiter == decimal == ",":
        decimal = "."
    text = "\n".join(delimiter.join(row).replace(".", decimal) for row in rows)
    samples, notes = table(text, VALUE)
    assert labels(samples) == [[2.5], [-3], [1000]]
    assert samples[0].inputs.shape == (3,)  # a number, and two words
    assert notes == []


def test_texts_with_commas_are_no_other_delimiter(table):
    for text in ('x,v\n"a;b",1\n"c;d",2\n', "x,v\na;b,1\nc;d,2\n", 'x,v\n"a\tb, c",1\n"d\te",2\n'):
        samples, _ = table(text, VALUE)
        assert labels(samples) == [[1], [2]]
    long = "x;v\n" + "".join(f"{i},5;{i}\n" for i in range(300))
    assert len(table(long, VALUE)[0]) == 300
    quoted = 'x;v\n"two\nlines";2,5\nb;3\n'
    assert labels(table(quoted, VALUE)[0]) == [[2.5], [3]]


def test_other_delimiters_are_named(table):
    text = "x v\n1 2\n3 4\n"
    with pytest.raises(ConfigError, match=r"no column 'v'.*\(data\.delimiter\)"):
        table(text, VALUE)
    assert labels(table(text, VALUE, delimiter=" ")[0]) == [[2], [4]]
    with pytest.raises(DataError, match=r"row 2 has 3 cells, not 2, separated by ','.*data\.delim"):
        table("x,v\n1,2\n1,2,3\n", VALUE)
    with pytest.raises(ConfigError, match=r"data\.delimiter: '::' must be one character"):
        table(text, VALUE, delimiter="::")


@pytest.mark.parametrize("line", ["sep=;", "SEP=;", '"sep=;"'])
def test_the_first_line_of_a_spreadsheet_may_say_it(table, line):
    assert labels(table(f"{line}\r\nx;v\r\n1,5;2,5\r\n", VALUE)[0]) == [[2.5]]


def test_a_decimal_comma_may_be_said(table):
    assert labels(table("x;v\n1.5;2,5\n", VALUE, decimal=",")[0]) == [[2.5]]
    with pytest.raises(DataError, match="column 'v' holds '2,5'; a regression label is a finite"):
        table("x;v\n1.5;2,5\n", VALUE)  # a point and a comma: which of them is not clear


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("packed", [False, True])
def test_marked_encodings_are_read(table, encoding, packed):
    data = "größe,v\n1,2\n3,4\n".encode(encoding)
    data = b"\xff\xfe" + data if encoding == "utf-16-le" else data
    samples, _ = table(gzip.compress(data) if packed else data, VALUE, inputs=("größe",))
    assert labels(samples) == [[2], [4]]


def test_other_encodings_are_named(table):
    data = "größe,v\n1,2\n".encode("cp1252")
    with pytest.raises(DataError, match=r"no text in utf-8 \(byte 0xf6\).*data\.encoding"):
        table(data, VALUE)
    assert labels(table(data, VALUE, inputs=("größe",), encoding="cp1252")[0]) == [[2]]
    with pytest.raises(ConfigError, match=r"data\.encoding: unknown encoding: klingon"):
        table(data, VALUE, encoding="klingon")


@pytest.mark.parametrize(
    ("header", "nameless"), [(",x,v", 1), ("Unnamed: 0,x,v", 1), (",Unnamed: 1,v", 2)]
)
def test_columns_without_a_name_are_no_inputs_and_told(table, header, nameless):
    text = f"{header}\n0,5,1\n1,6,2\n2,8,3\n"
    samples, notes = table(text, VALUE)
    assert samples[0].inputs.shape == (2 - nameless,)
    assert [("has no name" in note, "data.inputs" in note) for note in notes] == [
        (True,) * 2
    ] * nameless
    samples, notes = table(text, VALUE, inputs=(0, 1))
    assert (samples[0].inputs.shape, notes) == ((2,), [])
    assert table(text, VALUE, ignore=(0, 1))[1] == []


def test_an_empty_last_column_is_none_either(table):
    samples, notes = table("x,v,\n1,2,\n3,4,\n", VALUE)
    assert samples[0].inputs.shape == (1,)
    assert len(notes) == 1


def test_columns_of_one_name_are_named(table):
    with pytest.raises(DataError, match=r"not different ones, 'x' \(data\.columns"):
        table("x,x,v\n1,2,3\n", VALUE)


@pytest.mark.parametrize("word", ["NA", "n/a", "-", "1,234"])
def test_a_few_words_among_numbers_are_told(table, word):
    rows = "".join(f"{i},{i}\n" for i in range(40))
    _, notes = table(f'x,v\n{rows}"{word}",1\n', VALUE)
    assert [repr(word) in note and "data.missing" in note for note in notes] == [True]
    samples, notes = table(f'x,v\n{rows}"{word}",1\n', VALUE, missing=(word,))
    assert (samples[0].inputs.shape, notes) == ((2,), [])
    assert table(f'x,v\n{rows}"{word}",1\n', VALUE, categorical=("x",))[1] == []


def test_real_categories_are_not_told(table):
    rows = "".join(f"{i % 4},{i}\n" for i in range(40))
    assert table(f"x,v\n{rows}4+,1\n", VALUE)[1] == []


def test_parquet_row_numbers_and_flags(table, tmp_path):
    pandas = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"__index_level_0__": [0, 1], "x": [1.5, 2.5], "p": [1.0, None], "q": [True, False]}
    buffer = io.BytesIO()
    parquet.write_table(pandas.table(columns), buffer)
    samples, notes = table(buffer.getvalue(), FLAGS)
    assert labels(samples) == [[1, 1], [None, 0]]
    assert samples[0].inputs.shape == (1,)
    assert len(notes) == 1
