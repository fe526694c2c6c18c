"""The rendered rooms: exact labels, one distribution of colours, the same scene everywhere."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray

from mtlcore.datasets.random_numbers import Stream
from mtlcore.datasets.rendering import CLASS_NAMES, FACINGS, SHAPES, Rendering, render
from mtlcore.datasets.scene import Primitive
from mtlcore.datasets.scene_layout import make_scene

Floats = NDArray[np.float64]
GOLDEN = [
    (0, (1674, 590, 701, 738, 0, 105, 0, 18, 79, 0, 191, 0, 0)),
    (1, (961, 1431, 0, 342, 0, 0, 561, 0, 220, 318, 0, 263, 0)),
    (12345678901, (1098, 129, 721, 163, 432, 759, 263, 0, 29, 276, 0, 226, 0)),
]
GOLDEN_GREEN = [
    [71, 74, 94, 78, 78, 94, 92, 72],
    [70, 92, 81, 85, 106, 83, 77, 76],
    [56, 60, 66, 71, 75, 71, 66, 81],
    [57, 90, 108, 80, 115, 78, 69, 58],
    [56, 89, 99, 79, 112, 77, 68, 83],
    [55, 59, 64, 70, 95, 75, 65, 81],
    [161, 174, 190, 203, 206, 79, 78, 76],
    [170, 180, 189, 195, 197, 78, 78, 72],
]


@lru_cache(maxsize=1)
def many() -> tuple[Rendering, ...]:
    return tuple(render(3, index, 32, 32) for index in range(300))


def rays(seed: int, index: int, height: int, width: int) -> Floats:
    """(H, W, 3) directions with unit forward component, worked out anew."""
    tangent, side = make_scene(seed, index).camera.tangent, min(height, width)
    u = (2 * np.arange(width) + 1 - width) / side * tangent
    v = (2 * np.arange(height) + 1 - height) / side * tangent
    return np.stack(np.broadcast_arrays(u[None, :], v[:, None], np.float64(1)), axis=-1)


def to_world(seed: int, index: int, points: Floats) -> Floats:
    """Camera-frame points turned down by the pitch, then about the vertical, then moved."""
    camera = make_scene(seed, index).camera
    x, y, z = np.moveaxis(points, -1, 0)
    ahead = math.cos(camera.pitch) * z - math.sin(camera.pitch) * y
    up = -math.sin(camera.pitch) * z - math.cos(camera.pitch) * y
    east = math.cos(camera.yaw) * x - math.sin(camera.yaw) * ahead
    north = math.sin(camera.yaw) * x + math.cos(camera.yaw) * ahead
    return np.stack([east, north, up], axis=-1) + camera.position


def outside(primitive: Primitive, points: Floats) -> Floats:
    """A measure in metres that is 0 on the surface, positive outside and negative inside."""
    x, y, z = np.moveaxis(points - primitive.centre, -1, 0)
    half_x, half_y, half_z = primitive.half
    c, s = math.cos(primitive.yaw), math.sin(primitive.yaw)
    excess = {
        "sphere": [np.sqrt(x * x + y * y + z * z) - half_x],
        "cylinder": [np.hypot(x, y) - half_x, abs(z) - half_z],
        "box": [abs(c * x + s * y) - half_x, abs(c * y - s * x) - half_y, abs(z) - half_z],
    }
    result: Floats = np.stack(excess[primitive.shape]).max(axis=0)
    return result


@pytest.mark.parametrize(("height", "width"), [(16, 16), (24, 40), (40, 24), (1, 7)])
def test_shapes_and_types(height: int, width: int) -> None:
    room = render(0, 0, height, width)
    for array, shape, dtype in (
        (room.image, (height, width, 3), np.uint8),
        (room.segmentation, (height, width), np.uint8),
        (room.depth, (height, width), np.float32),
        (room.normals, (height, width, 3), np.float32),
        (room.edges, (height, width), np.uint8),
    ):
        assert array.shape == shape
        assert array.dtype == dtype
        assert array.flags.c_contiguous
    assert np.isfinite(room.depth).all()
    assert room.depth.min() > 0
    assert set(np.unique(room.edges)) <= {0, 1}


def test_a_room_is_a_function_of_seed_and_index() -> None:
    first, again = render(5, 9, 48, 48), render(5, 9, 48, 48)
    for name in ("image", "segmentation", "depth", "normals", "edges"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    for seed, index in ((5, 10), (6, 9), (9, 5), (-5, 9)):
        other = render(seed, index, 48, 48)
        assert (first.image != other.image).any(axis=2).mean() > 0.8
        assert (first.segmentation != other.segmentation).mean() > 0.1


def test_the_stream_is_splitmix64() -> None:
    """The published outputs for the state 1234567, so that no platform can differ unnoticed."""
    stream = Stream()
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    stream._numbers = stream._draw(1234567)
    drawn = [stream.uniform(0, 1) for _ in published]
    assert drawn == [(number >> 11) * 2.0**-53 for number in published]


def test_the_stream_is_even_beyond_its_first_block() -> None:
    stream = Stream(1, 2)
    numbers = np.array([stream.uniform(0, 1) for _ in range(5000)])
    assert len(set(numbers)) == len(numbers)
    counts = np.bincount((numbers * 10).astype(int), minlength=10)
    assert abs(counts - 500).max() < 100


@pytest.mark.parametrize("index", range(6))
def test_every_pixel_shows_the_first_surface_on_its_ray(index: int) -> None:
    """By brute force: the point lies on a solid of its class, and nothing stands before it."""
    room, scene = render(1, index, 24, 32), make_scene(1, index)
    ends = rays(1, index, 24, 32) * room.depth[..., None]
    points = to_world(1, index, ends)
    size = np.array(scene.size)
    walls = np.stack([points, size - points], axis=-1)  # (H, W, axis, end): distances to the room
    assert walls.min() > -1e-4
    distance = np.full((len(CLASS_NAMES), 24, 32), np.inf)
    distance[CLASS_NAMES.index("wall")] = walls[..., :2, :].min(axis=(-1, -2))
    distance[CLASS_NAMES.index("floor")] = walls[..., 2, 0]
    distance[CLASS_NAMES.index("ceiling")] = walls[..., 2, 1]
    for primitive in scene.primitives:
        np.minimum(
            distance[primitive.label],
            abs(outside(primitive, points)),
            out=distance[primitive.label],
        )
        for share in np.linspace(0, 0.995, 40):
            before = to_world(1, index, share * ends)
            assert outside(primitive, before).min() > -0.005, primitive
    shown = np.take_along_axis(distance, room.segmentation[None].astype(np.intp), axis=0)
    assert shown.max() < 1e-4


@pytest.mark.parametrize("index", range(12))
def test_normals_fit_the_depth(index: int) -> None:
    """Of two points on one plane, sphere or cylinder, the chord is orthogonal to n1 + n2."""
    room = render(2, index, 64, 48)
    directions = rays(2, index, 64, 48)
    normals = room.normals.astype(np.float64)
    np.testing.assert_allclose((normals**2).sum(axis=2), 1, atol=1e-5)
    assert (normals * directions).sum(axis=2).max() < 0
    points = directions * room.depth[..., None]
    inner = room.edges[:-1, :-1] == 0
    assert inner.mean() > 0.5
    for there in (np.s_[1:, :-1], np.s_[:-1, 1:]):
        chord = points[there] - points[:-1, :-1]
        error = abs((chord * (normals[there] + normals[:-1, :-1])).sum(axis=2))
        assert error[inner].max() < 1e-4
        classes = room.segmentation[there] == room.segmentation[:-1, :-1]
        assert classes[inner].all()


def test_edges_are_where_something_changes() -> None:
    """An edge pixel differs from a neighbour in class, orientation or depth, nearly always."""
    found = total = 0
    for room in many():
        marked = room.edges[:-1, :-1] == 1
        changed = np.zeros(marked.shape, dtype=bool)
        for there in (np.s_[1:, :-1], np.s_[:-1, 1:]):
            cosine = (room.normals[there] * room.normals[:-1, :-1]).sum(axis=2)
            step = abs(room.depth[there] - room.depth[:-1, :-1])
            changed |= room.segmentation[there] != room.segmentation[:-1, :-1]
            changed |= (cosine < 0.9) | (step > 0.05)
        found += int((marked & changed).sum())
        total += int(marked.sum())
    assert found > 0.98 * total


def test_resolution_does_not_change_the_room() -> None:
    for index in range(20):
        small, large = render(4, index, 32, 32), render(4, index, 96, 96)
        # Every third pixel centre of the large one is a pixel centre of the small one.
        np.testing.assert_array_equal(small.segmentation, large.segmentation[1::3, 1::3])
        np.testing.assert_allclose(small.depth, large.depth[1::3, 1::3], rtol=1e-4)
        half = render(4, index, 64, 64).segmentation[::2, ::2]
        assert (small.segmentation == half).mean() > 0.85


@pytest.mark.parametrize(("index", "expected"), GOLDEN)
def test_the_rooms_are_those_of_old(index: int, expected: tuple[int, ...]) -> None:
    """Pixels of each class, as first released: results on the rooms are comparable only so."""
    labels = render(0, index, 64, 64).segmentation
    counts = np.bincount(labels.ravel(), minlength=len(CLASS_NAMES))
    assert abs(counts - expected).sum() <= 8  # a pixel or so may be a tie elsewhere


def test_the_images_are_those_of_old() -> None:
    """The green of every eighth pixel, of a room that has every kind of texture and two lights."""
    green = render(0, 10, 64, 64).image[4::8, 4::8, 1].astype(int)
    assert (abs(green - GOLDEN_GREEN) > 1).sum() <= 2  # a pixel or so may be a tie elsewhere


def test_every_class_occurs_and_none_reigns() -> None:
    labels = np.stack([room.segmentation for room in many()])
    shares = np.bincount(labels.ravel(), minlength=len(CLASS_NAMES)) / labels.size
    assert len(shares) == len(CLASS_NAMES)
    assert shares.min() > 0.005
    assert shares.max() < 0.38
    furnished = 1 - shares[[CLASS_NAMES.index(name) for name in ("wall", "floor", "ceiling")]].sum()
    assert furnished > 0.3


def test_the_camera_stands_free() -> None:
    for index in range(1000):
        scene = make_scene(8, index)
        position = np.array(scene.camera.position)
        assert (position > 0.2).all()
        assert (position < np.array(scene.size) - 0.2).all()
        assert min(outside(part, position).min() for part in scene.primitives) > 0.1


def test_colour_does_not_give_the_class_away() -> None:
    """A histogram over RGB in 8 levels a channel, fitted on some rooms, asked about others."""
    labels = np.stack([room.segmentation for room in many()]).reshape(len(many()), -1)
    colours = np.stack([room.image for room in many()]).reshape(len(many()), -1, 3) // 32
    codes = (colours.astype(np.intp) * (64, 8, 1)).sum(axis=2)
    fit, rest = slice(0, 200), slice(200, None)
    votes = np.zeros((512, len(CLASS_NAMES)))
    np.add.at(votes, (codes[fit], labels[fit]), 1)
    most_common = np.bincount(labels[fit].ravel()).argmax()
    guess = np.where(votes.sum(axis=1) > 0, votes.argmax(axis=1), most_common)
    accuracy = (guess[codes[rest]] == labels[rest]).mean()
    assert accuracy < 1.25 * (labels[rest] == most_common).mean()


def test_images_are_well_exposed() -> None:
    means = np.array([room.image.mean() for room in many()])
    assert 80 < means.mean() < 150
    assert np.mean(means < 40) < 0.02
    assert np.mean([(room.image == 255).all(axis=2).mean() for room in many()]) < 0.05


def test_further_labels_follow_from_the_others():
    for index in range(40):
        room = render(6, index, 32, 48, further=True)
        more = room.further
        bare = more.furniture == 0
        structure = [CLASS_NAMES.index(name) for name in ("wall", "floor", "ceiling")]
        walls = np.isin(room.segmentation, structure)
        np.testing.assert_array_equal(bare, more.shapes == SHAPES.index("room"))
        assert bool((walls | ~bare).all())
        # Where nothing stands before it, the empty room is what is seen; elsewhere it is behind.
        np.testing.assert_array_equal(more.layout_depth[bare], room.depth[bare])
        assert bool((more.layout_depth[~bare] > room.depth[~bare]).all())
        np.testing.assert_allclose(more.layout_normals[bare], room.normals[bare], atol=1e-6)
        # An outline is an edge, and an edge that is none lies within one part.
        assert bool((more.outlines <= room.edges).all())
        for name, faces in (("floor", "up"), ("ceiling", "down"), ("wall", "side")):
            of_room = bare & (room.segmentation == CLASS_NAMES.index(name))
            assert set(more.facing[of_room].tolist()) <= {FACINGS.index(faces)}


def test_what_faces_up_has_the_floors_normal():
    seen = set()
    for index in range(40):
        room = render(6, index, 32, 48, further=True)
        facing, normals = room.further.facing, room.normals
        upwards, downwards = (facing == FACINGS.index(name) for name in ("up", "down"))
        floor = (room.further.furniture == 0) & upwards
        if not floor.any():
            continue
        up = normals[floor][0]
        along = normals @ up
        flat = facing != FACINGS.index("round")
        expected = np.select([upwards, downwards], [1, -1])
        np.testing.assert_allclose(along[flat], expected[flat], atol=1e-5)
        seen |= set(np.unique(facing).tolist())
    assert seen == set(range(len(FACINGS)))


def test_further_labels_cost_nothing_where_nobody_asks():
    plain, more = render(6, 1, 24, 24), render(6, 1, 24, 24, further=True)
    assert plain.further is None
    np.testing.assert_array_equal(plain.image, more.image)
