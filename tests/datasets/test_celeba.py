"""CelebA's published lists and faces, from files written in their form."""

import numpy as np
import pytest
import torch
from PIL import Image

from mtlcore.data import DataError, collate
from mtlcore.datasets.celeba import ATTRIBUTES, TASK_NAMES, CelebA
from mtlcore.errors import UsageError
from mtlcore.testing import DatasetContract

PARTS = (0, 0, 0, 1, 1, 2, 2)


def flags(number):
    given = np.random.default_rng(number).random(40) < 0.4
    given[0] = number == 5
    return given


def line(number):
    values = "  ".join("1" if flag else "-1" for flag in flags(number))
    return f"{number:06d}.jpg {values} "


def write(root, nested=False):
    images, labels, parts = (
        root / (folder if nested else "") for folder in ("Img", "Anno", "Eval")
    )
    for place in (images / "img_align_celeba", labels, parts):
        place.mkdir(parents=True, exist_ok=True)
    rows = [line(number) for number in range(1, len(PARTS) + 1)]
    (labels / "list_attr_celeba.txt").write_text(
        "\n".join([str(len(rows)), " ".join(ATTRIBUTES) + " ", *rows]) + "\n"
    )
    (parts / "list_eval_partition.txt").write_text(
        "".join(f"{number:06d}.jpg {part}\n" for number, part in enumerate(PARTS, 1))
    )
    for number in range(1, len(PARTS) + 1):
        face = np.full((22, 18, 3), 9 * number, np.uint8)
        Image.fromarray(face).save(images / f"img_align_celeba/{number:06d}.jpg")
    return str(root)


class TestContract(DatasetContract):
    splits = ("train", "val", "test")
    settings: dict = {}

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path):
        self.root = write(tmp_path)

    def make(self, split):
        return CelebA(self.root, split, **self.settings)

    def tasks(self):
        return CelebA.describe(self.root, **self.settings)


class TestContractOfOneTask(TestContract):
    settings = {"together": True}


def test_every_attribute_is_a_task(tmp_path):
    dataset = CelebA(write(tmp_path), "val")
    tasks = dataset.describe(None)
    assert len(tasks) == len({task.name for task in tasks}) == 40
    assert {(task.kind, task.channels) for task in tasks} == {("multilabel", 1)}
    assert tasks[0].name == "five_o_clock_shadow"
    assert tasks[20].name == "male"
    assert len(dataset) == 2
    sample = dataset[1]
    assert sample.key == f"{tmp_path}/img_align_celeba/000005.jpg"
    assert dataset.name_of(1) == "000005"
    assert float(sample.inputs.mean()) == pytest.approx(45 / 255, abs=0.01)
    for number, name in enumerate(TASK_NAMES):
        assert sample.targets[name].tolist() == [float(flags(5)[number])]
        assert sample.valid[name].tolist() == [True]
    assert collate([dataset[0], sample], tasks).count["young"] == 2


def test_one_task_with_all_of_them(tmp_path):
    dataset = CelebA(write(tmp_path), "test", together=True)
    (task,) = dataset.describe(None, together=True)
    assert (task.name, task.channels, task.class_names) == ("attributes", 40, TASK_NAMES)
    assert torch.equal(dataset[0].targets["attributes"], torch.from_numpy(flags(6)).float())


def test_the_folders_of_the_download(tmp_path):
    near, nested = (
        CelebA(write(tmp_path / "a"), "train"),
        CelebA(write(tmp_path / "b", True), "train"),
    )
    assert len(near) == len(nested) == 3
    assert nested[2].key == f"{tmp_path}/b/Img/img_align_celeba/000003.jpg"
    assert near[2].targets == nested[2].targets


LABELS, SPLITS = "list_attr_celeba.txt", "list_eval_partition.txt"


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (LABELS, "Smiling", "Smile", r"line 2 should name CelebA's 40 attributes"),
        (LABELS, "7\n", "8\n", r"line 1 says '8' faces, and 7 follow"),
        (LABELS, "000004.jpg", "", r"line 6, .*: a file's name and 40 times 1 or -1"),
        (LABELS, "000004.jpg -1", "000004.jpg 0", r"line 6, .*: a file's name and 40 times"),
        (LABELS, "000004.jpg", "4.jpg", r"line 6: list_eval_partition.txt does not .* '4.jpg'"),
        (SPLITS, "000006.jpg 2", "000006.jpg 3", r"line 6, '000006.jpg 3': a file's name and 0, 1"),
        (SPLITS, "000006.jpg 2", "", r"line 6, '': a file's name"),
        (SPLITS, " 0", " 1", r"no face has a 0 \('train'\)"),
    ],
)
def test_a_list_of_another_form_is_told_by_its_line(tmp_path, file, old, new, message):
    root = write(tmp_path)
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new))
    with pytest.raises(DataError, match=rf"{file}: {message}"):
        CelebA(root, "train")


def test_a_list_that_is_cut_off_is_told(tmp_path):
    root = write(tmp_path)
    text = (tmp_path / LABELS).read_text()
    (tmp_path / LABELS).write_text(text[: text.index("000005.jpg")])
    with pytest.raises(DataError, match=r"line 1 says '7' faces, and 4 follow; is it the whole"):
        CelebA(root, "train")
    (tmp_path / LABELS).write_text("")
    with pytest.raises(DataError, match=r"attr_celeba.txt: line 2 should name"):
        CelebA(root, "train")


def test_what_is_missing_is_named(tmp_path):
    root = write(tmp_path)
    with pytest.raises(UsageError, match=r"no split 'valid'"):
        CelebA(root, "valid")
    with pytest.raises(UsageError, match=r"data\.root: celeba"):
        CelebA(None, "train")
    (tmp_path / "img_align_celeba/000001.jpg").unlink()
    with pytest.raises(DataError, match=r"img_align_celeba/000001.jpg: no such file"):
        CelebA(root, "train")[0]
    (tmp_path / "list_eval_partition.txt").unlink()
    with pytest.raises(DataError, match=r"no such file .*, nor .*Eval/list_eval_partition.txt"):
        CelebA(root, "train")


def test_lists_as_csv_are_read_the_same(tmp_path):
    plain = write(tmp_path / "plain")
    other = tmp_path / "kaggle"
    inner = other / "img_align_celeba" / "img_align_celeba"
    inner.parent.mkdir(parents=True)
    (tmp_path / "plain" / "img_align_celeba").rename(inner)
    rows = [line(number).split() for number in range(1, len(PARTS) + 1)]
    table = [",".join(row) for row in (["image_id", *ATTRIBUTES], *rows)]
    (other / "list_attr_celeba.csv").write_text("\n".join(table) + "\n")
    parts = [f"{number:06d}.jpg,{part}" for number, part in enumerate(PARTS, 1)]
    (other / "list_eval_partition.csv").write_text("\n".join(["image_id,partition", *parts]))
    for split in ("train", "val", "test"):
        expected = write(tmp_path / "again")
        ours, theirs = CelebA(str(other), split), CelebA(expected, split)
        assert len(ours) == len(theirs)
        for one, another in zip(ours, theirs, strict=True):
            assert torch.equal(one.inputs, another.inputs)
            assert {n: t.item() for n, t in one.targets.items()} == {
                n: t.item() for n, t in another.targets.items()
            }
    (other / "list_attr_celeba.csv").write_text("\n".join([*table[:3], "000003.jpg,1,1"]))
    with pytest.raises(DataError, match="line 4"):
        CelebA(str(other), "train")
    assert plain
