"""Let new tasks join a trained run: `mtl adapt`.

Writes a configuration that starts from the run's weights, runs it like any other, and tells how
long each task took to reach a target.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import attrs

from mtlcore.balancing import RowBalancer
from mtlcore.config import BALANCING_KEYS, Chosen, Layer, RunConfig, resolve
from mtlcore.display import Display
from mtlcore.engine import make_metrics
from mtlcore.errors import UsageError, did_you_mean
from mtlcore.models import INITIAL
from mtlcore.plugins import Plugins
from mtlcore.results import RunResult, Target, read_run
from mtlcore.runs.execution import execute
from mtlcore.storage import RunDirectory, Which, read_weights, trained_config, without_nan

ADAPTATION = "adaptation.json"
SCRATCH = "scratch"


def adapted_config(
    plugins: Plugins,
    run: str,
    new: Sequence[str],
    *,
    train: Literal["all", "new", "heads"] = "all",
    checkpoint: Which = "best",
    fraction: float | None = None,
    changes: Layer | None = None,
) -> RunConfig:
    """Return the configuration of a run that starts from a trained one and has more tasks.

    It is the run's own, with the usual joint episodes and an evaluation after every epoch. An
    optimizer that needs query batches, which joint episodes lack, makes room for AdamW, with
    its learning rate. Where heads alone learn, a balancer of gradients is left out. The run is the
    teacher "initial" of losses between tasks whose class asks for it.

    Args:
        plugins: where components come from.
        run: directory or URL of the trained run.
        new: names of the tasks that join.
        train: see `InitialConfig`.
        checkpoint: see `InitialConfig`.
        fraction: share of the training samples; None: as the run has it.
        changes: to all of this.

    Raises:
        UsageError: no run there, or not these tasks.
        ConfigError: the whole is not a configuration.
    """
    stored = trained_config(run)
    source = resolve(plugins, (), [Layer(run, {**stored, "loggers": []}, of_run=True)])
    known, new = [task.name for task in source.tasks], list(dict.fromkeys(new))
    if not new:
        raise UsageError("--tasks: name at least one task that joins")
    again = [name for name in new if name in known]
    if again:
        raise UsageError(
            f"--tasks {','.join(again)}: {run} has learnt {', '.join(known)}; name tasks that are "
            "new to it"
        )
    values: dict[str, Any] = {
        "method": f"{source.method}-adapted",
        "tasks": [*known, *new],
        "initial": {"run": run, "checkpoint": checkpoint, "train": train, "new": new},
        "episodes": {"name": "joint"},
        "training": {"evaluate_every": 1},
    }
    notes = []
    optimizer = source.optimizer.component
    # Joint episodes have no query batches.
    if getattr(optimizer.load(), "needs_queries", False):
        values["optimizer"] = {"name": "adamw"}
        notes.append(f"optimizer adamw (adapt) replaces {optimizer.spec.name}: episodes are joint")
    if train == "heads" and (balancer := source.chain[-1:]) and _weighs_gradients(balancer[0]):
        # The tasks share nothing that learns.
        links = stored["balancer"].get("chain", [])[:-1]
        values["balancer"] = {"chain": links} if links else {"name": "equal"}
        kept = {k: v for k, v in stored["balancer"].items() if k not in BALANCING_KEYS}
        stored = {**stored, "balancer": kept}
        left = " > ".join(link["name"] for link in links) or "equal"
        notes.append(
            f"balancer {left} (adapt) replaces {balancer[0].component.spec.name}: what the tasks "
            "share is frozen"
        )
    if fraction is not None:
        values["data"] = {"train_fraction": fraction}
    layers = [Layer(run, stored, of_run=True), Layer("adapt", values)]
    config = resolve(plugins, (), [*layers, *([changes] if changes else [])])
    if any(_asks_for_start(loss) for loss in config.cross_task):
        start = {"teachers": {INITIAL: {"run": run, "checkpoint": checkpoint}}}
        layers.append(Layer("adapt", start))
        config = resolve(plugins, (), [*layers, *([changes] if changes else [])])
    return attrs.evolve(config, notes=(*notes, *config.notes))


def _asks_for_start(loss: Chosen) -> bool:
    """Return whether a loss between tasks learns from what the run that is adapted says."""
    return INITIAL in getattr(loss.component.load(), "needs_teachers", ())


def _weighs_gradients(balancer: Chosen) -> bool:
    target = balancer.component.load()
    return isinstance(target, type) and issubclass(target, RowBalancer)


def scratch_config(plugins: Plugins, config: RunConfig) -> RunConfig:
    """Return the same without the run's weights; what learns, learns through all of the network.

    Raises:
        ConfigError: as `resolve` does.
    """
    tree = copy.deepcopy(dict(config.tree))
    tree["method"] = f"{config.method}-scratch"
    assert config.initial is not None
    trained = config.initial.train
    tree["initial"] = {} if trained == "all" else {"train": "new", "new": [*config.initial.new]}
    return resolve(plugins, (), [Layer("from scratch", tree)])


def adapt_run(
    plugins: Plugins,
    config: RunConfig,
    location: str,
    display: Display,
    *,
    scratch: bool = False,
    targets: Sequence[str] = (),
    resume: bool = False,
) -> dict[str, Any]:
    """Run an adapted configuration and tell how long each task took; returns the report.

    The report is written to `location/adaptation.json`, the run from scratch to `location/scratch`.

    Args:
        plugins: where components come from.
        config: of `adapted_config`.
        location: directory or URL of the new run.
        display: what a person sees.
        scratch: train the same from scratch as well. Its final metrics are the targets then, where
            none are given.
        targets: `task.metric=value`, values whose first reaching is looked for.
        resume: go on with what `location` holds.

    Raises:
        UsageError: a target that no task has, or a location that is the trained run's.
        MtlError: as `mtlcore.runs.execution` does.
    """
    assert config.initial is not None and config.initial.run is not None
    if _place(location) == _place(config.initial.run):
        raise UsageError(
            f"--out {location}: is the trained run itself, which stays as it is; name another place"
        )
    given = _targets(targets, config)
    # Read before anything is trained, so that what is wrong is told at once.
    read_weights(config.initial.run, config.initial.checkpoint)
    from_scratch = scratch_config(plugins, config) if scratch else None
    summary = execute(plugins, config, location, resume, display)
    if from_scratch is not None:
        execute(plugins, from_scratch, f"{location}/{SCRATCH}", resume, display)
    if not summary:  # of several processes, the first one reports
        return {}
    report: dict[str, Any] = without_nan(_report(config, location, scratch, given))
    directory = RunDirectory(location, resume=True)
    try:
        directory.write_json(ADAPTATION, report)
    finally:
        directory.close()
    return report


def _place(location: str) -> str:
    return location.rstrip("/") if "://" in location else str(Path(location).resolve())


def _targets(texts: Sequence[str], config: RunConfig) -> list[Target]:
    metrics = make_metrics(config)
    targets = []
    for text in texts:
        target = Target.parse(text)
        if target.task not in config.learning:
            hint = did_you_mean(target.task, config.learning)
            raise UsageError(
                f"--target {text}: no task {target.task!r} learns{hint} (these do: "
                f"{', '.join(config.learning)})"
            )
        known = [*metrics[target.task].higher_is_better, "loss"]
        if target.metric not in known:
            hint = did_you_mean(target.metric, known)
            raise UsageError(
                f"--target {text}: {target.task} has no metric {target.metric!r}{hint} (it has: "
                f"{', '.join(known)})"
            )
        targets.append(target)
    return targets


def _report(
    config: RunConfig, location: str, scratch: bool, given: Sequence[Target]
) -> dict[str, Any]:
    initial = config.initial
    assert initial is not None and initial.run is not None
    adapted = read_run(location)
    other = read_run(f"{location}/{SCRATCH}") if scratch else None
    before = _finished(initial.run)
    rows = []
    for task in config.tasks:
        first = next(iter(adapted.higher_is_better[task.name]))
        own = [target for target in given if target.task == task.name]
        # From scratch, a task that does not learn has nothing to show.
        rival = other if task.name in config.learning else None
        if not own and rival is not None:
            value = rival.metrics("last")[task.name][first]
            own = [Target(task.name, first, value)] if math.isfinite(value) else []
        wanted: list[Target | None] = [*own] or [None]
        for target in wanted:
            metric = target.metric if target else first
            rows.append(
                {
                    "task": task.name,
                    "new": task.name in initial.new,
                    "metric": metric,
                    "higher_is_better": adapted.higher_is_better[task.name][metric],
                    "target": target.value if target else None,
                    "target_from": ("given" if target in given else SCRATCH) if target else None,
                    "before": _before(before, initial.checkpoint, task.name, metric),
                    "adapted": _told(adapted, task.name, metric, target),
                    "scratch": rival and _told(rival, task.name, metric, target),
                }
            )
    return {
        "run": initial.run,
        "train": initial.train,
        "seconds": {"adapted": adapted.summary["seconds"],
                    "scratch": other and other.summary["seconds"]},
        "rows": rows,
    }  # fmt: skip


def _finished(run: str) -> RunResult | None:
    """Return the metrics of a finished run; refuse one that was stopped on the way."""
    try:
        return read_run(run)
    except UsageError:
        return None


def _before(run: RunResult | None, checkpoint: Which, task: str, metric: str) -> float | None:
    if run is None or task not in run.tasks:
        return None
    return run.metrics(checkpoint)[task].get(metric)


def _told(run: RunResult, task: str, metric: str, target: Target | None) -> dict[str, Any]:
    reached = run.reached(target) if target else None
    return {
        "final": run.metrics("last")[task][metric],
        "epoch": reached.epoch if reached else None,
        "seconds": reached.seconds if reached else None,
    }
