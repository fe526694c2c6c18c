"""Cityscapes' published archives, from files written in their layout and encodings."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from mtlcore.data import DataError, collate
from mtlcore.datasets.cityscapes_png import CityscapesPNG
from mtlcore.datasets.street_classes import classes_of_ids
from mtlcore.errors import UsageError
from mtlcore.testing import DatasetContract

SIZE = (8, 16)
NAMES = {
    "train": ("aachen_000000_000019", "bochum_000000_000313"),
    "val": ("lindau_000000_000019",),
}
# cityscapesScripts, helpers/labels.py: id, name, trainId and category of every class.
LABELS = """
0 unlabeled 255 void
1 ego-vehicle 255 void
2 rectification-border 255 void
3 out-of-roi 255 void
4 static 255 void
5 dynamic 255 void
6 ground 255 void
7 road 0 flat
8 sidewalk 1 flat
9 parking 255 flat
10 rail-track 255 flat
11 building 2 construction
12 wall 3 construction
13 fence 4 construction
14 guard-rail 255 construction
15 bridge 255 construction
16 tunnel 255 construction
17 pole 5 object
18 polegroup 255 object
19 traffic-light 6 object
20 traffic-sign 7 object
21 vegetation 8 nature
22 terrain 9 nature
23 sky 10 sky
24 person 11 human
25 rider 12 human
26 car 13 vehicle
27 truck 14 vehicle
28 bus 15 vehicle
29 caravan 255 vehicle
30 trailer 255 vehicle
31 train 16 vehicle
32 motorcycle 17 vehicle
33 bicycle 18 vehicle
"""
ROWS = [line.split() for line in LABELS.split("\n") if line]


def raw(number):
    rng = np.random.default_rng(number)
    disparity = rng.integers(2, 32_257, SIZE, dtype=np.uint16)
    disparity[0], disparity[1], disparity[2] = 0, 1, 256
    return {
        "leftImg8bit": rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8),
        "gtFine": rng.integers(0, 34, SIZE, dtype=np.uint8),
        "disparity": disparity,
        "camera": {
            "extrinsic": {"baseline": 0.2 + number / 100, "pitch": 0.05},
            "intrinsic": {"fx": 2000.0, "fy": 2225.5},
        },
    }


def write(root, without=()):
    for i, (split, names) in enumerate(NAMES.items()):
        for k, name in enumerate(names):
            for kind, content in raw(10 * i + k).items():
                if kind in without:
                    continue
                place = root / kind / split / name.partition("_")[0]
                place.mkdir(parents=True, exist_ok=True)
                suffix = "_labelIds" if kind == "gtFine" else ""
                if kind == "camera":
                    (place / f"{name}_camera.json").write_text(json.dumps(content))
                else:
                    Image.fromarray(content).save(place / f"{name}_{kind}{suffix}.png")
    return str(root)


class TestContract(DatasetContract):
    settings: dict = {}

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path):
        self.root = write(tmp_path)

    def make(self, split):
        return CityscapesPNG(self.root, split, **self.settings)

    def tasks(self):
        return CityscapesPNG.describe(self.root, **self.settings)


class TestContractInMetres(TestContract):
    settings = {"classes": 7, "depth": "metres"}


@pytest.mark.parametrize("classes", [19, 7])
def test_numbers_become_the_classes_of_the_benchmark(classes):
    names = CityscapesPNG.describe(None, classes=classes)[0].class_names
    assert len(ROWS) == 34
    values, valid = classes_of_ids(np.arange(34, dtype=np.uint8)[None], classes, "x.png")
    for (number, name, train_id, category), value, known in zip(
        ROWS, values[0], valid[0], strict=True
    ):
        assert bool(known) == (train_id != "255"), number
        if known and classes == 19:
            assert value == int(train_id)
            assert names[value] == name.replace("-", " ")
        elif known:
            assert names[value] == category
    assert set(values[valid]) == set(range(classes))


def test_reads_the_published_encodings(tmp_path):
    dataset, stored = CityscapesPNG(write(tmp_path), "train"), raw(1)
    tasks = dataset.describe(None)
    assert [(task.name, task.kind, task.channels, task.unit) for task in tasks] == [
        ("segmentation", "segmentation", 19, ""),
        ("inverse_depth", "inverse-depth", 1, "px"),
    ]
    sample = dataset[1]
    name = "bochum_000000_000313"
    assert sample.key == f"{tmp_path}/leftImg8bit/train/bochum/{name}_leftImg8bit.png"
    assert dataset.name_of(1) == f"{name}_leftImg8bit"
    np.testing.assert_allclose(
        sample.inputs.permute(1, 2, 0) * 255, stored["leftImg8bit"], atol=1e-4
    )
    expected, known = classes_of_ids(stored["gtFine"], 19, "")
    np.testing.assert_array_equal(sample.targets["segmentation"], expected)
    np.testing.assert_array_equal(sample.valid["segmentation"], known)
    np.testing.assert_array_equal(sample.valid["inverse_depth"], stored["disparity"] > 1)
    pixels = (stored["disparity"].astype(float) - 1) / 256
    np.testing.assert_allclose(sample.targets["inverse_depth"][0][2:], pixels[2:], rtol=1e-6)
    assert all(collate([sample, dataset[0]], tasks).count.values())


def test_metres_are_those_of_each_photographs_camera(tmp_path):
    dataset = CityscapesPNG(write(tmp_path), "train", depth="metres")
    for number in (0, 1):
        sample, stored = dataset[number], raw(number)
        pixels = (stored["disparity"].astype(float) - 1) / 256
        known = pixels >= 1
        np.testing.assert_array_equal(sample.valid["depth"], known)
        assert not sample.valid["depth"][2].any()  # 255 / 256 pixels
        metres = (0.2 + number / 100) * 2000 / pixels[known]
        np.testing.assert_allclose(sample.targets["depth"][0].numpy()[known], metres, rtol=1e-5)
    assert dataset.describe(None, depth="metres")[1].unit == "m"


def test_a_missing_file_is_a_missing_label(tmp_path):
    dataset = CityscapesPNG(write(tmp_path), "train", depth="metres")
    (tmp_path / "camera/train/aachen/aachen_000000_000019_camera.json").unlink()
    (tmp_path / "gtFine/train/bochum/bochum_000000_000313_gtFine_labelIds.png").unlink()
    assert set(dataset[0].targets) == {"segmentation"}
    assert set(dataset[1].targets) == {"depth"}


@pytest.mark.parametrize("kind", ["gtFine", "disparity", "camera"])
def test_an_archive_that_is_not_there_is_warned_of(tmp_path, kind):
    root = write(tmp_path, without=(kind,))
    task = "segmentation" if kind == "gtFine" else "depth"
    message = rf"{kind}/val: no such folder, so that task '{task}' .* {kind}_trainvaltest.zip"
    with pytest.warns(UserWarning, match=message):
        sample = CityscapesPNG(root, "val", depth="metres")[0]
    assert task not in sample.targets


def test_disparity_needs_no_cameras(tmp_path, recwarn):
    dataset = CityscapesPNG(write(tmp_path, without=("camera",)), "val")
    assert set(dataset[0].targets) == {"segmentation", "inverse_depth"}
    assert not recwarn


def test_what_is_wrong_is_named(tmp_path):
    root = write(tmp_path / "data")
    with pytest.raises(UsageError, match=r"no split 'vall'.*did you mean 'val'"):
        CityscapesPNG(root, "vall")
    with pytest.raises(UsageError, match=r"data\.root: cityscapes-png"):
        CityscapesPNG(None, "train")
    with pytest.raises(DataError, match=r"train: no such file.*leftImg8bit_trainvaltest.zip"):
        CityscapesPNG(f"{root}/gtFine", "train")
    shutil.rmtree(tmp_path / "data/leftImg8bit/val/lindau")
    with pytest.raises(DataError, match=r"leftImg8bit/val: holds no photograph"):
        CityscapesPNG(root, "val")


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        ("{}", r"camera.json: is not as Cityscapes' cameras"),
        ("no json", r"camera.json: is not as Cityscapes' cameras"),
        ("[1]", r"camera.json: is not as Cityscapes' cameras"),
        ('{"extrinsic": {"baseline": 0}, "intrinsic": {"fx": 1}}', r"baseline 0 and focal"),
        ('{"extrinsic": {"baseline": NaN}, "intrinsic": {"fx": 1}}', r"baseline nan and focal"),
    ],
)
def test_a_camera_of_another_form_is_told(tmp_path, camera, message):
    dataset = CityscapesPNG(write(tmp_path), "val", depth="metres")
    (tmp_path / "camera/val/lindau/lindau_000000_000019_camera.json").write_text(camera)
    with pytest.raises(DataError, match=message):
        dataset[0]


@pytest.mark.parametrize(
    ("kind", "array", "message"),
    [
        ("gtFine", np.full(SIZE, 255, np.uint8), r"labelIds.png: holds 255, .* end at 33"),
        ("gtFine", np.zeros((4, 8), np.uint8), r"labelIds.png: shape \(4, 8\) where \(8, 16, 1\)"),
        ("disparity", np.zeros(SIZE, np.uint8), r"disparity.png: must be a PNG of 16 bits"),
    ],
)
def test_files_of_another_sort_are_refused(tmp_path, kind, array, message):
    dataset = CityscapesPNG(write(tmp_path), "val")
    (file,) = (tmp_path / kind / "val/lindau").glob("*.png")
    Image.fromarray(array).save(file)
    with pytest.raises(DataError, match=message):
        dataset[0]
