"""Which files of a folder are samples, and of which split."""

import os
import warnings

import numpy as np
import pytest
from PIL import Image

from mtlcore.data import DataError
from mtlcore.datasets.folder import Folder
from mtlcore.errors import ConfigError, UsageError

TASK = '\n[tasks.t]\nkind = "segmentation"\nclasses = ["a", "b"]\n'


def write(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.suffix.lower()
    size = (4, 6) if "t" in path.parts or "_t" in path.stem else (4, 6, 3)
    form = "JPEG" if suffix in (".jpg", ".jpeg") else "PNG"
    Image.fromarray(np.full(size, value, np.uint8)).save(path, form)


@pytest.fixture
def make(tmp_path):
    """Write files and a description; return the names of a split's samples, and the notes."""

    def make(top, files, split="train", label="t/{name}.png", lists=None):
        for file in files:
            write(tmp_path / file)
        for name, content in (lists or {}).items():
            data = content if isinstance(content, bytes) else content.encode()
            (tmp_path / name).write_bytes(data)
        (tmp_path / "dataset.toml").write_text(f'{top}{TASK}file = "{label}"\n')
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            data = Folder(str(tmp_path), split)
        keys = [os.path.relpath(data[i].key, tmp_path) for i in range(len(data))]
        return keys, [str(note.message) for note in seen]

    return make


@pytest.mark.parametrize(
    ("image", "label", "files", "expected"),
    [
        ("{split}/{name}.png", "{split}/{name}_t.png",
         ["0.png", "0_t.png", "1.png", "1_t.png", "2.png"], ["0.png", "1.png", "2.png"]),
        ("{split}/{name}.png", "{split}/t_{name}.png", ["0.png", "t_0.png"], ["0.png"]),
        ("{split}/{name}.{jpg,png}", "{split}/{name}.png", ["0.jpg", "0.png"], ["0.jpg"]),
        ("{split}/{name}.{png,jpg}", "{split}/{name}.png", ["0.jpg", "0.png"], ["0.jpg"]),
        ("{split}/{name}.{jpg,png,JPG}", "{split}/{name}_t.png",
         ["2.JPG", "0.jpg", "1.png", "0_t.png"], ["0.jpg", "1.png", "2.JPG"]),
        ("{split}/{name}{,-rgb}.jpg", "{split}/{name}_t.png", ["0-rgb.jpg"], ["0-rgb.jpg"]),
    ],
)  # fmt: skip
def test_labels_are_no_photographs(make, image, label, files, expected):
    keys, _ = make(f'image = "{image}"', [f"train/{file}" for file in files], label=label)
    assert keys == [f"train/{file}" for file in expected]


def test_labels_have_extensions_to_choose_from(make, tmp_path):
    files = ["train/rgb/0.png", "train/rgb/1.png", "train/t/0.png"]
    make('image = "{split}/rgb/{name}.png"', files, label="{split}/t/{name}.{npy,png}")
    np.save(tmp_path / "train/t/1.npy", np.ones((4, 6), np.uint8))
    data = Folder(str(tmp_path), "train")
    assert [int(data[i].targets["t"].max()) for i in (0, 1)] == [0, 1]


def test_two_photographs_of_one_name_are_told(make):
    files = ["train/rgb/0.jpg", "train/rgb/0.png"]
    with pytest.raises(DataError, match=r"0\.png: is a photograph of the same name as .*0\.jpg"):
        make('image = "{split}/rgb/{name}.{jpg,png}"', files)


@pytest.mark.parametrize("label", ["{split}/{name}.png", "{split}/{name}.{png,npy}"])
def test_a_pattern_that_is_that_of_the_photographs_is_refused(make, label):
    with pytest.raises(ConfigError, match=r"tasks\.t\.file: is the pattern of the photographs"):
        make('image = "{split}/{name}.png"', ["train/0.png"], label=label)


# One folder

TEN = [f"rgb/{i}.png" for i in range(10)]


def test_a_share_is_kept_for_validation(make):
    top = 'image = "rgb/{name}.png"\nval = {fraction = 0.3, seed = 4}'
    train, val = make(top, TEN)[0], make(top, TEN, "val")[0]
    assert len(val) == 3
    assert sorted(train + val) == TEN
    assert make(top.replace("4", "5"), TEN, "val")[0] != val
    more = make(top, [*TEN, "rgb/new.png"], "val")[0]
    assert len(set(val) & set(more)) >= 2
    with pytest.raises(UsageError, match="folder has no split 'test', only train, val"):
        make(top, TEN, "test")


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_both_parts_have_a_photograph(make, fraction):
    top = f'image = "rgb/{{name}}.png"\nval = {{fraction = {fraction}}}'
    assert make(top, TEN[:2])[0]
    assert make(top, TEN[:2], "val")[0]


def test_one_photograph_cannot_be_shared_out(make):
    with pytest.raises(DataError, match="val leaves no photograph of 1 for the split 'val'"):
        make('image = "rgb/{name}.png"\nval = {fraction = 0.5}', TEN[:1], "val")


def test_a_list_may_name_what_is_kept(make):
    top = 'image = "rgb/{name}.png"\nval = "held.txt"'
    assert make(top, TEN, "val", lists={"held.txt": "3\n7\n"})[0] == ["rgb/3.png", "rgb/7.png"]
    assert len(make(top, TEN)[0]) == 8
    with pytest.raises(DataError, match=r"held\.txt: 'x' is none of the 10 photographs"):
        make(top, TEN, lists={"held.txt": "x\n"})
    both = top + '\nnames = "all.txt"'
    assert make(both, TEN, lists={"held.txt": "3\n", "all.txt": "1\n3\n"})[0] == ["rgb/1.png"]


@pytest.mark.parametrize(
    ("top", "problem"),
    [
        ('image = "rgb/{name}.png"', "val = {fraction = 0.2, seed = 0} keeps a part"),
        ('image = "{split}/{name}.png"\nval = {fraction = 0.2}', "val: is for photographs in one"),
        ('image = "rgb/{name}.png"\nval = {fraction = 1.5}', "val: {'fraction': 1.5} is not"),
        ('image = "rgb/{name}.png"\nval = {fraction = nan}', "val: {'fraction': nan} is not"),
        ('image = "rgb/{name}.png"\nval = {fraction = "0.2"}', "val: "),
        ('image = "rgb/{name}.png"\nval = {fraction = 0.2, seed = 1.5}', "val: "),
        ('image = "rgb/{name}.png"\nval = {share = 0.2}', "val: "),
        ('image = "rgb/{name}.png"\nval = 0.2', "val: 0.2 is not {fraction = 0.2"),
        ('image = "rgb/{name}.png"\nval = ""', "val: '' is not"),
        ('image = "{split}/{nom}.{a,b}"', "image: '{split}/{nom}.{a,b}' is not a path with"),
        ('image = "{split}/{name}.png"\nencoding = 8', "encoding: 8 is not the name of an"),
    ],
)
def test_mistakes_are_named(make, top, problem):
    with pytest.raises(ConfigError) as told:
        make(top, TEN)
    assert problem in str(told.value)


# Lists

LISTED = 'names = "{split}.txt"\nimage = "rgb/{name}.png"'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_lists_of_every_marked_encoding_are_read(make, encoding, end):
    text = end.join(["0", "küche 1", "IMG_2.x", ""])
    data = (
        b"\xff\xfe" + text.encode("utf-16-le")
        if encoding == "utf-16-le-bom"
        else text.encode(encoding)
    )
    files = ["rgb/0.png", "rgb/küche 1.png", "rgb/IMG_2.x.png"]
    keys, notes = make(LISTED, files, lists={"train.txt": data})
    assert keys == files
    assert [note for note in notes if "share" in note or "repeat" in note] == []


def test_other_encodings_are_named(make):
    data = "küche\n".encode("latin-1")
    with pytest.raises(DataError, match=r'train\.txt: line 1 .*byte 0xfc.*encoding = "cp1252"'):
        make(LISTED, ["rgb/küche.png"], lists={"train.txt": data})
    keys, _ = make(f'encoding = "latin-1"\n{LISTED}', ["rgb/küche.png"], lists={"train.txt": data})
    assert keys == ["rgb/küche.png"]
    with pytest.raises(UsageError, match="encoding: unknown encoding: klingon"):
        make(f'encoding = "klingon"\n{LISTED}', [], lists={"train.txt": data})


@pytest.mark.parametrize(
    "line",
    ["0.png", "rgb/0.png", "rgb/0.png t/0.png", "# mine", "0.png,t/0.png", "rgb\\0.png", "0\t1"],
)
def test_lines_that_are_no_names_are_told_with_list_and_number(make, line):
    with pytest.raises(DataError, match=r"train\.txt: line 2, .*a line is what stands for {name}"):
        make(LISTED, TEN, lists={"train.txt": f"1\n{line}\n"})


def test_names_that_occur_twice_are_told_and_used_once(make):
    keys, notes = make(LISTED, TEN, lists={"train.txt": "0\n1\n1\n", "val.txt": "2\n"})
    assert keys == TEN[:2]
    assert any("1 line(s) repeat a name, such as '1'" in note for note in notes)


@pytest.mark.parametrize("split", ["train", "val"])
def test_names_that_training_and_validation_share_are_told(make, split):
    lists = {"train.txt": "0\n1\n", "val.txt": b"\xef\xbb\xbf1\n2\n"}
    notes = make(LISTED, TEN, split, lists=lists)[1]
    assert any("train.txt and val.txt share 1 photograph(s), such as '1'" in n for n in notes)
    apart = LISTED.replace("rgb/", "{split}/rgb/")
    files = [f"{part}/rgb/{i}.png" for part in ("train", "val") for i in range(3)]
    assert not any("share" in note for note in make(apart, files, split, lists=lists)[1])


# Anything in a name, broken links, marks


def test_file_names_may_hold_anything(make):
    names = ["a b", "{split}", "<i>&amp;", "é", "%s", "[x]*?", "a\nb", "#1", "'\""]
    keys, _ = make('image = "{split}/rgb/{name}.png"', [f"train/rgb/{n}.png" for n in names])
    assert sorted(keys) == sorted(f"train/rgb/{n}.png" for n in names)


def test_a_broken_link_is_no_missing_label(make, tmp_path):
    files = ["train/rgb/0.png", "train/rgb/1.png", "train/t/1.png"]
    make('image = "{split}/rgb/{name}.png"', files, label="{split}/t/{name}.png")
    (tmp_path / "train/t/0.png").symlink_to("../../disk/0.png")
    with pytest.raises(
        DataError, match=r"t/0\.png: is a link to \.\./\.\./disk/0\.png, which does"
    ):
        Folder(str(tmp_path), "train")[0]


def test_a_description_may_begin_with_a_byte_order_mark(make, tmp_path):
    make('image = "{split}/rgb/{name}.png"', ["train/rgb/0.png"])
    path = tmp_path / "dataset.toml"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [task.name for task in Folder.describe(str(tmp_path))] == ["t"]
    path.write_bytes("# küche\n".encode("latin-1") + path.read_bytes())
    with pytest.raises(ConfigError, match=r"dataset\.toml: line 1 is no text in utf-8"):
        Folder.describe(str(tmp_path))
