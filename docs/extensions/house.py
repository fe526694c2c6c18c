"""The directive `mtl-house`: the drawing of the rooms, then each with its summary and imports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rooms
from components import Generated, cell
from docutils import nodes


class House(Generated):
    """What the imports and the table in architecture.md say."""

    required_arguments = 0

    def run(self) -> list[nodes.Node]:
        docs = Path(self.state.document.settings.env.srcdir)
        table, package = docs / "architecture.md", docs.parent / "mtlcore"
        env = self.state.document.settings.env
        for path in (table, *package.rglob("*.py")):
            env.note_dependency(str(path))
        try:
            self.house = rooms.read_rooms(package, rooms.ordered_names(table.read_text("utf-8")))
        except ValueError as error:
            raise self.error(f"{table.name}: {error}") from error
        return [nodes.raw("", rooms.draw(self.house), format="html"), *super().run()]

    def lines(self) -> list[str]:
        found = ["| room | what is there | imports |", "| --- | --- | --- |"]
        for room in reversed(self.house):
            imports = [
                f"`{other.name}`" for other in reversed(self.house) if other.name in room.imports
            ]
            found.append(f"| `{room.name}` | {cell(room.summary)} | {', '.join(imports)} |")
        return found


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("mtl-house", House)
    return {"parallel_read_safe": True}
