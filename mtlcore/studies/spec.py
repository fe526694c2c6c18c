"""The file of a study: reading and checking it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import attrs

from mtlcore.config import CORE_DEFAULTS
from mtlcore.errors import ConfigError, UsageError, did_you_mean, shown
from mtlcore.plugins import structure
from mtlcore.ranges import Name, Natural, Seed
from mtlcore.results import SINGLE_TASK, Epoch, Target, find_definition
from mtlcore.storage import decoded
from mtlcore.studies.search_table import Search, read_search, trial_name

_OF_VARIANTS = ("plugins", "single_task", "groups", "starts_from", "seeds", "candidates")
_TABLES = ("base", "variants", "tune", "search")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")


@final
@attrs.frozen(kw_only=True)
class StudySettings:
    """The top-level keys of a study's file.

    Args:
        name: The title of the tables.
        seeds: The seeds of every variant.
        baseline: The variant that the others are compared with; unset: the first variant with one
            model per task, or else the first one.
        delta_m: The definition of delta-m: "mtan", "cagrad" or "libmtl".
        epoch: Whether metrics are those of the last evaluations or of the best epoch.
        targets: `task.metric=value`; the tables say when each was first reached.
        launcher: What starts the cells: its `name` and its settings.
        restarts: How often a start of the study begins a cell again that was lost with its machine.
        pilot: An earlier study, its directory or a copy of its `values.json`: by its spread and its
            times this one says before it runs what it can detect, and how long it takes.
    """

    name: Name
    seeds: tuple[Seed, ...]
    baseline: str | None = None
    delta_m: str = "mtan"
    epoch: Epoch = "last"
    targets: tuple[str, ...] = ()
    launcher: Mapping[str, Any] = attrs.field(factory=lambda: {"name": "local"})
    restarts: Natural = 3
    pilot: str | None = None


@final
@attrs.frozen(kw_only=True)
class Tuning:
    """`[tune]` of a study's file: settings among which each variant chooses before its seeds run.

    Args:
        seed: With which they are tried; not one of the study's.
        candidates: Name -> settings that are laid over a variant's own.
    """

    seed: Seed
    candidates: Mapping[str, Mapping[str, Any]]


@final
@attrs.frozen(kw_only=True)
class StudyVariant:
    """One variant of a study's file.

    Args:
        name: The variant's name, and that of its folder.
        plugins: What `--plugin` would name.
        settings: Its tables of configuration.
        single_task: Whether each task is trained in a run of its own.
        groups: The tasks of each run, where every seed has several; None elsewhere.
        starts_from: An earlier variant; each run starts with its weights of the same seed.
        seeds: Which of the study's seeds it is run with; None: all.
        candidates: Its own candidates; None: those of `[tune]`.
        tuned: Settings of the candidate that it has.
    """

    name: str
    plugins: tuple[str, ...]
    settings: Mapping[str, Any]
    single_task: bool
    groups: tuple[tuple[str, ...], ...] | None = None
    starts_from: str | None = None
    seeds: tuple[int, ...] | None = None
    candidates: Mapping[str, Mapping[str, Any]] | None = None
    tuned: Mapping[str, Any] = attrs.field(factory=dict)

    def groups_of(self, tasks: Sequence[str]) -> tuple[tuple[str, ...], ...] | None:
        """Return the tasks of each run of a seed; None where one run learns all of them.

        Args:
            tasks: The tasks that the variant's configuration has.

        Raises:
            ConfigError: The groups are not a partition of these.
        """
        if self.groups is None:
            return tuple((task,) for task in tasks) if self.single_task else None
        grouped = [task for group in self.groups for task in group]
        problems = [
            f"groups: the variant learns no {task!r}{did_you_mean(task, tasks)}"
            for task in grouped
            if task not in tasks
        ]
        left = [task for task in tasks if task not in grouped]
        if left:
            problems.append(
                f"groups: {', '.join(left)} is in none; add it to one, or leave it out of tasks"
            )
        if problems:
            raise ConfigError(problems)
        return self.groups


@final
@attrs.frozen(kw_only=True)
class Study:
    """A study, as its file describes it.

    Args:
        path: The path of the file.
        settings: The file's top-level keys.
        base: Plugins and settings that all variants share.
        variants: The variants, in the order of the file.
        tuning: What each variant chooses among; None: nothing, or it has chosen.
        notes: What a reader of the tables should know, one sentence each.
        search: What its trials choose; None: it has none.
    """

    path: str
    settings: StudySettings
    base: StudyVariant
    variants: tuple[StudyVariant, ...]
    tuning: Tuning | None = None
    notes: tuple[str, ...] = ()
    search: Search | None = None

    @property
    def baseline(self) -> str:
        """The name of the variant that the others are compared with."""
        single_task = [variant.name for variant in self.variants if variant.single_task]
        named = [variant.name for variant in self.variants]
        return self.settings.baseline or [*single_task, *named, trial_name(0)][0]


def read_study(path: str) -> Study:
    """Read and check a study's file; `cells_of` checks the configurations in it.

    Raises:
        UsageError: The file cannot be read, or is not TOML.
        ConfigError: The file has mistakes; the error lists all of them.
    """
    try:
        tree = decoded(Path(path).read_bytes(), "TOML")
    except OSError as error:
        raise UsageError(f"{path}: cannot read the study ({error.strerror})") from error
    except ValueError as error:
        raise UsageError(f"{path}: not TOML: {error}") from error
    problems = [
        f"{key}: a setting of the runs; write it into [base] or into a variant"
        for key in tree
        if key in CORE_DEFAULTS
    ]
    own = {k: v for k, v in tree.items() if k not in _TABLES and k not in CORE_DEFAULTS}
    values = structure(StudySettings, own, "", problems)
    base = _read_variant("base", tree.get("base", {}), "base", problems)
    tables = tree.get("variants", {})
    if not isinstance(tables, dict) or not (tables or "search" in tree):
        problems.append("variants: name at least one, as a table [variants.NAME]")
        tables = {}
    variants = tuple(
        _read_variant(name, table, f"variants.{name}", problems) for name, table in tables.items()
    )
    problems += _setting_problems(values, [variant.name for variant in variants])
    problems += _start_problems(variants)
    problems += _seed_problems(variants, values.get("seeds", ()))
    tuning = _read_tuning(tree.get("tune"), values.get("seeds", ()), problems)
    search = None
    if "search" in tree:
        search = read_search(tree["search"], [variant.name for variant in variants], problems)
        if "tune" in tree:
            problems.append("search: a study that tunes its variants has no trials")
    if "tune" not in tree:
        problems += [
            f"variants.{variant.name}.candidates: the seed that chooses is named by [tune]"
            for variant in variants
            if variant.candidates is not None
        ]
    if tuning is not None:
        problems += [
            f"variants.{variant.name}.starts_from: variants that are tuned start from none"
            for variant in variants
            if variant.starts_from is not None
        ]
    if problems:
        raise ConfigError(f"{path}: {problem}" for problem in problems)
    settings = StudySettings(**values)
    return Study(
        path=path, settings=settings, base=base, variants=variants, tuning=tuning, search=search
    )


def _read_tuning(table: Any, seeds: Sequence[int], problems: list[str]) -> Tuning | None:
    if table is None:
        return None
    if not isinstance(table, Mapping):
        problems.append(f"tune: expected a table, got {shown(table)}")
        return None
    values = structure(Tuning, dict(table), "tune", problems)
    if "candidates" in values:
        _checked_candidates(values["candidates"], "tune.candidates", problems)
    if values.get("seed") in seeds:
        problems.append(f"tune.seed: {values['seed']} is one of the study's seeds; choose another")
    complete = {"seed", "candidates"} <= set(values)
    return Tuning(**values) if complete else None


def _checked_candidates(
    candidates: Any, path: str, problems: list[str]
) -> Mapping[str, Mapping[str, Any]]:
    if not isinstance(candidates, Mapping) or len(candidates) < 2:
        problems.append(f"{path}: name at least two, as tables [{path}.NAME]")
        return {}
    for name, settings in candidates.items():
        if not _NAME.fullmatch(name):
            problems.append(
                f"{path}.{name}: a name is letters, digits and any of _ . + -, at most 100"
            )
        if not isinstance(settings, Mapping):
            problems.append(f"{path}.{name}: expected a table of settings, got {shown(settings)}")
            continue
        problems += [
            f"{path}.{name}.{key}: a candidate has settings of runs only"
            for key in (*_OF_VARIANTS, "seed")
            if key in settings
        ]
    return candidates


def _read_variant(name: str, table: Any, path: str, problems: list[str]) -> StudyVariant:
    if not isinstance(table, Mapping):
        problems.append(f"{path}: expected a table, got {shown(table)}")
        table = {}
    if not _NAME.fullmatch(name):
        problems.append(
            f"{path}: a variant's name is letters, digits and any of _ . + -, at most 100"
        )
    plugins = table.get("plugins", [])
    if not isinstance(plugins, list) or not all(isinstance(word, str) for word in plugins):
        problems.append(f"{path}.plugins: expected a list of names as for --plugin")
        plugins = []
    groups = _read_groups(table.get("groups"), path, problems)
    single_task = table.get("single_task", name == SINGLE_TASK and groups is None)
    if not isinstance(single_task, bool):
        problems.append(f"{path}.single_task: expected true or false, got {shown(single_task)}")
    elif single_task and groups is not None:
        problems.append(f"{path}.single_task: groups say already which tasks share a model")
    start = table.get("starts_from")
    if start is not None and (not isinstance(start, str) or path == "base"):
        problems.append(f"{path}.starts_from: expected, in a variant, the name of another one")
        start = None
    seeds = table.get("seeds")
    if seeds is not None and (not isinstance(seeds, list) or path == "base"):
        problems.append(f"{path}.seeds: expected, in a variant, a list of some of the study's")
        seeds = None
    if "seed" in table:
        problems.append(f"{path}.seed: the study's seeds are a list, seeds = [0, 1, 2]")
    settings = {key: value for key, value in table.items() if key not in _OF_VARIANTS}
    candidates = table.get("candidates")
    if candidates is not None:
        candidates = _checked_candidates(candidates, f"{path}.candidates", problems)
        if path == "base":
            problems.append("base.candidates: those of all variants are [tune.candidates.NAME]")
    return StudyVariant(
        name=name,
        plugins=tuple(plugins),
        settings=settings,
        single_task=single_task is True,
        groups=groups,
        starts_from=start,
        seeds=tuple(seeds) if isinstance(seeds, list) else None,
        candidates=candidates,
    )


def _read_groups(groups: Any, path: str, problems: list[str]) -> tuple[tuple[str, ...], ...] | None:
    if groups is None:
        return None
    lists = isinstance(groups, list) and all(isinstance(group, list) for group in groups)
    names = [task for group in groups for task in group] if lists else []
    if not (lists and names and all(groups)) or path == "base":
        problems.append(
            f"{path}.groups: expected, in a variant, lists of tasks, such as "
            '[["segmentation", "depth"], ["normals"]]'
        )
    elif not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        problems.append(
            f"{path}.groups: expected the names of tasks, each once, got {shown(groups)}"
        )
    else:
        return tuple(tuple(group) for group in groups)
    return None


def _start_problems(variants: Sequence[StudyVariant]) -> Iterator[str]:
    possible: list[str] = []  # earlier variants with one run per seed
    for variant in variants:
        path, start = f"variants.{variant.name}", variant.starts_from
        if start is not None and start not in possible:
            yield (
                f"{path}.starts_from: {start!r} is no variant before this one with one run per "
                f"seed (there are: {', '.join(possible) or 'none'})"
            )
        several = variant.single_task or variant.groups is not None
        if start is not None and several:
            yield f"{path}.starts_from: a variant with several runs per seed starts from none"
        initial = variant.settings.get("initial")
        if start is not None and isinstance(initial, Mapping) and "run" in initial:
            yield f"{path}.initial.run: starts_from says already where the weights come from"
        if not several:
            possible.append(variant.name)


def _seed_problems(variants: Sequence[StudyVariant], all_seeds: Sequence[int]) -> Iterator[str]:
    by_name = {variant.name: variant for variant in variants}
    for variant in variants:
        path, seeds = f"variants.{variant.name}.seeds", variant.seeds
        if seeds is not None and (not seeds or any(seed not in all_seeds for seed in seeds)):
            yield f"{path}: {list(seeds)} are not some of the study's seeds {list(all_seeds)}"
        source = by_name.get(variant.starts_from or "")
        available = all_seeds if source is None or source.seeds is None else source.seeds
        if source is not None and any(seed not in available for seed in seeds or all_seeds):
            yield (
                f"{path}: it starts from {source.name}, which has the seeds {list(available)} only"
            )


def _setting_problems(values: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    seeds = values.get("seeds", (0,))
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        yield f"seeds: expected different numbers from 0 on, got {list(seeds)}"
    baseline = values.get("baseline")
    if baseline is not None and baseline not in names:
        yield f"baseline: {baseline!r} is no variant (there are: {', '.join(names)})"
    try:
        find_definition(values.get("delta_m", "mtan"))
        for target in values.get("targets", ()):
            Target.parse(target)
    except UsageError as error:
        yield str(error)
