"""Variants: runs that differ by nothing but their seed."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import final

import attrs

from mtlcore.errors import UsageError
from mtlcore.metrics import MetricValues
from mtlcore.results.run_results import Epoch, RunResult, read_run
from mtlcore.storage import RunFiles, StoredCell, plain_settings

#: The name of a variant of one run per task where nobody named it.
SINGLE_TASK = "single-task"

# Settings that may differ between runs of one variant.
_INCIDENTAL = ("seed", "device", "data.workers", "data.cache", "training.threads")
_PER_TASK = ("tasks", "model.heads", "losses", "metrics")


@final
@attrs.frozen
class FailedCell:
    """A cell of a study without a result.

    Args:
        seed: Seed of the cell.
        group: Its tasks where the variant has several runs per seed, else None.
        location: Its directory.
        reason: Why there is no result, as a text to show.
        pruned: Whether it was asked to stop.
    """

    seed: int
    group: tuple[str, ...] | None
    location: str
    reason: str
    pruned: bool = False

    @property
    def label(self) -> str:
        """The seed, and the tasks where they tell it from others."""
        return f"seed {self.seed}" + (f", {'+'.join(self.group)}" if self.group else "")


@final
@attrs.frozen(kw_only=True)
class Variant:
    """Runs that differ by nothing but their seed: one row of the tables.

    Args:
        name: Name given by the study, or that of the runs' method.
        runs: Seed -> its runs: one, or one per group.
        groups: The tasks of each run, where several models share the tasks; None elsewhere.
        failed: Cells without a result.
    """

    name: str
    runs: Mapping[int, tuple[RunResult, ...]]
    groups: tuple[tuple[str, ...], ...] | None = None
    failed: tuple[FailedCell, ...] = ()

    @property
    def single_task(self) -> bool:
        """Whether each task has a model, and a run, of its own."""
        return self.groups is not None and all(len(group) == 1 for group in self.groups)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds with at least one finished run."""
        return tuple(self.runs)

    @property
    def all_runs(self) -> tuple[RunResult, ...]:
        """The runs of all seeds."""
        return tuple(run for runs in self.runs.values() for run in runs)

    def metrics(self, seed: int, epoch: Epoch) -> MetricValues:
        """Return the metrics of a seed, merged where it has several runs."""
        return {
            task: values for run in self.runs[seed] for task, values in run.metrics(epoch).items()
        }

    @property
    def parameters(self) -> float:
        """The number of parameters, summed over the models of `groups`; NaN without runs."""
        return self._over_seeds(lambda runs: sum(run.parameters for run in runs))

    @property
    def seconds_per_step(self) -> float:
        """Seconds of a training step, summed over the models of `groups`."""
        return self._over_seeds(lambda runs: sum(run.seconds_per_step for run in runs))

    @property
    def peak_memory(self) -> float:
        """Peak memory in bytes; that of the largest run of `groups`."""
        return self._over_seeds(lambda runs: max(run.peak_memory for run in runs))

    @property
    def best_epoch(self) -> float:
        """The epoch of the best evaluation, as a mean over the runs."""
        return self._over_seeds(lambda runs: statistics.fmean(run.best_epoch for run in runs))

    def _over_seeds(self, cost: Callable[[Sequence[RunResult]], float]) -> float:
        """Return the mean over the seeds that lack no run."""
        incomplete = {cell.seed for cell in self.failed}
        values = [cost(runs) for seed, runs in self.runs.items() if seed not in incomplete]
        return statistics.fmean(values) if values else math.nan


def variants_of_study(cells: Sequence[StoredCell]) -> tuple[Variant, ...]:
    """Return the variants of a study in the order of its cells."""
    names = dict.fromkeys(cell.variant for cell in cells)
    return tuple(
        _variant_of_study(name, [cell for cell in cells if cell.variant == name]) for name in names
    )


def _variant_of_study(name: str, cells: Sequence[StoredCell]) -> Variant:
    runs: dict[int, tuple[RunResult, ...]] = {}
    failed = []
    for cell in cells:
        # A cell may have ended after the study that started it.
        if RunFiles(cell.location).summary is not None:
            runs[cell.seed] = (*runs.get(cell.seed, ()), read_run(cell.location))
        else:
            reason = cell.reason or f"not finished ({cell.status})"
            pruned = cell.status == "pruned"
            failed.append(FailedCell(cell.seed, cell.group, cell.location, reason, pruned))
    return Variant(
        name=name,
        runs=runs,
        groups=tuple(dict.fromkeys(cell.group for cell in cells if cell.group)) or None,
        failed=tuple(failed),
    )


def variants_of_runs(runs: Iterable[RunResult]) -> Iterator[Variant]:
    """Yield variants: groups of runs whose configurations differ by the seed only.

    Runs of one task each that agree in all but the task become the variant "single-task".

    Raises:
        UsageError: Two runs are the same.
    """
    by_config: dict[str, list[RunResult]] = {}
    for run in runs:
        by_config.setdefault(_config_without(run, _INCIDENTAL), []).append(run)
    families: dict[str, list[str]] = {}
    for key, members in by_config.items():
        if len(members[0].tasks) == 1:
            family = _config_without(members[0], (*_INCIDENTAL, *_PER_TASK))
            families.setdefault(family, []).append(key)
    family_of = {key: keys for keys in families.values() if len(keys) > 1 for key in keys}
    variants: list[tuple[str, list[RunResult], bool]] = []
    for key, members in by_config.items():
        keys = family_of.get(key, [key])
        if key == keys[0]:
            single_task = len(keys) > 1
            name = SINGLE_TASK if single_task else members[0].method
            variants.append((name, [run for k in keys for run in by_config[k]], single_task))
    names = [name for name, _, _ in variants]
    for name, members, single_task in variants:
        # The settings of one method are told apart by their first run.
        label = name if names.count(name) == 1 else f"{name} ({members[0].location})"
        groups = tuple(dict.fromkeys(run.tasks for run in members)) if single_task else None
        yield Variant(name=label, runs=_by_seed(members), groups=groups)


def _by_seed(runs: Iterable[RunResult]) -> dict[int, tuple[RunResult, ...]]:
    by_seed: dict[int, tuple[RunResult, ...]] = {}
    for run in runs:
        for other in by_seed.get(run.seed, ()):
            if other.tasks == run.tasks:
                raise UsageError(
                    f"{other.location} and {run.location}: are the same run with the same seed; "
                    "leave one out"
                )
        by_seed[run.seed] = (*by_seed.get(run.seed, ()), run)
    return dict(sorted(by_seed.items()))


def _config_without(run: RunResult, paths: Iterable[str]) -> str:
    """Return the configuration without some settings, as a text that equal ones share."""
    tree = plain_settings(run.config)
    for path in paths:
        *parents, last = path.split(".")
        table = tree
        for parent in parents:
            table = table.get(parent, {})
        table.pop(last, None)
    return json.dumps(tree, sort_keys=True)
