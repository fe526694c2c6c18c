"""Geometry done once: all maps stay on the same pixels, and values keep their meaning."""

import math

import attrs
import pytest
import torch

from mtlcore.data import Sample, collate
from mtlcore.loading import Augmentation, as_seen_in, turn
from mtlcore.loading.transforms import flip, resize, zoom
from mtlcore.tasks import Task

SIZE = (24, 32)
TASKS = (
    Task(name="segmentation", kind="segmentation", channels=1000),
    Task(name="depth", kind="depth", channels=1, unit="m"),
    Task(name="normals", kind="normals", channels=3),
    Task(name="edges", kind="edges", channels=1),
    Task(name="heat", kind="heat", channels=2),
    Task(name="scene", kind="classification", channels=5),
    Task(name="pose", kind="regression", channels=4),
)
MAPS = ("segmentation", "depth", "normals", "edges", "heat")


def numbered():
    """Every map holds its pixels' numbers, every mask is the same, and so is the image."""
    height, width = SIZE
    number = torch.arange(height * width).view(SIZE)
    plane = number.float()[None]
    valid = torch.rand(SIZE, generator=torch.Generator().manual_seed(3)) < 0.7
    targets = {
        "segmentation": number,
        "depth": plane,
        "normals": torch.cat([-plane, plane, plane]),
        "edges": plane / number.numel(),
        "heat": plane.expand(2, -1, -1),
        "scene": torch.tensor(3),
        "pose": torch.arange(4.0),
    }
    masks = dict.fromkeys(MAPS, valid) | {"scene": torch.tensor(True), "pose": torch.ones(4).bool()}
    return Sample(
        inputs=plane.expand(3, -1, -1) / number.numel(), targets=targets, valid=masks, key="x"
    )


def numbers(sample):
    """The pixel numbers that each map holds, the known changes of values undone."""
    scale = sample.meta.get("scale", 1.0)
    sign = 1 if sample.meta.get("flip") else -1
    targets = sample.targets
    return {
        "segmentation": targets["segmentation"].float(),
        "depth": targets["depth"][0] * scale,
        "normals": targets["normals"][0] * sign,
        "edges": targets["edges"][0] * SIZE[0] * SIZE[1],
        "heat": targets["heat"][1],
    }


def same_everywhere(sample):
    maps = numbers(sample)
    for name in MAPS:
        torch.testing.assert_close(maps[name], maps["segmentation"], msg=name)
        assert torch.equal(sample.valid[name], sample.valid["segmentation"])
    picked = sample.targets["segmentation"]
    assert torch.equal(sample.valid["depth"], numbered().valid["depth"].flatten()[picked])
    assert int(sample.targets["scene"]) == 3
    assert torch.equal(sample.targets["pose"], torch.arange(4.0))
    return picked


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1.2, 1.5])
def test_every_map_gets_the_same_crop_and_the_masks_follow(flipped, scale):
    generator = torch.Generator().manual_seed(0)
    augment = Augmentation(scales=(scale,), flip=True)
    found = []
    while len(found) < 5:
        result = augment(numbered(), TASKS, generator)
        if result.meta["flip"] != flipped:
            continue
        result.meta["scale"] = scale
        picked = same_everywhere(result)
        top, left, height, width = result.meta["crop"]
        assert (height, width) == (round(24 / scale), round(32 / scale))
        rows, columns = picked // 32, picked % 32
        assert (int(rows.min()), int(rows.max())) == (top, top + height - 1)
        assert (int(columns.min()), int(columns.max())) == (left, left + width - 1)
        # The image, resampled smoothly, shows the same place as the labels.
        seen = result.inputs[0] * 24 * 32
        assert float((seen // 32 - rows).abs().max()) <= 1
        found.append((top, left))
    assert scale == 1.0 or len(set(found)) > 1


@pytest.mark.parametrize("size", [(12, 16), (7, 9), (48, 64), (24, 20), (30, 10)])
def test_resized_maps_stay_on_the_same_pixels(size):
    sample = resize(numbered(), [task for task in TASKS if task.name != "edges"], size)
    picked = sample.targets["segmentation"]
    assert picked.shape == size
    assert sample.inputs.shape == (3, *size)
    for name in ("depth", "heat"):
        torch.testing.assert_close(sample.targets[name][0], picked.float())
    assert torch.equal(sample.valid["depth"], numbered().valid["depth"].flatten()[picked])
    # The pixel picked is the one at the middle of the new pixel.
    rows = (torch.arange(size[0]) + 0.5) * 24 / size[0]
    columns = (torch.arange(size[1]) + 0.5) * 32 / size[1]
    assert torch.equal(picked[:, 0] // 32, rows.floor().long())
    assert torch.equal(picked[0] % 32, columns.floor().long())


def test_the_same_size_changes_nothing():
    sample = numbered()
    assert resize(sample, TASKS, SIZE) is sample


def test_results_fit_their_tasks():
    sample = resize(numbered(), TASKS, (12, 16))
    batch = collate([Augmentation((1.5,), True)(sample, TASKS, torch.Generator())], TASKS)
    assert batch.targets["normals"].shape == (1, 3, 12, 16)


def test_labels_of_other_tasks_are_dropped_and_missing_ones_stay_missing():
    sample = flip(numbered(), TASKS[:2])
    assert set(sample.targets) == set(sample.valid) == {"segmentation", "depth"}
    assert set(zoom(sample, TASKS, (0, 0, 12, 16), 2.0).targets) == {"segmentation", "depth"}


def edges(lines, valid=None):
    target = torch.zeros(1, 24, 32)
    target[:, lines] = 1
    mask = torch.ones(24, 32, dtype=torch.bool) if valid is None else valid
    return Sample(
        inputs=torch.zeros(3, 24, 32), targets={"edges": target}, valid={"edges": mask}, key="x"
    )


@pytest.mark.parametrize("line", range(24))
def test_no_thin_edge_is_lost_by_shrinking(line):
    shrunk = resize(edges([line]), TASKS, (10, 13)).targets["edges"][0]
    rows = shrunk.amax(1).nonzero().flatten().tolist()
    assert line * 10 // 24 in rows
    assert len(rows) <= 2
    assert bool((shrunk == shrunk[:, :1]).all())


def test_a_shrunken_edge_label_is_valid_where_it_is_certain():
    valid = torch.ones(24, 32, dtype=torch.bool)
    valid[0:3] = False  # the first row of the smaller map and a part of the second
    valid[12] = False
    target = edges([13, 0], valid)
    shrunk = resize(target, TASKS, (12, 16))
    known = shrunk.valid["edges"][:, 0]
    assert known.tolist() == [False, False] + [True] * 10  # row 6 has its edge in line 13
    assert shrunk.targets["edges"][0, :, 0].nonzero().flatten().tolist() == [6]


def test_enlarged_edges_are_picked_like_every_label():
    enlarged = resize(edges([5]), TASKS, (48, 64)).targets["edges"][0]
    assert enlarged[:, 0].nonzero().flatten().tolist() == [10, 11]


def test_two_flips_are_none():
    sample = numbered()
    twice = flip(flip(sample, TASKS), TASKS)
    assert torch.equal(twice.inputs, sample.inputs)
    for name in sample.targets:
        assert torch.equal(twice.targets[name], sample.targets[name])
        assert torch.equal(twice.valid[name], sample.valid[name])
    assert not torch.equal(flip(sample, TASKS).targets["depth"], sample.targets["depth"])


FOCAL = 30.0


def plane(normal, distance):
    """A plane as a camera in the middle sees it: depth, and its unit normal everywhere."""
    height, width = SIZE
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rays = torch.stack(
        [
            (columns + 0.5 - width / 2) / FOCAL,
            (rows + 0.5 - height / 2) / FOCAL,
            torch.ones(SIZE),
        ]
    )
    unit = torch.tensor(normal) / math.dist(normal, (0, 0, 0))
    depth = -distance / torch.einsum("chw,c->hw", rays, unit)
    targets = {"depth": depth[None], "normals": unit.view(3, 1, 1).expand(3, *SIZE)}
    everywhere = torch.ones(SIZE, dtype=torch.bool)
    return Sample(
        inputs=torch.zeros(3, *SIZE),
        targets=targets,
        valid=dict.fromkeys(targets, everywhere),
        key="x",
    )


def normals_of(depth, focal=FOCAL):
    """Normals from depth alone: crossing the steps from a pixel to its neighbours."""
    height, width = SIZE
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x = (columns + 0.5 - width / 2) / focal * depth
    y = (rows + 0.5 - height / 2) / focal * depth
    points = torch.stack([x, y, depth])
    right = points[:, :-1, 1:] - points[:, :-1, :-1]
    down = points[:, 1:, :-1] - points[:, :-1, :-1]
    normal = torch.linalg.cross(down, right, dim=0)
    return normal / normal.norm(dim=0)


@pytest.mark.parametrize("normal", [(0.3, -0.2, -1.0), (-0.6, 0.1, -1.0), (0.0, -1.0, -0.9)])
def test_flipped_normals_are_those_of_the_flipped_depth(normal):
    sample = plane(normal, 3.0)
    for one in (sample, flip(sample, TASKS)):
        expected = normals_of(one.targets["depth"][0])
        given = one.targets["normals"][:, :-1, :-1]
        torch.testing.assert_close(given, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("scale", [1.5, 2.0])
def test_a_zoom_is_the_same_wall_seen_from_nearer(scale):
    height, width = round(SIZE[0] / scale), round(SIZE[1] / scale)
    box = ((SIZE[0] - height) // 2, (SIZE[1] - width) // 2, height, width)
    nearer = zoom(plane((0.0, 0.0, -1.0), 3.0), TASKS, box, scale)
    expected = plane((0.0, 0.0, -1.0), 3.0 / scale)
    torch.testing.assert_close(nearer.targets["depth"], expected.targets["depth"])
    torch.testing.assert_close(nearer.targets["normals"], expected.targets["normals"])


def test_a_zoom_multiplies_inverse_depth_by_what_it_divides_depth_by():
    """In crops as in predictions of them, so that one stays one over the other."""
    tasks = [
        Task(name=kind.replace("-", "_"), kind=kind, channels=1)
        for kind in ("depth", "inverse-depth")
    ]
    depth = 1 + torch.rand(1, *SIZE, generator=torch.Generator().manual_seed(0))
    everywhere = torch.ones(SIZE, dtype=torch.bool)
    sample = attrs.evolve(
        numbered(),
        targets={"depth": depth, "inverse_depth": 1 / depth},
        valid={task.name: everywhere for task in tasks},
    )
    nearer = zoom(sample, tasks, (4, 8, 12, 16), 2.0).targets
    torch.testing.assert_close(nearer["inverse_depth"], 1 / nearer["depth"])
    meta = {"crop": (4, 8, 12, 16), "scale": 2.0, "flip": False}
    flat = torch.full((1, *SIZE), 3.0)
    assert as_seen_in(tasks[0], flat, meta).unique().tolist() == [1.5]
    assert as_seen_in(tasks[1], flat, meta).unique().tolist() == [6.0]


def test_crops_lie_everywhere_in_the_picture():
    """Up to and including the last row and column, all places alike."""
    augment, generator = Augmentation((1.5,)), torch.Generator().manual_seed(0)
    crops = [augment(numbered(), TASKS, generator).meta["crop"] for _ in range(400)]
    assert {top for top, *_ in crops} == set(range(24 - 16 + 1))
    assert {left for _, left, *_ in crops} == set(range(32 - 21 + 1))


def test_a_shrunken_image_averages_what_its_pixels_cover():
    """Every fourth column is white; picking pixels would lose or keep it."""
    lines = torch.zeros(3, *SIZE)
    lines[..., ::4] = 1
    small = resize(attrs.evolve(numbered(), inputs=lines), TASKS, (6, 8)).inputs
    inside = small[..., 1:-1]
    torch.testing.assert_close(inside, torch.full_like(inside, 0.25), atol=0.05, rtol=0)


def test_the_generator_alone_decides():
    augment = Augmentation((1.0, 1.2, 1.5), flip=True)

    def drawn(seed):
        generator = torch.Generator().manual_seed(seed)
        torch.rand(seed + 1)  # the global stream has no say
        return [augment(numbered(), TASKS, generator).meta for _ in range(20)]

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert first == again
    assert first != other
    assert {meta["flip"] for meta in first} == {True, False}
    assert {meta["crop"][2] for meta in first} == {24, 20, 16}


def test_without_settings_nothing_changes():
    result = Augmentation()(numbered(), TASKS, torch.Generator())
    assert torch.equal(result.inputs, numbered().inputs)
    assert torch.equal(result.targets["normals"], numbered().targets["normals"])
    assert result.meta == {"crop": (0, 0, 24, 32), "scale": 1.0, "flip": False}


@pytest.mark.parametrize("scales", [(), (0.5, 1.0)])
def test_scales_that_would_need_padding_are_refused(scales):
    with pytest.raises(ValueError, match="each at least 1"):
        Augmentation(scales=scales)


# --- turning


def landscape(degrees=0.0, scale=1.0, size=(40, 40)):
    """A sample of an analytic height field, seen after the camera rolled: all maps in closed form.

    Positive angles turn the picture clockwise. Each place of the landscape has its brightness, its
    depth, and the normal (-dh/dx, -dh/dy, -1) at unit length, in the axes of the turned camera.
    """
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    y, x = torch.meshgrid(
        torch.arange(size[0]) + 0.5 - size[0] / 2,
        torch.arange(size[1]) + 0.5 - size[1] / 2,
        indexing="ij",
    )
    u, v = (cosine * x + sine * y) / scale / 20, (cosine * y - sine * x) / scale / 20
    height = torch.sin(1.3 * u + 0.4) + 0.7 * torch.cos(0.9 * v) + 0.5 * u * v
    du = 1.3 * torch.cos(1.3 * u + 0.4) + 0.5 * v
    dv = -0.63 * torch.sin(0.9 * v) + 0.5 * u
    normals = torch.stack([-(cosine * du - sine * dv), -(sine * du + cosine * dv), -1 + 0 * du])
    everywhere = torch.ones(size, dtype=torch.bool)
    return Sample(
        inputs=(height[None].expand(3, -1, -1) + 3) / 8,
        targets={"depth": (height[None] + 4) / scale, "normals": normals / normals.norm(dim=0)},
        valid={"depth": everywhere, "normals": everywhere},
        key="x",
    )


@pytest.mark.parametrize(("degrees", "scale"), [(20, 1.0), (-13, 1.25), (90, 1.0), (0, 0.75)])
def test_turning_is_what_a_rolled_camera_sees(degrees, scale):
    found, expected = turn(landscape(), TASKS, degrees, scale), landscape(degrees, scale)
    seen = found.valid["normals"]
    assert torch.equal(seen, found.valid["depth"])
    assert 0.4 < seen.float().mean() <= 1
    for name in ("depth", "normals"):
        # A nearest pixel is at most .7 pixels away.
        far = (found.targets[name] - expected.targets[name]).abs()[:, seen]
        assert float(far.max()) < 0.08, name
    unit = found.targets["normals"].norm(dim=0)[seen]
    torch.testing.assert_close(unit, torch.ones_like(unit))
    inner = seen.clone()
    inner[0], inner[-1], inner[:, 0], inner[:, -1] = False, False, False, False
    far = (found.inputs - expected.inputs).abs()[:, inner]
    assert float(far.quantile(0.95)) < 0.002


def test_a_quarter_turn_of_a_square_moves_whole_pixels():
    sample = zoom(numbered(), TASKS, (0, 0, 24, 32), 1.0)
    square = attrs.evolve(
        sample,
        inputs=sample.inputs[:, :, :24],
        targets={n: t[..., :24] if n in MAPS else t for n, t in sample.targets.items()},
        valid={n: v[..., :24] if n in MAPS else v for n, v in sample.valid.items()},
    )
    turned = turn(square, TASKS, 90)
    for name in ("segmentation", "depth", "edges", "heat"):
        moved = torch.rot90(square.targets[name], -1, (-2, -1))  # clockwise
        assert torch.equal(turned.targets[name], moved), name
        assert torch.equal(turned.valid[name], torch.rot90(square.valid[name], -1)), name
    torch.testing.assert_close(turned.inputs, torch.rot90(square.inputs, -1, (-2, -1)))
    assert torch.equal(turned.targets["scene"], square.targets["scene"])
    # What pointed to the right points down.
    x, y, z = torch.rot90(square.targets["normals"], -1, (-2, -1))
    torch.testing.assert_close(turned.targets["normals"], torch.stack([-y, x, z]))


def test_what_comes_from_outside_is_black_and_not_valid():
    turned = turn(numbered(), TASKS, 45)
    corner = (slice(0, 2), slice(0, 2))
    assert not turned.valid["depth"][corner].any()
    assert not turned.inputs[:, :2, :2].any()
    assert turned.valid["scene"]
    assert torch.equal(turn(numbered(), TASKS, 0).targets["depth"], numbered().targets["depth"])
