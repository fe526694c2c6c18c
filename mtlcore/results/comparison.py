"""From finished runs to answers: variants against each other and a baseline, over seeds.

comparison = compare(["runs/equal-0", "runs/equal-1", "runs/pcgrad-0", "runs/pcgrad-1"])
comparison = compare(["studies/balancers"])   # what `mtl study` left
comparison.statistic(comparison.variants[0], "depth", "abs_error").mean
"""

from __future__ import annotations

import json
import math
import statistics
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, final

import attrs

from mtlcore.errors import MtlError, UsageError, describe, did_you_mean
from mtlcore.metrics import DELTA_M, DeltaM, delta_m
from mtlcore.results.statistics import Difference, Spread
from mtlcore.storage import or_nan

Figures = Mapping[str, Mapping[str, float]]
Epoch = Literal["last", "best"]
Column = tuple[str, str]  # a task and one of its figures

#: What a study writes about itself in its directory.
STUDY = "study.json"
#: What a variant of one run per task is called where nobody named it.
SINGLE_TASK = "single-task"
#: With fewer seeds an interval is so wide that the tables say so.
FEW_SEEDS = 5

# What may differ between runs of one variant.
_INCIDENTAL = ("seed", "device", "data.workers", "training.threads")
_PER_TASK = ("tasks", "model.heads", "losses", "metrics")


# One run


@final
@attrs.frozen
class Target:
    """A figure that a run may reach: `depth.abs_error=0.5`."""

    task: str
    metric: str
    value: float

    def __str__(self) -> str:
        return f"{self.task}.{self.metric}={self.value:g}"

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read `task.metric=value`.

        Raises:
            UsageError: it is written otherwise.
        """
        path, _, number = text.partition("=")
        task, _, metric = path.strip().rpartition(".")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not (task and metric and math.isfinite(value)):
            raise UsageError(
                f"target {text!r}: write it as task.metric=value, such as depth.abs_error=0.5"
            )
        return cls(task, metric, value)


@final
@attrs.frozen
class Reached:
    """When a run first reached a target.

    Args:
        epoch: from 1; evaluations are not always made after every epoch.
        seconds: since the run began, its evaluations included.
    """

    epoch: int
    seconds: float


@final
@attrs.define(kw_only=True, slots=False)
class RunResult:
    """A finished run, read from its directory.

    Args:
        location: path or URL of the directory.
        config: the whole configuration, as `config.toml` has it.
        summary: what `summary.json` holds; null figures have become NaN.
    """

    location: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.config["seed"])

    @property
    def method(self) -> str:
        """The name of the method, such as "pcgrad"."""
        return str(self.config["method"])

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that it learnt, in order."""
        return tuple(self.config["tasks"])

    def figures(self, epoch: Epoch) -> Figures:
        """Validation figures, task -> figure -> value ("loss" among them).

        Args:
            epoch: "last" is the mean over the last `training.average_last` evaluations, "best"
                the evaluation with the lowest validation losses.
        """
        found: Figures = self.summary["final" if epoch == "last" else "best"]["val"]
        return found

    @property
    def directions(self) -> Mapping[str, Mapping[str, bool]]:
        """Task -> figure -> whether higher is better; a task's first figure stands for it."""
        found: Mapping[str, Mapping[str, bool]] = self.summary["directions"]
        return found

    @property
    def parameters(self) -> int:
        """Parameters of the model, heads included."""
        return int(self.summary["parameters"]["total"])

    @property
    def seconds_per_step(self) -> float:
        """Mean seconds of a training step, evaluations and saving apart; NaN where unmeasured."""
        return or_nan(self.summary.get("seconds_per_step"))

    @property
    def peak_memory(self) -> float:
        """Bytes: of the GPU where the run used one, of the process elsewhere; or NaN."""
        return or_nan(self.summary.get("peak_memory"))

    @property
    def best_epoch(self) -> float:
        """The epoch, from 1, with the lowest validation losses; NaN where there was none."""
        return or_nan(self.summary["best"]["epoch"])

    @cached_property
    def rows(self) -> tuple[Mapping[str, Any], ...]:
        """The lines of metrics.jsonl: step, epoch, split, task, metric, value, seconds.

        Read when first asked for. A value that is not finite is None.

        Raises:
            MtlError: the file is missing or damaged.
        """
        place = f"{self.location}/metrics.jsonl"
        text = _read(place)
        if text is None:
            raise MtlError(f"{place}: is missing")
        try:
            return tuple(json.loads(line) for line in text.splitlines())
        except ValueError as error:
            raise MtlError(f"{place}: not JSON lines ({error})") from error

    def reached(self, target: Target) -> Reached | None:
        """When the validation figure was first at least as good as the target; None: never."""
        higher = self.directions.get(target.task, {}).get(target.metric, False)
        for row in self.rows:
            if (row["split"], row["task"], row["metric"]) != ("val", target.task, target.metric):
                continue
            value = row["value"]
            if value is not None and (value >= target.value if higher else value <= target.value):
                return Reached(int(row["epoch"]), float(row["seconds"]))
        return None


def read_run(location: str) -> RunResult:
    """A finished run.

    Raises:
        UsageError: there is no run, or it is not finished; the message says why if the run does.
    """
    location = location.rstrip("/")
    config, summary = _read(f"{location}/config.toml"), _read(f"{location}/summary.json")
    if config is None:
        raise UsageError(f"{location}: is no run (it has no config.toml)")
    if summary is None:
        raise UsageError(f"{location}: is not finished{_why_unfinished(location)}")
    try:
        return RunResult(
            location=location,
            config=tomllib.loads(config),
            summary=_nan_for_null(json.loads(summary)),
        )
    except ValueError as error:
        raise MtlError(f"{location}: config.toml or summary.json is damaged ({error})") from error


# Variants


@final
@attrs.frozen
class FailedCell:
    """A cell of a study without a result.

    Args:
        seed: of the cell.
        task: its only task where the variant has a run per task, else None.
        location: its directory.
        reason: why there is no result, for people.
    """

    seed: int
    task: str | None
    location: str
    reason: str


@final
@attrs.frozen(kw_only=True)
class Variant:
    """One row of the table: runs that differ by nothing but their seed.

    Args:
        name: as the study or the runs' method call it.
        runs: seed -> its runs: one, or one per task where `single_task`.
        single_task: each task has a model, and a run, of its own.
        failed: cells without a result.
    """

    name: str
    runs: Mapping[int, tuple[RunResult, ...]]
    single_task: bool = False
    failed: tuple[FailedCell, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds with at least one finished run."""
        return tuple(self.runs)

    @property
    def all_runs(self) -> tuple[RunResult, ...]:
        """The runs of all seeds."""
        return tuple(run for runs in self.runs.values() for run in runs)

    def figures(self, seed: int, epoch: Epoch) -> Figures:
        """The figures of a seed; those of a run per task are put together."""
        return {task: values for run in self.runs[seed] for task, values in
                run.figures(epoch).items()}  # fmt: skip

    @property
    def parameters(self) -> float:
        """Parameters, of all tasks' models together where each has its own; NaN without runs."""
        return self._over_seeds(lambda runs: sum(run.parameters for run in runs))

    @property
    def seconds_per_step(self) -> float:
        """Seconds of a training step, summed over the models where each task has its own."""
        return self._over_seeds(lambda runs: sum(run.seconds_per_step for run in runs))

    @property
    def peak_memory(self) -> float:
        """Bytes; of the largest where each task has a run of its own."""
        return self._over_seeds(lambda runs: max(run.peak_memory for run in runs))

    @property
    def best_epoch(self) -> float:
        """The epoch of the best validation losses, a mean over seeds (and tasks' own runs)."""
        return self._over_seeds(lambda runs: statistics.fmean(run.best_epoch for run in runs))

    def _over_seeds(self, cost: Any) -> float:
        """The mean over the seeds of which no run is missing."""
        incomplete = {cell.seed for cell in self.failed}
        values = [cost(runs) for seed, runs in self.runs.items() if seed not in incomplete]
        return statistics.fmean(values) if values else math.nan


# Comparisons


@final
@attrs.define(kw_only=True, slots=False)
class Comparison:
    """Variants against each other and a baseline.

    Losses are left out of what is compared: they are no metric. Figures of a variant that it does
    not have (a task that it did not learn) are None.

    Args:
        title: what the tables are called.
        variants: in order.
        baseline: the name of the variant that the others are compared with.
        definition: of delta_m.
        epoch: whose figures are compared: "last" or "best", see `RunResult.figures`.
        targets: figures whose first reaching is looked for.
        notes: what else a reader should know, one sentence each.
    """

    title: str
    variants: tuple[Variant, ...]
    baseline: str
    definition: DeltaM
    epoch: Epoch = "last"
    targets: tuple[Target, ...] = ()
    notes: tuple[str, ...] = ()

    def variant(self, name: str) -> Variant:
        """The variant of that name."""
        return next(variant for variant in self.variants if variant.name == name)

    @cached_property
    def runs(self) -> tuple[RunResult, ...]:
        """Every run of every variant."""
        return tuple(run for variant in self.variants for run in variant.all_runs)

    @cached_property
    def directions(self) -> Mapping[str, Mapping[str, bool]]:
        """Task -> metric -> whether higher is better, in the runs' order, losses left out."""
        found: dict[str, dict[str, bool]] = {}
        for run in self._widest_first():
            for task in run.tasks:
                metrics = run.directions[task].items()
                found.setdefault(task, {}).update((m, up) for m, up in metrics if m != "loss")
        return found

    @cached_property
    def units(self) -> Mapping[str, str]:
        """Task -> the unit of its labels, where it has one."""
        return {task: unit for run in self.runs for task, unit in
                run.summary.get("units", {}).items()}  # fmt: skip

    @property
    def columns(self) -> tuple[Column, ...]:
        """All (task, metric)."""
        return tuple((task, metric) for task in self.directions for metric in self.directions[task])

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of all variants."""
        return tuple(sorted({seed for variant in self.variants for seed in variant.seeds}))

    @property
    def chosen_on(self) -> str:
        """The split whose losses chose the best epoch."""
        return ", ".join(sorted({str(run.summary["best"]["chosen_on"]) for run in self.runs}))

    def spread(self, variant: Variant, task: str, metric: str) -> Spread | None:
        """A figure of a variant over its seeds."""
        figures = {seed: variant.figures(seed, self.epoch) for seed in variant.seeds}
        values = {
            seed: or_nan(tasks[task].get(metric)) for seed, tasks in figures.items()
            if task in tasks
        }  # fmt: skip
        return Spread(values) if values else None

    def best(self, task: str, metric: str) -> frozenset[str]:
        """The names of the variants with the best mean; none where all means are equal."""
        found = {variant.name: self.spread(variant, task, metric) for variant in self.variants}
        means = {n: s.mean for n, s in found.items() if s is not None and math.isfinite(s.mean)}
        if len(set(means.values())) < 2:
            return frozenset()
        top = (max if self.directions[task][metric] else min)(means.values())
        return frozenset(name for name, mean in means.items() if mean == top)

    def delta_m(self, variant: Variant) -> Spread | None:
        """delta_m of each seed's figures over the baseline's mean figures, in percent.

        Its mean is delta_m of the mean figures, as papers give it, and its spread is the
        variant's own. None where the variant or the baseline lacks a task in every seed.
        """
        base: dict[str, dict[str, float]] = {}
        for task, metric in self.columns:
            spread = self.spread(self.variant(self.baseline), task, metric)
            if spread is None:
                return None
            base.setdefault(task, {})[metric] = spread.mean
        values = {}
        for seed in variant.seeds:
            figures = variant.figures(seed, self.epoch)
            if set(self.directions) <= set(figures):
                values[seed] = delta_m(figures, base, self.directions, self.definition)
        return Spread(values) if values else None

    def mean_rank(self, variant: Variant) -> float | None:
        """The mean over all metrics of the variant's rank by mean, 1 the best.

        Equal ones share the mean of their ranks and NaN comes last. Only variants that have every
        metric are ranked; None for the others.
        """
        return self._mean_ranks.get(variant.name)

    def difference(self, variant: Variant, task: str, metric: str) -> Difference | None:
        """Variant minus baseline over their common seeds; None where they have none."""
        return _paired(
            self.spread(variant, task, metric),
            self.spread(self.variant(self.baseline), task, metric),
        )

    def delta_m_difference(self, variant: Variant) -> Difference | None:
        """The difference of delta_m from the baseline's own, seed by seed."""
        return _paired(self.delta_m(variant), self.delta_m(self.variant(self.baseline)))

    def reached(self, variant: Variant, target: Target) -> Mapping[int, Reached | None]:
        """Seed -> when the target was first reached, None for never; without seeds that lack it."""
        return {
            seed: run.reached(target)
            for seed, runs in variant.runs.items()
            for run in runs
            if target.task in run.tasks
        }

    @cached_property
    def _mean_ranks(self) -> Mapping[str, float]:
        means: dict[str, list[float]] = {}
        for variant in self.variants:
            spreads = [self.spread(variant, *column) for column in self.columns]
            found = [spread.mean for spread in spreads if spread is not None]
            if found and len(found) == len(spreads):
                means[variant.name] = found
        ranks: dict[str, list[float]] = {name: [] for name in means}
        for number, (task, metric) in enumerate(self.columns):
            sign = -1 if self.directions[task][metric] else 1
            costs = {
                name: sign * found[number] if math.isfinite(found[number]) else math.inf
                for name, found in means.items()
            }
            for name, cost in costs.items():
                better = sum(other < cost for other in costs.values())
                equal = sum(other == cost for other in costs.values())
                ranks[name].append(better + (equal + 1) / 2)
        return {name: statistics.fmean(values) for name, values in ranks.items()}

    def _widest_first(self) -> list[RunResult]:
        """Runs by how many tasks they have, so that tasks come in the order of a run with all."""
        return sorted(self.runs, key=lambda run: -len(run.tasks))


def compare(
    locations: Sequence[str],
    *,
    baseline: str | None = None,
    definition: str | None = None,
    epoch: Epoch | None = None,
    targets: Sequence[Target] = (),
) -> Comparison:
    """Compare finished runs, or show a study again.

    Runs that differ by nothing but their seed are one variant. Runs of one task each that agree in
    all but the task are the single-task models of a seed, together the variant "single-task".

    Args:
        locations: directories or URLs of runs, or the directory of one study.
        baseline: a variant; unset: the study's, or the single-task models, or the first variant.
        definition: of delta_m, a name in `DELTA_M`; unset: the study's, or "mtan".
        epoch: whose figures are compared; unset: the study's, or "last".
        targets: to look for, after the study's own.

    Raises:
        UsageError: a run is missing, unfinished or there twice, or a name is unknown.
    """
    study = _read(f"{locations[0].rstrip('/')}/{STUDY}") if locations else None
    if study is not None:
        if len(locations) > 1:
            raise UsageError(f"{locations[0]}: is a study, which is compared alone; name its cells")
        found = _study(locations[0].rstrip("/"), json.loads(study))
    else:
        variants = tuple(_variants([read_run(location) for location in locations]))
        if not variants:
            raise UsageError("nothing to compare: name the directories of runs, or of a study")
        names = [variant.name for variant in variants]
        found = Comparison(
            title="Comparison",
            variants=variants,
            baseline=SINGLE_TASK if SINGLE_TASK in names else names[0],
            definition=DELTA_M["mtan"],
        )
    return _checked(
        attrs.evolve(
            found,
            baseline=baseline or found.baseline,
            definition=find_definition(definition) if definition else found.definition,
            epoch=epoch or found.epoch,
            targets=(*found.targets, *targets),
        )
    )


def find_definition(name: str) -> DeltaM:
    """The definition of delta_m of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in DELTA_M:
        raise UsageError(
            f"delta_m {name!r}: unknown{did_you_mean(name, DELTA_M)} (known: {', '.join(DELTA_M)})"
        )
    return DELTA_M[name]


def _checked(comparison: Comparison) -> Comparison:
    names = [variant.name for variant in comparison.variants]
    if comparison.baseline not in names:
        raise UsageError(
            f"baseline {comparison.baseline!r}: no such variant"
            f"{did_you_mean(comparison.baseline, names)} (there are: {', '.join(names)})"
        )
    for target in comparison.targets:
        known = [
            f"{task}.{metric}"
            for run in comparison.runs
            for task, metrics in run.directions.items()
            for metric in metrics
        ]
        if known and f"{target.task}.{target.metric}" not in known:
            raise UsageError(
                f"target {target}: no run has this figure"
                f"{did_you_mean(f'{target.task}.{target.metric}', known)} "
                f"(there are: {', '.join(dict.fromkeys(known))})"
            )
    return comparison


def _paired(values: Spread | None, base: Spread | None) -> Difference | None:
    if values is None or base is None:
        return None
    common = [seed for seed in values.values if seed in base.values]
    return Difference({s: values.values[s] - base.values[s] for s in common}) if common else None


# Of a study


def _study(location: str, content: Mapping[str, Any]) -> Comparison:
    names = list(dict.fromkeys(cell["variant"] for cell in content["cells"]))
    return Comparison(
        title=content["name"],
        variants=tuple(
            _study_variant(location, name, [c for c in content["cells"] if c["variant"] == name])
            for name in names
        ),
        baseline=content["baseline"],
        definition=find_definition(content["delta_m"]),
        epoch=content["epoch"],
        targets=tuple(Target.parse(target) for target in content["targets"]),
        notes=tuple(content["notes"]),
    )


def _study_variant(location: str, name: str, cells: Sequence[Mapping[str, Any]]) -> Variant:
    runs: dict[int, tuple[RunResult, ...]] = {}
    failed = []
    for cell in cells:
        place = f"{location}/{cell['location']}"
        # A cell may have ended after the study that started it.
        if _read(f"{place}/summary.json") is not None:
            runs[cell["seed"]] = (*runs.get(cell["seed"], ()), read_run(place))
        else:
            reason = cell["reason"] or f"not finished ({cell['status']})"
            failed.append(FailedCell(cell["seed"], cell["task"], place, reason))
    return Variant(
        name=name,
        runs=runs,
        single_task=any(cell["task"] is not None for cell in cells),
        failed=tuple(failed),
    )


# Of runs


def _variants(runs: Sequence[RunResult]) -> Iterator[Variant]:
    groups: dict[str, list[RunResult]] = {}
    for run in runs:
        groups.setdefault(_identity(run, _INCIDENTAL), []).append(run)
    families: dict[str, list[str]] = {}
    for key, members in groups.items():
        if len(members[0].tasks) == 1:
            family = _identity(members[0], (*_INCIDENTAL, *_PER_TASK))
            families.setdefault(family, []).append(key)
    together = {key: keys for keys in families.values() if len(keys) > 1 for key in keys}
    named: list[tuple[str, list[RunResult], bool]] = []
    for key, members in groups.items():
        keys = together.get(key, [key])
        if key == keys[0]:
            alone = len(keys) > 1
            name = SINGLE_TASK if alone else members[0].method
            named.append((name, [run for each in keys for run in groups[each]], alone))
    taken = [name for name, _, _ in named]
    for name, members, alone in named:
        # Of one method in several settings, each is told apart by its first run.
        label = name if taken.count(name) == 1 else f"{name} ({members[0].location})"
        yield Variant(name=label, runs=_by_seed(members), single_task=alone)


def _by_seed(runs: Iterable[RunResult]) -> dict[int, tuple[RunResult, ...]]:
    found: dict[int, tuple[RunResult, ...]] = {}
    for run in runs:
        for other in found.get(run.seed, ()):
            if other.tasks == run.tasks:
                raise UsageError(
                    f"{other.location} and {run.location}: are the same run with the same seed; "
                    "leave one out"
                )
        found[run.seed] = (*found.get(run.seed, ()), run)
    return dict(sorted(found.items()))


def _identity(run: RunResult, without: Iterable[str]) -> str:
    """A text that runs share which differ only in those parts of their configuration."""
    tree = json.loads(json.dumps(run.config))
    for path in without:
        *parents, last = path.split(".")
        table = tree
        for parent in parents:
            table = table.get(parent, {})
        table.pop(last, None)
    return json.dumps(tree, sort_keys=True)


# Reading


def _read(place: str) -> str | None:
    """A text file at a path or URL; None where there is none."""
    import fsspec

    try:
        with fsspec.open(place, "rb") as file:
            content: bytes = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ImportError, ValueError, OSError) as error:
        raise UsageError(f"{place}: cannot be read ({describe(error)})") from error
    return content.decode()


def _why_unfinished(location: str) -> str:
    text = _read(f"{location}/run.json")
    about = json.loads(text) if text else {}
    status, reason = about.get("status", "has no run.json"), about.get("reason")
    told = f"{status}: {reason}" if reason else status
    return f" ({told}); go on with it by mtl run --resume --out {location}, or leave it out"


def _nan_for_null(summary: dict[str, Any]) -> dict[str, Any]:
    """In files null stands for figures that are not finite."""
    for figures in (summary["final"]["val"], summary["best"]["val"]):
        for values in figures.values():
            values.update({name: or_nan(value) for name, value in values.items()})
    return summary
