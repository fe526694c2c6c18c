"""The cells of a study: one run per variant and seed, each with its whole configuration."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

import attrs

from mtlcore.config import Layer, RunConfig, resolve
from mtlcore.errors import ConfigError, MtlError
from mtlcore.plugins import Plugins
from mtlcore.studies.spec import Study, StudyVariant

#: What became of a cell.
Status = Literal["waiting", "running", "finished", "failed", "interrupted", "pruned"]


@final
@attrs.define(kw_only=True)
class Cell:
    """One run of a study.

    Args:
        variant: The variant's name.
        seed: The run's seed.
        group: Its tasks, where the variant has several runs per seed; None elsewhere.
        config: The run's whole configuration.
        source: Location of the cell whose weights it starts with.
        status: What became of it.
        reason: Why it has no result.
    """

    variant: str
    seed: int
    group: tuple[str, ...] | None
    config: RunConfig
    source: str | None = None
    status: Status = "waiting"
    reason: str | None = None

    @property
    def location(self) -> str:
        """The run's directory, relative to the study's."""
        location = _location(self.variant, self.seed)
        return f"{location}/{'+'.join(self.group)}" if self.group else location

    @property
    def kind(self) -> str:
        """Variant and group: what it shares with the cells of other seeds."""
        return f"{self.variant} {'+'.join(self.group)}" if self.group else self.variant

    def __str__(self) -> str:
        return f"{self.kind}, seed {self.seed}"


def _location(variant: str, seed: int) -> str:
    return f"cells/{variant}/seed-{seed}"


def cells_of(study: Study, folder: Path, plugins: Plugins, threads: int) -> list[Cell]:
    """Return every cell with its configuration: all variants of one seed, then of the next.

    Args:
        study: The study, as read from its file.
        folder: The study's directory; a cell that starts from another finds it there.
        plugins: The plugins whose components the configurations may name.
        threads: The number of threads for cells whose configuration does not set it.

    Raises:
        ConfigError: A configuration has mistakes; the error lists those of all variants.
    """
    problems: dict[str, list[str]] = {}  # each with the variants that have it
    cells = []
    for seed in study.settings.seeds:
        variants = [v for v in study.variants if v.seeds is None or seed in v.seeds]
        for variant in variants:
            try:
                cells += list(_cells(study, folder, variant, seed, plugins, threads))
            except MtlError as error:
                messages = error.problems if isinstance(error, ConfigError) else (str(error),)
                for message in messages:
                    problems.setdefault(message, []).append(variant.name)
        if problems:  # other seeds would repeat them
            raise ConfigError(
                f"{study.path}: {_affected(names, len(variants))}: {message}"
                for message, names in problems.items()
            )
    return cells


def _affected(variants: Sequence[str], total: int) -> str:
    if len(variants) == total > 1:
        return "every variant"
    return ", ".join(f"variants.{name}" for name in variants)


def _cells(
    study: Study, folder: Path, variant: StudyVariant, seed: int, plugins: Plugins, threads: int
) -> Iterator[Cell]:
    selected = (*study.base.plugins, *variant.plugins)
    layers = [
        Layer(f"{study.path} [base]", study.base.settings),
        Layer(f"{study.path} [variants.{variant.name}]", variant.settings),
        Layer(
            f"{study.path} [{'tune.candidates' if study.search is None else 'search.ranges'}] "
            f"of {variant.name}",
            variant.tuned,
        ),
        Layer("study", {"seed": seed}),
    ]
    source = None if variant.starts_from is None else _location(variant.starts_from, seed)
    if source is not None:
        layers.append(Layer("study", {"initial": {"run": str(folder / source)}}))
    config = resolve(plugins, selected, layers)
    if config.training.threads is None:
        layers.append(Layer("study", {"training": {"threads": threads}}))
        config = resolve(plugins, selected, layers)
    groups = variant.groups_of(config.tree["tasks"])
    if groups is None:
        yield Cell(variant=variant.name, seed=seed, group=None, config=config, source=source)
        return
    for group in groups:
        layer = Layer(f"only {', '.join(group)}", _restricted_to(config.tree, group))
        config_of_group = resolve(plugins, (), [layer])
        yield Cell(variant=variant.name, seed=seed, group=group, config=config_of_group)


def _restricted_to(tree: Mapping[str, Any], group: Sequence[str]) -> dict[str, Any]:
    """Return the configuration of a run that learns these tasks alone."""
    restricted = copy.deepcopy(dict(tree))
    restricted["tasks"] = list(group)
    for table in (
        restricted["model"].get("heads", {}),
        restricted["losses"],
        restricted["metrics"],
    ):
        for other in [name for name in table if name not in group]:
            del table[other]
    return restricted
