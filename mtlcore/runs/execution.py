"""mtlcore from Python: `create` a component, `run` a configuration."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

from mtlcore.config import Layer, RunConfig, file_layer, resolve
from mtlcore.display import Display, SilentDisplay
from mtlcore.distributed import Distributed, init_distributed
from mtlcore.engine import Training, check, parameter_table
from mtlcore.errors import Interrupted, MtlError, UsageError, describe
from mtlcore.plugins import Plugins
from mtlcore.report import write_report
from mtlcore.runs.initial import load_initial
from mtlcore.runs.provenance import provenance
from mtlcore.runs.summary import summarise
from mtlcore.storage import (
    RunDirectory,
    changed_settings,
    load_checkpoint,
    next_directory,
    stored_config,
)


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
    with init_distributed() as distributed, _directory(location, resume, distributed) as directory:
        checkpoint = distributed.broadcast(
            lambda: _checkpoint(directory, config) if resume else None
        )
        summary = directory.read_json("summary.json") if checkpoint else None
        if distributed.any_of([summary is not None])[0]:
            display.note(f"{location}: this run is finished, nothing to do")
            return summary or {}
        return _train(plugins, config, directory, checkpoint, display, distributed)


#: What may be other on the machine where a run goes on.
OF_THE_MACHINE = ("device", "data.root", "data.workers", "training.threads")


@contextmanager
def _directory(location: str, resume: bool, distributed: Distributed) -> Iterator[RunDirectory]:
    """The run's directory; for any but the first process one that is thrown away."""
    with (
        tempfile.TemporaryDirectory(prefix="mtl-rank-")
        if not distributed.is_main_process
        else nullcontext(location) as place
    ):
        directory = RunDirectory(place, resume or not distributed.is_main_process)
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
    return load_checkpoint(directory.checkpoint)


def _train(
    plugins: Plugins,
    config: RunConfig,
    directory: RunDirectory,
    checkpoint: dict[str, Any] | None,
    display: Display,
    distributed: Distributed,
) -> dict[str, Any]:

    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    training = Training(config, directory, display, distributed)
    check(training)
    if checkpoint is not None:
        training.resume(checkpoint)
        _warn_of_changes(checkpoint, distributed, display)
    else:
        for note in load_initial(training.learner, config):
            display.note(note)
    directory.open_metrics(
        checkpoint["metrics_length"] if checkpoint and distributed.is_main_process else 0
    )
    about = provenance(plugins, config, training.device, distributed.world_size)
    # A run that goes on is given its own settings: where those came from, its first part tells.
    before = directory.read_json("run.json") if checkpoint is not None else None
    about["origins"] = (before or {}).get("origins", dict(config.origins))
    directory.write_config(config.tree)
    directory.write_json("run.json", {**about, "status": "running", "reason": None})
    names = ", ".join(task.name for task in config.tasks)
    title = (
        f"{config.method} learns {names} from {config.dataset.component.spec.name}: "
        f"{training.epochs} epochs of {training.steps_per_epoch} steps on {training.device}"
    )
    if distributed.world_size > 1:
        title += f", {distributed.world_size} processes"
    with _failure_told(directory, about):
        with display:
            display.start(training.total_steps, training.progress.step, title)
            training.run()
        if not distributed.is_main_process:
            return {}
        try:
            write_report(training, directory)
        except OSError as error:
            place = directory.path / "report"
            raise MtlError(f"{place}: cannot be written ({describe(error)})") from error
        summary = summarise(training)
        directory.write_json("run.json", {**about, "status": "finished", "reason": None})
        # Last: --resume takes a run that has it for finished.
        directory.write_json("summary.json", summary)
    return summary


@contextmanager
def _failure_told(directory: RunDirectory, about: Mapping[str, Any]) -> Iterator[None]:
    """Let run.json say why the run ended before its time."""

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


def _warn_of_changes(
    checkpoint: Mapping[str, Any], distributed: Distributed, display: Display
) -> None:
    before, now = len(checkpoint["ranks"]), distributed.world_size
    if before != now:
        display.note(
            f"the run had {before} processes before and has {now} now: "
            "it goes on, but not bit for bit, with steps of another size"
        )
    if checkpoint["threads"] != torch.get_num_threads():
        display.note(
            f"the run had {checkpoint['threads']} threads before and has "
            f"{torch.get_num_threads()} now: it goes on, but not bit for bit "
            f"(training.threads={checkpoint['threads']} would)"
        )
