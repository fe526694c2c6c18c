"""COCO's annotations: masks to the pixel as its own library has them, and what may be wrong."""

import copy
import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from mtlcore.data import DataError
from mtlcore.datasets.coco import Coco
from mtlcore.datasets.coco_masks import counts_of, mask_of
from mtlcore.errors import ConfigError, MtlError
from mtlcore.testing import DatasetContract

H, W = 8, 10
FILES = "annotations/instances_{}2017.json"


def box(x, y, width, height):
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def runs(mask):
    flat = np.asarray(mask, dtype=bool).T.ravel()
    edges = np.flatnonzero(np.r_[flat[0], flat[1:] != flat[:-1]])
    counts = np.diff(np.r_[0, edges, len(flat)]).tolist()
    return {"size": [H, W], "counts": counts}


def instance(image, category, segmentation, crowd=0):
    return {"image_id": image, "category_id": category, "segmentation": segmentation,
            "iscrowd": crowd, "id": 1, "area": 1, "bbox": [0, 0, 1, 1]}  # fmt: skip


def crowd():
    mask = np.zeros((H, W), bool)
    mask[:, 7:] = True
    return runs(mask)


def tree(split):
    first = 10 * (split == "val")
    return {
        "images": [
            {"id": first + k, "file_name": f"{first + k}.png", "height": H, "width": W}
            for k in range(3)
        ],
        # Numbers with gaps, in no order.
        "categories": [
            {"id": 90, "name": "tree"}, {"id": 3, "name": "car"}, {"id": 17, "name": "cat"},
        ],
        "annotations": [
            instance(first, 3, box(1, 1, 3, 3)),  # the smaller one lies on the larger one
            instance(first, 90, box(0, 0, 6, 6)),
            instance(first, 3, crowd(), crowd=1),
            instance(first, 17, box(8, 0, 1, 2)),  # before the crowd
            instance(first + 1, 17, runs(np.indices((H, W))[1] > 5)),
        ],
    }  # fmt: skip


def write(root, **trees):
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        content = trees.get(split, tree(split))
        (root / FILES.format(split)).write_text(json.dumps(content))
        (root / f"{split}2017").mkdir(exist_ok=True)
        for k in range(3):
            number = 10 * (split == "val") + k
            pixels = np.random.default_rng(number).integers(0, 256, (H, W, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"{split}2017" / f"{number}.png")
    return str(root)


class TestContract(DatasetContract):
    @pytest.fixture(autouse=True)
    def _files(self, tmp_path):
        self.root = write(tmp_path)

    def make(self, split):
        return Coco(self.root, split)

    def tasks(self):
        return Coco.describe(self.root)


def test_masks_are_those_of_cocos_own_library(golden):
    for case in golden("coco_masks.json")["cases"]:
        height, width = case["size"]
        theirs = mask_of({"size": case["size"], "counts": case["counts"]}, height, width)
        assert theirs.sum() == case["area"]
        assert (mask_of([case["polygon"]], height, width) == theirs).all(), case


def test_classes_are_the_categories_in_the_order_of_their_numbers(tmp_path):
    root = write(tmp_path)
    (task,) = Coco.describe(root)
    assert task.class_names == ("background", "car", "cat", "tree")
    sample = Coco(root, "train")[0]
    classes, valid = sample.targets["segmentation"], sample.valid["segmentation"]
    expected = np.zeros((H, W), int)
    expected[:6, :6], expected[1:4, 1:4], expected[:2, 8] = 3, 1, 2
    there = np.ones((H, W), bool)
    there[:, 7:], there[:2, 8] = False, True
    assert (classes.numpy()[there] == expected[there]).all()
    assert (valid.numpy() == there).all()


def test_some_categories_and_no_background(tmp_path):
    root = write(tmp_path)
    settings = {"classes": ("tree", "car"), "background": False}
    (task,) = Coco.describe(root, **settings)
    assert task.class_names == ("tree", "car")
    sample = Coco(root, "train", **settings)[0]
    classes, valid = sample.targets["segmentation"], sample.valid["segmentation"]
    assert valid.sum() == 36 and classes[valid].unique().tolist() == [0, 1]
    with pytest.raises(ConfigError, match=r"data\.classes.*'carr'; did you mean 'car'"):
        Coco.describe(root, classes=("carr",))


def test_an_image_without_instances_is_background(tmp_path):
    sample = Coco(write(tmp_path), "train")[2]
    assert sample.valid["segmentation"].all() and not sample.targets["segmentation"].any()


def test_one_file_and_other_names_of_splits(tmp_path):
    root = write(tmp_path)
    (tmp_path / "all.json").write_text(json.dumps(tree("train")))
    settings = {"annotations": "all.json", "images": "train2017", "val_fraction": 0.4, "seed": 1}
    names = [
        {d.name_of(i) for i in range(len(d))}
        for d in (Coco(root, split, **settings) for split in ("train", "val"))
    ]
    assert names[0] | names[1] == {"0", "1", "2"} and not names[0] & names[1]
    (tmp_path / "valid").mkdir()
    (tmp_path / "val2017/10.png").rename(tmp_path / "valid/10.png")
    (tmp_path / "valid/x.json").write_text(json.dumps(tree("val")))
    (tmp_path / "train").mkdir()
    (tmp_path / "train/x.json").write_text(json.dumps(tree("train")))
    settings = {"annotations": "{split}/x.json", "images": "{split}",
                "split_names": {"val": "valid"}}  # fmt: skip
    assert Coco(root, "val", **settings)[0].key.endswith("valid/10.png")


def changed(**places):
    """The training file with one thing changed: `annotations__0__category_id=5`."""
    content = copy.deepcopy(tree("train"))
    for path, value in places.items():
        *parents, last = path.split("__")
        at = content
        for key in parents:
            at = at[int(key) if key.isdigit() else key]
        at[int(last) if last.isdigit() else last] = value
    return content


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "has no list 'images'"),
        (changed(categories=[]), "categories: there is none"),
        (changed(categories__1__id=90), r"categories\[1\]: another one"),
        (changed(annotations__1__category_id=5), r"annotations\[1\]\.category_id: .* 5"),
        (changed(annotations__1__image_id=99), r"annotations\[1\]\.image_id: .* 99"),
        (changed(images__1__id=0), r"images\[1\]\.id"),
        (changed(images__1__height="8"), r"images\[1\]\.height: is '8'"),
        (changed(images__0__height=9), r"0\.png: is 8x10 where .*9x10"),
        (changed(annotations__0__segmentation=[]), r"annotations\[0\]\.segmentation: .*boxes"),
        (changed(annotations__0__segmentation=[[1, 2, 3]]), "segmentation: has a polygon"),
        (changed(annotations__0__segmentation=[[1e9] * 6]), "coordinate"),
        (changed(annotations__2__segmentation={"size": [H, W], "counts": [3]}), "add up to the 80"),
        (changed(annotations__2__segmentation={"size": [W, H], "counts": [80]}), r"size \[10, 8\]"),
        (changed(annotations__2__segmentation={"size": [H, W], "counts": "~~"}), "compressed"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_entry(tmp_path, content, said):
    root = write(tmp_path, train=content)
    with pytest.raises(DataError, match=said) as told:
        Coco(root, "train")[0]
    assert "instances_train2017.json" in str(told.value)


def test_runs_that_end_early_are_refused():
    for text in ("o", "\x7f", "é"):
        with pytest.raises(ValueError, match="counts"):
            counts_of(text)


def test_other_categories_in_validation_are_told(tmp_path):
    others = [{**one, "name": one["name"].replace("car", "bus")} for one in tree("")["categories"]]
    root = write(tmp_path, val={**tree("val"), "categories": others})
    with pytest.raises(DataError, match="are not those of"):
        Coco(root, "val")


@settings(settings.get_profile("fast"))
@given(data=st.data())
def test_any_changed_file_is_read_or_told(tmp_path_factory, mutated, data):
    content = data.draw(mutated(tree("train")))
    try:
        text = json.dumps(content)
        root = write(tmp_path_factory.mktemp("any"), train=content)
    except (ValueError, UnicodeEncodeError):
        assume(False)
    assert text
    try:
        dataset = Coco(root, "train")
        for i in range(len(dataset)):
            sample = dataset[i]
            assert sample.targets["segmentation"].shape == sample.inputs.shape[1:]
    except MtlError as error:
        assert str(error).startswith(root)
