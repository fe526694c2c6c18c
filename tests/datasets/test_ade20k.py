"""ADE20K's scene parsing challenge, from files written in its layout."""

import numpy as np
import pytest
from PIL import Image

from mtlcore.data import DataError, collate
from mtlcore.datasets.ade20k import ADE20K
from mtlcore.errors import UsageError
from mtlcore.testing import DatasetContract

SIZE = (6, 10)
# As published: trailing blanks, and in one of the two versions an empty cell.
LIST = (
    "Idx\tRatio\tTrain\tVal\tName\n1\t0.1576\t11664\t1172\twall\n"
    "2 \t0.1072 \t6046 \t612 \t\tbuilding, edifice\n3\t0.0878\t8265\t796\tsky \n"
)


def labels(number):
    return np.random.default_rng(number).integers(0, 4, SIZE, dtype=np.uint8)


def write(root, names="objectInfo150.txt"):
    for i, split in enumerate(("training", "validation")):
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
        for k in range(2):
            name = f"ADE_{split[:5]}_0000000{k + 1}"
            photograph = np.full((*SIZE, 3), 20 * i + 5 * k, np.uint8)
            Image.fromarray(photograph).save(root / "images" / split / f"{name}.jpg")
            Image.fromarray(labels(10 * i + k)).save(root / "annotations" / split / f"{name}.png")
    (root / names).write_text(LIST)
    return str(root)


class TestContract(DatasetContract):
    @pytest.fixture(autouse=True)
    def _files(self, tmp_path):
        self.root = write(tmp_path)

    def make(self, split):
        return ADE20K(self.root, split)

    def tasks(self):
        return ADE20K.describe(self.root)


def test_the_classes_are_those_of_the_list(tmp_path):
    dataset = ADE20K(write(tmp_path), "val")
    (task,) = dataset.describe(str(tmp_path))
    assert task.class_names == ("wall", "building, edifice", "sky")
    sample = dataset[1]
    assert sample.key == f"{tmp_path}/images/validation/ADE_valid_00000002.jpg"
    np.testing.assert_array_equal(sample.targets["segmentation"], labels(11).astype(int) - 1)
    np.testing.assert_array_equal(sample.valid["segmentation"], labels(11) > 0)
    assert collate([sample], [task]).count["segmentation"] == (labels(11) > 0).sum()


def test_folders_of_this_layout_have_a_list_of_their_own(tmp_path):
    root = write(tmp_path, "classes.tsv")
    (tmp_path / "classes.tsv").write_text("number\tname\n1\twall\n2\thouse\n3\tsky\n")
    (task,) = ADE20K.describe(root, names="classes.tsv")
    assert task.class_names == ("wall", "house", "sky")
    assert len(ADE20K(root, "train", names="classes.tsv")) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Idx\tName\n", r"names no class"),
        ("Idx\tName\n1\twall\n3\tsky\n", r"line 3, '3\\tsky': the number 2, tabs"),
        ("Idx\tName\nwall\n", r"line 2, 'wall': the number 1"),
    ],
)
def test_a_list_of_another_form_is_told(tmp_path, text, message):
    root = write(tmp_path)
    (tmp_path / "objectInfo150.txt").write_text(text)
    with pytest.raises(DataError, match=rf"objectInfo150.txt: {message}"):
        ADE20K.describe(root)


def test_what_is_wrong_is_named(tmp_path):
    root = write(tmp_path)
    with pytest.raises(UsageError, match=r"no split 'validation'.*only train, val"):
        ADE20K(root, "validation")
    with pytest.raises(UsageError, match=r"data\.root: ade20k"):
        ADE20K.describe(None)
    dataset = ADE20K(root, "train")
    place = tmp_path / "annotations/training"
    Image.fromarray(np.full(SIZE, 4, np.uint8)).save(place / "ADE_train_00000001.png")
    with pytest.raises(DataError, match=r"00000001.png: holds 4, and objectInfo150.txt names 3 cl"):
        dataset[0]
    (place / "ADE_train_00000002.png").unlink()
    with pytest.raises(DataError, match=r"annotations/training/ADE_train_00000002.png: no such"):
        dataset[1]
    for file in (tmp_path / "images/validation").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"images/validation: holds no photograph"):
        ADE20K(root, "val")
    (tmp_path / "images/validation").rmdir()
    with pytest.raises(DataError, match=r"images/validation: no such .*ADEChallengeData2016.zip"):
        ADE20K(root, "val")
    (tmp_path / "objectInfo150.txt").unlink()
    with pytest.raises(DataError, match=r"objectInfo150.txt: no such .*data.names"):
        ADE20K(root, "train")
