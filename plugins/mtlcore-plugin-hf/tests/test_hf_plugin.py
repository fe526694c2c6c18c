"""Datasets of the library, made and read with it, without a network."""

import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from mtlcore.data import DataError, collate
from mtlcore.errors import ConfigError, MtlError, UsageError
from mtlcore.testing import DatasetContract, assert_plugin_is_light, assert_plugin_is_whole
from mtlcore_hf.dataset import HuggingFace

SIZE = (6, 8)
TARGETS = {
    "segmentation": {"kind": "segmentation", "column": "mask", "classes": ["a", "b"],
                     "invalid": 255},
    "depth": {"kind": "depth", "scale": 0.001, "invalid": 0, "unit": "m"},
    "scene": {"kind": "classification"},
    "flags": {"kind": "multilabel", "channels": 2},
    "age": {"kind": "regression", "unit": "years"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def png(values):
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def rows(number, seed):
    random = np.random.default_rng(seed)
    return {
        "image": [png(random.integers(0, 256, (*SIZE, 3), dtype=np.uint8)) for _ in range(number)],
        "mask": [png(random.choice(np.array([0, 1, 255], np.uint8), SIZE)) for _ in range(number)],
        "depth": [png(random.integers(0, 3000, SIZE).astype(np.uint16)) for _ in range(number)],
        "scene": [i % 2 for i in range(number)],
        "flags": [[1.0, None] for _ in range(number)],
        "age": [None if i == 1 else float(i) for i in range(number)],
    }


FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "mask": datasets.Image(),
        "depth": datasets.Image(),
        "scene": datasets.ClassLabel(names=["indoors", "outdoors"]),
        "flags": datasets.List(datasets.Value("float32")),
        "age": datasets.Value("float32"),
    }
)


def write(root):
    made = {
        name: datasets.Dataset.from_dict(rows(n, seed), features=FEATURES)
        for name, n, seed in (("train", 4, 0), ("validation", 3, 1))
    }
    datasets.DatasetDict(made).save_to_disk(str(root))
    return str(root)


def make(root, split="train", **settings):
    return HuggingFace(root, split, **({"targets": TARGETS, "image": "image"} | settings))


class TestImages(DatasetContract):
    @pytest.fixture(autouse=True)
    def _files(self, tmp_path):
        self.root = write(tmp_path / "data")

    def make(self, split):
        return make(self.root, split)

    def tasks(self):
        return HuggingFace.describe(self.root, targets=TARGETS, image="image")

    def test_images_masks_classes_and_numbers(self):
        scene, age = (task for task in self.tasks() if task.name in ("scene", "age"))
        assert scene.class_names == ("indoors", "outdoors") and age.unit == "years"
        sample, plain = make(self.root)[1], rows(4, 0)
        with Image.open(io.BytesIO(plain["mask"][1]["bytes"])) as mask:
            classes = np.asarray(mask)
        assert (sample.valid["segmentation"].numpy() == (classes != 255)).all()
        known = sample.valid["segmentation"]
        assert (sample.targets["segmentation"][known].numpy() == classes[classes != 255]).all()
        with Image.open(io.BytesIO(plain["depth"][1]["bytes"])) as depth:
            metres = np.asarray(depth) * np.float32(0.001)
        assert torch.allclose(sample.targets["depth"][0], torch.from_numpy(metres))
        assert sample.targets["scene"] == 1 and "age" not in sample.targets
        assert sample.valid["flags"].tolist() == [True, False]

    def test_what_is_wrong_is_told_with_its_place(self):
        for settings, said in (
            ({"image": "imge"}, r"data\.image: .*no column 'imge'; did you mean 'image'"),
            ({"image": None}, "data.image: name the input"),
            ({"text": "mask"}, "one of these"),
            ({"targets": {}}, "data.targets: name at least one"),
            ({"targets": {"x": {"kind": "depth"}}}, r"data\.targets\.x\.column: .*no column 'x'"),
            ({"targets": {"depth": {"kind": "depth", "scael": 1}}}, r"data\.targets\.depth\.scael"),
            ({"targets": {"age": {"kind": "classification"}}}, r"data\.targets\.age\.classes"),
            ({"split_names": {"val": "dev"}}, r"data\.split_names\.val: .*no split 'dev'"),
            ({"files": "x.csv"}, "data.files"),
            ({"revision": "main"}, "data.revision"),
        ):
            with pytest.raises(ConfigError, match=said):
                make(self.root, **settings)
        with pytest.raises(UsageError, match="no split 'test'"):
            make(self.root, "test")
        three = {"mask": {"kind": "segmentation", "classes": ["a", "b"]}}
        with pytest.raises(DataError, match=r"train\)/0: column 'mask': .*255 is out of range"):
            dataset = make(self.root, targets=three)
            collate([dataset[0]], HuggingFace.describe(self.root, targets=three, image="image"))
        with pytest.raises(DataError, match=r"column 'scene'.*1 is out of range"):
            make(self.root, targets={"scene": {"kind": "classification", "channels": 1}})[1]

    def test_damaged_files_are_told(self, tmp_path):
        for file in list((tmp_path / "data" / "train").glob("*.arrow")):
            file.write_bytes(file.read_bytes()[:200])
        with pytest.raises(MtlError, match="data"):
            make(str(tmp_path / "data"))[0]
        with pytest.raises(MtlError, match="save_to_disk"):
            make(str(tmp_path))


class TestTexts(DatasetContract):
    TARGETS = {"kind": {"kind": "classification", "classes": ["bad", "good"]}}

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path):
        for split, words in (("train", "a fine film,good"), ("dev", "an awful plot,bad")):
            lines = [f"{words.replace(',', f' {i},')}" for i in range(4)]
            (tmp_path / f"{split}.csv").write_text("text,kind\n" + "\n".join(lines) + "\n")
        self.root = str(tmp_path)

    def settings(self):
        return {"source": "csv", "files": "{split}.csv", "text": "text", "targets": self.TARGETS}

    def make(self, split):
        return HuggingFace(self.root, split, **self.settings())

    def tasks(self):
        return HuggingFace.describe(self.root, **self.settings())

    def test_texts_are_padded(self):
        data = self.make("val")
        inputs = data.collate_inputs([data[0].inputs, data[0].inputs[:3]])
        assert inputs["mask"].sum(1).tolist() == [len("an awful plot 0") + 1, 3]
        assert HuggingFace.kind_of_inputs(self.root, **self.settings()) == "tokens"


def test_numbers_are_standardised_by_the_training_rows_and_a_part_is_kept(tmp_path):
    lines = [f'{{"x": {i}, "y": {"null" if i == 3 else i * i}, "z": {i % 2}}}' for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    settings = {"source": "json", "files": "rows.jsonl", "numbers": ("x", "y"),
                "targets": {"z": {"kind": "multilabel"}}}  # fmt: skip
    train, val = (HuggingFace(str(tmp_path), split, **settings) for split in ("train", "val"))
    assert (len(train), len(val)) == (16, 4)
    names = [{data.name_of(i) for i in range(len(data))} for data in (train, val)]
    assert names[0] | names[1] == set(map(str, range(20)))
    vectors = torch.stack([data[i].inputs for data in (train, val) for i in range(len(data))])
    assert vectors.shape == (20, 3) and vectors[:, 2].sum() == 1
    assert abs(vectors[:, 0].mean()) < 1e-6
    with pytest.raises(ConfigError, match=r"data\.numbers"):
        HuggingFace(str(tmp_path), "train", **{**settings, "numbers": ("w",)})


def test_folders_of_images_are_classes(tmp_path):
    for split, number in (("train", 2), ("test", 1)):
        for kind in ("cat", "dog"):
            for i in range(number):
                place = tmp_path / "pets" / split / kind / f"{split}{i}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                values = np.random.default_rng(i).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
                Image.fromarray(values).save(place)
    settings = {"source": "imagefolder", "image": "image", "split_names": {"val": "test"},
                "targets": {"label": {"kind": "classification"}}}  # fmt: skip
    (task,) = HuggingFace.describe(str(tmp_path / "pets"), **settings)
    assert task.class_names == ("cat", "dog")
    train = HuggingFace(str(tmp_path / "pets"), "train", **settings)
    assert sorted(int(train[i].targets["label"]) for i in range(len(train))) == [0, 0, 1, 1]


def test_a_hub_that_cannot_be_reached_is_told(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(MtlError, match="no-such-owner/no-such-name"):
        HuggingFace(None, "train", source="no-such-owner/no-such-name", image="image",
                    targets={"x": {"kind": "depth"}})  # fmt: skip


def test_the_plugin_is_light_and_whole():
    assert_plugin_is_light("mtlcore_hf.plugin")
    assert_plugin_is_whole("mtlcore_hf.plugin")
