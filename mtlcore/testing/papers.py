"""What holds for a method that claims a paper's settings: it has them, or says where it has not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from mtlcore.config import resolve
from mtlcore.plugins import MethodSpec, Plugins


@final
class _NotSaid:
    def __repr__(self) -> str:
        return "NOT_SAID"


#: Stands in a table of a paper's values for what the paper does not say.
NOT_SAID = _NotSaid()

_BEGIN, _END = "<!-- deviations -->", "<!-- end of deviations -->"


class PaperContract:
    """Subclass it, set its attributes, and pytest compares a method with its paper.

    Settings are named by their path, those of a list of tables by their number in it, such as
    `cross_task.0.weight`. A setting of the table that the preset leaves out is compared with the
    method's default.

    Attributes:
        method: its name, or "plugin/name".
        readme: the file with the section of deviations, which begins with the line
            `<!-- deviations -->` and ends with `<!-- end of deviations -->`.
        paper: setting -> its value in the paper, `NOT_SAID` where the paper gives none. Every
            number of the preset is in it.
        deviations: setting -> words of that section, by which it tells what is different, or what
            was chosen where the paper says nothing. White space does not matter.
    """

    method: str
    readme: Path
    paper: Mapping[str, Any]
    deviations: Mapping[str, str] = {}

    def test_the_table_has_every_number_of_the_preset(self) -> None:
        """Otherwise a number of our own passes for the paper's."""
        missing = [
            f"{path} = {value!r}"
            for path, value in _settings(self._spec().read())
            if _has_numbers(value) and path not in self.paper
        ]
        assert not missing, f"the table of the paper's values lacks {', '.join(missing)}"

    def test_what_differs_from_the_paper_is_declared(self) -> None:
        """Otherwise results are taken for those of the published settings."""
        silent = [
            f"{setting} is {found!r}, in the paper {value!r}"
            for setting, value, found in self._differing()
            if setting not in self.deviations
        ]
        assert not silent, f"no word about: {'; '.join(silent)}"

    def test_what_is_declared_differs(self) -> None:
        """Otherwise the page tells of deviations that are none any more."""
        differing = {setting for setting, _, _ in self._differing()}
        stale = sorted(set(self.deviations) - differing)
        assert not stale, f"declared to differ, and does not: {', '.join(stale)}"

    def test_what_differs_is_written_down(self) -> None:
        """Otherwise nobody who uses the method learns of it."""
        text = self.readme.read_text("utf-8")
        assert text.count(_BEGIN) == text.count(_END) == 1, (
            f"{self.readme.name} has no section from {_BEGIN} to {_END}"
        )
        section = " ".join(text.partition(_BEGIN)[2].partition(_END)[0].split())
        for setting, words in self.deviations.items():
            assert words and " ".join(words.split()) in section, (
                f"{self.readme.name} does not say of {setting}: {words!r}"
            )

    def _spec(self) -> MethodSpec:
        spec = Plugins.from_environment().get("methods", self.method).spec
        assert isinstance(spec, MethodSpec)
        return spec

    def _differing(self) -> Iterator[tuple[str, Any, Any]]:
        """Yield every setting that is not the paper's, with the paper's value and its own."""
        tree = resolve(Plugins.from_environment(), [self.method]).tree
        there = dict(_settings(tree))
        for setting, value in self.paper.items():
            found = there.get(setting)
            if value is NOT_SAID or not _same(found, value):
                yield setting, value, found


def _settings(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value with its path; lists of tables are gone into, other lists are values."""
    if isinstance(tree, Mapping):
        inner: Sequence[tuple[Any, Any]] = list(tree.items())
    elif isinstance(tree, Sequence) and tree and all(isinstance(item, Mapping) for item in tree):
        inner = list(enumerate(tree))
    else:
        yield path, tree
        return
    for key, value in inner:
        yield from _settings(value, f"{path}.{key}" if path else str(key))


def _has_numbers(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_has_numbers, value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(found: Any, value: Any) -> bool:
    if isinstance(found, list | tuple) and isinstance(value, list | tuple):
        return len(found) == len(value) and all(map(_same, found, value))
    if _has_numbers(found) and _has_numbers(value):
        return math.isclose(found, value, rel_tol=1e-9)
    return bool(found == value)
