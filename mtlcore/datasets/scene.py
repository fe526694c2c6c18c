"""What a rendered room consists of: solids with their materials, lights and a camera.

World frame: x and y horizontal, z up, metres, the room's corner at the origin.
"""

from __future__ import annotations

from typing import Literal

import attrs

CLASS_NAMES: tuple[str, ...] = (
    "wall", "floor", "ceiling", "table", "chair", "bed", "cabinet",
    "lamp", "ball", "picture", "window", "door", "rug",
)  # fmt: skip
TEXTURE_KINDS: tuple[str, ...] = ("plain", "stripes", "checker", "gradient", "noise", "dots")

Shape = Literal["box", "sphere", "cylinder"]
Vector = tuple[float, float, float]


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
