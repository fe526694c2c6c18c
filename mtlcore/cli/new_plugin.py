"""The command that writes the start of a new plugin: `mtl new-plugin`.

The templates are in `mtlcore/templates`: one folder for what all plugins have, and one per kind of
component. Files end in `.template`. Placeholders are `$name` and its like in their text, and
`PACKAGE`, `MODULE` and `dot-` in their paths.
"""

from __future__ import annotations

import keyword
import re
import tempfile
from collections.abc import Iterator, Mapping
from datetime import date
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from string import Template

import click

from mtlcore._version import __version__
from mtlcore.cli.components import KindChoice, plugins_of
from mtlcore.errors import UsageError
from mtlcore.plugins import KINDS, KNOWN, STANDARD, Plugins, singular

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
# Longer ones make lines too long, and a class of one letter is no name.
_SHORTEST, _LONGEST = 2, 30
_PREFIX = "mtlcore-plugin-"
_ENDING = ".template"


@click.command("new-plugin")
@click.argument("name")
@click.option(
    "--kind", type=KindChoice(), required=True, help="The kind of component that it brings."
)
@click.option("--out", default=".", show_default=True, metavar="DIR", help="Folder to write it to.")
@click.pass_context
def new_plugin(ctx: click.Context, name: str, kind: str, out: str) -> None:
    """Write a new plugin to start from.

    It is called NAME, installs, passes its tests and trains; change it at will.
    """
    if "://" in out:
        raise UsageError(f"--out {out}: a plugin needs a local folder")
    check_name(name, plugins_of(ctx))
    folder = Path(out) / f"{_PREFIX}{name}"
    write(folder, rendered(name, kind))
    click.echo(f"{folder}: a plugin that brings the {singular(kind)} {name}. To try it:\n")
    click.echo(f"  cd {folder}")
    click.echo("  pip install -e '.[test]'")
    click.echo("  pytest")
    if kind == "launchers":
        click.echo(f"  mtl study study.toml --launcher {name} --out runs/study")
    elif kind == "searchers":
        click.echo("  mtl study study.toml --out runs/study")
    elif kind == "exporters":
        click.echo(f"  mtl export RUN --to {name} --out FILE")
    else:
        click.echo(f"  mtl run --plugin {name}")


COMMANDS = [new_plugin]


def check_name(name: str, plugins: Plugins) -> None:
    """Check that a new plugin can have a name.

    Raises:
        UsageError: The name breaks a rule, or is taken.
    """
    if name.startswith(_PREFIX):
        raise UsageError(f"{name}: leave {_PREFIX!r} out, it is put in front of the name")
    if not _NAME.fullmatch(name) or not _SHORTEST <= len(name) <= _LONGEST:
        likely = re.sub("[^a-z0-9]+", "-", re.sub("(?<=[a-z])(?=[A-Z])", "-", name).lower())
        likely = likely.strip("-")[:_LONGEST].strip("-")
        hint = f"; did you mean {likely!r}?" if _NAME.fullmatch(likely) and likely != name else ""
        raise UsageError(
            f"{name!r}: a plugin's name has {_SHORTEST} to {_LONGEST} lower-case letters and "
            f"digits, beginning with a letter, in words joined by single dashes{hint}"
        )
    for known, others in KNOWN.items():
        if name in (known, *others):
            raise UsageError(f"{name}: {_PREFIX}{known} has this name; choose another")
    for info in plugins.infos:
        if name == info.id:
            what = "mtlcore's own components" if name == STANDARD else f"an installed {info}"
            raise UsageError(f"{name}: is the id of {what}; choose another")
    for component in (c for kind in KINDS for c in plugins.all(kind) if c.spec.name == name):
        raise UsageError(
            f"{name}: {component.source} has a component of this name, the "
            f"{singular(component.kind)} {component.full_name}; choose another"
        )


def rendered(name: str, kind: str) -> dict[PurePosixPath, str]:
    """Return the files of a new plugin: paths within its folder, and texts.

    Raises:
        UsageError: The name of its class would clash with a name that its module uses.
    """
    package = f"mtlcore_{name.replace('-', '_')}"
    class_name = "".join(word.capitalize() for word in name.split("-"))
    major, minor = (int(part) for part in __version__.split(".")[:2])
    values = {
        "name": name,
        "distribution": f"{_PREFIX}{name}",
        "package": package,
        "class_name": class_name,
        "core": f"mtlcore>={major}.{minor},<{major}.{minor + 1}",
        "year": str(date.today().year),
    }
    files: dict[PurePosixPath, str] = {}
    for part in (kind, "common"):
        root = resources.files("mtlcore") / "templates" / part
        for path, text in _files(root, PurePosixPath()):
            used = re.search(rf"\b{class_name}\b", text)
            if path.suffix == ".py" and (used or keyword.iskeyword(class_name)):
                raise UsageError(f"{name}: {class_name} cannot name its class; choose another name")
            text = Template(text).substitute(values)
            # Two of a kind's files are no files of the plugin: the others quote them.
            if path.stem in ("summary", "usage") and part == kind:
                values[path.stem] = text.rstrip()
            else:
                files[_renamed(path, package, name)] = text
    return files


def write(folder: Path, files: Mapping[PurePosixPath, str]) -> None:
    """Write a folder, whole or not at all.

    Raises:
        UsageError: The folder exists already, or cannot be written.
    """
    if folder.exists() or folder.is_symlink():
        raise UsageError(f"{folder}: exists already; move it away, or choose another --out")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside its place, so that renaming it is one step.
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as place:
            partial = Path(place) / folder.name
            for path, text in files.items():
                file = partial / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, "utf-8")
            partial.rename(folder)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror})") from error


def _files(folder: Traversable, at: PurePosixPath) -> Iterator[tuple[PurePosixPath, str]]:
    """Yield the templates below a folder, without their ending; files come after folders."""
    for entry in sorted(folder.iterdir(), key=lambda entry: (entry.is_file(), entry.name)):
        if entry.is_dir():
            yield from _files(entry, at / entry.name)
        elif entry.name.endswith(_ENDING):
            yield at / entry.name.removesuffix(_ENDING), entry.read_text("utf-8")


def _renamed(path: PurePosixPath, package: str, name: str) -> PurePosixPath:
    parts = (re.sub("^dot-", ".", part).replace("PACKAGE", package) for part in path.parts)
    return PurePosixPath(*(part.replace("MODULE", name.replace("-", "_")) for part in parts))
