"""mtlcore from Python: `create` a component, `run` a configuration."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

from mtlcore import checkpoints
from mtlcore.config import RunConfig, resolve
from mtlcore.display import Display, SilentDisplay
from mtlcore.errors import ConfigError, MtlError, UsageError, describe
from mtlcore.layers import Layer, file_layer
from mtlcore.plugins import Plugins
from mtlcore.ranks import Ranks, joined
from mtlcore.rundir import (
    RunDirectory,
    changed_settings,
    next_directory,
    provenance,
    stored_config,
)
from mtlcore.settings import structure


def create(kind: str, name: str, *positional: Any, **settings: Any) -> Any:
    """Build a component that needs nothing from a run, such as a balancer.

    Args:
        kind: as `mtl list` names it, such as "balancers".
        name: of the component, or "plugin/name".
        positional: what the core would pass (a head's task and features ...).
        settings: as `mtl show KIND NAME` lists them.

    Raises:
        UsageError: no such component.
        ConfigError: settings that it does not take.
    """
    target = Plugins.from_environment().get(kind, name).load()
    problems: list[str] = []
    values = structure(target, settings, name, problems)
    if problems:
        raise ConfigError(problems)
    return target(*positional, **values)


def run(
    config: RunConfig | Mapping[str, Any] | str | Path | None = None,
    *,
    plugins: list[str] | None = None,
    out: str | None = None,
    resume: bool = False,
    display: Display | None = None,
) -> dict[str, Any]:
    """Run a whole configuration and return its summary.

    Args:
        config: a configuration as a mapping, the path of one, or a resolved one.
        plugins: what `--plugin` would name, in order.
        out: directory or fsspec URL; None: `runs/<method>-<n>`.
        resume: go on with what `out` holds.
        display: what to show meanwhile; None: nothing.

    Raises:
        MtlError: the run failed; the message says why and what is saved.
    """
    found = Plugins.from_environment()
    if not isinstance(config, RunConfig):
        layers = []
        if isinstance(config, Mapping):
            layers = [Layer("config", config)]
        elif config is not None:
            layers = [file_layer(str(config))]
        config = resolve(found, plugins or (), layers)
    location = out or next_directory(config.method)
    return execute(found, config, location, resume, display or SilentDisplay())


def try_step(config: RunConfig) -> dict[str, Any]:
    """Build everything and take one step on real data; nothing is left behind.

    Raises:
        MtlError: whatever would stop the run at its first step.
    """
    from mtlcore.adaptation import load_initial
    from mtlcore.building import parameter_table
    from mtlcore.checks import check
    from mtlcore.training import Training

    with tempfile.TemporaryDirectory(prefix="mtl-dry-run-") as place:
        directory = RunDirectory(place, resume=True)
        training = Training(config, directory, SilentDisplay())
        check(training)
        load_initial(training.learner, config)
        report = training.first_step()
    if report.skipped is not None:
        raise MtlError(f"the first step learns nothing: {report.skipped}")
    return {
        "method": config.method,
        "device": str(training.device),
        "epochs": training.epochs,
        "steps": training.total_steps,
        "samples": {name: len(split) for name, split in training.splits.items()},
        "parameters": parameter_table(training.learner),
        "losses": report.losses,
    }


def execute(
    plugins: Plugins, config: RunConfig, location: str, resume: bool, display: Display
) -> dict[str, Any]:
    """Run a resolved configuration in a directory; returns the summary.

    Raises:
        UsageError: the directory is not empty, or holds a run of other settings. In one of
            several processes that torchrun started, all but the first return an empty summary.
        MtlError: the run failed.
    """
    with joined() as ranks, _directory(location, resume, ranks) as directory:
        checkpoint = ranks.from_first(lambda: _checkpoint(directory, config) if resume else None)
        summary = directory.read_json("summary.json") if checkpoint else None
        if ranks.any_of([summary is not None])[0]:
            display.note(f"{location}: this run is finished, nothing to do")
            return summary or {}
        return _train(plugins, config, directory, checkpoint, display, ranks)


#: What may be other on the machine where a run goes on.
OF_THE_MACHINE = ("device", "data.root", "data.workers", "training.threads")


@contextmanager
def _directory(location: str, resume: bool, ranks: Ranks) -> Iterator[RunDirectory]:
    """The run's directory; for any but the first process one that is thrown away."""
    with (
        tempfile.TemporaryDirectory(prefix="mtl-rank-")
        if not ranks.first
        else nullcontext(location) as place
    ):
        directory = RunDirectory(place, resume or not ranks.first)
        try:
            yield directory
        finally:
            directory.close()


def _checkpoint(directory: RunDirectory, config: RunConfig) -> dict[str, Any] | None:
    """The state to go on from; None where the run never got that far."""
    if not directory.checkpoint.exists():
        return None
    stored = stored_config(str(directory.path))
    if stored is None:
        raise MtlError(
            f"{directory.location}/config.toml: is missing, so that the run cannot go on; put it "
            "back, or start a run of its own with another --out"
        )
    changed = [path for path in changed_settings(stored, config.tree) if path not in OF_THE_MACHINE]
    if changed:
        raise UsageError(
            f"{directory.location}: --resume goes on with the run's own settings, and these "
            f"differ: {', '.join(changed)}. Leave them out, or start a run of its own with "
            f"another --out (only {', '.join(OF_THE_MACHINE)} may change)"
        )
    return checkpoints.load(directory.checkpoint)


def _train(
    plugins: Plugins,
    config: RunConfig,
    directory: RunDirectory,
    checkpoint: dict[str, Any] | None,
    display: Display,
    ranks: Ranks,
) -> dict[str, Any]:
    from mtlcore.adaptation import load_initial
    from mtlcore.checks import check
    from mtlcore.report.writing import write_report
    from mtlcore.summary import summarise
    from mtlcore.training import Training

    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    training = Training(config, directory, display, ranks)
    check(training)
    if checkpoint is not None:
        training.resume(checkpoint)
        _warn_of_changes(checkpoint, ranks, display)
    else:
        for note in load_initial(training.learner, config):
            display.note(note)
    directory.open_metrics(checkpoint["metrics_length"] if checkpoint and ranks.first else 0)
    about = provenance(plugins, config, training.device, ranks.size)
    # A run that goes on is given its own settings: where those came from, its first part tells.
    before = directory.read_json("run.json") if checkpoint is not None else None
    about["origins"] = (before or {}).get("origins", dict(config.origins))
    directory.write_config(config)
    directory.write_json("run.json", {**about, "status": "running", "reason": None})
    names = ", ".join(task.name for task in config.tasks)
    title = (
        f"{config.method} learns {names} from {config.dataset.component.spec.name}: "
        f"{training.epochs} epochs of {training.steps_per_epoch} steps on {training.device}"
    )
    if ranks.size > 1:
        title += f", {ranks.size} processes"
    with _failure_told(directory, about):
        with display:
            display.start(training.total_steps, training.progress.step, title)
            training.run()
        if not ranks.first:
            return {}
        try:
            notes = write_report(training, directory)
        except OSError as error:
            place = directory.path / "report"
            raise MtlError(f"{place}: cannot be written ({describe(error)})") from error
        for note in notes:
            display.note(note)
        summary = summarise(training)
        directory.write_json("run.json", {**about, "status": "finished", "reason": None})
        # Last: --resume takes a run that has it for finished.
        directory.write_json("summary.json", summary)
    return summary


@contextmanager
def _failure_told(directory: RunDirectory, about: Mapping[str, Any]) -> Iterator[None]:
    """Let run.json say why the run ended before its time."""
    from mtlcore.training import Interrupted

    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, Interrupted | KeyboardInterrupt | BrokenPipeError)
        status, reason = "interrupted" if stopped else "failed", str(error) or type(error).__name__
        # Where the disk is full this fails too, but the first error is the one to show.
        with suppress(MtlError):
            directory.write_json("run.json", {**about, "status": status, "reason": reason})
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(
                "stopped at once; go on from the last checkpoint with: "
                f"mtl run --resume --out {directory.location}"
            ) from error
        if isinstance(error, torch.OutOfMemoryError):
            said = str(error).partition(". ")[0]
            raise MtlError(
                f"the GPU's memory does not suffice ({said}). Lower training.batch_size "
                "(training.accumulate keeps the size of a step) or data.size, or set "
                f"training.precision=bf16. What is saved is in {directory.checkpoint}"
            ) from error
        raise


def _warn_of_changes(checkpoint: Mapping[str, Any], ranks: Ranks, display: Display) -> None:
    if len(checkpoint["ranks"]) != ranks.size:
        display.note(
            f"the run had {len(checkpoint['ranks'])} processes before and has {ranks.size} now: "
            "it goes on, but not bit for bit, with steps of another size"
        )
    if checkpoint["threads"] != torch.get_num_threads():
        display.note(
            f"the run had {checkpoint['threads']} threads before and has "
            f"{torch.get_num_threads()} now: it goes on, but not bit for bit "
            f"(training.threads={checkpoint['threads']} would)"
        )
