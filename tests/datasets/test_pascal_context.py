"""The PASCAL_MT layout, from files written in its exact format."""

import io
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mtlcore.data import DataError, collate
from mtlcore.datasets.pascal_context import PART_NAMES, PascalContext
from mtlcore.errors import UsageError
from mtlcore.testing import DatasetContract

SIZE = (12, 16)
PERSON, DOG = 15, 12
WALL, SKY, TELEVISION = 440, 360, 427  # of PASCAL-Context's 459 classes


@pytest.fixture
def matlab():
    return pytest.importorskip("scipy.io", reason="MATLAB files are written and read with scipy")


def structs(fields, rows):
    """A MATLAB struct array of one row."""
    array = np.empty((1, len(rows)), dtype=[(field, object) for field in fields])
    for i, row in enumerate(rows):
        array[0, i] = row
    return array


def parts_file(matlab, objects):
    """PASCAL-Part's structure; an object is its class number, its mask and {part: mask}."""
    rows = []
    for number, mask, parts in objects:
        part_rows = [(name, part.astype(np.uint8)) for name, part in parts.items()]
        inner = structs(("part_name", "mask"), part_rows) if parts else np.zeros((0, 0))
        rows.append(("?", number, mask.astype(np.uint8), inner))
    objects = structs(("class", "class_ind", "mask", "parts"), rows)
    anno = structs(("imname", "objects"), [("2008_000008", objects)])
    return mat(matlab, anno=anno)


def mat(matlab, **variables):
    buffer = io.BytesIO()
    matlab.savemat(buffer, variables)
    return buffer.getvalue()


def picture(array, form="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, form)
    return buffer.getvalue()


def box(rows, columns):
    mask = np.zeros(SIZE, dtype=bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def label_map():
    labels = np.full(SIZE, WALL, np.uint16)
    labels[:4] = SKY
    labels[8:, 10:] = TELEVISION
    return labels


def raw(number):
    rng = np.random.default_rng(number)
    normals = rng.normal(size=(*SIZE, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    return {
        "semseg": rng.choice(np.array([0, 1, 20, 255], np.uint8), SIZE),
        "normals": np.round((normals + 1) / 2 * 255).astype(np.uint8),
        "saliency": rng.integers(0, 256, SIZE, dtype=np.uint8),
    }


def contents(matlab, name, number, voc=True):
    arrays = raw(number)
    person = (
        PERSON,
        box((2, 12), (2, 9)),
        {"head": box((2, 4), (4, 7)), "torso": box((4, 8), (3, 8)), "rfoot": box((11, 12), (3, 5))},
    )
    dog = (DOG, box((5, 8), (9, 14)), {"head": box((5, 6), (9, 11))})
    return {
        f"JPEGImages/{name}.jpg": picture(np.full((*SIZE, 3), 90, np.uint8), "JPEG"),
        f"semseg/{'VOC12' if voc else 'pascal-context'}/{name}.png": picture(arrays["semseg"]),
        f"human_parts/{name}.mat": parts_file(matlab, [dog, person]),
        f"pascal-context/trainval/{name}.mat": mat(matlab, LabelMap=label_map()),
        f"normals_distill/{name}.png": picture(arrays["normals"]),
        f"sal_distill/{name}.png": picture(arrays["saliency"]),
    }


@pytest.fixture
def root(tmp_path, matlab):
    lists = {"train": ("2008_000008", "2008_000015"), "val": ("2008_000002",)}
    for i, (split, names) in enumerate(lists.items()):
        files = {f"ImageSets/Context/{split}.txt": "\n".join(names).encode() + b"\n"}
        for k, name in enumerate(names):
            files |= contents(matlab, name, 10 * i + k, voc=k == 0)
        for path, data in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(data)
    return tmp_path


class TestContract(DatasetContract):
    @pytest.fixture(autouse=True)
    def _files(self, root):
        self.root = str(root)

    def make(self, split):
        return PascalContext(self.root, split)

    def tasks(self):
        return PascalContext.describe(self.root)


def test_the_tasks_need_no_files():
    assert [(task.name, task.kind, task.channels) for task in PascalContext.describe(None)] == [
        ("segmentation", "segmentation", 21),
        ("human_parts", "segmentation", 7),
        ("edges", "edges", 1),
        ("normals", "normals", 3),
        ("saliency", "saliency", 1),
    ]


def test_reads_the_published_layout(root):
    dataset = PascalContext(str(root), "train")
    assert (len(dataset), len(PascalContext(str(root), "val"))) == (2, 1)
    for i, name in enumerate(("2008_000008", "2008_000015")):  # VOC's labels, and the others
        sample, expected = pickle.loads(pickle.dumps(dataset))[i], raw(i)
        assert sample.key == f"{root}/JPEGImages/{name}.jpg"
        known = expected["semseg"] != 255
        np.testing.assert_array_equal(sample.valid["segmentation"], known)
        np.testing.assert_array_equal(
            sample.targets["segmentation"].numpy()[known], expected["semseg"][known]
        )
        np.testing.assert_array_equal(
            sample.targets["saliency"][0], expected["saliency"] / 255 > 0.5
        )
        assert all(collate([sample], dataset.describe(None)).count.values())


def test_parts_are_those_of_persons(root):
    sample = PascalContext(str(root), "train")[0]
    wanted = np.zeros(SIZE, dtype=int)
    for mask, part in (
        (box((2, 4), (4, 7)), "head"),
        (box((4, 8), (3, 8)), "torso"),
        (box((11, 12), (3, 5)), "lower leg"),
    ):
        wanted[mask] = PART_NAMES.index(part)
    np.testing.assert_array_equal(sample.targets["human_parts"], wanted)
    assert bool(sample.valid["human_parts"].all())


@pytest.mark.parametrize(
    "objects",
    [
        [(DOG, box((0, 3), (0, 3)), {"head": box((0, 1), (0, 1))})],
        [(PERSON, box((0, 3), (0, 3)), {})],
    ],
)
def test_nobody_with_parts_is_no_label(root, matlab, objects):
    path = root / "human_parts" / "2008_000008.mat"
    path.write_bytes(parts_file(matlab, objects))
    assert "human_parts" not in PascalContext(str(root), "train")[0].targets


def test_edges_are_thin_lines_between_classes(root):
    edges = PascalContext(str(root), "train")[0].targets["edges"][0].numpy()
    labels = label_map().astype(int)
    # Every pixel of an edge lies at a border, one of the two that touch it.
    near = np.zeros(SIZE, dtype=bool)
    near[:-1] |= labels[:-1] != labels[1:]
    near[1:] |= labels[:-1] != labels[1:]
    near[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    near[:, 1:] |= labels[:, :-1] != labels[:, 1:]
    assert not np.any(edges.astype(bool) & ~near)
    # The sky's border is one line from side to side, thinned from two rows to one.
    sky = edges[3:5]
    np.testing.assert_array_equal(sky.sum(0)[1:-1], 1)
    assert edges[:3].sum() == 0


def test_normals_are_valid_where_the_network_knew_the_class(root):
    sample, expected = PascalContext(str(root), "train")[0], raw(0)["normals"]
    np.testing.assert_array_equal(sample.valid["normals"], label_map() != SKY)
    wanted = 2 / 255 * expected - 1
    wanted /= np.linalg.norm(wanted, axis=-1, keepdims=True)
    np.testing.assert_allclose(sample.targets["normals"].permute(1, 2, 0), wanted, atol=1e-5)


def test_labels_of_another_size_are_fitted_to_the_photograph(root):
    small = raw(0)["saliency"][::2, ::2]
    (root / "sal_distill" / "2008_000008.png").write_bytes(picture(small))
    saliency = PascalContext(str(root), "train")[0].targets["saliency"][0]
    np.testing.assert_array_equal(saliency, np.kron(small > 127, np.ones((2, 2))))


@pytest.mark.parametrize(
    ("folder", "absent"),
    [
        ("semseg/VOC12", {"segmentation"}),
        ("human_parts", {"human_parts"}),
        ("pascal-context/trainval", {"edges", "normals"}),
        ("normals_distill", {"normals"}),
        ("sal_distill", {"saliency"}),
    ],
)
def test_a_missing_file_is_a_missing_label(root, folder, absent):
    for file in (root / folder).iterdir():
        file.unlink()
    dataset = PascalContext(str(root), "train")
    everything = {task.name for task in dataset.describe(None)}
    assert set(dataset[0].targets) == everything - absent


def test_what_is_wrong_is_named(root, matlab):
    dataset = PascalContext(str(root), "train")
    (root / "sal_distill" / "2008_000008.png").write_bytes(picture(np.zeros((*SIZE, 3), np.uint8)))
    with pytest.raises(DataError, match=r"sal_distill/2008_000008.png: 3 channel\(s\) of uint8"):
        dataset[0]
    labels = root / "pascal-context" / "trainval" / "2008_000008.mat"
    for data, message in (
        (b"no", r"2008_000008.mat: cannot be read: "),
        (mat(matlab, Other=1), r"2008_000008.mat: has no variable 'LabelMap'"),
        (mat(matlab, LabelMap=[1.5, 2.5]), r"2008_000008.mat: 'LabelMap' is float64 of shape"),
    ):
        labels.write_bytes(data)
        with pytest.raises(DataError, match=message):
            dataset[0]
    labels.write_bytes(mat(matlab, LabelMap=label_map()))
    (root / "human_parts" / "2008_000008.mat").write_bytes(mat(matlab, anno=[1, 2]))
    with pytest.raises(DataError, match=r"2008_000008.mat: 'anno' is not as in PASCAL-Part"):
        dataset[0]
    (root / "JPEGImages" / "2008_000008.jpg").unlink()
    with pytest.raises(DataError, match=r"JPEGImages/2008_000008.jpg: no such file"):
        dataset[0]


def test_splits_and_lists(root):
    with pytest.raises(UsageError, match="no split 'vall', only train, val; did you mean 'val'"):
        PascalContext(str(root), "vall")
    with pytest.raises(UsageError, match=r"data\.root: pascal-context"):
        PascalContext(None, "train")
    (root / "ImageSets/Context/val.txt").write_text("\n")
    with pytest.raises(DataError, match=r"ImageSets/Context/val.txt: lists no image"):
        PascalContext(str(root), "val")
    (root / "ImageSets/Context/val.txt").unlink()
    with pytest.raises(DataError, match=r"ImageSets/Context/val.txt: no such file"):
        PascalContext(str(root), "val")


def test_without_scipy_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(UsageError, match=r"pip install 'mtlcore\[matlab\]'"):
        PascalContext(str(tmp_path), "train")


def test_inputs_are_photographs(root):
    assert torch.allclose(
        PascalContext(str(root), "val")[0].inputs, torch.tensor(90 / 255), atol=0.01
    )
