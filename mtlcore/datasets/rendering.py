"""Ray casting of the rooms in ``scenes``: an image with exact labels, in numpy alone.

A ray has the camera-frame direction d = (u, v, 1), so the distance along it, in lengths of d, is
the depth. Visibility is decided on the inverse depth w = 1 / depth: the plane n . x = g is met at
w = n . d / g, which is affine in u and v and costs one addition a pixel. A convex solid seen from
outside is hit where the farthest of its front planes (least w) is nearer than the nearest of its
back planes (greatest w). Every solid is cast over the rectangle of the screen that it can cover;
normals, textures and light are worked out once for all pixels afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import attrs
import numpy as np
from numpy.typing import NDArray

from mtlcore.datasets.random_numbers import hash_uniform
from mtlcore.datasets.scene import CLASS_NAMES, TEXTURE_KINDS, Camera, Material, Scene, Shape
from mtlcore.datasets.scene_layout import make_scene

__all__ = ["CLASS_NAMES", "FACINGS", "SHAPES", "FurtherLabels", "Rendering", "render"]

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Indices = NDArray[np.intp]
Window = tuple[slice, slice]  # rows and columns of the image

# The faces of a solid are numbered +x, -x, +y, -y, +z, -z along its own axes. A surface is
# 6 * solid + face; the curved side of a sphere or cylinder counts as face 0. Solid 0 is the room.
_FACES = 6
_AXES = [0, 0, 1, 1, 2, 2]
_FLAT_FACES: dict[Shape, list[int]] = {
    "box": [0, 1, 2, 3, 4, 5],
    "cylinder": [4, 5],
    "sphere": [],
}
_CURVED: frozenset[Shape] = frozenset({"cylinder", "sphere"})
_SIGNS = np.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
_CORNERS = np.array([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
#: What the visible part is of: the room itself, or a solid of some shape.
SHAPES = ("room", "box", "cylinder", "sphere")
#: Where the visible surface faces: the sky, the ground, sideways, or all round.
FACINGS = ("up", "down", "side", "round")
_NEAR = 0.05  # metres; what comes nearer has no safe projection and is cast everywhere
_GRAZING = 1e-6  # relative; rays nearer to tangent than this miss a curved side
_NOISE_SIDE = 32  # of the lattice of random values, which repeats
_NOISE = hash_uniform(0x5EED, _NOISE_SIDE**2).astype(np.float32)


@attrs.frozen
class FurtherLabels:
    """Six more labels of a room, exact at the pixel centres.

    The layout is the empty room: what would be seen without the things in it.
    """

    furniture: NDArray[np.uint8]  # (H, W) 0 the room, 1 a thing in it
    outlines: NDArray[np.uint8]  # (H, W) 0 or 1: edges between parts, without the creases of one
    shapes: NDArray[np.uint8]  # (H, W) index into SHAPES
    facing: NDArray[np.uint8]  # (H, W) index into FACINGS
    layout_depth: NDArray[np.float32]  # (H, W) as the depth
    layout_normals: NDArray[np.float32]  # (H, W, 3) as the normals


@attrs.frozen
class Rendering:
    """A rendered room and its labels, exact at the pixel centres.

    An edge pixel is one whose visible surface is not that of its right or its lower neighbour. A
    surface is a flat face or a curved side of a part, so the edges are the outlines of objects, of
    one part before or beside another, and creases; they are one pixel wide.
    """

    image: NDArray[np.uint8]  # (H, W, 3) RGB
    segmentation: NDArray[np.uint8]  # (H, W) index into CLASS_NAMES
    depth: NDArray[np.float32]  # (H, W) metres along the camera's axis
    normals: NDArray[np.float32]  # (H, W, 3) unit; x right, y down, z forward; facing the camera
    edges: NDArray[np.uint8]  # (H, W) 0 or 1
    further: FurtherLabels | None = None


def render(seed: int, index: int, height: int, width: int, *, further: bool = False) -> Rendering:
    """Render the room of (seed, index) at ``height`` x ``width`` pixels.

    The room does not depend on the resolution; the field of view spans the shorter side.

    Args:
        seed: of the rooms.
        index: of the room.
        height: in pixels.
        width: in pixels.
        further: also make the further labels.
    """
    scene = make_scene(seed, index)
    solids = _Solids(scene)
    rays = _Rays(scene.camera, height, width)
    empty = _cast_room(solids, rays)
    surface, inverse = _cast_things(solids, rays, *empty)
    depth = (1.0 / inverse).astype(np.float32)
    points = rays.directions() * depth
    normals = _normals(solids, surface, points)
    radiance = _albedo(solids, surface, points)
    radiance *= _illumination(scene, solids, points, normals)
    np.minimum(radiance, 1.0, out=radiance)
    return Rendering(
        image=np.ascontiguousarray((radiance * 255.0 + 0.5).astype(np.uint8).transpose(1, 2, 0)),
        segmentation=solids.labels.take(surface),
        depth=depth,
        normals=np.ascontiguousarray(normals.transpose(1, 2, 0)),
        edges=_edges(surface),
        further=_further(solids, surface, *empty) if further else None,
    )


def _further(
    solids: _Solids, surface: Indices, wall: Indices, wall_inverse: Floats
) -> FurtherLabels:
    part = surface // _FACES
    shapes = np.array([SHAPES.index(shape) for shape in solids.shapes], dtype=np.uint8)
    shapes[0] = SHAPES.index("room")
    up, down, side, round_ = range(len(FACINGS))
    facing = np.tile(np.array([side] * 4 + [up, down], dtype=np.uint8), (len(shapes), 1))
    facing[0, 4:] = down, up  # the room is seen from inside
    facing[[shape in _CURVED for shape in solids.shapes], 0] = round_
    inward = -solids.normals[0].astype(np.float32)
    return FurtherLabels(
        furniture=(part > 0).astype(np.uint8),
        outlines=_edges(part),
        shapes=shapes.take(part),
        facing=facing.take(surface),
        layout_depth=(1.0 / wall_inverse).astype(np.float32),
        layout_normals=inward.take(wall, axis=0),
    )


def _edges(surface: Indices) -> NDArray[np.uint8]:
    edges = np.zeros(surface.shape, dtype=np.uint8)
    edges[:, :-1] = surface[:, :-1] != surface[:, 1:]
    edges[:-1] |= surface[:-1] != surface[1:]
    return edges


# -- what is cast: everything in the camera's frame -----------------------------------------------


@lru_cache(maxsize=8)
def _screen(height: int, width: int) -> tuple[Floats, Floats]:
    """Pixel centres in units of half the shorter side: u (W,) to the right, v (H,) downwards."""
    side = min(height, width)
    u = (2.0 * np.arange(width) + 1.0 - width) / side
    v = (2.0 * np.arange(height) + 1.0 - height) / side
    return u, v


class _Rays:
    """The directions (u, v, 1) through the pixel centres."""

    def __init__(self, camera: Camera, height: int, width: int) -> None:
        u, v = _screen(height, width)
        self.u, self.v = camera.tangent * u, camera.tangent * v
        # Squared lengths, of the whole direction and of its horizontal part in the world.
        self.squares = self.u**2 + (self.v**2 + 1.0)[:, None]
        level = math.cos(camera.pitch) - math.sin(camera.pitch) * self.v
        self.level_squares = self.u**2 + (level**2)[:, None]

    def directions(self) -> Singles:
        """(3, H, W)."""
        result = np.ones((3, len(self.v), len(self.u)), dtype=np.float32)
        result[0], result[1] = self.u, self.v[:, None]
        return result


class _Solids:
    """The room and the primitives in it, N solids, as arrays in the camera's frame."""

    def __init__(self, scene: Scene) -> None:
        things, camera = scene.primitives, scene.camera
        room_half = (scene.size[0] / 2, scene.size[1] / 2, scene.size[2] / 2)
        self.shapes: list[Shape] = ["box", *[thing.shape for thing in things]]
        self.half = np.array([room_half, *[thing.half for thing in things]])
        self.view, self.tangent = _camera_axes(camera), camera.tangent
        world = np.array([room_half, *[thing.centre for thing in things]]) - camera.position
        self.centres = _turn(self.view, world)  # (N, 3)

        yaw = np.array([0.0, *[thing.yaw for thing in things]])
        axes = np.zeros((len(yaw), 3, 3))  # (N, own axis, component)
        axes[:, 0, 0] = axes[:, 1, 1] = np.cos(yaw)
        axes[:, 0, 1] = np.sin(yaw)
        axes[:, 1, 0] = -axes[:, 0, 1]
        axes[:, 2, 2] = 1.0
        self.axes = _turn(self.view, axes)

        # Planes of the faces: outward normals (N, 6, 3), gaps (N, 6) negative if in front.
        self.normals = self.axes[:, _AXES] * _SIGNS[:, None]
        self.gaps = self.half[:, _AXES] + (self.normals * self.centres[:, None]).sum(axis=2)

        # By surface: label and material.
        wall, floor, ceiling = (CLASS_NAMES.index(name) for name in ("wall", "floor", "ceiling"))
        labels = [wall] * 4 + [ceiling, floor]
        self.materials: list[Material] = [scene.wall] * 4 + [scene.ceiling, scene.floor]
        for thing in things:
            labels += [thing.label] * _FACES
            self.materials += [thing.material] * _FACES
        self.labels = np.array(labels, dtype=np.uint8)

    def windows(self, height: int, width: int) -> list[Window]:
        """Return the part of the screen that each solid can cover, by its bounding box."""
        arms = (_CORNERS * self.half[:, None])[..., None] * self.axes[:, None]  # (N, 8, axis, 3)
        corners = self.centres[:, None] + arms.sum(axis=2)
        near = corners[..., 2].min(axis=1)
        depth = np.maximum(corners[..., 2:], _NEAR)
        scale = min(height, width) / self.tangent
        pixels = (corners[..., :2] / depth * scale + (width - 1, height - 1)) / 2
        first = np.ceil(pixels.min(axis=1) - 1e-6)
        last = np.floor(pixels.max(axis=1) + 1e-6) + 1
        first[near < _NEAR], last[near < _NEAR] = 0, (width, height)
        limits = (width, height)
        first, last = np.clip(first, 0, limits), np.clip(last, 0, limits)
        return [
            (slice(y0, y1), slice(x0, x1))
            for (x0, y0), (x1, y1) in zip(
                first.astype(int).tolist(), last.astype(int).tolist(), strict=True
            )
        ]


def _camera_axes(camera: Camera) -> Floats:
    """(3, 3): the camera's right, down and forward axes in the world."""
    s, c = math.sin(camera.yaw), math.cos(camera.yaw)
    sp, cp = math.sin(camera.pitch), math.cos(camera.pitch)
    return np.array([[c, s, 0.0], [s * sp, -c * sp, -cp], [-s * cp, c * cp, -sp]])


def _turn(matrix: Floats, vectors: Floats) -> Floats:
    """``matrix @ vector`` for (..., 3) vectors; too small to be worth a BLAS call's threads."""
    result: Floats = (vectors[..., None, :] * matrix).sum(axis=-1)
    return result


# -- visibility -----------------------------------------------------------------------------------


def _slopes(solids: _Solids, rays: _Rays) -> tuple[Floats, Floats]:
    """Return the planes' inverse depth by column (N, 6, W) and by row (N, 6, H): terms of a sum."""
    slopes = solids.normals / solids.gaps[..., None]
    return slopes[..., 0, None] * rays.u, slopes[..., 1, None] * rays.v + slopes[..., 2, None]


def _cast_room(solids: _Solids, rays: _Rays) -> tuple[Indices, Floats]:
    """Return the surface and the inverse depth that every pixel sees of the empty room: (H, W)."""
    across, down = _slopes(solids, rays)
    # It is seen from inside, where the nearest plane ahead is the visible one.
    planes = down[0, :, :, None] + across[0, :, None, :]
    return planes.argmax(axis=0), planes.max(axis=0)


def _cast_things(
    solids: _Solids, rays: _Rays, wall: Indices, wall_inverse: Floats
) -> tuple[Indices, Floats]:
    """Return what every pixel sees with the things before the walls: surface, inverse depth."""
    across, down = _slopes(solids, rays)
    surface, inverse = wall.copy(), wall_inverse.copy()
    in_front = (solids.gaps < 0).tolist()
    for solid, (rows, columns) in enumerate(solids.windows(*surface.shape)):
        if solid == 0 or rows.start >= rows.stop or columns.start >= columns.stop:
            continue
        shape = solids.shapes[solid]
        fronts = [face for face in _FLAT_FACES[shape] if in_front[solid][face]]
        backs = [face for face in _FLAT_FACES[shape] if not in_front[solid][face]]
        order = fronts + backs
        flat = down[solid, order, rows][:, :, None] + across[solid, order, columns][:, None]
        enters, leaves = list(flat[: len(fronts)]), list(flat[len(fronts) :])
        if shape != "box":
            enter, leave = _cross_curved_side(solids, solid, rays, (rows, columns))
            fronts, enters, leaves = [0, *fronts], [enter, *enters], [leave, *leaves]
        _draw(solid, fronts, enters, leaves, surface[rows, columns], inverse[rows, columns])
    return surface, inverse


def _draw(
    solid: int,
    fronts: list[int],
    enters: list[Floats],
    leaves: list[Floats],
    surface: Indices,
    inverse: Floats,
) -> None:
    """Write a solid, met on entering its ``fronts``, into the buffers where it is nearest."""
    near, visible = enters[0], np.full(surface.shape, _FACES * solid + fronts[0])
    for face, enter in zip(fronts[1:], enters[1:], strict=True):
        np.copyto(visible, _FACES * solid + face, where=enter < near)
        near = np.minimum(near, enter)
    nearest = inverse
    for leave in leaves:
        nearest = np.maximum(nearest, leave)
    hit = near > nearest
    np.copyto(inverse, near, where=hit)
    np.copyto(surface, visible, where=hit)


def _cross_curved_side(
    solids: _Solids, solid: int, rays: _Rays, window: Window
) -> tuple[Floats, Floats]:
    """Inverse depths of entering and leaving a sphere or an endless cylinder; 0 for a miss.

    With hub the centre seen from the camera, for a cylinder its horizontal part, they solve
    |d - w hub|^2 = (w r)^2, likewise of the horizontal parts.
    """
    rows, columns = window
    hub, squares = solids.centres[solid], rays.squares
    if solids.shapes[solid] == "cylinder":
        up = solids.axes[solid, 2]
        hub, squares = hub - up * (hub * up).sum(), rays.level_squares
    x, y, z = hub.tolist()
    product = (y * rays.v[rows] + z)[:, None] + x * rays.u[columns]
    outside = x * x + y * y + z * z - solids.half[solid, 0] ** 2
    product_square = product * product
    below_root = product_square - outside * squares[rows, columns]
    hit = below_root > _GRAZING * product_square
    root = np.sqrt(below_root, where=hit, out=np.zeros_like(below_root))
    return np.where(hit, product + root, 0.0) / outside, (product - root) / outside


# -- shading: all pixels at once ------------------------------------------------------------------


def _normals(solids: _Solids, surface: Indices, points: Singles) -> Singles:
    """Return unit normals (3, H, W) of the visible surfaces at `points`, facing the camera."""
    table = solids.normals.reshape(-1, 3).T.astype(np.float32)
    table[:, :_FACES] *= -1.0  # the room's faces are seen from inside
    normals: Singles = table.take(surface, axis=1)

    curved = np.zeros((len(solids.shapes), _FACES), dtype=bool)
    curved[:, 0] = [shape in _CURVED for shape in solids.shapes]
    pixels = np.flatnonzero(curved.ravel().take(surface))
    if pixels.size:
        solid = surface.ravel().take(pixels) // _FACES
        arms = points.reshape(3, -1).take(pixels, axis=1) - solids.centres.T.take(solid, axis=1)
        upright = np.array([shape == "cylinder" for shape in solids.shapes])
        up = solids.axes[0, 2][:, None]
        arms -= up * ((up * arms).sum(axis=0) * upright.take(solid))
        normals.reshape(3, -1)[:, pixels] = arms / np.sqrt((arms * arms).sum(axis=0))
    return normals


def _albedo(solids: _Solids, surface: Indices, points: Singles) -> Singles:
    """(3, H, W): the textures' colours. A pattern lies in the plane of a face's other two axes."""
    materials = solids.materials
    kinds = np.array([material.kind for material in materials]).take(surface)
    first = np.array([material.first for material in materials], dtype=np.float32)
    second = np.array([material.second for material in materials], dtype=np.float32)
    colours = first.T.take(surface, axis=1)
    changes = (second - first).T.take(surface, axis=1)
    along, across = _pattern_coordinates(solids, surface, points)
    blend = np.zeros(surface.size, dtype=np.float32)
    for kind, name in enumerate(TEXTURE_KINDS):
        pixels = np.flatnonzero(kinds == kind)
        if name in _PATTERNS and pixels.size:
            blend[pixels] = _PATTERNS[name](along.take(pixels), across.take(pixels))
    changes *= blend.reshape(surface.shape)
    colours += changes
    return colours


def _pattern_coordinates(
    solids: _Solids, surface: Indices, points: Singles
) -> tuple[Singles, Singles]:
    """Coordinates in the turned frame of every pixel's texture, in periods, (H, W) each."""
    materials = solids.materials
    angle = np.array([material.angle for material in materials])[:, None]
    period = np.array([material.period for material in materials])[:, None]
    shifts = np.array([material.shift for material in materials])
    x = solids.axes[:, [1, 1, 2, 2, 0, 0]].reshape(-1, 3)
    y = solids.axes[:, [2, 2, 0, 0, 1, 1]].reshape(-1, 3)
    centres = solids.centres.repeat(_FACES, axis=0)
    sine, cosine = np.sin(angle) / period, np.cos(angle) / period
    results = []
    turned = (cosine * x + sine * y, cosine * y - sine * x)
    for axis, shift in zip(turned, shifts.T, strict=True):
        origin = (shift - (axis * centres).sum(axis=1)).astype(np.float32)
        slopes = axis.T.astype(np.float32).take(surface, axis=1)
        slopes *= points
        results.append(slopes.sum(axis=0) + origin.take(surface))
    return results[0], results[1]


def _stripes(x: Singles, y: Singles) -> Singles:
    return (x - np.floor(x) < 0.5).astype(np.float32)


def _checker(x: Singles, y: Singles) -> Singles:
    return ((np.floor(x) + np.floor(y)) % 2).astype(np.float32)


def _gradient(x: Singles, y: Singles) -> Singles:
    """Return a triangle wave, slower than the other patterns."""
    x = x * np.float32(0.25)
    wave: Singles = np.abs(2 * (x - np.floor(x)) - 1)
    return wave


def _noise(x: Singles, y: Singles) -> Singles:
    """Random values at the points of a lattice, four to a period, interpolated between them."""
    x, y = 4 * x, 4 * y
    left, top = np.floor(x), np.floor(y)
    fx, fy = x - left, y - top
    columns, rows = left.astype(np.intp), top.astype(np.intp)
    mask = _NOISE_SIDE - 1
    c0, c1 = columns & mask, (columns + 1) & mask
    r0, r1 = (rows & mask) * _NOISE_SIDE, ((rows + 1) & mask) * _NOISE_SIDE
    above = _between(_NOISE.take(r0 + c0), _NOISE.take(r0 + c1), fx)
    below = _between(_NOISE.take(r1 + c0), _NOISE.take(r1 + c1), fx)
    return _between(above, below, fy)


def _between(start: Singles, end: Singles, share: Singles) -> Singles:
    return start + share * (end - start)


def _dots(x: Singles, y: Singles) -> Singles:
    x, y = x - np.floor(x) - np.float32(0.5), y - np.floor(y) - np.float32(0.5)
    return (x * x + y * y < 0.1).astype(np.float32)


_PATTERNS: dict[str, Callable[[Singles, Singles], Singles]] = {
    "stripes": _stripes,
    "checker": _checker,
    "gradient": _gradient,
    "noise": _noise,
    "dots": _dots,
}


def _illumination(scene: Scene, solids: _Solids, points: Singles, normals: Singles) -> Singles:
    """(3, H, W): ambient light and what the lamps add by Lambert's law, without shadows."""
    result = np.full(points.shape, scene.ambient, dtype=np.float32)
    for light in scene.lights:
        offset = np.array([light.position]) - scene.camera.position
        ray = _turn(solids.view, offset).reshape(3, 1, 1).astype(np.float32) - points
        square = (ray * ray).sum(axis=0)
        ray *= normals
        received = np.maximum(ray.sum(axis=0), 0) / (np.sqrt(square) * (1 + square / 16))
        result += np.array(light.colour, dtype=np.float32)[:, None, None] * received
    return result
