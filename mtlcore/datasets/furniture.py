"""The things that stand in a rendered room, each drawn from a stream of random numbers."""

from __future__ import annotations

import math

import attrs

from mtlcore.datasets.random_numbers import Stream
from mtlcore.datasets.scene import TEXTURE_KINDS, Material, Shape, Vector

Part = tuple[Shape, Vector, Vector, Material]  # shape, centre, half extents, material


@attrs.frozen
class Piece:
    """One thing of a class, about its own origin: standing on z = 0, its back towards +y."""

    name: str
    half: tuple[float, float]  # of the footprint along its own x and y
    height: float
    parts: list[Part]


# -- materials: one distribution for every class, so that colour does not tell the class ----------


def _colour(stream: Stream) -> Vector:
    value, saturation = stream.uniform(0.25, 1.0), stream.uniform(0.0, 0.9)
    red, green, blue = (value * (1 - saturation * stream.uniform(0, 1)) for _ in range(3))
    return red, green, blue


def make_material(stream: Stream) -> Material:
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


def _legs(x: float, y: float, height: float, thick: float, material: Material) -> list[Part]:
    """Four square legs standing at (+-x, +-y)."""
    half = (thick, thick, height / 2)
    corners = [(sx * x, sy * y, height / 2) for sx in (-1, 1) for sy in (-1, 1)]
    return [("box", corner, half, material) for corner in corners]


def make_table(stream: Stream) -> Piece:
    x, y = stream.uniform(0.45, 0.85), stream.uniform(0.35, 0.55)
    height, thick = stream.uniform(0.5, 0.8), stream.uniform(0.015, 0.035)
    top, below = make_material(stream), make_material(stream)
    under, leg = height - 2 * thick, stream.uniform(0.02, 0.045)
    parts: list[Part]
    if stream.chance(0.5):  # a round one on a single foot
        parts = [
            ("cylinder", (0, 0, height - thick), (y, y, thick), top),
            ("cylinder", (0, 0, under / 2), (0.06, 0.06, under / 2), below),
        ]
        return Piece("table", (y, y), height, parts)
    parts = [("box", (0, 0, height - thick), (x, y, thick), top)]
    parts += _legs(x - leg - 0.02, y - leg - 0.02, under, leg, below)
    return Piece("table", (x, y), height, parts)


def make_chair(stream: Stream) -> Piece:
    half, seat = stream.uniform(0.2, 0.28), stream.uniform(0.4, 0.5)
    back, thick = stream.uniform(0.2, 0.32), 0.025
    cover, frame = make_material(stream), make_material(stream)
    parts: list[Part] = [
        ("box", (0, 0, seat - thick), (half, half, thick), cover),
        ("box", (0, half - thick - 0.005, seat + back), (half - 0.005, thick, back), cover),
    ]
    under = seat - 2 * thick
    if stream.chance(0.6):  # an office chair on a post
        parts.append(("cylinder", (0, 0, under / 2), (0.04, 0.04, under / 2), frame))
        parts.append(("cylinder", (0, 0, 0.03), (0.2, 0.2, 0.03), frame))
    else:
        parts += _legs(half - 0.035, half - 0.035, under, 0.025, frame)
    return Piece("chair", (half, half), seat + 2 * back, parts)


def make_bed(stream: Stream) -> Piece:
    x, y = stream.uniform(0.45, 0.8), stream.uniform(0.95, 1.05)
    frame, mattress = stream.uniform(0.1, 0.16), stream.uniform(0.07, 0.12)
    board, thick, top = stream.uniform(0.4, 0.6), 0.025, 2 * (frame + mattress)
    wood, cover, pillow = make_material(stream), make_material(stream), make_material(stream)
    parts: list[Part] = [
        ("box", (0, -thick, frame), (x - 0.005, y - thick, frame), wood),
        ("box", (0, -thick, top - mattress), (x - 0.03, y - thick - 0.03, mattress), cover),
        ("box", (0, y - thick, board), (x, thick, board), wood),
        ("box", (0, y - 0.35, top + 0.05), (0.6 * x, 0.2, 0.05), pillow),
    ]
    return Piece("bed", (x, y), 2 * board, parts)


def make_cabinet(stream: Stream) -> Piece:
    x, y = stream.uniform(0.3, 0.7), stream.uniform(0.18, 0.3)
    z = stream.uniform(0.3, 1.0)  # half the height: from a sideboard to a wardrobe
    body, other = make_material(stream), make_material(stream)
    parts: list[Part]
    if stream.chance(0.8):  # closed
        parts = [
            ("box", (0, 0, z - 0.015), (x - 0.02, y - 0.02, z - 0.015), body),
            ("box", (0, 0, 2 * z - 0.015), (x, y, 0.015), other),
        ]
        return Piece("cabinet", (x, y), 2 * z, parts)
    parts = [
        ("box", (x - 0.015, 0, z), (0.015, y, z), body),
        ("box", (0.015 - x, 0, z), (0.015, y, z), body),
        ("box", (0, y - 0.02, z), (x - 0.03, 0.01, z - 0.01), other),
    ]
    boards = 2 + int(z / 0.5)
    for board in range(boards):
        level = 0.1 + (2 * z - 0.13) * board / (boards - 1)
        parts.append(("box", (0, -0.005, level), (x - 0.03, y - 0.025, 0.015), body))
    return Piece("cabinet", (x, y), 2 * z, parts)


def make_floor_lamp(stream: Stream) -> Piece:
    radius, shade = stream.uniform(0.18, 0.32), stream.uniform(0.14, 0.22)
    height, metal = stream.uniform(1.3, 1.8), make_material(stream)
    pole = height / 2 - shade
    parts: list[Part] = [
        ("cylinder", (0, 0, 0.02), (0.15, 0.15, 0.02), metal),
        ("cylinder", (0, 0, pole), (0.025, 0.025, pole), metal),
        ("cylinder", (0, 0, height - shade), (radius, radius, shade), make_material(stream)),
    ]
    return Piece("lamp", (radius, radius), height, parts)


def make_table_lamp(stream: Stream) -> Piece:
    foot, radius = stream.uniform(0.07, 0.1), stream.uniform(0.12, 0.18)
    shade = stream.uniform(0.09, 0.14)
    centre = 2 * foot + shade - 0.02
    parts: list[Part] = [
        ("sphere", (0, 0, foot), (foot, foot, foot), make_material(stream)),
        ("cylinder", (0, 0, centre), (radius, radius, shade), make_material(stream)),
    ]
    return Piece("lamp", (radius, radius), centre + shade, parts)


def make_hanging_lamp(stream: Stream) -> Piece:
    """Return a globe on a cord, hanging down from z = 0."""
    radius, cord = stream.uniform(0.15, 0.28), stream.uniform(0.05, 0.15)
    material = make_material(stream)
    parts: list[Part] = [
        ("cylinder", (0, 0, -cord), (0.02, 0.02, cord), material),
        ("sphere", (0, 0, -2 * cord - radius), (radius, radius, radius), material),
    ]
    return Piece("lamp", (radius, radius), 2 * (cord + radius), parts)


def make_ball(stream: Stream, largest: float) -> Piece:
    radius = stream.uniform(0.1, largest)
    part: Part = ("sphere", (0, 0, radius), (radius, radius, radius), make_material(stream))
    return Piece("ball", (radius, radius), 2 * radius, [part])


def make_rug(stream: Stream) -> Piece:
    x, y, z = stream.uniform(0.5, 1.2), stream.uniform(0.4, 0.9), 0.008
    shape: Shape = "box" if stream.chance(0.7) else "cylinder"
    if shape == "cylinder":
        x = y
    return Piece("rug", (x, y), 2 * z, [(shape, (0, 0, z), (x, y, z), make_material(stream))])


def make_picture(stream: Stream) -> Piece:
    x, z = stream.uniform(0.3, 0.8), stream.uniform(0.25, 0.55)
    part: Part = ("box", (0, 0, 0), (x, 0.02, z), make_material(stream))
    return Piece("picture", (x, 0.02), 2 * z, [part])


def make_window(stream: Stream) -> Piece:
    """Return a pane behind a vertical or a horizontal bar."""
    x, z = stream.uniform(0.45, 1.0), stream.uniform(0.4, 0.65)
    bar: Vector = (0.03, 0.05, z) if stream.chance(0.5) else (x, 0.05, 0.03)
    parts: list[Part] = [
        ("box", (0, 0, 0), (x, 0.02, z), make_material(stream)),
        ("box", (0, 0, 0), bar, make_material(stream)),
    ]
    return Piece("window", (x, 0.02), 2 * z, parts)


def make_door(stream: Stream) -> Piece:
    x, z = stream.uniform(0.38, 0.5), stream.uniform(0.95, 1.08)
    knob = x - 0.08 if stream.chance(0.5) else 0.08 - x
    parts: list[Part] = [
        ("box", (0, 0, z), (x, 0.03, z), make_material(stream)),
        ("sphere", (knob, -0.07, 1.0), (0.04, 0.04, 0.04), make_material(stream)),
    ]
    return Piece("door", (x, 0.03), 2 * z, parts)
