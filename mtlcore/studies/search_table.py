"""`[search]` of a study's file: reading and checking it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import attrs

from mtlcore.errors import did_you_mean, shown
from mtlcore.plugins import structure
from mtlcore.ranges import Count, Seed
from mtlcore.results import DELTA
from mtlcore.searchers import Choices, FloatRange, IntRange, Setting, Space

_OF_RANGES = ("low", "high", "log", "step", "choices")
_NAME = re.compile(r"trial-\d{4,}")


def trial_name(number: int) -> str:
    """Return the name of a trial's variant."""
    return f"trial-{number:04d}"


@final
@attrs.frozen(kw_only=True)
class Search:
    """`[search]` of a study's file.

    Args:
        trials: How many there are in all.
        ranges: The settings that are chosen, as tables of configuration whose leaves are ranges.
        objectives: What is to become best: "delta_m", or metrics as "task.metric".
        variant: The variant over which the chosen settings are laid; unset: `[base]` alone.
        seed: Of the searcher; the trials have the study's seeds.
        searcher: What chooses: its `name` and its settings.
    """

    trials: Count
    ranges: Mapping[str, Any]
    objectives: tuple[str, ...] = (DELTA,)
    variant: str | None = None
    seed: Seed = 0
    searcher: Mapping[str, Any] = attrs.field(factory=lambda: {"name": "random"})

    @property
    def space(self) -> Space:
        """Path of each setting -> its values."""
        return dict(_space_of(self.ranges, "", []))

    def fits(self, parameters: Mapping[str, Any]) -> bool:
        """Return whether parameters, of an earlier start perhaps, are in the space."""
        space = self.space
        return set(parameters) == set(space) and all(
            value in space[path] for path, value in parameters.items()
        )


def read_search(table: Any, variants: Sequence[str], problems: list[str]) -> Search | None:
    """Return the search of a table; None, with more problems, where it has mistakes.

    Args:
        table: What the file has.
        variants: The names of the study's variants.
        problems: Receives a line per mistake.
    """
    if not isinstance(table, Mapping):
        problems.append(f"search: expected a table, got {shown(table)}")
        return None
    before = len(problems)
    values = structure(Search, dict(table), "search", problems)
    problems += _problems(values, variants)
    if len(problems) > before or not {"trials", "ranges"} <= set(values):
        return None
    return Search(**values)


def _problems(values: Mapping[str, Any], variants: Sequence[str]) -> Iterator[str]:
    ranges: list[str] = []
    if isinstance(values.get("ranges"), Mapping):
        space = dict(_space_of(values["ranges"], "", ranges))
        yield from ranges
        if not space and not ranges:
            yield "search.ranges: name at least one, such as optimizer.lr = {low = 1e-4, high = 1}"
    variant = values.get("variant")
    if variant is not None and variant not in variants:
        yield f"search.variant: {variant!r} is no variant{did_you_mean(variant, variants)}"
    objectives = values.get("objectives", (DELTA,))
    if not objectives or len(set(objectives)) < len(objectives):
        yield f"search.objectives: expected different ones, at least one, got {list(objectives)}"
    for objective in objectives:
        if objective == DELTA and not variants:
            yield (
                'search.objectives: "delta_m" compares with a variant; name one as a table '
                '[variants.NAME], or metrics such as "depth.abs_error"'
            )
        elif objective != DELTA and not re.fullmatch(r"[^.]+\.[^.]+", objective):
            yield f'search.objectives: {objective!r} is neither "delta_m" nor "task.metric"'
    for name in variants:
        if _NAME.fullmatch(name):
            yield f"variants.{name}: trials have such names; choose another one"


def _space_of(
    table: Mapping[str, Any], above: str, problems: list[str]
) -> Iterator[tuple[str, Setting]]:
    """Yield path and range of every leaf."""
    for key, value in table.items():
        path = f"{above}.{key}" if above else key
        if isinstance(value, Mapping) and not any(name in value for name in _OF_RANGES):
            yield from _space_of(value, path, problems)
            continue
        try:
            yield path, _setting_of(value)
        except ValueError as error:
            problems.append(f"search.ranges.{path}: {error}")


def _setting_of(table: Any) -> Setting:
    """Return a range as its table describes it.

    Raises:
        ValueError: It describes none.
    """
    example = "{low = 1, high = 9}, with log = true or step, or {choices = [...]}"
    if not isinstance(table, Mapping) or not set(table) <= set(_OF_RANGES):
        raise ValueError(f"expected {example}, got {shown(table)}")
    if "choices" in table:
        values = table["choices"]
        if len(table) > 1 or not isinstance(values, list | tuple) or len(values) < 2:
            raise ValueError("choices are a list of at least two, and nothing beside them")
        return Choices(values=tuple(values))
    low, high, log = table.get("low"), table.get("high"), table.get("log", False)
    if not isinstance(log, bool):
        raise ValueError("log is true or false")
    if low is None or high is None or not (_is_number(low) and _is_number(high) and low < high):
        raise ValueError(f"expected low < high, got low {shown(low)} and high {shown(high)}")
    if log and low <= 0:
        raise ValueError("log needs low > 0")
    if isinstance(low, int) and isinstance(high, int):
        step = table.get("step", 1)
        if not _is_number(step) or not isinstance(step, int) or step < 1 or (log and step > 1):
            raise ValueError("step is a whole number from 1 on, and 1 where log is true")
        return IntRange(low=low, high=high, log=log, step=step)
    if "step" in table:
        raise ValueError("step is for whole numbers; write low and high without a point")
    return FloatRange(low=float(low), high=float(high), log=log)


def _is_number(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return -(2**63) <= value < 2**63
    return isinstance(value, float) and math.isfinite(value)
