"""Furnished rooms, generated: where things stand, the camera and the lights.

A scene is a pure function of (seed, index). The camera always stands near the wall y = 0 and looks
towards the far one; since the frame itself is arbitrary, this costs no generality.
"""

from __future__ import annotations

import math

from mtlcore.datasets.furniture import (
    Piece,
    make_ball,
    make_bed,
    make_cabinet,
    make_chair,
    make_door,
    make_floor_lamp,
    make_hanging_lamp,
    make_material,
    make_picture,
    make_rug,
    make_table,
    make_table_lamp,
    make_window,
)
from mtlcore.datasets.random_numbers import Stream
from mtlcore.datasets.scene import CLASS_NAMES, Camera, Light, Primitive, Scene, Vector

Rectangle = tuple[float, float, float, float]  # x0, y0, x1, y1

_TRIES = 12  # attempts at a free place before a piece is left out


class _Layout:
    """Puts pieces where there is room for them and where the camera sees them."""

    def __init__(self, stream: Stream, size: Vector, camera: Camera) -> None:
        self.primitives: list[Primitive] = []
        self._stream, self._size, self._camera = stream, size, camera
        self._sine, self._cosine = math.sin(camera.yaw), math.cos(camera.yaw)
        x, y, _ = camera.position
        self._floor: list[Rectangle] = [(x - 0.4, y - 0.4, x + 0.4, y + 0.4)]
        self._walls: list[tuple[float, float, float]] = []  # yaw of the wall, from, to

    def stand(self, piece: Piece, on_top: Piece | None = None) -> None:
        """Stand a piece on the floor, turned at will."""
        for _ in range(_TRIES):
            x, y = self._point_in_view()
            yaw = self._stream.uniform(-math.pi, math.pi)
            if self._reserve(x, y, yaw, piece.half):
                return self._put(piece, (x, y, 0.0), yaw, on_top)
        return None

    def lean(self, piece: Piece, on_top: Piece | None = None) -> None:
        """Stand a piece with its back to a wall."""
        for _ in range(_TRIES):
            x, y, yaw, _ = self._place_at_wall(piece)
            if self._in_view(x, y) and self._reserve(x, y, yaw, piece.half):
                return self._put(piece, (x, y, 0.0), yaw, on_top)
        return None

    def mount(self, piece: Piece, z: float) -> None:
        """Fix a piece flat to a wall, its origin at height ``z``."""
        for _ in range(_TRIES):
            x, y, yaw, along = self._place_at_wall(piece)
            start, end = along - piece.half[0] - 0.1, along + piece.half[0] + 0.1
            free = all(wall != yaw or end < a or start > b for wall, a, b in self._walls)
            if free and self._in_view(x, y):
                self._walls.append((yaw, start, end))
                return self._put(piece, (x, y, z), yaw)
        return None

    def place_freely(self, piece: Piece, z: float) -> None:
        """Put a piece where nothing can be in its way: flat on the floor or under the ceiling."""
        x, y = self._point_in_view()
        x = min(max(x, piece.half[0]), self._size[0] - piece.half[0])
        y = min(max(y, piece.half[1]), self._size[1] - piece.half[1])
        self._put(piece, (x, y, z), 0.0)

    def _put(self, piece: Piece, at: Vector, yaw: float, on_top: Piece | None = None) -> None:
        label, sine, cosine = CLASS_NAMES.index(piece.name), math.sin(yaw), math.cos(yaw)
        for shape, (x, y, z), half, material in piece.parts:
            centre = (at[0] + cosine * x - sine * y, at[1] + sine * x + cosine * y, at[2] + z)
            self.primitives.append(Primitive(shape, label, centre, half, yaw, material))
        if on_top is not None:
            self._put(on_top, (at[0], at[1], at[2] + piece.height), yaw)

    def _point_in_view(self) -> tuple[float, float]:
        """Draw a point of the floor, evenly in distance: things near the camera are many."""
        forward = self._stream.uniform(1.1, max(self._size))
        side = 0.9 * forward * self._camera.tangent * self._stream.uniform(-1, 1)
        x = self._camera.position[0] - self._sine * forward + self._cosine * side
        return x, self._camera.position[1] + self._cosine * forward + self._sine * side

    def _in_view(self, x: float, y: float) -> bool:
        x, y = x - self._camera.position[0], y - self._camera.position[1]
        forward, side = self._cosine * y - self._sine * x, self._cosine * x + self._sine * y
        return forward > 1.0 and abs(side) < 0.95 * forward * self._camera.tangent

    def _place_at_wall(self, piece: Piece) -> tuple[float, float, float, float]:
        """Draw a place with its back to a wall: x, y, yaw, and the position along the wall."""
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
        layout.lean(make_bed(stream))
    if stream.chance(0.6):
        layout.mount(make_door(stream), 0.0)
    for _ in range(stream.below(3)):
        layout.lean(make_cabinet(stream), make_table_lamp(stream) if stream.chance(0.3) else None)
    if stream.chance(0.6):
        layout.stand(make_table(stream), make_ball(stream, 0.2) if stream.chance(0.4) else None)
    for _ in range(2):
        if stream.chance(0.22):
            layout.stand(make_chair(stream))
    if stream.chance(0.2):
        layout.stand(make_floor_lamp(stream))
    for _ in range(stream.below(3)):
        layout.stand(make_ball(stream, 0.34))
    if stream.chance(0.75):
        layout.mount(make_window(stream), stream.uniform(1.3, 1.6))
    for _ in range(stream.below(3)):
        layout.mount(make_picture(stream), stream.uniform(1.3, 1.8))
    if stream.chance(0.7):
        layout.place_freely(make_rug(stream), 0.0)
    if stream.chance(0.3):
        layout.place_freely(make_hanging_lamp(stream), height)


def _make_light(stream: Stream, size: Vector, intensity: float) -> Light:
    x, y = (extent * stream.uniform(0.15, 0.85) for extent in size[:2])
    z = size[2] * stream.uniform(0.5, 0.95)
    red, green, blue = (intensity * stream.uniform(0.75, 1.0) for _ in range(3))
    return Light((x, y, z), (red, green, blue))


def make_scene(seed: int, index: int) -> Scene:
    """Return the room of (seed, index), the same on every platform and at every resolution."""
    stream = Stream(seed, index)
    size = (stream.uniform(2.8, 5.0), stream.uniform(3.2, 5.5), stream.uniform(2.3, 2.9))
    camera = _make_camera(stream, size)
    wall, floor, ceiling = (make_material(stream) for _ in range(3))
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
