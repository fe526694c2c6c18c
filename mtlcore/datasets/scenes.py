"""What a procedurally generated room holds: layout, furniture, materials and lights.

A scene is a pure function of (seed, index). World frame: x and y horizontal, z up, metres, the
room's corner at the origin. The camera always stands near the wall y = 0 and looks towards the
far one; since the frame itself is arbitrary, this costs no generality.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import attrs
import numpy as np
from numpy.typing import NDArray

CLASS_NAMES: tuple[str, ...] = (
    "wall", "floor", "ceiling", "table", "chair", "bed", "cabinet",
    "lamp", "ball", "picture", "window", "door", "rug",
)  # fmt: skip
TEXTURE_KINDS: tuple[str, ...] = ("plain", "stripes", "checker", "gradient", "noise", "dots")

Shape = Literal["box", "sphere", "cylinder"]
Vector = tuple[float, float, float]
Rectangle = tuple[float, float, float, float]  # x0, y0, x1, y1

_MASK = (1 << 64) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_TRIES = 12  # attempts at a free place before a piece is left out


def hash64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix every 64-bit integer of an array (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def hash_uniform(start: int, count: int) -> NDArray[np.float64]:
    """``count`` numbers in [0, 1), on every platform the same: the splitmix64 run of ``start``."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    mixed = hash64(steps + np.uint64(start & _MASK))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Stream:
    """Random draws from integer keys alone, independent of any library's generators."""

    _BLOCK = 256

    def __init__(self, *keys: int) -> None:
        state = np.zeros(1, dtype=np.uint64)
        for key in keys:
            state = hash64((state ^ np.uint64(key & _MASK)) + _GOLDEN)
        self._numbers = self._draw(int(state[0]))

    def _draw(self, state: int) -> Iterator[float]:
        step = int(_GOLDEN) * self._BLOCK
        while True:  # by blocks: one number at a time would cost as much as the ray casting
            yield from hash_uniform(state, self._BLOCK).tolist()
            state += step

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * next(self._numbers)

    def below(self, bound: int) -> int:
        return int(bound * next(self._numbers))

    def chance(self, probability: float) -> bool:
        return next(self._numbers) < probability


@attrs.frozen
class Material:
    """A texture blending two RGB colours over in-plane coordinates of a surface."""

    kind: int  # index into TEXTURE_KINDS
    first: Vector
    second: Vector
    period: float  # metres
    angle: float  # radians, of the pattern in the surface
    shift: tuple[float, float]  # of the pattern, in periods


@attrs.frozen
class Primitive:
    """A solid turned by ``yaw`` about the vertical axis.

    ``half`` holds half the extents of its bounding box along its own axes: (r, r, r) for a
    sphere, (r, r, half the height) for a cylinder, whose axis is vertical.
    """

    shape: Shape
    label: int  # index into CLASS_NAMES
    centre: Vector
    half: Vector
    yaw: float
    material: Material


@attrs.frozen
class Camera:
    position: Vector
    yaw: float  # radians; 0 looks along y, positive turns towards -x
    pitch: float  # radians, positive looks down
    tangent: float  # of half the field of view, which spans the shorter image side


@attrs.frozen
class Light:
    position: Vector
    colour: Vector  # intensity included


@attrs.frozen
class Scene:
    """A room from the origin to ``size`` with what stands in it."""

    size: Vector
    wall: Material
    floor: Material
    ceiling: Material
    primitives: tuple[Primitive, ...]
    camera: Camera
    ambient: float
    lights: tuple[Light, ...]


_Part = tuple[Shape, Vector, Vector, Material]  # shape, centre, half extents, material


@attrs.frozen
class _Piece:
    """One thing of a class, about its own origin: standing on z = 0, its back towards +y."""

    name: str
    half: tuple[float, float]  # of the footprint along its own x and y
    height: float
    parts: list[_Part]


# -- materials: one distribution for every class, so that colour does not tell the class ----------


def _colour(stream: Stream) -> Vector:
    value, saturation = stream.uniform(0.25, 1.0), stream.uniform(0.0, 0.9)
    red, green, blue = (value * (1 - saturation * stream.uniform(0, 1)) for _ in range(3))
    return red, green, blue


def _material(stream: Stream) -> Material:
    first, other, contrast = _colour(stream), _colour(stream), stream.uniform(0.3, 1.0)
    red, green, blue = (a + contrast * (b - a) for a, b in zip(first, other, strict=True))
    return Material(
        kind=stream.below(len(TEXTURE_KINDS)),
        first=first,
        second=(red, green, blue),
        period=stream.uniform(0.2, 0.8),
        angle=stream.uniform(0, math.pi),
        shift=(stream.uniform(0, 1), stream.uniform(0, 1)),
    )


# -- furniture: sizes in metres; no two faces of a piece coincide, which would be a tie ----------


def _legs(x: float, y: float, height: float, thick: float, material: Material) -> list[_Part]:
    """Four square legs standing at (+-x, +-y)."""
    half = (thick, thick, height / 2)
    corners = [(sx * x, sy * y, height / 2) for sx in (-1, 1) for sy in (-1, 1)]
    return [("box", corner, half, material) for corner in corners]


def _table(stream: Stream) -> _Piece:
    x, y = stream.uniform(0.45, 0.85), stream.uniform(0.35, 0.55)
    height, thick = stream.uniform(0.5, 0.8), stream.uniform(0.015, 0.035)
    top, below = _material(stream), _material(stream)
    under, leg = height - 2 * thick, stream.uniform(0.02, 0.045)
    parts: list[_Part]
    if stream.chance(0.5):  # a round one on a single foot
        parts = [
            ("cylinder", (0, 0, height - thick), (y, y, thick), top),
            ("cylinder", (0, 0, under / 2), (0.06, 0.06, under / 2), below),
        ]
        return _Piece("table", (y, y), height, parts)
    parts = [("box", (0, 0, height - thick), (x, y, thick), top)]
    parts += _legs(x - leg - 0.02, y - leg - 0.02, under, leg, below)
    return _Piece("table", (x, y), height, parts)


def _chair(stream: Stream) -> _Piece:
    half, seat = stream.uniform(0.2, 0.28), stream.uniform(0.4, 0.5)
    back, thick = stream.uniform(0.2, 0.32), 0.025
    cover, frame = _material(stream), _material(stream)
    parts: list[_Part] = [
        ("box", (0, 0, seat - thick), (half, half, thick), cover),
        ("box", (0, half - thick - 0.005, seat + back), (half - 0.005, thick, back), cover),
    ]
    under = seat - 2 * thick
    if stream.chance(0.6):  # an office chair on a post
        parts.append(("cylinder", (0, 0, under / 2), (0.04, 0.04, under / 2), frame))
        parts.append(("cylinder", (0, 0, 0.03), (0.2, 0.2, 0.03), frame))
    else:
        parts += _legs(half - 0.035, half - 0.035, under, 0.025, frame)
    return _Piece("chair", (half, half), seat + 2 * back, parts)


def _bed(stream: Stream) -> _Piece:
    x, y = stream.uniform(0.45, 0.8), stream.uniform(0.95, 1.05)
    frame, mattress = stream.uniform(0.1, 0.16), stream.uniform(0.07, 0.12)
    board, thick, top = stream.uniform(0.4, 0.6), 0.025, 2 * (frame + mattress)
    wood, cover, pillow = _material(stream), _material(stream), _material(stream)
    parts: list[_Part] = [
        ("box", (0, -thick, frame), (x - 0.005, y - thick, frame), wood),
        ("box", (0, -thick, top - mattress), (x - 0.03, y - thick - 0.03, mattress), cover),
        ("box", (0, y - thick, board), (x, thick, board), wood),
        ("box", (0, y - 0.35, top + 0.05), (0.6 * x, 0.2, 0.05), pillow),
    ]
    return _Piece("bed", (x, y), 2 * board, parts)


def _cabinet(stream: Stream) -> _Piece:
    x, y = stream.uniform(0.3, 0.7), stream.uniform(0.18, 0.3)
    z = stream.uniform(0.3, 1.0)  # half the height: from a sideboard to a wardrobe
    body, other = _material(stream), _material(stream)
    parts: list[_Part]
    if stream.chance(0.8):  # closed
        parts = [
            ("box", (0, 0, z - 0.015), (x - 0.02, y - 0.02, z - 0.015), body),
            ("box", (0, 0, 2 * z - 0.015), (x, y, 0.015), other),
        ]
        return _Piece("cabinet", (x, y), 2 * z, parts)
    parts = [
        ("box", (x - 0.015, 0, z), (0.015, y, z), body),
        ("box", (0.015 - x, 0, z), (0.015, y, z), body),
        ("box", (0, y - 0.02, z), (x - 0.03, 0.01, z - 0.01), other),
    ]
    boards = 2 + int(z / 0.5)
    for board in range(boards):
        level = 0.1 + (2 * z - 0.13) * board / (boards - 1)
        parts.append(("box", (0, -0.005, level), (x - 0.03, y - 0.025, 0.015), body))
    return _Piece("cabinet", (x, y), 2 * z, parts)


def _floor_lamp(stream: Stream) -> _Piece:
    radius, shade = stream.uniform(0.18, 0.32), stream.uniform(0.14, 0.22)
    height, metal = stream.uniform(1.3, 1.8), _material(stream)
    pole = height / 2 - shade
    parts: list[_Part] = [
        ("cylinder", (0, 0, 0.02), (0.15, 0.15, 0.02), metal),
        ("cylinder", (0, 0, pole), (0.025, 0.025, pole), metal),
        ("cylinder", (0, 0, height - shade), (radius, radius, shade), _material(stream)),
    ]
    return _Piece("lamp", (radius, radius), height, parts)


def _table_lamp(stream: Stream) -> _Piece:
    foot, radius = stream.uniform(0.07, 0.1), stream.uniform(0.12, 0.18)
    shade = stream.uniform(0.09, 0.14)
    centre = 2 * foot + shade - 0.02
    parts: list[_Part] = [
        ("sphere", (0, 0, foot), (foot, foot, foot), _material(stream)),
        ("cylinder", (0, 0, centre), (radius, radius, shade), _material(stream)),
    ]
    return _Piece("lamp", (radius, radius), centre + shade, parts)


def _hanging_lamp(stream: Stream) -> _Piece:
    """A globe on a cord below z = 0, the height it is hung from."""
    radius, cord = stream.uniform(0.15, 0.28), stream.uniform(0.05, 0.15)
    material = _material(stream)
    parts: list[_Part] = [
        ("cylinder", (0, 0, -cord), (0.02, 0.02, cord), material),
        ("sphere", (0, 0, -2 * cord - radius), (radius, radius, radius), material),
    ]
    return _Piece("lamp", (radius, radius), 2 * (cord + radius), parts)


def _ball(stream: Stream, largest: float) -> _Piece:
    radius = stream.uniform(0.1, largest)
    part: _Part = ("sphere", (0, 0, radius), (radius, radius, radius), _material(stream))
    return _Piece("ball", (radius, radius), 2 * radius, [part])


def _rug(stream: Stream) -> _Piece:
    x, y, z = stream.uniform(0.5, 1.2), stream.uniform(0.4, 0.9), 0.008
    shape: Shape = "box" if stream.chance(0.7) else "cylinder"
    if shape == "cylinder":
        x = y
    return _Piece("rug", (x, y), 2 * z, [(shape, (0, 0, z), (x, y, z), _material(stream))])


def _picture(stream: Stream) -> _Piece:
    x, z = stream.uniform(0.3, 0.8), stream.uniform(0.25, 0.55)
    part: _Part = ("box", (0, 0, 0), (x, 0.02, z), _material(stream))
    return _Piece("picture", (x, 0.02), 2 * z, [part])


def _window(stream: Stream) -> _Piece:
    """A pane behind a bar, upright or level."""
    x, z = stream.uniform(0.45, 1.0), stream.uniform(0.4, 0.65)
    bar: Vector = (0.03, 0.05, z) if stream.chance(0.5) else (x, 0.05, 0.03)
    parts: list[_Part] = [
        ("box", (0, 0, 0), (x, 0.02, z), _material(stream)),
        ("box", (0, 0, 0), bar, _material(stream)),
    ]
    return _Piece("window", (x, 0.02), 2 * z, parts)


def _door(stream: Stream) -> _Piece:
    x, z = stream.uniform(0.38, 0.5), stream.uniform(0.95, 1.08)
    knob = x - 0.08 if stream.chance(0.5) else 0.08 - x
    parts: list[_Part] = [
        ("box", (0, 0, z), (x, 0.03, z), _material(stream)),
        ("sphere", (knob, -0.07, 1.0), (0.04, 0.04, 0.04), _material(stream)),
    ]
    return _Piece("door", (x, 0.03), 2 * z, parts)


# -- layout ---------------------------------------------------------------------------------------


class _Layout:
    """Puts pieces where there is room for them and where the camera sees them."""

    def __init__(self, stream: Stream, size: Vector, camera: Camera) -> None:
        self.primitives: list[Primitive] = []
        self._stream, self._size, self._camera = stream, size, camera
        self._sine, self._cosine = math.sin(camera.yaw), math.cos(camera.yaw)
        x, y, _ = camera.position
        self._floor: list[Rectangle] = [(x - 0.4, y - 0.4, x + 0.4, y + 0.4)]
        self._walls: list[tuple[float, float, float]] = []  # yaw of the wall, from, to

    def stand(self, piece: _Piece, on_top: _Piece | None = None) -> None:
        """Stand a piece on the floor, turned at will."""
        for _ in range(_TRIES):
            x, y = self._point_in_view()
            yaw = self._stream.uniform(-math.pi, math.pi)
            if self._reserve(x, y, yaw, piece.half):
                return self._put(piece, (x, y, 0.0), yaw, on_top)
        return None

    def lean(self, piece: _Piece, on_top: _Piece | None = None) -> None:
        """Stand a piece with its back to a wall."""
        for _ in range(_TRIES):
            x, y, yaw, _ = self._place_at_wall(piece)
            if self._in_view(x, y) and self._reserve(x, y, yaw, piece.half):
                return self._put(piece, (x, y, 0.0), yaw, on_top)
        return None

    def mount(self, piece: _Piece, z: float) -> None:
        """Fix a piece flat to a wall, its origin at height ``z``."""
        for _ in range(_TRIES):
            x, y, yaw, along = self._place_at_wall(piece)
            start, end = along - piece.half[0] - 0.1, along + piece.half[0] + 0.1
            free = all(wall != yaw or end < a or start > b for wall, a, b in self._walls)
            if free and self._in_view(x, y):
                self._walls.append((yaw, start, end))
                return self._put(piece, (x, y, z), yaw)
        return None

    def place_freely(self, piece: _Piece, z: float) -> None:
        """Put a piece where nothing can be in its way: flat on the floor or under the ceiling."""
        x, y = self._point_in_view()
        x = min(max(x, piece.half[0]), self._size[0] - piece.half[0])
        y = min(max(y, piece.half[1]), self._size[1] - piece.half[1])
        self._put(piece, (x, y, z), 0.0)

    def _put(self, piece: _Piece, at: Vector, yaw: float, on_top: _Piece | None = None) -> None:
        label, sine, cosine = CLASS_NAMES.index(piece.name), math.sin(yaw), math.cos(yaw)
        for shape, (x, y, z), half, material in piece.parts:
            centre = (at[0] + cosine * x - sine * y, at[1] + sine * x + cosine * y, at[2] + z)
            self.primitives.append(Primitive(shape, label, centre, half, yaw, material))
        if on_top is not None:
            self._put(on_top, (at[0], at[1], at[2] + piece.height), yaw)

    def _point_in_view(self) -> tuple[float, float]:
        """A point of the floor before the camera. Even in distance, so near things are many."""
        forward = self._stream.uniform(1.1, max(self._size))
        side = 0.9 * forward * self._camera.tangent * self._stream.uniform(-1, 1)
        x = self._camera.position[0] - self._sine * forward + self._cosine * side
        return x, self._camera.position[1] + self._cosine * forward + self._sine * side

    def _in_view(self, x: float, y: float) -> bool:
        x, y = x - self._camera.position[0], y - self._camera.position[1]
        forward, side = self._cosine * y - self._sine * x, self._cosine * x + self._sine * y
        return forward > 1.0 and abs(side) < 0.95 * forward * self._camera.tangent

    def _place_at_wall(self, piece: _Piece) -> tuple[float, float, float, float]:
        """A place with the back to the far, left or right wall: x, y, yaw, position along it."""
        (width, length, _), (half, depth) = self._size, piece.half
        wall = self._stream.below(3)
        along = self._stream.uniform(half, (width if wall == 0 else length) - half)
        if wall == 0:
            return along, length - depth, 0.0, along
        if wall == 1:
            return depth, along, math.pi / 2, along
        return width - depth, along, -math.pi / 2, along

    def _reserve(self, x: float, y: float, yaw: float, half: tuple[float, float]) -> bool:
        """Take the rectangle around a turned footprint, if it lies in the room and is free."""
        sine, cosine = abs(math.sin(yaw)), abs(math.cos(yaw))
        dx, dy = cosine * half[0] + sine * half[1], sine * half[0] + cosine * half[1]
        x0, y0, x1, y1 = x - dx, y - dy, x + dx, y + dy
        if min(x0, y0) < -1e-6 or x1 > self._size[0] + 1e-6 or y1 > self._size[1] + 1e-6:
            return False
        if any(x0 < b[2] and b[0] < x1 and y0 < b[3] and b[1] < y1 for b in self._floor):
            return False
        self._floor.append((x0, y0, x1, y1))
        return True


def _make_camera(stream: Stream, size: Vector) -> Camera:
    x, y = size[0] * stream.uniform(0.2, 0.8), size[1] * stream.uniform(0.08, 0.25)
    target_x, target_y = size[0] * stream.uniform(0.25, 0.75), size[1] * stream.uniform(0.7, 1.0)
    return Camera(
        position=(x, max(y, 0.3), stream.uniform(1.1, 1.75)),
        yaw=math.atan2(x - target_x, target_y - y),
        pitch=stream.uniform(0.02, 0.45),
        tangent=stream.uniform(0.64, 0.72),
    )


def _furnish(layout: _Layout, stream: Stream, height: float) -> None:
    """Fill a room, large things first, since they find a place less easily."""
    if stream.chance(0.4):
        layout.lean(_bed(stream))
    if stream.chance(0.6):
        layout.mount(_door(stream), 0.0)
    for _ in range(stream.below(3)):
        layout.lean(_cabinet(stream), _table_lamp(stream) if stream.chance(0.3) else None)
    if stream.chance(0.6):
        layout.stand(_table(stream), _ball(stream, 0.2) if stream.chance(0.4) else None)
    for _ in range(2):
        if stream.chance(0.22):
            layout.stand(_chair(stream))
    if stream.chance(0.2):
        layout.stand(_floor_lamp(stream))
    for _ in range(stream.below(3)):
        layout.stand(_ball(stream, 0.34))
    if stream.chance(0.75):
        layout.mount(_window(stream), stream.uniform(1.3, 1.6))
    for _ in range(stream.below(3)):
        layout.mount(_picture(stream), stream.uniform(1.3, 1.8))
    if stream.chance(0.7):
        layout.place_freely(_rug(stream), 0.0)
    if stream.chance(0.3):
        layout.place_freely(_hanging_lamp(stream), height)


def _make_light(stream: Stream, size: Vector, intensity: float) -> Light:
    x, y = (extent * stream.uniform(0.15, 0.85) for extent in size[:2])
    z = size[2] * stream.uniform(0.5, 0.95)
    red, green, blue = (intensity * stream.uniform(0.75, 1.0) for _ in range(3))
    return Light((x, y, z), (red, green, blue))


def make_scene(seed: int, index: int) -> Scene:
    """The room of (seed, index): the same on every platform and at every resolution."""
    stream = Stream(seed, index)
    size = (stream.uniform(2.8, 5.0), stream.uniform(3.2, 5.5), stream.uniform(2.3, 2.9))
    camera = _make_camera(stream, size)
    wall, floor, ceiling = (_material(stream) for _ in range(3))
    ambient, total = stream.uniform(0.35, 0.6), stream.uniform(0.6, 1.2)
    share = stream.uniform(0.5, 1.0) if stream.chance(0.6) else 1.0
    lights = [_make_light(stream, size, total * share)]
    if share < 1.0:
        lights.append(_make_light(stream, size, total * (1 - share)))
    layout = _Layout(stream, size, camera)
    _furnish(layout, stream, size[2])
    return Scene(
        size, wall, floor, ceiling, tuple(layout.primitives), camera, ambient, tuple(lights)
    )
