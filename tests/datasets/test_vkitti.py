"""Virtual KITTI 2's published layout and encodings, from files written in them."""

import shutil

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from mtlcore.data import DataError, collate
from mtlcore.datasets.vkitti import CLASS_NAMES, VirtualKITTI
from mtlcore.errors import UsageError
from mtlcore.testing import DatasetContract

SIZE = (8, 12)
FRAMES = {"Scene01": 20, "Scene18": 33}
COLOURS = """Category r g b
Terrain 210 0 200
Sky 90 200 255
Tree 0 199 0
Vegetation 90 240 0
Building 140 140 140
Road 100 60 100
GuardRail 250 100 255
TrafficSign 255 255 0
TrafficLight 200 200 0
Pole 255 130 0
Misc 80 80 80
Truck 160 60 60
Car 255 127 80
Van 0 139 139
Undefined 0 0 0
"""
PALETTE = np.array([line.split()[1:] for line in COLOURS.splitlines()[1:]], dtype=np.uint8)


def raw(number):
    rng = np.random.default_rng(number)
    depth = rng.integers(100, 30_000, SIZE, dtype=np.uint16)
    depth[0], depth[1, 0] = 65_535, 0
    return {
        "rgb": np.full((*SIZE, 3), number, dtype=np.uint8),  # JPEG keeps an even grey
        "classes": rng.integers(0, 15, SIZE),
        "depth": depth,
    }


def seed(scene, variation, camera, number):
    return (int(scene[-2:]) + 3 * len(variation) + 50 * camera + number) % 256


def write(root, variations=("clone", "15-deg-left"), cameras=(0, 1), colours=COLOURS):
    for scene, frames in FRAMES.items():
        for variation in variations:
            here = root / scene / variation
            for camera in cameras:
                folders = {
                    kind: here / "frames" / kind / f"Camera_{camera}"
                    for kind in ("rgb", "depth", "classSegmentation")
                }
                for folder in folders.values():
                    folder.mkdir(parents=True)
                for number in range(frames):
                    one = raw(seed(scene, variation, camera, number))
                    name = f"{number:05d}"
                    Image.fromarray(one["rgb"]).save(folders["rgb"] / f"rgb_{name}.jpg")
                    Image.fromarray(one["depth"]).save(folders["depth"] / f"depth_{name}.png")
                    Image.fromarray(PALETTE[one["classes"]]).save(
                        folders["classSegmentation"] / f"classgt_{name}.png"
                    )
            if colours:
                (here / "colors.txt").write_text(colours)
    return str(root)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write(tmp_path_factory.mktemp("vkitti"))


class TestContract(DatasetContract):
    @pytest.fixture(autouse=True)
    def _files(self, written):
        self.root = written

    def make(self, split):
        return VirtualKITTI(self.root, split, cameras=(0, 1))

    def tasks(self):
        return VirtualKITTI.describe(self.root)


def check(sample, expected):
    np.testing.assert_allclose(sample.inputs.permute(1, 2, 0) * 255, expected["rgb"], atol=1)
    known = expected["classes"] < 14
    np.testing.assert_array_equal(sample.valid["segmentation"], known)
    np.testing.assert_array_equal(
        sample.targets["segmentation"].numpy()[known], expected["classes"][known]
    )
    inverse, valid = sample.targets["inverse_depth"][0], sample.valid["inverse_depth"]
    np.testing.assert_array_equal(valid, expected["depth"] > 0)
    metres = expected["depth"][valid.numpy()] / 100
    np.testing.assert_allclose(inverse[valid], 1 / metres, rtol=1e-6)
    np.testing.assert_allclose(inverse[0], 1 / 655.35, rtol=1e-6)


def test_reads_the_published_encodings(written):
    dataset = VirtualKITTI(written, "train", variations=("clone",))
    tasks = dataset.describe(None)
    assert [(task.name, task.kind, task.channels, task.unit) for task in tasks] == [
        ("segmentation", "segmentation", 14, ""),
        ("inverse_depth", "inverse-depth", 1, "1/m"),
    ]
    assert tasks[0].class_names == CLASS_NAMES
    assert dataset[3].key == f"{written}/Scene01/clone/frames/rgb/Camera_0/rgb_00003.jpg"
    check(dataset[3], raw(seed("Scene01", "clone", 0, 3)))
    assert all(collate([dataset[0], dataset[1]], tasks).count.values())


def test_the_last_tenth_of_each_scene_is_held_out_in_all_its_variations(written):
    both = {"cameras": (0, 1)}
    train, val = VirtualKITTI(written, "train", **both), VirtualKITTI(written, "val", **both)
    assert (len(train), len(val)) == (4 * (18 + 30), 4 * (2 + 3))
    keys = {dataset[i].key for dataset in (train, val) for i in range(len(dataset))}
    assert len(keys) == 4 * (20 + 33)
    held = {key.rpartition("_")[2] for key in (val[i].key for i in range(len(val)))}
    assert held == {f"{n:05d}.jpg" for n in (18, 19, 30, 31, 32)}
    # Whatever part of the pictures is used, no frame changes sides.
    left = VirtualKITTI(written, "val", variations=("15-deg-left",))
    assert {left[i].key for i in range(len(left))} < {val[i].key for i in range(len(val))}
    assert len(left) == 5


def test_cameras(written):
    right = VirtualKITTI(written, "val", variations=("clone",), cameras=(1,))
    check(right[0], raw(seed("Scene01", "clone", 1, 18)))


def test_colours_are_those_of_the_file_where_there_is_one(written, tmp_path):
    root = tmp_path / "plain"
    shutil.copytree(written, root)
    for file in root.glob("*/*/colors.txt"):
        file.unlink()
    check(VirtualKITTI(str(root), "train")[0], raw(seed("Scene01", "15-deg-left", 0, 0)))
    swapped = COLOURS.replace("Car 255 127 80", "Car 0 139 139")
    swapped = swapped.replace("Van 0 139 139", "Van 255 127 80")
    for file in root.glob("*/*"):
        (file / "colors.txt").write_text(swapped)
    one, other = (
        VirtualKITTI(str(place), "train")[0].targets["segmentation"] for place in (written, root)
    )
    van, car = CLASS_NAMES.index("Van"), CLASS_NAMES.index("Car")
    assert bool((one == van).any())
    assert torch.equal(one == van, other == car)
    assert torch.equal(one == car, other == van)


def test_a_missing_file_is_a_missing_label(written, tmp_path):
    root = tmp_path / "without"
    shutil.copytree(written, root)
    shutil.rmtree(root / "Scene01" / "clone" / "frames" / "depth")
    dataset = VirtualKITTI(str(root), "train", variations=("clone",))
    assert set(dataset[0].targets) == {"segmentation"}
    assert set(dataset[18].targets) == {"segmentation", "inverse_depth"}  # another scene
    assert collate([dataset[0]], dataset.describe(None)).count["inverse_depth"] == 0


def test_reads_through_fsspec(written, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "vkitti"), "zip", written)
    near = VirtualKITTI(written, "val")[0]
    filesystem = fsspec.filesystem("memory")
    filesystem.put(f"{written}/Scene01", "/vkitti_test/Scene01", recursive=True)
    try:
        for root in (f"zip://::{archive}", "memory://vkitti_test"):
            far = VirtualKITTI(root, "val")[0]
            assert torch.equal(near.inputs, far.inputs)
            assert all(torch.equal(near.targets[name], far.targets[name]) for name in near.targets)
    finally:
        filesystem.rm("/vkitti_test", recursive=True)


def test_what_is_wrong_is_named(written, tmp_path):
    with pytest.raises(UsageError, match=r"data\.root: vkitti"):
        VirtualKITTI(None, "train")
    with pytest.raises(UsageError, match="no split 'vall', only train, val; did you mean 'val'"):
        VirtualKITTI(written, "vall")
    with pytest.raises(UsageError, match=r"data\.variations: no scene has 'clones', only 15.*'clo"):
        VirtualKITTI(written, "train", variations=("clones",))
    with pytest.raises(DataError, match=r"no scene has a picture .* cameras 2"):
        VirtualKITTI(written, "train", cameras=(2,))
    with pytest.raises(DataError, match="nowhere: no such file or directory"):
        VirtualKITTI(str(tmp_path / "nowhere"), "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: holds no folder Scene01"):
        VirtualKITTI(str(tmp_path / "empty"), "train")


def test_what_is_wrong_in_a_file_is_named(written, tmp_path):
    root = tmp_path / "damaged"
    shutil.copytree(written, root)
    here = root / "Scene01" / "clone"
    dataset = VirtualKITTI(str(root), "train", variations=("clone",))
    wrong = np.full((*SIZE, 3), 7, dtype=np.uint8)
    Image.fromarray(wrong).save(here / "frames/classSegmentation/Camera_0/classgt_00000.png")
    with pytest.raises(DataError, match=r"classgt_00000.png: the colour \[7, 7, 7\] is no class's"):
        dataset[0]
    Image.fromarray(wrong[..., 0]).save(here / "frames/depth/Camera_0/depth_00001.png")
    with pytest.raises(DataError, match=r"depth_00001.png: must be a PNG of 16 bits, not uint8"):
        dataset[1]
    Image.fromarray(wrong[:4]).save(here / "frames/classSegmentation/Camera_0/classgt_00002.png")
    with pytest.raises(DataError, match=r"00002.png: shape \(4, 12, 3\) where \(8, 12, 3\)"):
        dataset[2]
    (here / "frames/rgb/Camera_0/rgb_00003.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"rgb_00003.jpg"):
        dataset[3]
    for text, told in (
        ("Category r g b\nCar 255 127\n", "'Car 255 127' is not a category and its red, green"),
        ("Category r g b\nBoat 1 2 3\n", "the category Boat is not one of Virtual KITTI 2"),
    ):
        (here / "colors.txt").write_text(text)
        with pytest.raises(DataError, match=rf"colors.txt: {told}"):
            VirtualKITTI(str(root), "train", variations=("clone",))[4]
