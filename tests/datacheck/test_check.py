"""`mtl data check`: what it counts, what it finds, and what it leaves alone."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mtlcore.config import Chosen, ChosenData, DataConfig
from mtlcore.data import DataError, Dataset, Sample, collate, outside_kind
from mtlcore.datacheck import check_data
from mtlcore.datacheck.measuring import PartReader
from mtlcore.display import CountingDisplay
from mtlcore.plugins import Component, DatasetSpec
from mtlcore.report import data_page
from mtlcore.tasks import KINDS, Task

SIZE = (12, 16)
SPEC = """
image = "{split}/rgb/{name}.png"
[tasks.seg]
kind = "segmentation"
file = "{split}/seg/{name}.png"
classes = ["floor", "wall", "door"]
invalid = 255
[tasks.depth]
kind = "depth"
file = "{split}/depth/{name}.npy"
unit = "m"
[tasks.edges]
kind = "edges"
file = "{split}/edges/{name}.png"
"""


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values) if path.suffix == ".npy" else Image.fromarray(values).save(path)


def write(root: Path, train: int = 3, val: int = 2) -> Path:
    """A folder in which nothing is wrong."""
    random = np.random.default_rng(0)
    for split, number in (("train", train), ("val", val)):
        for i in range(number):
            name = f"{split}-{i}"
            save(root / split / "rgb" / f"{name}.png",
                 random.integers(0, 256, (*SIZE, 3), dtype=np.uint8))  # fmt: skip
            classes = np.zeros(SIZE, np.uint8)
            classes[4:8], classes[8:10], classes[10:] = 1, 2, 255
            save(root / split / "seg" / f"{name}.png", classes)
            save(root / split / "depth" / f"{name}.npy",
                 random.uniform(1, 4, SIZE).astype(np.float32))  # fmt: skip
            save(root / split / "edges" / f"{name}.png", (classes == 2).astype(np.uint8))
    (root / "dataset.toml").write_text(SPEC)
    return root


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "data")


@pytest.fixture
def check(mtl, tmp_path):
    """Run the command with --json: the exit code and what it found."""

    def run(*arguments, code=None):
        page = tmp_path / "page.html"
        result = mtl("data", "check", *map(str, arguments), "--set=data.workers=0", "--json",
                     "--out", str(page))  # fmt: skip
        assert result.exit_code in (0, 1), result.output
        assert code is None or result.exit_code == code, result.output
        found = json.loads(result.stdout)
        assert found["wrong"] == bool(result.exit_code)
        assert well_formed(page.read_text("utf-8"))
        return found

    return run


def well_formed(text):
    """Whether every element of a page is closed in its turn, and nothing is fetched."""

    class Reader(HTMLParser):
        open: list = []

        def handle_starttag(self, tag, attributes):
            for name, value in attributes:
                assert name not in ("src", "href") or value.startswith(("data:", "#")), value
            if tag not in ("img", "meta", "br"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    reader = Reader()
    reader.feed(text)
    return not reader.open


def kinds(found, level="wrong"):
    return sorted(
        (one["kind"], one["split"], one["task"])
        for one in found["findings"]
        if one["level"] == level
    )


def one(found, kind):
    (finding,) = [each for each in found["findings"] if each["kind"] == kind]
    return finding


def test_nothing_is_wrong_with_what_is_right(check, data):
    found = check(data, code=0)
    assert kinds(found) == kinds(found, "odd") == []
    train = found["splits"]["train"]
    assert train["samples"] == train["available"] == train["read"] == 3
    assert train["inputs"]["shapes"] == {"12x16": 3}
    seg = train["tasks"]["seg"]
    assert [(c["name"], c["count"], c["samples"]) for c in seg["classes"]] == [
        ("floor", 3 * 64, 3), ("wall", 3 * 64, 3), ("door", 3 * 32, 3),
    ]  # fmt: skip
    assert seg["valid"] == 3 * 160 and seg["elements"] == 3 * 192 and seg["labelled"] == 3
    (depth,) = train["tasks"]["depth"]["channels"]
    files = [np.load(path) for path in sorted(data.glob("train/depth/*.npy"))]
    assert depth["min"] == min(f.min() for f in files)
    assert depth["max"] == max(f.max() for f in files)
    assert depth["mean"] == pytest.approx(np.mean(files), rel=1e-6)
    assert sum(depth["histogram"]["counts"]) == depth["count"] == 3 * 192


def test_all_that_is_outside_a_kind_is_told_with_its_file_and_count(check, data):
    for i, wrong in ((0, 5), (2, 11)):
        path = data / f"train/depth/train-{i}.npy"
        depth = np.load(path)
        depth.flat[:wrong] = -1
        np.save(path, depth)
    seg = np.zeros(SIZE, np.uint8)
    seg[:2], seg[2] = 7, 1
    save(data / "val/seg/val-1.png", seg)
    found = check(data, code=1)
    outside = [each for each in found["findings"] if each["kind"] == "outside"]
    depth, seg = sorted(outside, key=lambda each: each["task"])
    assert (depth["split"], depth["samples"], depth["values"]) == ("train", 2, 16)
    assert [(Path(f["file"]).name, f["count"]) for f in depth["files"]] == [
        ("train-0.npy", 5), ("train-2.npy", 11),
    ]  # fmt: skip
    assert (seg["split"], seg["samples"], seg["values"]) == ("val", 1, 32)
    assert "7 (32 times)" in seg["files"][0]["message"]
    # What is right in such a label is counted all the same.
    assert found["splits"]["train"]["tasks"]["depth"]["labelled"] == 3
    assert found["splits"]["train"]["tasks"]["depth"]["channels"][0]["min"] == -1


def test_samples_that_cannot_be_read_are_all_told(check, data):
    (data / "train/rgb/train-1.png").write_bytes(b"no picture")
    (data / "train/seg/train-2.png").write_bytes(b"no picture")
    found = check(data, code=1)
    unreadable = one(found, "unreadable")
    assert unreadable["samples"] == 2
    assert [Path(f["file"]).name for f in unreadable["files"]] == ["train-1.png", "train-2.png"]
    assert found["splits"]["train"]["read"] == 1


def test_what_train_and_val_share_is_told_by_name_and_by_content(check, data):
    (data / "val/rgb/val-0.png").write_bytes((data / "train/rgb/train-2.png").read_bytes())
    shared = one(check(data, code=1), "shared-input")
    assert shared["level"] == "wrong" and shared["samples"] == 1
    assert "val-0" in shared["files"][0]["file"] and "train-2" in shared["files"][0]["message"]
    (data / "dataset.toml").write_text(
        "names = '{split}.txt'\n" + SPEC.replace("{split}/rgb", "train/rgb")
    )
    (data / "train.txt").write_text("train-0\ntrain-1\n")
    (data / "val.txt").write_text("train-1\ntrain-2\n")
    found = check(data, code=1)
    assert Path(one(found, "shared")["files"][0]["file"]).name == "train-1.png"
    assert "shared-input" not in {each["kind"] for each in found["findings"]}


def test_a_task_without_labels_is_told(check, data):
    for path in data.glob("val/depth/*"):
        path.unlink()
    found = check(data, code=1)
    assert ("no-labels", "val", "depth") in kinds(found)
    assert any("no image of split 'val'" in note for note in found["notes"])


def test_maps_of_one_value_are_told_but_pictures_without_an_edge_are_not(check, data):
    np.save(data / "train/depth/train-1.npy", np.full(SIZE, 2.5, np.float32))
    save(data / "train/edges/train-1.png", np.zeros(SIZE, np.uint8))
    found = check(data, code=1)
    assert kinds(found) == [("constant", "train", "depth")]
    assert "2.5" in one(found, "constant")["files"][0]["message"]


def test_classes_of_one_pixel_and_classes_that_never_occur(check, data):
    for i in range(3):
        seg = np.zeros(SIZE, np.uint8)
        seg[:, 3:] = 1
        save(data / f"train/seg/train-{i}.png", seg)
    found = check(data, code=1)
    assert ("untrained-class", "val", "seg") in kinds(found)
    assert "2 (door)" in one(found, "no-such-class")["text"]
    seg[0, 0] = 2
    save(data / "train/seg/train-2.png", seg)
    found = check(data, code=1)
    assert kinds(found) == [("one-pixel", "train", "seg")]
    assert "2 (door)" in one(found, "one-pixel")["text"]
    seg[5:, 5:] = 2
    save(data / "train/seg/train-1.png", seg)
    assert kinds(check(data, code=0), "odd") == [("one-pixel", "train", "seg")]


def test_a_task_that_says_one_thing_is_told(check, data):
    for path in data.glob("train/edges/*"):
        save(path, np.zeros(SIZE, np.uint8))
    assert ("one-value", "train", "edges") in kinds(check(data, code=1))


def test_normals_that_face_away_are_odd(check, data):
    random = np.random.default_rng(1)
    for split, sign in (("train", 1), ("val", -1)):
        for path in list(data.glob(f"{split}/depth/*")):
            normals = random.normal(size=(*SIZE, 3)).astype(np.float32)
            normals[..., 2] = sign * np.abs(normals[..., 2])
            np.save(path, normals)
    spec = SPEC.replace('kind = "depth"', 'kind = "normals"').replace('unit = "m"', "")
    (data / "dataset.toml").write_text(spec)
    assert kinds(check(data, code=0), "odd") == [("facing-away", "train", "depth")]


def test_the_same_picture_twice_and_pictures_of_other_sizes_are_odd(check, data):
    (data / "train/rgb/train-0.png").write_bytes((data / "train/rgb/train-1.png").read_bytes())
    for name in ("rgb/val-0.png", "seg/val-0.png", "edges/val-0.png"):
        with Image.open(data / "val" / name) as image:
            doubled = image.resize((32, 24), Image.Resampling.NEAREST)
        doubled.save(data / "val" / name)
    found = check(data, code=0)
    assert kinds(found, "odd") == [("same-input", "train", None), ("sizes", "val", None)]
    assert kinds(check(data, "--set=data.size=[12,16]"), "odd") == [("same-input", "train", None)]


def test_a_split_that_is_missing_is_told_and_the_other_one_read(check, data, mtl, tmp_path):
    (data / "val").rename(data / "elsewhere")
    found = check(data, code=1)
    assert kinds(found) == [("no-split", "val", None)] and "train" in found["splits"]
    (data / "train").rename(data / "gone")
    result = mtl("data", "check", str(data), "--out", str(tmp_path / "p.html"))
    assert result.exit_code == 1 and "no such file or directory" in result.stderr


def test_a_description_elsewhere_and_a_configuration_are_taken_too(check, data, tmp_path):
    spec = tmp_path / "spec.toml"
    (data / "dataset.toml").rename(spec)
    assert check(spec, f"--set=data.root={data}", code=0)["dataset"] == "folder"
    spec.rename(data / "any.toml")
    assert check(data / "any.toml", code=0)["splits"]["train"]["read"] == 3
    config = tmp_path / "run.toml"
    config.write_text(
        f'tasks = ["depth"]\n[data]\nname = "folder"\nroot = "{data}"\nspec = "any.toml"\ntrain = 2'
    )
    found = check(config, code=0)
    assert list(found["splits"]["train"]["tasks"]) == ["depth"]
    assert found["splits"]["train"]["samples"] == 2 and found["splits"]["train"]["available"] == 3
    assert check("--set=data.name=folder", f"--set=data.root={data}", "--set=data.spec=any.toml",
                 "--split=val", code=0)["splits"].keys() == {"val"}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name what is to be checked"),
        (("{here}",), "holds no dataset.toml"),
        (("{here}/rows.csv",), "is no TOML file"),
        (("{here}/missing.toml",), "cannot read the configuration"),
        (("{here}/broken.toml",), "not TOML"),
        (("{here}/data", "--split", "tets"), "tets"),
        (("{here}/data", "--set", "data.spek=1"), "data.spek"),
        (("{here}/data", "--set", "tasks=['dept']"), "did you mean 'depth'"),
        (("--set", "data.name=foldr"), "foldr"),
    ],
)
def test_what_cannot_be_checked_is_a_message(mtl, data, arguments, said):
    here = data.parent
    (here / "rows.csv").write_text("a,b\n1,2\n")
    (here / "broken.toml").write_text("[")
    filled = [word.replace("{here}", str(here)) for word in arguments]
    result = mtl("data", "check", *filled, "--out", str(here / "page.html"))
    assert result.exit_code in (1, 2) and said in result.stderr, result.output


def test_tables_texts_and_rendered_rooms_are_checked_too(check, tmp_path):
    rows = [f"{i},{i % 7},{'ab'[i % 2]},{'' if i % 3 else i / 2}" for i in range(60)]
    (tmp_path / "rows.csv").write_text("x,y,kind,value\n" + "\n".join(rows) + "\n")
    config = tmp_path / "run.toml"
    config.write_text(
        f'[data]\nname = "tabular"\nroot = "{tmp_path}"\nfile = "rows.csv"\n'
        '[data.targets.kind]\nkind = "classification"\ncolumn = "kind"\nclasses = ["a", "b"]\n'
        '[data.targets.value]\nkind = "regression"\ncolumn = "value"\nunit = "kg"\n'
    )
    found = check(config, code=0)
    both = [found["splits"][split]["tasks"] for split in ("train", "val")]
    assert sum(tasks["kind"]["classes"][0]["count"] for tasks in both) == 30
    assert sum(tasks["value"]["valid"] for tasks in both) == 20
    assert max(tasks["value"]["channels"][0]["max"] for tasks in both) == 28.5
    assert "test" in found["absent"]
    rooms = check("--set=data.name=rooms", "--set=data.train=2", "--set=data.val=2",
                  "--set=data.size=[32,32]", code=None)  # fmt: skip
    assert rooms["splits"]["val"]["inputs"]["shapes"] == {"32x32": 2}


class Odd(Dataset):
    """Words; what each sample does is its number."""

    input_kind = "tokens"

    def __init__(self, root, split):
        self.split = split

    @classmethod
    def describe(cls, root, **settings):
        return (Task(name="kind", kind="classification", channels=2),)

    def collate_inputs(self, inputs):
        return torch.nn.utils.rnn.pad_sequence(list(inputs), batch_first=True)

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index == 1 and self.split == "train":
            raise KeyError("words")
        if index == 2:
            raise DataError(f"{self.split}/2: no words")
        label = torch.tensor(5 if index == 3 else index % 2)
        shape = torch.ones(2, dtype=torch.bool) if index == 4 else torch.tensor(True)
        number = index + 10 * (self.split == "val")
        return Sample(inputs=torch.arange(1 + index) + number, targets={"kind": label},
                      valid={"kind": shape}, key=f"{self.split}/{index}")  # fmt: skip


def odd_check(workers):
    spec = DatasetSpec(name="odd", target=Odd, summary="Words.")
    component = Component("datasets", spec, "odd", "odd.py", "")
    chosen = ChosenData(data=DataConfig(name="odd"), dataset=Chosen(component, {}),
                        tasks=Odd.describe(None), origins={})  # fmt: skip
    return check_data(chosen, CountingDisplay(), workers=workers)


def test_faults_of_a_dataset_of_ones_own_are_all_found(tmp_path):
    found = odd_check(0)
    by_kind = {(f.kind, f.split): f for f in found.findings}
    unreadable = by_kind["unreadable", "train"]
    assert [e.message for e in unreadable.files] == [
        "sample 1: the dataset ended in an error of its own: KeyError: 'words'",
        "train/2: no words",
    ]
    assert by_kind["outside", "train"].files[0].file == "train/3"
    assert by_kind["label", "train"].files[0].file == "train/4"
    assert found.splits[0].count.inputs.lengths.high == 6
    assert well_formed(data_page(found))


def test_processes_change_nothing():
    alone, several = odd_check(0), odd_check(2)
    assert alone.findings == several.findings
    for one, other in zip(alone.splits, several.splits, strict=True):
        assert one.count.inputs.shapes == other.count.inputs.shapes
        assert (
            one.count.tasks["kind"].classes.tolist() == other.count.tasks["kind"].classes.tolist()
        )


def test_how_many_samples_are_held_at_a_time_changes_nothing(check, data, monkeypatch):
    (data / "train/rgb/train-1.png").write_bytes(b"no picture")
    together = check(data, code=1)
    held = []
    count = PartReader._count
    monkeypatch.setattr("mtlcore.datacheck.measuring._TOGETHER", 0)
    monkeypatch.setattr(
        PartReader,
        "_count",
        lambda self, read, into: (held.append(len(read)), count(self, read, into)),
    )
    assert check(data, code=1) == together
    assert max(held) <= 2


@settings(settings.get_profile("fast"))
@given(
    # Of an image; a label per word is of the classes that a classification has.
    st.sampled_from([kind for kind in KINDS if kind != "tagging"]),
    st.lists(st.floats(-3, 3, width=32) | st.sampled_from([0.0, 1.0, 2.0]), min_size=3, max_size=3),
    st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_what_is_outside_is_what_a_batch_refuses(kind, numbers, known):
    task = Task(name="t", kind=kind, channels=1 if kind not in ("segmentation", "classification")
                and kind != "normals" else 3)  # fmt: skip
    size = (1, 3)
    shape = task.target_shape(size)
    target = torch.tensor(numbers).reshape(-1)[: max(1, np.prod(shape, dtype=int))]
    target = target.repeat(9)[: max(1, int(np.prod(shape)))].reshape(shape)
    mask = task.valid_shape(size)
    valid = torch.tensor(known).repeat(3)[: max(1, int(np.prod(mask)))].reshape(mask)
    inputs = torch.zeros(3, *size)
    sample = Sample(inputs=inputs, targets={"t": target}, valid={"t": valid}, key="k")
    outside = outside_kind(task, target, valid)
    try:
        collate([sample], [task])
    except DataError:
        assert len(outside)
    else:
        assert not len(outside)


@settings(settings.get_profile("fast"), max_examples=25)
@given(data=st.data())
def test_any_changed_folder_ends_in_findings_or_a_message(mtl, tmp_path_factory, data):
    root = write(tmp_path_factory.mktemp("any") / "data", train=2, val=1)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(files))
        content = bytearray(path.read_bytes() if path.exists() else b"x")
        match data.draw(st.sampled_from(["bytes", "cut", "gone", "empty", "other"])):
            case "bytes":
                place = data.draw(st.integers(0, max(0, len(content) - 1)))
                content[place : place + 3] = data.draw(st.binary(max_size=3))
            case "cut":
                del content[len(content) // 2 :]
            case "empty":
                content.clear()
            case "other":
                other = data.draw(st.sampled_from(files))
                content = bytearray(other.read_bytes())
            case _:
                path.unlink(missing_ok=True)
                files.remove(path)
                continue
        path.write_bytes(bytes(content))
    page = root / "page.html"
    result = mtl("data", "check", str(root), "--set=data.workers=0", "--out", str(page))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (0, 1, 2)
    assert result.exit_code != 2 or "dataset.toml" in result.stderr or str(root) in result.stderr
