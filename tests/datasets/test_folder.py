"""Own photographs: the description, its mistakes, and samples from files in every encoding."""

import io
import pickle
import zipfile

import fsspec
import numpy as np
import pytest
from PIL import Image

from mtlcore.data import DataError, collate
from mtlcore.datasets.folder import Folder
from mtlcore.errors import ConfigError, UsageError

SIZE = (12, 16)
SPEC = """
size = [6, 8]
image = "{split}/rgb/{name}.png"
[tasks.segmentation]
kind = "segmentation"
file = "{split}/segmentation/{name}.png"
classes = ["table", "object"]
invalid = 255
[tasks.depth]
kind = "depth"
file = "{split}/depth/{name}.png"
scale = 0.001
unit = "m"
invalid = 0
[tasks.normals]
kind = "normals"
file = "{split}/normals/{name}.png"
scale = 0.007874015748031496
offset = -1.0078740157480315
invalid = [0, 0, 0]
[tasks.edges]
kind = "edges"
file = "{split}/edges/{name}.npy"
invalid = 255
"""


def raw(name):
    rng = np.random.default_rng(int(name))
    normals = rng.normal(size=(*SIZE, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    normals = np.round((normals + 1) / 2 * 254 + 1).astype(np.uint8)
    normals[:3] = 0
    return {
        "rgb": rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8),
        "segmentation": rng.choice(np.array([0, 1, 255], np.uint8), SIZE),
        "depth": rng.choice(np.array([0, 464, 1723, 60_000], np.uint16), SIZE),
        "normals": normals,
        "edges": rng.choice(np.array([0, 1, 255], np.uint8), SIZE),
    }


def encode(array, suffix):
    buffer = io.BytesIO()
    if suffix == "npy":
        np.save(buffer, array)
    else:
        Image.fromarray(array).save(buffer, {"png": "PNG", "jpg": "JPEG"}[suffix])
    return buffer.getvalue()


def files(names=("00", "01"), splits=("train", "val")):
    contents = {"dataset.toml": SPEC.encode()}
    for split in splits:
        for name in names:
            for kind, array in raw(name).items():
                suffix = "npy" if kind == "edges" else "png"
                contents[f"{split}/{kind}/{name}.{suffix}"] = encode(array, suffix)
    return contents


@pytest.fixture
def root(tmp_path):
    for path, data in files().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    return tmp_path


def respecify(root, *changes):
    text = SPEC
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (root / "dataset.toml").write_text(text)


def check(dataset, tasks):
    sample, expected = dataset[1], raw("01")
    np.testing.assert_allclose(sample.inputs.permute(1, 2, 0) * 255, expected["rgb"], atol=1e-4)
    for name in ("segmentation", "edges"):
        known = expected[name] != 255
        np.testing.assert_array_equal(sample.valid[name], known)
        target = sample.targets[name].reshape(SIZE).numpy()
        np.testing.assert_array_equal(target[known], expected[name][known])
    np.testing.assert_array_equal(sample.valid["depth"], expected["depth"] > 0)
    np.testing.assert_allclose(sample.targets["depth"][0], expected["depth"] / 1000, rtol=1e-6)
    np.testing.assert_array_equal(sample.valid["normals"], expected["normals"].any(-1))
    wanted = (expected["normals"].astype(float) - 1) / 254 * 2 - 1
    wanted /= np.linalg.norm(wanted, axis=-1, keepdims=True)
    np.testing.assert_allclose(
        sample.targets["normals"].permute(1, 2, 0)[3:], wanted[3:], atol=1e-5
    )
    batch = collate([dataset[0], sample], tasks)
    assert all(batch.count.values())


def test_samples_are_what_the_files_say(root):
    dataset = Folder(str(root), "train")
    assert len(dataset) == 2
    assert dataset[1].key == f"{root}/train/rgb/01.png"
    check(pickle.loads(pickle.dumps(dataset)), Folder.describe(str(root)))


def test_tasks_and_size_come_from_the_description_alone(root):
    for split in ("train", "val"):
        for path in (root / split).rglob("*.*"):
            path.unlink()
    tasks = Folder.describe(str(root))
    assert [(task.name, task.kind, task.channels, task.unit) for task in tasks] == [
        ("segmentation", "segmentation", 2, ""),
        ("depth", "depth", 1, "m"),
        ("normals", "normals", 3, ""),
        ("edges", "edges", 1, ""),
    ]
    assert tasks[0].class_names == ("table", "object")
    assert Folder.default_size(str(root)) == (6, 8)
    respecify(root, ("size = [6, 8]", ""))
    assert Folder.default_size(str(root)) is None


def test_archives_and_memory_are_read_alike(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path, data in files().items():
            archive.writestr(f"sub/{path}", data)
    memory = fsspec.filesystem("memory")
    for path, data in files().items():
        memory.pipe_file(f"/{tmp_path.name}/{path}", data)
    for url in (f"zip://sub::{tmp_path}/a.zip", f"memory://{tmp_path.name}"):
        check(Folder(url, "val"), Folder.describe(url))


def test_the_description_may_lie_elsewhere(root, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (root / "dataset.toml").rename(elsewhere / "mine.toml")
    (root / "specs").mkdir()
    (root / "specs" / "inside.toml").write_text(SPEC)
    monkeypatch.chdir(elsewhere)
    for spec in ("mine.toml", str(elsewhere / "mine.toml"), f"file://{elsewhere}/mine.toml"):
        check(Folder(str(root), "train", spec=spec), Folder.describe(str(root), spec=spec))
    assert len(Folder.describe(str(root), spec="specs/inside.toml")) == 4


def test_a_description_in_the_root_goes_before_one_in_the_working_directory(
    root, tmp_path_factory, monkeypatch
):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "dataset.toml").write_text("this is not even TOML")
    monkeypatch.chdir(elsewhere)
    assert len(Folder.describe(str(root))) == 4


def test_a_missing_description_or_root_is_named(root, monkeypatch):
    monkeypatch.chdir(root)
    with pytest.raises(ConfigError) as caught:
        Folder(str(root / "train"), "train", spec="none.toml")
    (problem,) = caught.value.problems
    assert problem.startswith(f"{root}/train/none.toml: no such file, nor none.toml;")
    with pytest.raises(DataError, match="nowhere: no such directory"):
        Folder(str(root / "nowhere"), "train", spec="none.toml")
    with pytest.raises(DataError, match="test/rgb: no such file or directory"):
        Folder(str(root), "test")
    with pytest.raises(UsageError, match=r"data\.root"):
        Folder(None, "train")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("invalid = 0\n", "ivalid = 0\n"), "tasks.depth.ivalid: no such key; did you mean 'inv"),
        (("size = [6, 8]", "size = [6]"), "size: [6] is not [height, width] in pixels"),
        (("size = [6, 8]", "sizes = [6, 8]"), "sizes: no such key; did you mean 'size'?"),
        (('image = "{split}/rgb/{name}.png"', ""), "image: missing"),
        (("{split}/rgb/{name}.png", "{split}/rgb.png"), "image: '{split}/rgb.png' is not a path"),
        (("rgb/{name}", "{nam}/{name}"), "image: '{split}/{nam}/{name}.png' is not a path with"),
        (("{split}/rgb", "rgb"), "image: has no {split}, so that training and validation would"),
        (('kind = "depth"\n', ""), "tasks.depth.kind: missing"),
        (('kind = "depth"', 'kind = "heat"'), "tasks.depth.channels: missing; a task of kind"),
        (('classes = ["table", "object"]', ""), "tasks.segmentation.classes: missing; a task of"),
        (('["table", "object"]', '"table"'), "tasks.segmentation.classes: 'table' is not a list"),
        (("scale = 0.001", "scale = true"), "tasks.depth.scale: True is not a number, or a list"),
        (("scale = 0.001", "scale = [1, 2]"), "tasks.depth: scale has 2 numbers for 1 channel(s)"),
        (("scale = 0.001", "channels = 2"), "tasks.depth: channels must be 1 for kind 'depth'"),
        (("invalid = 255\n[tasks.d", "scale = 2\n[tasks.d"), "tasks.segmentation: class numbers"),
        (("[tasks.depth]", "[tasks.Depth]"), "tasks.Depth: task name 'Depth': use lower-case"),
        (('kind = "depth"', 'kind = "classification"'), "tasks.depth.channels: missing"),
        (("[tasks.depth]", "[tasks.depth"), "(at line 9, column 13)"),
        (
            ("[tasks.depth]", "[tasks]\ndepth = 3\n[tasks.heat]"),
            "tasks.depth: must be a table, [tasks.depth]",
        ),
    ],
)
def test_mistakes_in_the_description_are_named(root, change, problem):
    respecify(root, change)
    with pytest.raises(ConfigError) as caught:
        Folder.describe(str(root))
    text = str(caught.value)
    assert all(line.startswith(f"{root}/dataset.toml: ") for line in text.splitlines())
    assert problem in text


def test_every_mistake_is_told_at_once(root):
    respecify(root, ("size", "sizes"), ("scale = 0.001", 'scale = "mm"'), ("unit", "units"))
    with pytest.raises(ConfigError) as caught:
        Folder.describe(str(root))
    assert len(caught.value.problems) == 3


def test_labels_per_sample_are_no_maps(root):
    respecify(root, ('kind = "depth"', 'kind = "classification"\nchannels = 3'))
    with pytest.raises(ConfigError, match="'classification' has no value per pixel"):
        Folder.describe(str(root))


def test_an_unknown_kind_is_a_float_map(root):
    respecify(
        root,
        ('kind = "normals"', 'kind = "flow"\nchannels = 3'),
        ("scale = 0.007874015748031496", "scale = [1, 2, -1]"),
        ("offset = -1.0078740157480315", "offset = [0, 0, 255]"),
        ("invalid = [0, 0, 0]", ""),
    )
    sample = Folder(str(root), "train")[0]
    wanted = raw("00")["normals"].astype(np.float32) * [1, 2, -1] + [0, 0, 255]
    np.testing.assert_allclose(sample.targets["normals"].permute(1, 2, 0), wanted)
    assert bool(sample.valid["normals"].all())


def test_nan_may_stand_for_invalid(root):
    respecify(root, ("invalid = 0\n", "invalid = nan\n"), ("depth/{name}.png", "depth/{name}.npy"))
    depth = np.full(SIZE, 1500.0)
    depth[0] = np.nan
    (root / "train/depth/00.npy").write_bytes(encode(depth, "npy"))
    dataset = Folder(str(root), "train")
    np.testing.assert_array_equal(dataset[0].valid["depth"], ~np.isnan(depth))
    assert collate([dataset[0]], Folder.describe(str(root))).count["depth"] == 11 * 16


def test_class_numbers_may_be_shifted_and_may_come_from_npy(root):
    respecify(
        root,
        ("invalid = 255\n[tasks.d", "invalid = 0\noffset = -1\n[tasks.d"),
        ("segmentation/{name}.png", "segmentation/{name}.npy"),
    )
    labels = np.random.default_rng(0).integers(0, 3, (*SIZE, 1)).astype(np.float64)
    (root / "train/segmentation/00.npy").write_bytes(encode(labels, "npy"))
    dataset = Folder(str(root), "train")
    batch = collate([dataset[0]], Folder.describe(str(root)))
    known = labels[..., 0] > 0
    np.testing.assert_array_equal(batch.valid["segmentation"][0], known)
    np.testing.assert_array_equal(
        batch.targets["segmentation"][0].numpy()[known], labels[..., 0][known] - 1
    )


def test_jpeg_images_and_a_list_of_names(root):
    respecify(root, ('image = "{split}/rgb/{name}.png"', 'image = "{split}/{name}/rgb.jpg"'))
    pixels = np.full((*SIZE, 3), [250, 120, 10], np.uint8)
    for name in ("01", "00"):
        (root / "train" / name).mkdir()
        (root / "train" / name / "rgb.jpg").write_bytes(encode(pixels, "jpg"))
    names = ["01", "00", "depth", "edges", "normals", "rgb", "segmentation"]
    assert len(Folder(str(root), "train")) == len(names)  # a list is what such a layout needs
    respecify(
        root, ('image = "{split}/rgb/{name}.png"', 'image = "{split}/{name}/rgb.jpg"\nnames = "l"')
    )
    (root / "l").write_text("01\n\n 00 \n")
    dataset = Folder(str(root), "train")
    assert [sample.key.split("/")[-2] for sample in map(dataset.__getitem__, range(2))] == [
        "01",
        "00",
    ]
    np.testing.assert_allclose(dataset[0].inputs[:, 4, 4] * 255, pixels[0, 0], atol=4)


def test_other_files_beside_the_images_are_passed_over(root):
    for name in ("._00.png", "Thumbs.db", "notes.txt"):
        (root / "train" / "rgb" / name).write_bytes(b"?")
    assert len(Folder(str(root), "train")) == 2


def test_a_missing_label_is_no_label(root):
    (root / "train/depth/01.png").unlink()
    dataset = Folder(str(root), "train")
    assert set(dataset[1].targets) == {"segmentation", "normals", "edges"}
    batch = collate([dataset[1]], Folder.describe(str(root)))
    assert batch.count["depth"] == 0
    assert batch.count["normals"] > 0


def test_a_task_without_any_label_is_warned_of(root):
    respecify(root, ("{split}/depth/", "{split}/detph/"))
    with pytest.warns(UserWarning, match=r"no image of split 'train' has a label of task 'depth'"):
        dataset = Folder(str(root), "train")
    assert "depth" not in dataset[0].targets


def test_a_label_named_otherwise_than_its_image_is_warned_of(root):
    (root / "train/depth/01.png").rename(root / "train/depth/1.png")
    (root / "train/depth/._00.png").write_bytes(b"?")
    with pytest.warns(UserWarning, match=r"depth/1.png: a label of task 'depth' without an image"):
        dataset = Folder(str(root), "train")
    assert "depth" not in dataset[1].targets


def test_labels_of_other_splits_are_not_taken_for_lost(root):
    # A list of names leaves an image out, whose labels are there.
    (root / "val.txt").write_text("00\n")
    respecify(root, ("image =", 'names = "{split}.txt"\nimage ='))
    assert len(Folder(str(root), "val")) == 1
    # Depth of all splits lies together.
    respecify(root, ("{split}/depth/", "depth/"))
    (root / "train/depth").rename(root / "depth")
    (root / "train/rgb/01.png").unlink()
    for kind in ("segmentation/01.png", "normals/01.png", "edges/01.npy"):
        (root / "train" / kind).unlink()
    assert "depth" in Folder(str(root), "train")[0].targets


@pytest.mark.parametrize("kind", ["rgb", "depth"])
def test_a_truncated_file_is_named_with_the_reason(root, kind):
    path = root / "train" / kind / "01.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=rf"^{path}: cannot be read: .*runcated"):
        Folder(str(root), "train")[1]


def test_a_label_of_another_size_tells_both(root):
    (root / "train/depth/01.png").write_bytes(encode(np.ones((5, 9), np.uint16), "png"))
    with pytest.raises(DataError) as caught:
        Folder(str(root), "train")[1]
    for part in (f"{root}/train/depth/01.png: ", "5x9", f"{root}/train/rgb/01.png", "12x16"):
        assert part in str(caught.value)


def test_a_label_with_other_channels_is_refused(root):
    (root / "train/depth/01.png").write_bytes(encode(raw("01")["rgb"], "png"))
    with pytest.raises(DataError, match=r"has 3 channel\(s\) where task 'depth' needs 1"):
        Folder(str(root), "train")[1]


def test_a_value_that_was_not_declared_invalid_is_found(root):
    respecify(root, ("invalid = 255\n[tasks.d", "[tasks.d"))
    with pytest.raises(DataError, match=r"segmentation/01.png: segmentation label 255 is out"):
        collate([Folder(str(root), "train")[1]], Folder.describe(str(root)))
