"""KITTI's published layouts, from files written in them."""

import shutil

import numpy as np
import pytest
from PIL import Image

from mtlcore.data import DataError, collate
from mtlcore.datasets.concat import Concat
from mtlcore.datasets.kitti_depth import KITTIDepth
from mtlcore.datasets.kitti_semantics import KITTISemantics
from mtlcore.datasets.street_classes import classes_of_ids
from mtlcore.errors import UsageError
from mtlcore.testing import DatasetContract

SIZE = (6, 12)
ONE, TWO, THREE = (f"2011_09_2{day}_drive_000{day}_sync" for day in (6, 8, 9))


def semantics(root, count=10):
    for folder in ("image_2", "semantic"):
        (root / "training" / folder).mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        name = f"{number:06d}_10.png"
        photograph = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(photograph).save(root / "training/image_2" / name)
        # Other benchmarks put the frame after it into the same folder.
        Image.fromarray(photograph).save(root / f"training/image_2/{number:06d}_11.png")
        Image.fromarray(ids(number)).save(root / "training/semantic" / name)
    return str(root)


def ids(number):
    return np.random.default_rng(50 + number).integers(0, 34, SIZE, dtype=np.uint8)


def sparse(number):
    rng = np.random.default_rng(number)
    depth = rng.integers(256, 20_000, SIZE, dtype=np.uint16)
    depth[rng.random(SIZE) < 0.8] = 0
    depth[0, 0], depth[0, 1] = 0, 1 + number
    return depth


def drives(root, form="png"):
    """Frames 4 to 7 of three drives and two cameras, of which 5 and 6 are annotated."""
    for d, (drive, part) in enumerate(((ONE, "train"), (TWO, "train"), (THREE, "val"))):
        for camera in (2, 3):
            photographs = root / drive[:10] / drive / f"image_0{camera}" / "data"
            depths = root / part / drive / "proj_depth/groundtruth" / f"image_0{camera}"
            for folder in (photographs, depths):
                folder.mkdir(parents=True)
            for frame in (4, 5, 6, 7):
                number = 100 * d + 10 * camera + frame
                photograph = np.full((*SIZE, 3), number % 256, np.uint8)
                Image.fromarray(photograph).save(photographs / f"{frame:010d}.{form}")
                if frame in (5, 6):
                    Image.fromarray(sparse(number)).save(depths / f"{frame:010d}.png")
    return str(root)


class TestSemanticsContract(DatasetContract):
    @pytest.fixture(autouse=True)
    def _files(self, tmp_path):
        self.root = semantics(tmp_path)

    def make(self, split):
        return KITTISemantics(self.root, split)

    def tasks(self):
        return KITTISemantics.describe(self.root)


class TestDepthContract(DatasetContract):
    @pytest.fixture(autouse=True)
    def _files(self, tmp_path):
        self.root = drives(tmp_path)

    def make(self, split):
        return KITTIDepth(self.root, split)

    def tasks(self):
        return KITTIDepth.describe(self.root)


def test_semantics_are_cityscapes_classes(tmp_path):
    dataset = KITTISemantics(semantics(tmp_path), "train", classes=7)
    (task,) = dataset.describe(None, classes=7)
    assert (task.name, task.channels) == ("segmentation", 7)
    sample = dataset[3]
    assert sample.key == f"{tmp_path}/training/image_2/000003_10.png"
    classes, known = classes_of_ids(ids(3), 7, "")
    np.testing.assert_array_equal(sample.targets["segmentation"], classes)
    np.testing.assert_array_equal(sample.valid["segmentation"], known)


def names(dataset):
    return [dataset.name_of(i) for i in range(len(dataset))]


def test_the_last_fifth_of_the_labelled_photographs_is_held_out(tmp_path):
    root = semantics(tmp_path)
    train, val = (names(KITTISemantics(root, split)) for split in ("train", "val"))
    assert val == ["000008_10", "000009_10"]
    assert train == [f"00000{i}_10" for i in range(8)]


def test_a_list_says_what_is_held_out(tmp_path):
    root = semantics(tmp_path)
    (tmp_path / "val.txt").write_text("000001_10.png\n\n000004_10\n")
    assert names(KITTISemantics(root, "val", val="val.txt")) == ["000001_10", "000004_10"]
    assert len(KITTISemantics(root, "train", val="val.txt")) == 8
    (tmp_path / "val.txt").write_text("000001_10\n000001_11\n")
    with pytest.raises(DataError, match=r"val.txt: '000001_11' is none of the 10 labelled"):
        KITTISemantics(root, "val", val="val.txt")
    (tmp_path / "val.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match=r"val.txt: "):
        KITTISemantics(root, "val", val="val.txt")


def test_what_is_wrong_with_semantics_is_named(tmp_path):
    root = semantics(tmp_path / "few", count=4)
    with pytest.raises(DataError, match=r"semantic: of 4 labelled .* none is left for 'val'"):
        KITTISemantics(root, "val")
    with pytest.raises(DataError, match=r"training/semantic: no such file.*data_semantics.zip"):
        KITTISemantics(f"{root}/training", "train")
    with pytest.raises(UsageError, match=r"data\.root: kitti-semantics"):
        KITTISemantics(None, "train")
    dataset = KITTISemantics(root, "train")
    (tmp_path / "few/training/image_2/000000_10.png").unlink()
    with pytest.raises(DataError, match=r"image_2/000000_10.png: no such file"):
        dataset[0]
    Image.fromarray(np.full(SIZE, 40, np.uint8)).save(
        tmp_path / "few/training/semantic/000001_10.png"
    )
    with pytest.raises(DataError, match=r"000001_10.png: holds 40, .* end at 33"):
        dataset[1]


def check_depth(sample, number):
    stored = sparse(number)
    np.testing.assert_array_equal(sample.valid["depth"], stored > 0)
    np.testing.assert_allclose(sample.targets["depth"][0], stored / 256, rtol=1e-6)
    assert (sample.inputs * 255).round().unique().tolist() == [number % 256]


@pytest.mark.parametrize("form", ["png", "jpg"])
def test_depths_are_in_metres_where_the_scanner_hit(tmp_path, form):
    dataset = KITTIDepth(drives(tmp_path, form), "train")
    (task,) = dataset.describe(None)
    assert (task.name, task.kind, task.unit) == ("depth", "depth", "m")
    assert len(dataset) == 4
    key = f"2011_09_28/{TWO}/image_02/data/0000000006.{form}"
    assert dataset[3].key == f"{tmp_path}/{key}"
    check_depth(dataset[3], 126)
    assert collate([dataset[3]], [task]).count["depth"] == (sparse(126) > 0).sum()


def test_drives_without_photographs_are_left_out(tmp_path):
    root = drives(tmp_path)
    assert len(KITTIDepth(root, "train", cameras=(2, 3))) == 8
    shutil.rmtree(tmp_path / "2011_09_26")
    assert len(KITTIDepth(root, "train")) == 2
    shutil.rmtree(tmp_path / "2011_09_28")
    with pytest.raises(DataError, match=rf"of 2 drive\(s\) in train/ none .*{ONE}/image_02/data"):
        KITTIDepth(root, "train")
    shutil.rmtree(tmp_path / "train" / ONE / "proj_depth/groundtruth/image_03")
    assert len(KITTIDepth(root, "val", cameras=(3,))) == 2


def test_lists_in_both_published_forms(tmp_path):
    root = drives(tmp_path)
    (tmp_path / "eigen_train.txt").write_text(
        f"2011_09_29/{THREE}/image_02/data/0000000005.png {THREE}/proj_depth/groundtruth/image_02/"
        f"0000000005.png 721.5377\n"
        f"2011_09_26/{ONE}/image_03/data/0000000006.png None 718.856\n"
    )
    (tmp_path / "eigen_test.txt").write_text(
        f"2011_09_26/{ONE} 6 l\n2011_09_29 {THREE} 0000000005 r\n2011_09_26/{ONE} 7 l\n"
    )
    train = KITTIDepth(root, "train", names="eigen_{split}.txt")
    check_depth(train[0], 225)
    check_depth(train[1], 36)
    test = KITTIDepth(root, "test", names="eigen_{split}.txt")
    check_depth(test[0], 26)
    check_depth(test[1], 235)
    assert test[2].targets == {}  # not annotated
    assert test.name_of(2) == "0000000007"


def test_what_is_wrong_with_depths_is_named(tmp_path):
    root = drives(tmp_path / "data")
    with pytest.raises(UsageError, match=r"kitti-depth has no split 'test', only train, val"):
        KITTIDepth(root, "test")
    with pytest.raises(UsageError, match=r"data\.names: 'eigen.txt' must hold \{split\}"):
        KITTIDepth(root, "test", names="eigen.txt")
    with pytest.raises(DataError, match=r"val.txt: no such file"):
        KITTIDepth(root, "val", names="{split}.txt")
    with pytest.raises(DataError, match=r"neither a folder train nor val.*data_depth_annotated"):
        KITTIDepth(str(tmp_path), "val")
    for line in ("0000000005.png", f"../{ONE} 5 l", f"2011_09_26/{ONE}/image_00/data/5.png"):
        (tmp_path / "data/val.txt").write_text(f"2011_09_26/{ONE} 5 l\n{line}\n")
        with pytest.raises(DataError, match=r"val.txt: entry 2, .* is neither the path"):
            KITTIDepth(root, "val", names="{split}.txt")
    dataset = KITTIDepth(root, "val")
    (tmp_path / f"data/2011_09_29/{THREE}/image_02/data/0000000005.png").unlink()
    with pytest.raises(DataError, match=r"image_02/data/0000000005.jpg: no such file"):
        dataset[0]
    place = tmp_path / f"data/val/{THREE}/proj_depth/groundtruth/image_02/0000000006.png"
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(place)
    with pytest.raises(DataError, match=r"0000000006.png: must be a PNG of 16 bits"):
        dataset[1]


def test_both_at_once_have_a_label_each(tmp_path):
    sources = (
        {"name": "kitti-semantics", "root": semantics(tmp_path / "semantics")},
        {"name": "kitti-depth", "root": drives(tmp_path / "depth")},
    )
    dataset = Concat(None, "train", sources=sources)
    assert [task.name for task in Concat.describe(None, sources=sources)] == [
        "segmentation",
        "depth",
    ]
    assert set(dataset[0].targets) == {"segmentation"}
    assert set(dataset[len(dataset) - 1].targets) == {"depth"}
