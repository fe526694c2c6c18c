"""Studies: a grid of variants and seeds, each cell of it an ordinary run in its own process.

`docs/how-to/studies.md` says how to write one and what its tables mean.
"""

from __future__ import annotations

import copy
import fcntl
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, final

import attrs
import tomli_w

from mtlcore.config import CORE_DEFAULTS, Layer, RunConfig, resolve
from mtlcore.display import Outlook, StudyDisplay, clock
from mtlcore.errors import ConfigError, Interrupted, MtlError, UsageError, describe
from mtlcore.plugins import Plugins, structure
from mtlcore.results import (
    SINGLE_TASK,
    Comparison,
    Epoch,
    Target,
    compare,
    find_definition,
    write_tables,
)
from mtlcore.storage import (
    LAST,
    STUDY,
    RunFiles,
    changed_settings,
    stored_config,
    stored_study,
    written_whole,
)
from mtlcore.studies.processes import LOG, CellProcesses, Ended

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_LOCK = "study.lock"
_SHOWN = 5  # so many changes are told of a cell
#: What became of a cell.
Status = Literal["waiting", "running", "finished", "failed", "interrupted"]


# The file


@final
@attrs.frozen(kw_only=True)
class StudySettings:
    """The keys of a study's file that are no table.

    Args:
        name: the title of the tables.
        seeds: of every variant.
        baseline: the variant that the others are compared with; unset: the first that has a model
            per task, or else the first.
        delta_m: its definition, "mtan", "cagrad" or "libmtl".
        epoch: figures of the last evaluations, or of the best epoch.
        targets: `task.metric=value`, the first reaching of which is looked for.
    """

    name: str
    seeds: tuple[int, ...]
    baseline: str | None = None
    delta_m: str = "mtan"
    epoch: Epoch = "last"
    targets: tuple[str, ...] = ()


@final
@attrs.frozen(kw_only=True)
class VariantFile:
    """One variant as the file has it.

    Args:
        name: of the variant, and of its folder.
        plugins: what `--plugin` would name.
        settings: its tables of configuration.
        single_task: a run per task.
        starts_from: an earlier variant, with whose weights of the same seed it starts.
        seeds: those of the study's that it is run with; None: all.
    """

    name: str
    plugins: tuple[str, ...]
    settings: Mapping[str, Any]
    single_task: bool
    starts_from: str | None = None
    seeds: tuple[int, ...] | None = None


@final
@attrs.frozen(kw_only=True)
class Study:
    """A study as its file says.

    Args:
        place: of the file.
        settings: of the study itself.
        base: plugins and settings of all variants.
        variants: in order.
    """

    place: str
    settings: StudySettings
    base: VariantFile
    variants: tuple[VariantFile, ...]

    @property
    def baseline(self) -> str:
        """The name of the variant that the others are compared with."""
        alone = [variant.name for variant in self.variants if variant.single_task]
        return self.settings.baseline or [*alone, self.variants[0].name][0]


def read_study(place: str) -> Study:
    """Read and check a study's file; the configurations in it are checked by `cells_of`.

    Raises:
        UsageError: it cannot be read, or is not TOML.
        ConfigError: with every problem found.
    """
    try:
        tree = tomllib.loads(Path(place).read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{place}: cannot read the study ({error.strerror})") from error
    except ValueError as error:
        raise UsageError(f"{place}: not TOML: {error}") from error
    problems = [
        f"{key}: a setting of the runs; write it into [base] or into a variant"
        for key in tree
        if key in CORE_DEFAULTS
    ]
    own = {k: v for k, v in tree.items() if k not in ("base", "variants", *CORE_DEFAULTS)}
    values = structure(StudySettings, own, "", problems)
    base = _variant("base", tree.get("base", {}), "base", problems)
    tables = tree.get("variants", {})
    if not isinstance(tables, dict) or not tables:
        problems.append("variants: name at least one, as a table [variants.NAME]")
        tables = {}
    variants = tuple(
        _variant(name, table, f"variants.{name}", problems) for name, table in tables.items()
    )
    problems += _problems_of_settings(values, [variant.name for variant in variants])
    problems += _problems_of_starts(variants)
    problems += _problems_of_seeds(variants, values.get("seeds", ()))
    if problems:
        raise ConfigError(f"{place}: {problem}" for problem in problems)
    return Study(place=place, settings=StudySettings(**values), base=base, variants=variants)


def _variant(name: str, table: Any, path: str, problems: list[str]) -> VariantFile:
    if not isinstance(table, Mapping):
        problems.append(f"{path}: expected a table, got {table!r}")
        table = {}
    if not _NAME.fullmatch(name):
        problems.append(f"{path}: a variant's name is letters, digits and any of _ . + -")
    plugins = table.get("plugins", [])
    if not isinstance(plugins, list) or not all(isinstance(word, str) for word in plugins):
        problems.append(f"{path}.plugins: expected a list of names as for --plugin")
        plugins = []
    alone = table.get("single_task", name == SINGLE_TASK)
    if not isinstance(alone, bool):
        problems.append(f"{path}.single_task: expected true or false, got {alone!r}")
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
    settings = {
        key: value
        for key, value in table.items()
        if key not in ("plugins", "single_task", "starts_from", "seeds")
    }
    return VariantFile(
        name=name,
        plugins=tuple(plugins),
        settings=settings,
        single_task=alone is True,
        starts_from=start,
        seeds=tuple(seeds) if isinstance(seeds, list) else None,
    )


def _problems_of_starts(variants: Sequence[VariantFile]) -> Iterator[str]:
    whole: list[str] = []  # variants with one run per seed, so far
    for variant in variants:
        path, start = f"variants.{variant.name}", variant.starts_from
        if start is not None and start not in whole:
            yield (
                f"{path}.starts_from: {start!r} is no variant before this one with one run per "
                f"seed (there are: {', '.join(whole) or 'none'})"
            )
        if start is not None and variant.single_task:
            yield f"{path}.starts_from: a variant with a run per task has no one run to start from"
        initial = variant.settings.get("initial")
        if start is not None and isinstance(initial, Mapping) and "run" in initial:
            yield f"{path}.initial.run: starts_from says already where the weights come from"
        if not variant.single_task:
            whole.append(variant.name)


def _problems_of_seeds(variants: Sequence[VariantFile], all_seeds: Sequence[int]) -> Iterator[str]:
    by_name = {variant.name: variant for variant in variants}
    for variant in variants:
        path, mine = f"variants.{variant.name}.seeds", variant.seeds
        if mine is not None and (not mine or any(seed not in all_seeds for seed in mine)):
            yield f"{path}: {list(mine)} are not some of the study's seeds {list(all_seeds)}"
        source = by_name.get(variant.starts_from or "")
        there = all_seeds if source is None or source.seeds is None else source.seeds
        if source is not None and any(seed not in there for seed in mine or all_seeds):
            yield f"{path}: it starts from {source.name}, which has the seeds {list(there)} only"


def _problems_of_settings(values: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
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


# Cells


@final
@attrs.define(kw_only=True)
class Cell:
    """One run of a study.

    Args:
        variant: its name.
        seed: of the run.
        task: its only task where the variant has a run per task.
        config: the whole configuration.
        source: location of the cell whose weights it starts with.
        status: what became of it.
        reason: why it has no result.
    """

    variant: str
    seed: int
    task: str | None
    config: RunConfig
    source: str | None = None
    status: Status = "waiting"
    reason: str | None = None

    @property
    def location(self) -> str:
        """Its directory within the study's."""
        place = _location(self.variant, self.seed)
        return f"{place}/{self.task}" if self.task else place

    @property
    def kind(self) -> str:
        """What it shares with the cells of other seeds."""
        return f"{self.variant} {self.task}" if self.task else self.variant

    def __str__(self) -> str:
        return f"{self.kind}, seed {self.seed}"


def _location(variant: str, seed: int) -> str:
    return f"cells/{variant}/seed-{seed}"


def cells_of(study: Study, folder: Path, plugins: Plugins, threads: int) -> list[Cell]:
    """Every cell with its configuration, all variants of a seed before the next seed.

    Args:
        study: what its file says.
        folder: where it runs; cells that start from others name them by it.
        plugins: all there are.
        threads: of a cell whose configuration does not say.

    Raises:
        ConfigError: with every problem of every variant.
    """
    problems: dict[str, list[str]] = {}  # and the variants that have them
    cells = []
    for seed in study.settings.seeds:
        variants = [v for v in study.variants if v.seeds is None or seed in v.seeds]
        for variant in variants:
            try:
                cells += list(_cells(study, folder, variant, seed, plugins, threads))
            except MtlError as error:
                texts = error.problems if isinstance(error, ConfigError) else (str(error),)
                for text in texts:
                    problems.setdefault(text, []).append(variant.name)
        if problems:  # another seed has the same ones
            raise ConfigError(
                f"{study.place}: {_whose(names, len(variants))}: {text}"
                for text, names in problems.items()
            )
    return cells


def _whose(variants: Sequence[str], number: int) -> str:
    if len(variants) == number > 1:
        return "every variant"
    return ", ".join(f"variants.{name}" for name in variants)


def _cells(
    study: Study, folder: Path, variant: VariantFile, seed: int, plugins: Plugins, threads: int
) -> Iterator[Cell]:
    words = (*study.base.plugins, *variant.plugins)
    layers = [
        Layer(f"{study.place} [base]", study.base.settings),
        Layer(f"{study.place} [variants.{variant.name}]", variant.settings),
        Layer("study", {"seed": seed}),
    ]
    source = None if variant.starts_from is None else _location(variant.starts_from, seed)
    if source is not None:
        layers.append(Layer("study", {"initial": {"run": str(folder / source)}}))
    config = resolve(plugins, words, layers)
    if config.training.threads is None:
        layers.append(Layer("study", {"training": {"threads": threads}}))
        config = resolve(plugins, words, layers)
    if not variant.single_task:
        yield Cell(variant=variant.name, seed=seed, task=None, config=config, source=source)
        return
    for task in config.tree["tasks"]:
        alone = resolve(plugins, (), [Layer(f"only {task}", _narrowed(config.tree, task))])
        yield Cell(variant=variant.name, seed=seed, task=task, config=alone)


def _narrowed(tree: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The configuration of a run that learns this task alone."""
    narrow = copy.deepcopy(dict(tree))
    narrow["tasks"] = [task]
    for table in (narrow["model"].get("heads", {}), narrow["losses"], narrow["metrics"]):
        for other in [name for name in table if name != task]:
            del table[other]
    return narrow


# Running


def run_study(
    plugins: Plugins,
    place: str,
    out: str,
    jobs: int,
    display: StudyDisplay,
    blocked: Sequence[str] = (),
) -> Comparison:
    """Run what is left of a study and write its tables.

    Args:
        plugins: all there are.
        place: the study's file.
        out: a local directory: new, empty, or of an earlier start of this study.
        jobs: cells at a time.
        display: what a person sees.
        blocked: plugins that the cells must not load either.

    Raises:
        UsageError: the directory holds something else, or a cell that was begun otherwise.
        ConfigError: the file or a variant's configuration is wrong.
        Interrupted: a signal asked to stop; the cells have saved.
    """
    study = read_study(place)
    folder = _folder(out)
    with _locked(folder, display) as lock:
        threads = _threads(folder, jobs)
        cells = cells_of(study, folder, plugins, threads)
        _refuse_changed(folder, cells)
        for cell in cells:
            if (folder / cell.location / "summary.json").exists():
                cell.status = "finished"
        record = _Record(study, folder, cells, jobs, threads)
        record.write()
        _tell_of_threads(cells, jobs, display)
        _run_cells(record, CellProcesses(folder, jobs, lock, blocked), display)
    comparison = compare([str(folder)])
    write_tables(comparison, folder)
    return comparison


@final
@attrs.frozen
class _Record:
    """A study at work, and what `study.json` tells of it."""

    study: Study
    folder: Path
    cells: Sequence[Cell]
    jobs: int
    threads: int

    def write(self) -> None:
        settings = self.study.settings
        used = sorted({cell.config.training.threads or 0 for cell in self.cells})
        content = {
            "name": settings.name,
            "seeds": settings.seeds,
            "baseline": self.study.baseline,
            "delta_m": settings.delta_m,
            "epoch": settings.epoch,
            "targets": settings.targets,
            "threads": self.threads,
            "notes": [
                f"Cells ran in processes of their own, up to {self.jobs} at a time with "
                f"{' or '.join(map(str, used))} compute threads; times hold for that."
            ],
            "cells": [
                {
                    "variant": cell.variant,
                    "seed": cell.seed,
                    "task": cell.task,
                    "location": cell.location,
                    "status": cell.status,
                    "reason": cell.reason,
                }
                for cell in self.cells
            ],
        }
        _write(self.folder / STUDY, json.dumps(content, indent=2) + "\n")


def _run_cells(record: _Record, processes: CellProcesses, display: StudyDisplay) -> None:
    by_location = {cell.location: cell for cell in record.cells}
    waiting = [cell for cell in record.cells if cell.status != "finished"]
    outlook = Outlook(
        [cell.kind for cell in waiting], len(record.cells) - len(waiting), processes.jobs
    )
    for cell in record.cells:
        if cell.status == "finished":
            outlook.took(cell.kind, _seconds(record.folder / cell.location))
    try:
        with display:
            display.start(record.study.settings.name, outlook)
            while waiting or processes.running:
                for cell in _without_start(waiting, by_location):
                    waiting.remove(cell)
                    _start_failed(cell, by_location, record)
                    outlook.started(str(cell), cell.kind)
                    outlook.ended(str(cell))
                    display.ended(f"{cell}: failed: {cell.reason}")
                for cell in _ready(waiting, by_location)[: processes.jobs - processes.running]:
                    waiting.remove(cell)
                    _start(cell, record, processes)
                    outlook.started(str(cell), cell.kind)
                if not processes.running:
                    continue
                ended = processes.wait()
                cell = by_location[ended.location]
                _conclude(cell, ended, record)
                outlook.ended(str(cell))
                if cell.status == "finished":
                    # This process may have done the rest only.
                    whole = _seconds(record.folder / cell.location)
                    outlook.took(cell.kind, max(ended.seconds, whole))
                display.ended(f"{cell}: {_told(cell, ended, record)}")
    except KeyboardInterrupt as error:
        display.note("stopping: the cells finish their step and save; once more stops at once")
        for ended in processes.stop():
            _conclude(by_location[ended.location], ended, record, asked=True)
        left = sum(cell.status != "finished" for cell in record.cells)
        raise Interrupted(
            f"stopped with {left} of {len(record.cells)} cells to do; what was done is saved. Go "
            f"on with: mtl study {record.study.place} --out {record.folder}"
        ) from error


def _ready(waiting: Sequence[Cell], cells: Mapping[str, Cell]) -> list[Cell]:
    """Those that start from no other cell, or from one that is finished."""
    return [c for c in waiting if c.source is None or cells[c.source].status == "finished"]


def _without_start(waiting: Sequence[Cell], cells: Mapping[str, Cell]) -> list[Cell]:
    """Those whose weights no cell of this start of the study will make."""
    ended = ("failed", "interrupted")
    return [c for c in waiting if c.source is not None and cells[c.source].status in ended]


def _start_failed(cell: Cell, cells: Mapping[str, Cell], record: _Record) -> None:
    assert cell.source is not None
    cell.status, cell.reason = "failed", f"it starts from {cells[cell.source]}, which has no result"
    _make(record.folder / cell.location)
    record.write()


def _told(cell: Cell, ended: Ended, record: _Record) -> str:
    if cell.status == "finished":
        return f"finished in {clock(ended.seconds)}"
    return f"{cell.status}: {cell.reason} (see {record.folder / cell.location / LOG})"


def _start(cell: Cell, record: _Record, processes: CellProcesses) -> None:
    place = record.folder / cell.location
    _make(place)
    _write(place / "config.toml", tomli_w.dumps(dict(cell.config.tree)))
    cell.status, cell.reason = "running", None
    record.write()
    processes.start(cell.location, cell.config.training.threads or 1)


def _conclude(cell: Cell, ended: Ended, record: _Record, asked: bool = False) -> None:
    """Note how a cell ended, which may have been asked to."""
    if ended.code == 0:
        cell.status = "finished"
    else:
        cell.status = "interrupted" if asked or ended.code == Interrupted.exit_code else "failed"
        cell.reason = ended.why
    record.write()


# The directory


def _folder(out: str) -> Path:
    if "://" in out:
        raise UsageError(f"--out {out}: a study needs a local directory")
    folder = Path(out)
    # A study whose file was refused leaves its lock behind.
    held = folder.is_dir() and any(inner.name != _LOCK for inner in folder.iterdir())
    if held and not (folder / STUDY).exists():
        raise UsageError(f"{out}: is not empty and holds no study; choose another --out")
    _make(folder)
    return folder


@contextmanager
def _locked(folder: Path, display: StudyDisplay) -> Iterator[int]:
    """Have the directory for oneself; its cells hold the lock too, as they may outlive a study."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            display.note(
                f"{folder}: another study, or the last step of a killed one, is at work there; "
                "waiting for its end"
            )
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _threads(folder: Path, jobs: int) -> int:
    """Threads of a cell that does not name them: the first start decides for all of the study."""
    before = stored_study(str(folder))
    return max(1, _cores() // jobs) if before is None else before.threads


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _tell_of_threads(cells: Sequence[Cell], jobs: int, display: StudyDisplay) -> None:
    most = jobs * max(cell.config.training.threads or 1 for cell in cells)
    if most > _cores():
        display.note(
            f"{jobs} cells at a time have {most} threads on {_cores()} cores: they will wait for "
            "each other; fewer --jobs, or a smaller training.threads, would not be slower"
        )


def _refuse_changed(folder: Path, cells: Sequence[Cell]) -> None:
    problems = []
    for cell in cells:
        place = folder / cell.location
        if not any((place / name).exists() for name in (LAST, "summary.json")):
            continue
        stored = stored_config(str(place))
        changed = changed_settings(stored or {}, cell.config.tree)
        if changed:
            shown = ", ".join(changed[:_SHOWN]) + (", ..." if len(changed) > _SHOWN else "")
            problems.append(
                f"{place}: was begun with other settings than the study now has for it ({shown})"
            )
    if problems:
        raise UsageError(
            "\n".join(problems)
            + "\nA cell is never run twice: take the change back, remove these folders to run "
            "them anew, or choose another --out"
        )


def _seconds(place: Path) -> float:
    summary = RunFiles(str(place)).summary
    assert summary is not None
    return float(summary["seconds"])


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror})") from error


def _write(file: Path, text: str) -> None:
    try:
        with written_whole(file) as partial:
            partial.write_text(text, "utf-8")
    except OSError as error:
        raise MtlError(f"{file}: cannot be written ({describe(error)})") from error
