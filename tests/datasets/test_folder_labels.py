"""Label files as people have them: which value is which class, which is none, at what size."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from mtlcore.data import DataError, collate
from mtlcore.datasets.folder import Folder
from mtlcore.errors import ConfigError

SIZE = (8, 12)
ROAD, WALK = (128, 64, 128), (244, 35, 232)
TOP = 'image = "{split}/rgb/{name}.png"\n[tasks.t]\nfile = "{split}/t/{name}.SUFFIX"\n'


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(path)


def halves(left, right, dtype=np.uint8):
    """(H, W) or (H, W, C) of two values."""
    left, right = np.asarray(left), np.asarray(right)
    array = np.empty((*SIZE, *left.shape), dtype)
    array[:, : SIZE[1] // 2], array[:, SIZE[1] // 2 :] = left, right
    return array


@pytest.fixture
def read(tmp_path):
    """Write labels of the training split with their description; return sample, batch, notes."""

    def read(description, *labels, suffix="png", size=SIZE, top=TOP):
        for number, label in enumerate(labels):
            write(tmp_path / f"train/rgb/{number}.png", np.zeros((*size, 3), np.uint8))
            write(tmp_path / f"train/t/{number}.{suffix}", label)
        (tmp_path / "dataset.toml").write_text(top.replace("SUFFIX", suffix) + description)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            data = Folder(str(tmp_path), "train")
            batch = collate([data[i] for i in range(len(labels))], Folder.describe(str(tmp_path)))
        return batch.targets["t"], batch.valid["t"], [str(note.message) for note in seen]

    return read


def classes(target, valid):
    """The class of each half of the first sample; None where there is no label."""
    columns = (0, SIZE[1] // 2)
    return [int(target[0, 0, x]) if valid[0, 0, x] else None for x in columns]


SEGMENTATION = 'kind = "segmentation"\n'
NAMES = 'classes = ["road", "walk"]\n'


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.float32])
@pytest.mark.parametrize(
    ("keys", "left", "right", "expected"),
    [
        ('values = {7 = "road", 8 = "walk"}', 7, 8, [0, 1]),
        ('values = {8 = "walk", 7 = "road", 9 = "walk"}', 9, 7, [1, 0]),
        ("values = {7 = 0, 8 = 1}", 8, 7, [1, 0]),
        ("values = {road = 7, walk = [8, 9]}", 9, 7, [1, 0]),
        ('values = {7 = "road"}\ninvalid = [0, 1, 3]', 7, 3, [0, None]),
        ("values = {7 = 'road'}\ninvalid = 0", 0, 7, [None, 0]),
        ("invalid = [255, 7]", 1, 255, [1, None]),
        ("invalid = [255, 7]", 7, 0, [None, 0]),
        ("offset = -7\ninvalid = [0, 1]", 8, 1, [1, None]),
    ],
)
def test_values_become_classes(read, keys, left, right, expected, dtype):
    suffix = "png" if dtype in (np.uint8, np.uint16) else "npy"
    target, valid, notes = read(
        SEGMENTATION + NAMES + keys, halves(left, right, dtype), suffix=suffix
    )
    assert classes(target, valid) == expected
    assert notes == []


@pytest.mark.parametrize(
    ("invalid", "value"),
    [
        ('"nan"', np.nan),
        ('"NaN"', np.nan),
        ("nan", np.nan),
        ('["inf", 5]', np.inf),
        ("-inf", -np.inf),
        ('[5, "-inf"]', -np.inf),
        ("[-1, 255]", -1),
        ("-1", -1),
        ('["nan", "inf", "-inf", 0]', np.inf),
    ],
)
@pytest.mark.parametrize("kind", ["segmentation", "depth", "edges", "heat"])
def test_what_is_no_label_may_be_several_values_of_every_kind(read, kind, invalid, value):
    size = {"segmentation": NAMES, "heat": "channels = 1\n"}.get(kind, "")
    label = halves(1, value, np.float32)
    target, valid, _ = read(f'kind = "{kind}"\n{size}invalid = {invalid}', label, suffix="npy")
    assert valid[0, 0].tolist() == [True] * 6 + [False] * 6
    assert bool(target.isfinite().all())


@pytest.mark.parametrize(
    "invalid", ["[0, 0, 0]", "[[0, 0, 0], [9, 9, 9]]", '["#000000", 9]', "[0, 9]", "0"]
)
def test_values_of_several_channels_may_be_given_in_each_way(read, invalid):
    label = halves((0, 0, 0), (200, 20, 0))
    _, valid, _ = read(f'kind = "flow"\nchannels = 3\ninvalid = {invalid}', label)
    assert valid[0, 0].tolist() == [False] * 6 + [True] * 6


@pytest.mark.parametrize(
    "values",
    [
        '{"#804080" = "road", "#f423e8" = "walk"}',
        '{"#804080" = "road", "#F423E8" = "walk"}',
        '{"128, 64, 128" = "road", "(244 35 232)" = "walk"}',
        '{road = "#804080", walk = [244, 35, 232]}',
        '{road = ["#804080", "#000001"], walk = ["#f423e8"]}',
    ],
)
@pytest.mark.parametrize("form", ["rgb", "rgba", "palette", "npy"])
def test_colours_become_classes(read, values, form):
    label = halves(ROAD, WALK)
    suffix = "npy" if form == "npy" else "png"
    if form == "rgba":
        label = np.dstack([label, np.full(SIZE, 7, np.uint8)])
    if form == "palette":
        label = Image.fromarray(label).quantize(4)
    target, valid, _ = read(f"{SEGMENTATION}{NAMES}values = {values}", label, suffix=suffix)
    assert classes(target, valid) == [0, 1]


@pytest.mark.parametrize("odd", [256, -1, 1.5, 2.0**32, np.nan, np.inf])
def test_what_is_no_colour_is_not_taken_for_one(read, odd):
    """As (0, 0, 256), cut to its bytes, would be (0, 1, 0)."""
    label = halves((0, 1, 0), (0, 0, odd), dtype=np.float64)
    keys = f'{NAMES}values = {{"#000100" = "road", "#000000" = "walk"}}\n'
    with pytest.raises(DataError, match="holds values that no colour has"):
        read(SEGMENTATION + keys, label, suffix="npy")
    with pytest.raises(DataError, match=r"has 3 channel\(s\).*convert it to 1"):
        read(SEGMENTATION + NAMES, label, suffix="npy")
    if np.isfinite(odd):  # a pixel without a label may hold anything
        keys += f"invalid = [[0, 0, {int(odd) if odd % 1 == 0 else odd}]]"
        target, valid, _ = read(SEGMENTATION + keys, label, suffix="npy")
        assert classes(target, valid) == [0, None]


@pytest.mark.parametrize("invalid", ["[0, 0, 0]", '"#000000"', '["#010101", "#000000"]', "0"])
def test_a_colour_may_mean_no_label(read, invalid):
    keys = f'values = {{"#804080" = "road"}}\ninvalid = {invalid}'
    target, valid, _ = read(SEGMENTATION + keys, halves(ROAD, (0, 0, 0)))
    assert classes(target, valid) == [0, None]
    assert bool(valid.any())
    grey = Image.fromarray(np.zeros(SIZE, np.uint8))  # as an optimiser stores black alone
    target, valid, _ = read(SEGMENTATION + keys, halves(ROAD, (0, 0, 0)), grey)
    assert not bool(valid[1].any())


def test_the_classes_are_those_of_values_in_their_order(read, tmp_path):
    read(SEGMENTATION + 'values = {9 = "b", 7 = "a", 8 = "b"}', halves(9, 7))
    (task,) = Folder.describe(str(tmp_path))
    assert task.class_names == ("b", "a")
    odd = 'values = {1 = "<b>&", 2 = "a.b \\u00e4 \\n", 3 = ""}'
    read(SEGMENTATION + odd, halves(1, 2))
    assert Folder.describe(str(tmp_path))[0].class_names == ("<b>&", "a.b ä \n", "")


@pytest.mark.parametrize(
    ("description", "label", "parts"),
    [
        (NAMES + 'values = {7 = "road"}', halves(7, 9), ("9", '9 = "..."', "invalid = [9]")),
        (NAMES + "", halves(0, 7), ('values = {7 = "its class"}', "invalid = 7")),
        (NAMES + "", halves(ROAD, WALK), ('"#804080" = ...', '"#f423e8" = ...')),
        (NAMES + 'values = {"#804080" = "road"}', halves(ROAD, WALK), ('"#f423e8" = "..."',)),
    ],
)
def test_what_has_no_class_is_told_with_both_ways_out(read, description, label, parts):
    with pytest.raises(DataError, match=r"t/0\.png: ") as told:
        read(SEGMENTATION + description, label)
    assert all(part in str(told.value) for part in parts), told.value


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ("values = {}", "tasks.t.values: {} is not a table such as"),
        ("values = 7", "tasks.t.values: 7 is not a table such as"),
        ('values = {7 = "raod"}', "tasks.t.values: 'raod' is none of the classes (road, walk)"),
        ("values = {7 = 2}", "tasks.t.values: 2 is none of the classes"),
        ("values = {7 = 1.5}", "tasks.t.values: '7' is none of the classes"),
        ("values = {road = []}", "tasks.t.values: road = [] is neither"),
        ('values = {road = "red"}', "tasks.t.values: road = 'red' is neither"),
        ('values = {7 = "road", "#000000" = "walk"}', "has numbers and colours"),
        ('values = {7 = "road", "7.0" = "walk"}', "7.0 stands for two classes"),
        ('values = {nan = "road"}', "nan stands for two classes, or for none"),
        ('values = {7 = "road"}\noffset = 1', "there is no offset beside it"),
        ('values = {7 = "road"}\ninvalid = 7', "7.0 is invalid and a class at once"),
        ('invalid = "void"', "invalid: 'void' is no value; give a number"),
        ("invalid = [1, true]", "invalid: True is no value"),
        ("invalid = [[1, 2]]", "invalid has 2 numbers for 1 channel(s)"),
        ("invalid = []", "tasks.t.invalid: [] is not a value, or a list"),
        ("invalid = {a = 1}", "is no value"),
    ],
)
def test_mistakes_are_named_by_their_key(read, keys, problem):
    with pytest.raises(ConfigError) as told:
        read(SEGMENTATION + NAMES + keys, halves(0, 1))
    assert problem in str(told.value)


def test_values_are_for_classes(read):
    with pytest.raises(ConfigError, match="values: is for classes"):
        read('kind = "depth"\nvalues = {1 = "near", 2 = "far"}\nchannels = 1', halves(1, 2))
    with pytest.raises(ConfigError, match="two have the same name"):
        read(SEGMENTATION + 'classes = ["a", "a"]\nvalues = {1 = "a"}', halves(1, 1))


# 0 and 255


@pytest.mark.parametrize("invalid", ["", "invalid = 255", "invalid = [255, 128]"])
@pytest.mark.parametrize("kind", ["segmentation", "edges", "saliency"])
def test_maps_of_0_and_255_alone_are_0_and_1_with_a_note(read, kind, invalid):
    size = {"segmentation": NAMES, "saliency": "channels = 1\n"}.get(kind, "")
    empty = halves(0, 0)
    target, valid, notes = read(f'kind = "{kind}"\n{size}{invalid}', empty, halves(0, 255), empty)
    assert target[1].flatten().unique().tolist() == [0, 1]
    assert bool(valid.all())
    assert [("hold 0 and 255 alone" in note, "tasks.t." in note) for note in notes] == [
        (True, True)
    ]
    assert ("declared invalid" in notes[0]) == bool(invalid)


@pytest.mark.parametrize("kind", ["segmentation", "edges"])
def test_255_is_invalid_where_any_file_holds_1(read, kind):
    size = NAMES if kind == "segmentation" else ""
    _, valid, notes = read(f'kind = "{kind}"\n{size}invalid = 255', halves(0, 255), halves(0, 1))
    assert valid.flatten(1).float().mean(1).tolist() == [0.5, 1.0]
    assert notes == []


@pytest.mark.parametrize("description", ["invalid = 0", 'values = {0 = "road", 255 = "walk"}'])
def test_what_is_said_in_full_is_not_guessed(read, description):
    if "values" in description:
        _, valid, notes = read(SEGMENTATION + NAMES + description, halves(0, 255))
        assert bool(valid.all())
        assert notes == []
    else:
        with pytest.raises(DataError, match="label 255 is out of range"):
            read(SEGMENTATION + NAMES + description, halves(0, 255))


def test_a_later_file_that_belies_the_guess_is_told(read):
    labels = [halves(0, 255)] * 70
    for odd in (3, 33, 69):
        labels[odd] = halves(0, 1)
        with pytest.raises(DataError, match=r"(label 1 beside 0 and 255|label 255 is out of)"):
            read(SEGMENTATION + NAMES, *labels)
        labels[odd] = labels[0]


def test_validation_is_read_as_training_is(read, tmp_path):
    read(SEGMENTATION + NAMES + "invalid = 255", halves(0, 1), halves(1, 255))
    write(tmp_path / "val/rgb/0.png", np.zeros((*SIZE, 3), np.uint8))
    write(tmp_path / "val/t/0.png", halves(0, 255))
    assert float(Folder(str(tmp_path), "val")[0].valid["t"].float().mean()) == 0.5


# Channels and sizes


@pytest.mark.parametrize(
    ("kind", "label", "suffix"),
    [
        ("segmentation", np.dstack([halves(0, 1)] * 3), "png"),
        ("segmentation", np.dstack([halves(0, 1)] * 3 + [halves(255, 9)]), "png"),
        ("segmentation", np.dstack([halves(0, 1), halves(255, 9)]), "png"),
        ("segmentation", halves(0, 1)[None], "npy"),
        ("segmentation", halves(0, 1)[..., None], "npy"),
        ("segmentation", halves(0, 1, bool), "npy"),
        ("segmentation", halves(0, 1, ">u2"), "npy"),
        ("segmentation", Image.fromarray(halves(0, 255)).convert("1"), "png"),
        ("edges", np.dstack([halves(0, 1)] * 3), "png"),
        ("edges", Image.fromarray(halves(0, 255)).convert("1"), "png"),
        ("edges", halves(0, 1, ">f4")[None], "npy"),
        ("edges", Image.fromarray(halves(0, 1, np.float32)), "tif"),
    ],
)
def test_channels_that_say_nothing_are_left_out(read, kind, label, suffix):
    size = NAMES if kind == "segmentation" else ""
    target, valid, _ = read(f'kind = "{kind}"\n{size}', label, suffix=suffix)
    assert target.reshape(SIZE)[0].tolist() == [0] * 6 + [1] * 6
    assert bool(valid.all())


def test_normals_may_have_their_channels_first(read):
    label = halves((0, 0, -2), (3, 0, -4), np.float32).transpose(2, 0, 1)
    target, _, _ = read('kind = "normals"', label, suffix="npy")
    assert target[0, :, 0, -1].tolist() == pytest.approx([0.6, 0, -0.8])


@pytest.mark.parametrize("factor", [0.5, 2, 3])
def test_labels_of_another_resolution_are_resized_by_nearest_pixels(read, factor):
    label = np.asarray(
        Image.fromarray(halves(700, 1500, np.uint16)).resize(
            (int(12 * factor), int(8 * factor)), Image.Resampling.NEAREST
        )
    )
    target, valid, _ = read('kind = "depth"\nscale = 0.001', label)
    np.testing.assert_allclose(target[0, 0], halves(0.7, 1.5, np.float32))
    assert bool(valid.all())


def test_a_thin_edge_of_a_larger_map_is_kept(read):
    label = np.zeros((24, 36), np.uint8)
    label[10] = 1
    target, _, _ = read('kind = "edges"', label)
    assert target[0, 0].amax(1).tolist() == [0, 0, 0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("shape", [(12, 8), (8, 10), (4, 4), (16, 30)])
def test_labels_of_other_proportions_are_refused(read, shape):
    with pytest.raises(
        DataError, match=f"the label is {shape[0]}x{shape[1]} but its image .* 8x12"
    ):
        read('kind = "edges"', np.zeros(shape, np.uint8))


def test_a_label_on_the_stored_pixels_of_a_turned_photograph_is_told(read, tmp_path):
    read('kind = "edges"', np.zeros(SIZE, np.uint8))
    image = Image.fromarray(np.zeros((*SIZE, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    (tmp_path / "train/rgb/0.png").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="EXIF orientation 6 shows that as 12x8"):
        Folder(str(tmp_path), "train")[0]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_normals_without_a_sign_are_refused_with_the_line_to_write(read, dtype):
    most = np.iinfo(dtype).max
    label = halves((most // 2, most // 2, 0), (most // 2, 0, most // 2), dtype)
    description = 'kind = "normals"\n'
    with pytest.raises(DataError, match=rf"t\.scale = {2 / most!r} and offset = -1") as told:
        read(description, label, suffix="npy")
    assert "no normal has a negative component" in str(told.value)
    read(f"{description}scale = {2 / most!r}\noffset = -1", label, suffix="npy")


def test_numbers_of_single_precision_are_compared_in_it(read):
    label = halves(0.1, 0.7, np.float32)
    keys = 'values = {"0.1" = "road"}\ninvalid = 0.7'
    target, valid, _ = read(SEGMENTATION + keys, label, suffix="npy")
    assert classes(target, valid) == [0, None]
