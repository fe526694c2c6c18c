"""Taskonomy's published layout and encodings, from files written in them."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from mtlcore.data import DataError, collate
from mtlcore.datasets.taskonomy import Taskonomy
from mtlcore.errors import UsageError
from mtlcore.testing import DatasetContract

SIZE = (8, 12)
TABLE = "id,train,val,test\nallensville,1,0,0\nalmena,1,0,0\nwiconisco,0,1,0\ncoffeen,0,0,1\n"
VIEWS = ("point_2_view_0", "point_10_view_3")


def raw(number):
    rng = np.random.default_rng(number)
    vectors = rng.normal(size=(*SIZE, 3))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    normal = np.round(127 + 127 * vectors).astype(np.uint8)
    normal[0], normal[1] = 127, 128
    depth = rng.integers(1, 65_535, SIZE, dtype=np.uint16)
    depth[:2] = 65_535
    return {
        "rgb": rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8),
        "segment_semantic": rng.integers(0, 18, SIZE, dtype=np.uint8),
        "depth_euclidean": depth,
        "depth_zbuffer": depth // 2,
        "normal": normal,
        "edge_texture": rng.integers(0, 65_536, SIZE, dtype=np.uint16),
        "edge_occlusion": rng.integers(0, 65_536, SIZE, dtype=np.uint16),
        "keypoints2d": rng.integers(0, 400, SIZE, dtype=np.uint16),
        "keypoints3d": rng.integers(0, 65_536, SIZE, dtype=np.uint16),
        "reshading": rng.integers(0, 256, (*SIZE, 1), dtype=np.uint8).repeat(3, -1),
        "principal_curvature": rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8),
    }


FURTHER = ("edge_occlusion", "keypoints2d", "keypoints3d", "reshading", "principal_curvature")


def write(root, folder="{building}/{domain}", without=(), table=TABLE):
    (root / "train_val_test_tiny.csv").write_text(table)
    for b, building in enumerate(("allensville", "wiconisco", "coffeen")):  # one is not there
        for v, view in enumerate(VIEWS):
            for domain, array in raw(10 * b + v).items():
                if domain not in without:
                    place = root / folder.format(building=building, domain=domain)
                    place.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(array).save(place / f"{view}_domain_{domain}.png")
    return str(root)


class TestContract(DatasetContract):
    splits = ("train", "val", "test")

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path):
        self.root = write(tmp_path)

    def make(self, split):
        return Taskonomy(self.root, split)

    def tasks(self):
        return Taskonomy.describe(self.root)


class TestContractOfFurtherDomains(TestContract):
    def make(self, split):
        return Taskonomy(self.root, split, further=FURTHER)

    def tasks(self):
        return Taskonomy.describe(self.root, further=FURTHER)


def check(sample, expected):
    np.testing.assert_allclose(sample.inputs.permute(1, 2, 0) * 255, expected["rgb"], atol=1e-4)
    classes = expected["segment_semantic"].astype(int) - 1
    np.testing.assert_array_equal(sample.targets["segmentation"], classes)
    np.testing.assert_array_equal(sample.valid["segmentation"], classes >= 0)
    known = expected["depth_euclidean"] < 65_535
    np.testing.assert_array_equal(sample.valid["depth"], known)
    metres = expected["depth_euclidean"] / 512
    np.testing.assert_allclose(sample.targets["depth"][0][2:], metres[2:], rtol=1e-6)
    assert metres[known].max() < 128
    # Both greys in the middle stand for no normal.
    np.testing.assert_array_equal(sample.valid["normals"], np.arange(8)[:, None] >= [2] * 12)
    wanted = expected["normal"][2:].astype(float) - 127
    wanted /= np.linalg.norm(wanted, axis=-1, keepdims=True)
    np.testing.assert_allclose(sample.targets["normals"].permute(1, 2, 0)[2:], wanted, atol=1e-5)
    np.testing.assert_allclose(sample.targets["edges"][0] * 65_535, expected["edge_texture"])


def test_reads_the_published_encodings(tmp_path):
    dataset = Taskonomy(write(tmp_path), "train")
    tasks = dataset.describe(None)
    assert [(task.name, task.channels) for task in tasks] == [
        ("segmentation", 17),
        ("depth", 1),
        ("normals", 3),
        ("edges", 1),
    ]
    assert tasks[0].class_names[0] == "background"
    assert tasks[0].class_names[16] == "vase"
    check(dataset[1], raw(1))
    assert all(collate([dataset[0], dataset[1]], tasks).count.values())


def test_reads_the_encodings_of_further_domains(tmp_path):
    dataset = Taskonomy(write(tmp_path), "train", further=FURTHER)
    tasks = dataset.describe(None, further=FURTHER)
    assert [(t.name, t.kind, t.channels, t.layout) for t in tasks[4:]] == [
        ("edge_occlusion", "edges", 1, "map"),
        ("keypoints2d", "regression", 1, "map"),
        ("keypoints3d", "regression", 1, "map"),
        ("reshading", "regression", 1, "map"),
        ("principal_curvature", "regression", 2, "map"),
    ]
    sample, stored = dataset[1], raw(1)
    check(sample, stored)
    for name in ("edge_occlusion", "keypoints2d", "keypoints3d"):
        np.testing.assert_allclose(sample.targets[name][0] * 65_535, stored[name], atol=0.01)
    grey = stored["reshading"][..., 0]
    np.testing.assert_allclose(sample.targets["reshading"][0] * 255, grey, atol=1e-4)
    curvatures = stored["principal_curvature"][..., :2].astype(float)
    curvature = sample.targets["principal_curvature"].permute(1, 2, 0)
    np.testing.assert_allclose(curvature * 127 + 127, curvatures, atol=1e-4)
    holes = stored["depth_euclidean"] == 65_535
    for name in FURTHER:
        known = np.ones(SIZE, bool) if name == "keypoints2d" else ~holes
        np.testing.assert_array_equal(sample.valid[name], known)


def test_grey_files_of_reshading_are_read_too(tmp_path):
    dataset = Taskonomy(write(tmp_path), "train", further=("reshading",))
    colour = dataset[0].targets["reshading"]
    for view, number in zip(VIEWS, (0, 1), strict=True):
        file = tmp_path / "allensville/reshading" / f"{view}_domain_reshading.png"
        Image.fromarray(raw(number)["reshading"][..., 0]).save(file)
    assert torch.equal(dataset[0].targets["reshading"], colour)
    four = np.zeros((*SIZE, 4), np.uint8)
    Image.fromarray(four).save(file)
    with pytest.raises(DataError, match=r"where \(8, 12, 1\) or \(8, 12, 3\) was expected"):
        dataset[1]


def test_only_the_depth_tells_the_holes_of_the_mesh(tmp_path):
    dataset = Taskonomy(write(tmp_path), "train", further=FURTHER, depth="zbuffer")
    (tmp_path / "allensville/depth_zbuffer" / f"{VIEWS[0]}_domain_depth_zbuffer.png").unlink()
    assert set(dataset[0].targets) == {"segmentation", "normals", "edges", "keypoints2d"}
    assert set(FURTHER) < set(dataset[1].targets)


def test_views_are_in_the_order_of_their_numbers(tmp_path):
    dataset = Taskonomy(write(tmp_path), "test")
    assert [dataset[i].key for i in range(len(dataset))] == [
        f"{tmp_path}/coffeen/rgb/{view}_domain_rgb.png" for view in VIEWS
    ]


def test_the_folders_of_the_download_tool(tmp_path):
    folder = "{domain}/taskonomy/{building}"
    dataset = Taskonomy(write(tmp_path, folder), "val", folder=folder)
    check(dataset[0], raw(10))


def test_the_other_depth(tmp_path):
    root = write(tmp_path)
    euclidean, zbuffer = (
        Taskonomy(root, "train", depth=depth)[0].targets["depth"]
        for depth in ("euclidean", "zbuffer")
    )
    assert bool((zbuffer < euclidean).all())


def test_a_missing_file_is_a_missing_label(tmp_path):
    dataset = Taskonomy(write(tmp_path), "train")
    (tmp_path / "allensville" / "normal" / f"{VIEWS[0]}_domain_normal.png").unlink()
    assert set(dataset[0].targets) == {"segmentation", "depth", "edges"}
    assert set(dataset[1].targets) == {"segmentation", "depth", "normals", "edges"}


def test_a_domain_that_was_not_downloaded_is_warned_of(tmp_path):
    root = write(tmp_path, without=("edge_texture",))
    with pytest.warns(UserWarning, match=r"no building of the split has a folder 'edge_texture'"):
        assert "edges" not in Taskonomy(root, "train")[0].targets


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("id,train\nallensville,1\n", r"tiny.csv: has no columns 'id' and 'val'"),
        ("id,train,val\nallensville,1\n", r"tiny.csv: not all lines have 3 columns"),
        ("id,train,val\nallensville,1,0\n", r"tiny.csv: no building has a 1 under 'val'"),
        ("", r"tiny.csv: has no columns"),
        (TABLE.replace("wiconisco", "nemo"), r"nemo/rgb: no image .* that train_val_test_tiny"),
    ],
)
def test_a_table_that_does_not_fit_is_told(tmp_path, table, message):
    root = write(tmp_path, table=table)
    with pytest.raises(DataError, match=message):
        Taskonomy(root, "val")


def test_what_is_missing_is_named(tmp_path):
    root = write(tmp_path)
    with pytest.raises(DataError, match=r"medium.csv: no such file .*splits_taskonomy.zip"):
        Taskonomy(root, "train", splits="train_val_test_medium.csv")
    with pytest.raises(UsageError, match=r"no split 'trian'.*did you mean 'train'"):
        Taskonomy(root, "trian")
    with pytest.raises(UsageError, match=r"data\.root: taskonomy"):
        Taskonomy(None, "train")
    with pytest.raises(UsageError, match=r"data\.folder: '\{domain\}' must hold \{building\}"):
        Taskonomy(root, "train", folder="{domain}")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4), np.uint16), r"depth_euclidean.png: shape \(4, 4\) where \(8, 12, 1\)"),
        (np.zeros(SIZE, np.uint8), r"depth_euclidean.png: must be a PNG of 16 bits, not uint8"),
    ],
)
def test_files_of_another_sort_are_refused(tmp_path, array, message):
    dataset = Taskonomy(write(tmp_path), "train")
    place = tmp_path / "allensville" / "depth_euclidean"
    Image.fromarray(array).save(place / f"{VIEWS[0]}_domain_depth_euclidean.png")
    with pytest.raises(DataError, match=message):
        dataset[0]


def test_a_distance_of_zero_is_none(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = Taskonomy(write(tmp_path), "train")
    place = tmp_path / "allensville" / "depth_euclidean"
    Image.fromarray(np.zeros(SIZE, np.uint16)).save(
        place / f"{VIEWS[0]}_domain_depth_euclidean.png"
    )
    assert not torch.any(dataset[0].valid["depth"])
