"""The house: rooms of a package in their order, what each imports, and a drawing of both.

Only two things decide: the table of rooms in docs/architecture.md, from the bottom of the house to
its top, and the import statements of the package.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path

import attrs


@attrs.frozen
class Room:
    """A top-level module, or a package.

    Args:
        name: as in the table: `tasks.py` or `engine/`.
        summary: the first paragraph of its docstring; empty without one.
        modules: how many Python files it has.
        imports: names of the rooms that its modules import.
    """

    name: str
    summary: str
    modules: int
    imports: frozenset[str]


def ordered_names(page: str) -> list[str]:
    """Read the names of the rooms, from the bottom up, from the table below "## The rooms".

    Raises:
        ValueError: there is no such table.
    """
    _, _, section = page.partition("\n## The rooms\n")
    rows = re.findall(r"^\|([^|]*)\|", section.partition("\n## ")[0], re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`([\w]+(?:/|\.py))`", row)]
    if not names:
        raise ValueError('no table whose first column names rooms below the heading "## The rooms"')
    return names


def read_rooms(package: Path, names: Sequence[str]) -> list[Room]:
    """Read the rooms of these names; the order stays.

    Raises:
        ValueError: a room is missing in the package or among the names.
    """
    present = {
        *(path.name for path in package.glob("*.py") if not path.name.startswith("_")),
        *(f"{path.parent.name}/" for path in package.glob("*/*.py")),
    }
    problems = [f"{name} has no row" for name in sorted(present - {*names})]
    problems += [
        f"{name} is not in {package.name}/" for name in names if not (package / name).exists()
    ]
    problems += [f"{name} has two rows" for name in sorted({*names}) if names.count(name) > 1]
    if problems:
        raise ValueError(f"the table of rooms: {'; '.join(problems)}")
    return [_read_room(package, name, {*names}) for name in names]


def _read_room(package: Path, name: str, names: set[str]) -> Room:
    place = package / name
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    trees = {path: ast.parse(path.read_text("utf-8")) for path in files}
    door = trees.get(place / "__init__.py" if place.is_dir() else place)
    text = ast.get_docstring(door) if door else None
    found = {
        room
        for path, tree in trees.items()
        for module in _imported(tree, path.relative_to(package.parent).with_suffix("").parts)
        for room in _rooms_of(module, package.name, names)
    }
    summary = " ".join((text or "").partition("\n\n")[0].split()).rstrip(":")
    return Room(name, summary, len(files), frozenset(found - {name}))


def _imported(tree: ast.Module, module: tuple[str, ...]) -> Iterable[str]:
    """All that a module imports, wherever: dotted names of modules, or of what is in them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # One level is one part: the parts of a package end with __init__.
            start = module[: -node.level] if node.level else ()
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _rooms_of(module: str, package: str, names: set[str]) -> Iterable[str]:
    """The room that a dotted name is in: none, or one."""
    first, *rest = module.split(".")
    if first != package:
        return []
    own = [f"{rest[0]}/", f"{rest[0]}.py"] if rest else []
    # What is in no room is in the package's own module.
    return [name for name in [*own, "__init__.py"] if name in names][:1]


# The drawing: rooms on floors, each above all that it imports. What lies between two rooms of an
# arrow that passes several floors are posts, which take part in ordering and placing like rooms.

_FLOOR, _HEIGHT, _GAP, _POST = 84.0, 42.0, 18.0, 8.0


@attrs.define(eq=False)
class _Box:
    """A room in the drawing, or a post: a place where arrows to `target` pass a floor."""

    floor: int
    width: float
    room: Room | None = None
    target: str = ""
    x: float = 0.0
    below: list[_Box] = attrs.field(factory=list)
    above: list[_Box] = attrs.field(factory=list)
    sources: set[str] = attrs.field(factory=set)

    @property
    def y(self) -> float:
        return -self.floor * _FLOOR


def floors(rooms: Sequence[Room]) -> dict[str, int]:
    """Number the floors: a room stands one above the highest room that it imports.

    An import of a room further up in the order counts for nothing here.
    """
    found: dict[str, int] = {}
    for room in rooms:
        found[room.name] = 1 + max((found[n] for n in room.imports if n in found), default=-1)
    return found


def upward(rooms: Sequence[Room]) -> list[tuple[str, str]]:
    """Find imports that go up in the order: pairs of the importing and the imported room."""
    place = {room.name: number for number, room in enumerate(rooms)}
    return [
        (room.name, name)
        for room in rooms
        for name in sorted(room.imports)
        if place[name] > place[room.name]
    ]


def direct(rooms: Sequence[Room]) -> dict[str, set[str]]:
    """Downward imports without those that a way through other rooms implies."""
    reached: dict[str, set[str]] = {}
    found = {}
    for room in rooms:
        down = {name for name in room.imports if name in reached}
        implied = {name for other in down for name in reached[other]}
        found[room.name] = down - implied
        reached[room.name] = down | implied
    return found


def draw(rooms: Sequence[Room]) -> str:
    """Draw the house as SVG text; its colours are those of the page around it."""
    boxes, layers = _layers(rooms)
    _order(layers)
    _place(layers)
    every = [box for layer in layers for box in layer]
    left = min(box.x - box.width / 2 for box in every) - 20
    right = max(box.x + box.width / 2 for box in every) + 20
    top = -(len(layers) - 1) * _FLOOR - _HEIGHT / 2 - 30
    bottom = _HEIGHT / 2 + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="house" role="img" '
        f'aria-label="The rooms of the package and their imports" '
        f'viewBox="{left:.0f} {top:.0f} {right - left:.0f} {bottom - top:.0f}">',
        _style(rooms),
        '<defs><marker id="house-tip" viewBox="0 0 8 8" refX="7" refY="4" orient="auto" '
        'markerUnits="userSpaceOnUse" markerWidth="9" markerHeight="9">'
        '<path d="M0,0.5 L8,4 L0,7.5 z" fill="context-stroke"/></marker></defs>',
    ]
    number = {room.name: i for i, room in enumerate(rooms)}
    parts += _arrows(every, number)
    for room in rooms:
        parts.append(_box(boxes[room.name], room, number[room.name]))
    for name, other in upward(rooms):
        a, b = boxes[name], boxes[other]
        x, y, u, v = a.x + 14, a.y - _HEIGHT / 2, b.x + 14, b.y - _HEIGHT / 2
        if b.y < a.y:
            curve = _curve([(x, y), (u, b.y + _HEIGHT / 2 + 1)])
        else:  # in the order it is further up, in the drawing not
            curve = (
                f"M{x:.1f},{y:.1f} C{x:.1f},{y - 40:.1f} {u:.1f},{v - 40:.1f} {u:.1f},{v - 1:.1f}"
            )
        classes = f"up f{number[name]} t{number[other]}"
        parts.append(f'<path class="{classes}" marker-end="url(#house-tip)" d="{curve}"/>')
    return "\n".join([*parts, "</svg>"])


def _layers(rooms: Sequence[Room]) -> tuple[dict[str, _Box], list[list[_Box]]]:
    """Boxes of the rooms, and all boxes by their floor; arrows to one room share their posts."""
    floor = floors(rooms)
    boxes = {r.name: _Box(floor[r.name], max(96.0, 10.3 * len(r.name) + 18), r) for r in rooms}
    layers: list[list[_Box]] = [[] for _ in range(max(floor.values()) + 1)]
    for box in boxes.values():
        layers[box.floor].append(box)
    posts: dict[tuple[str, int], _Box] = {}
    for name, targets in direct(rooms).items():
        for target in sorted(targets):
            upper = boxes[name]
            for level in range(upper.floor - 1, floor[target], -1):
                post = posts.get((target, level))
                if post is None:
                    post = posts[target, level] = _Box(level, _POST, target=target)
                    layers[level].append(post)
                post.sources.add(name)
                _join(upper, post)
                upper = post
            _join(upper, boxes[target])
    return boxes, layers


def _join(upper: _Box, lower: _Box) -> None:
    if lower not in upper.below:
        upper.below.append(lower)
        lower.above.append(upper)


def _order(layers: list[list[_Box]]) -> None:
    """Sort each floor so that few arrows cross: by the mean place of neighbours, up and down."""
    best, fewest = [list(layer) for layer in layers], _crossings(layers)
    for sweep in range(24):
        down = sweep % 2 == 0
        for layer in layers[1:] if down else layers[-2::-1]:
            place = {id(b): i / len(each) for each in layers for i, b in enumerate(each)}
            old = {id(box): i for i, box in enumerate(layer)}

            def key(box: _Box, place: dict[int, float] = place, down: bool = down) -> float:
                near = box.below if down else box.above
                return sum(place[id(b)] for b in near) / len(near) if near else place[id(box)]

            layer.sort(key=lambda box: (key(box), old[id(box)]))
        now = _crossings(layers)
        if now < fewest:
            best, fewest = [list(layer) for layer in layers], now
    layers[:] = best


def _crossings(layers: Sequence[Sequence[_Box]]) -> int:
    found = 0
    for lower, upper in pairwise(layers):
        place = {id(box): i for i, box in enumerate(lower)}
        ends = [(i, place[id(b)]) for i, box in enumerate(upper) for b in box.below]
        found += sum(a < c and b > d for a, b in ends for c, d in ends)
    return found


def _place(layers: Sequence[Sequence[_Box]]) -> None:
    """Put boxes near the mean of their neighbours, in their order and without overlaps."""
    for layer in layers:
        _spread(layer, [0.0] * len(layer))
    for sweep in range(60):
        for layer in layers if sweep % 2 else reversed(layers):
            _spread(layer, [_wish(box, layer) for box in layer])


def _wish(box: _Box, layer: Sequence[_Box]) -> float:
    """The mean place of the neighbours; that of a post keeps its arrow straight first of all."""
    near = [*box.below, *box.above] or layer
    weights = [8 if box.room is None and b.room is None else 1 for b in near]
    return sum(w * b.x for w, b in zip(weights, near, strict=True)) / sum(weights)


def _spread(layer: Sequence[_Box], wishes: Sequence[float]) -> None:
    """The places with the least squares of distances to the wishes: an isotonic regression."""
    offsets = [0.0]
    for a, b in pairwise(layer):
        offsets.append(offsets[-1] + (a.width + b.width) / 2 + _GAP)
    blocks: list[tuple[float, int]] = []
    for wish, offset in zip(wishes, offsets, strict=True):
        mean, count = wish - offset, 1
        while blocks and blocks[-1][0] > mean:
            other, size = blocks.pop()
            mean, count = (mean * count + other * size) / (count + size), count + size
        blocks.append((mean, count))
    starts = [mean for mean, count in blocks for _ in range(count)]
    for box, start, offset in zip(layer, starts, offsets, strict=True):
        box.x = start + offset


def _ports(box: _Box, others: Sequence[_Box]) -> dict[int, float]:
    """Where arrows leave or reach a box: side by side, in the order of their other ends."""
    if box.room is None:
        return {id(other): box.x for other in others}
    room = min(16.0, (box.width - 20) / max(1, len(others) - 1))
    start = box.x - room * (len(others) - 1) / 2
    return {id(b): start + room * i for i, b in enumerate(sorted(others, key=lambda b: b.x))}


def _arrows(boxes: Sequence[_Box], number: Mapping[str, int]) -> list[str]:
    out = {id(box): _ports(box, box.below) for box in boxes}
    into = {id(box): _ports(box, box.above) for box in boxes}
    found = []
    for box in boxes:
        for lower in box.below:
            target = lower.room.name if lower.room else lower.target
            sources = box.sources if box.room is None else {box.room.name}
            classes = [f"f{number[name]}" for name in sorted(sources)] + [f"t{number[target]}"]
            end = "" if lower.room is None else ' marker-end="url(#house-tip)"'
            points = [(out[id(box)][id(lower)], box.y + _HEIGHT / 2)]
            if box.room is None:  # through the floor of the post
                points.insert(0, (box.x, box.y - _HEIGHT / 2))
            points.append((into[id(lower)][id(box)], lower.y - _HEIGHT / 2 - (1 if end else 0)))
            found.append(f'<path class="{" ".join(classes)}"{end} d="{_curve(points)}"/>')
    return found


def _curve(points: Sequence[tuple[float, float]]) -> str:
    text = "M{:.1f},{:.1f}".format(*points[0])
    for (x, y), (u, v) in pairwise(points):
        middle = (y + v) / 2
        text += f" C{x:.1f},{middle:.1f} {u:.1f},{middle:.1f} {u:.1f},{v:.1f}"
    return text


def _box(box: _Box, room: Room, number: int) -> str:
    x, y = box.x - box.width / 2, box.y - _HEIGHT / 2
    count = f"{room.modules} modules" if room.name.endswith("/") and room.modules else ""
    line = box.y - 1 if count else box.y + 6
    texts = f'<text class="name" x="{box.x:.1f}" y="{line:.1f}">{room.name}</text>'
    if count:
        texts += f'<text class="count" x="{box.x:.1f}" y="{box.y + 14:.1f}">{count}</text>'
    return (
        f'<g class="room r{number}"><title>{escape(room.summary or room.name)}</title>'
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{box.width:.1f}" height="{_HEIGHT}" rx="5"/>'
        f"{texts}</g>"
    )


def _style(rooms: Sequence[Room]) -> str:
    """Under the pointer a room shows its imports as solid lines, those of it as dashed ones."""
    marked = "stroke:var(--color-brand-primary,#0a4bff);stroke-width:2.4"
    pointed = "".join(
        f".house:has(.r{i}:hover) .f{i}{{{marked}}}"
        f".house:has(.r{i}:hover) .t{i}{{{marked};stroke-dasharray:5 3}}"
        for i in range(len(rooms))
    )
    return (
        "<style>"
        ".house{width:100%;height:auto;max-width:1000px}"
        ".house>path{fill:none;stroke:var(--color-foreground-muted,#777);stroke-width:1.2}"
        ".house>path.up{stroke:#d33;stroke-width:2}"
        ".house rect{fill:var(--color-background-secondary,#f8f9fb);"
        "stroke:var(--color-foreground-secondary,#5a5c63);stroke-width:1.2}"
        ".house .room:hover rect{stroke:var(--color-brand-primary,#0a4bff);stroke-width:2.4}"
        ".house text{text-anchor:middle;fill:var(--color-foreground-primary,#000)}"
        ".house .name{font:600 17px var(--font-stack--monospace,monospace)}"
        ".house .count{font:13px var(--font-stack,sans-serif);"
        "fill:var(--color-foreground-secondary,#5a5c63)}"
        f"{pointed}</style>"
    )
