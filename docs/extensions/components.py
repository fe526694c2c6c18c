"""Directives that show what is installed: the components of a kind, or one, with every setting.

```{mtl-components} balancers
```

```{mtl-component} balancers/nash-mtl
```

```{mtl-settings} training mtlcore.config.schema:TrainingConfig
```

What a command (here `mtl run`; `mtl` for all of them) says to --help:

```{mtl-help} run
```

The names of all components of some kinds:

```{mtl-names} backbones balancers
```

The map of balancers, of what is said in balancer_map.py:

```{mtl-balancer-map}
```

All systems of a review, of what is said in review.py:

```{mtl-review}
```

And the changelogs of the core and of the plugins of this repository:

```{mtl-changelogs}
```
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import balancer_map
import click
import review
from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList

from mtlcore.cli import main
from mtlcore.cli.descriptions import list_data, settings_data, show_data
from mtlcore.plugins import KINDS, Plugins

_PLUGINS = Plugins()


class Generated(Directive):
    """What it makes is Markdown, read as if it stood on the page."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        lines = StringList(self.lines(), source=" ".join([self.name, *self.arguments]))
        place = nodes.Element()
        self.state.nested_parse(lines, self.content_offset, place, match_titles=True)
        return place.children

    def lines(self) -> list[str]:
        raise NotImplementedError


class Components(Generated):
    """A table of the components of a kind, then each one with its settings."""

    def lines(self) -> list[str]:
        kind = self.arguments[0]
        if kind not in KINDS:
            raise self.error(f"{kind}: no kind of component ({', '.join(KINDS)})")
        found = list_data(_PLUGINS, kind)
        rows = ["| name | plugin | |", "| --- | --- | --- |"]
        rows += [f"| `{c['name']}` | {c['plugin']} | {cell(c['summary'])} |" for c in found]
        # A method's settings are the whole configuration.
        each = [] if kind == "methods" else found
        return rows + [line for c in each for line in _component(kind, c["name"])]


class Component(Generated):
    """One component's settings."""

    def lines(self) -> list[str]:
        kind, _, name = self.arguments[0].partition("/")
        return _component(kind, name)


class Settings(Generated):
    """The settings of a record: their prefix, and where the record is."""

    def lines(self) -> list[str]:
        prefix, target = self.arguments[0].split()
        module, _, name = target.partition(":")
        settings = settings_data(getattr(import_module(module), name))
        return _table([{**s, "name": f"{prefix}.{s['name']}"} for s in settings])


class Help(Generated):
    """What a command says of itself and its options."""

    def lines(self) -> list[str]:
        context = click.Context(main, info_name="mtl", terminal_width=84, **main.context_settings)
        command: click.Command = main
        for name in self.arguments[0].removeprefix("mtl").split():
            known = command.commands if isinstance(command, click.Group) else {}
            if name not in known:
                raise self.error(f"{name}: no command ({', '.join(known)})")
            command = known[name]
            context = click.Context(command, info_name=name, parent=context)
        return ["```text", *command.get_help(context).splitlines(), "```"]


class Names(Generated):
    """The components of each kind, by name."""

    def lines(self) -> list[str]:
        rows = ["| | how many | which |", "| --- | ---: | --- |"]
        for kind in self.arguments[0].split():
            names = [f"`{c['name']}`" for c in list_data(_PLUGINS, kind)]
            rows.append(f"| {kind} | {len(names)} | {', '.join(names)} |")
        return rows


class BalancerMap(Generated):
    """A table for each thing that balancers look at, and the sources of what was published."""

    required_arguments = 0

    def lines(self) -> list[str]:
        for path in balancer_map.READ:
            self.state.document.settings.env.note_dependency(str(path))
        return [*balancer_map.lines(_PLUGINS), "", "## Sources", "", *balancer_map.sources()]


class Review(Generated):
    """How many systems are here, and a table for each section of the review."""

    required_arguments = 0

    def lines(self) -> list[str]:
        self.state.document.settings.env.note_dependency(str(review.KNOWN))
        return [*review.lines()]


class Changelogs(Generated):
    """Of the core, then of each plugin, with the title that the distribution has."""

    required_arguments = 0

    def lines(self) -> list[str]:
        root = Path(self.state.document.settings.env.srcdir).parent
        found = []
        for path in (root / "CHANGELOG.md", *sorted(root.glob("plugins/*/CHANGELOG.md"))):
            self.state.document.settings.env.note_dependency(str(path))
            name = "mtlcore" if path.parent == root else path.parent.name
            _, *rest = path.read_text("utf-8").splitlines()
            # Versions become parts of their distribution.
            found += [f"## {name}", *(f"#{r}" if r.startswith("## ") else r for r in rest), ""]
        return found


def _component(kind: str, name: str) -> list[str]:
    data = show_data(_PLUGINS, kind, name)
    texts = [f"**`{name}`** ({data['plugin']})", data["summary"], f"*{data['paper']}*"]
    lines = [line for text in texts if text.strip("*") for line in ("", text)]
    table = _table(data["settings"]) if data["settings"] else ["No settings."]
    return [*lines, "", *table, ""]


def _table(settings: Any) -> list[str]:
    rows = ["| setting | type | default | |", "| --- | --- | --- | --- |"]
    for setting in settings:
        default = "required" if setting["required"] else f"`{json.dumps(setting['default'])}`"
        cells = (f"`{setting['name']}`", f"`{setting['type']}`", default, setting["meaning"])
        rows.append(f"| {' | '.join(map(cell, cells))} |")
    return rows


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("mtl-components", Components)
    app.add_directive("mtl-component", Component)
    app.add_directive("mtl-settings", Settings)
    app.add_directive("mtl-help", Help)
    app.add_directive("mtl-names", Names)
    app.add_directive("mtl-balancer-map", BalancerMap)
    app.add_directive("mtl-review", Review)
    app.add_directive("mtl-changelogs", Changelogs)
    return {"parallel_read_safe": True}
