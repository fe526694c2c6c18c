"""Run a configuration in a directory: fresh, or from its last checkpoint."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import torch

from mtlcore.config import Layer, RunConfig, file_layer
from mtlcore.display import Display, LoggingDisplay, SilentDisplay
from mtlcore.distributed import Distributed, init_distributed
from mtlcore.engine import (
    Session,
    Training,
    changed_length,
    check,
    count_flops,
    parameter_table,
    price_told,
    restore,
)
from mtlcore.errors import Interrupted, MtlError, Pruned, UsageError, describe, exit_told
from mtlcore.inputs import Inputs
from mtlcore.plugins import Plugins
from mtlcore.report import write_report
from mtlcore.runs.configuration import configure
from mtlcore.runs.initial import begins_with, load_initial
from mtlcore.runs.logs import run_info
from mtlcore.runs.provenance import provenance
from mtlcore.runs.summary import summarise
from mtlcore.storage import (
    SUMMARY,
    Loggers,
    RunDirectory,
    RunFiles,
    RunOutcome,
    changed_settings,
    flatten,
    load_checkpoint,
    next_directory,
    report_pictures,
    stored_config,
)
from mtlcore.system import is_main_process, out_of_memory

#: Settings that may change where a run goes on.
_OF_THE_MACHINE = (
    "device", "data.root", "data.workers", "data.cache", "training.threads", "loggers"
)  # fmt: skip

#: Settings that say how long a run is: another length may go on where it is the same run.
_LENGTH = ("training.epochs", "training.steps")


def run(
    config: RunConfig | Mapping[str, Any] | str | Path | None = None,
    *,
    plugins: list[str] | None = None,
    out: str | None = None,
    resume: bool = False,
    trust: bool = False,
    display: Display | None = None,
) -> dict[str, Any]:
    """Run a whole configuration and return its summary.

    Args:
        config: a configuration as a mapping, the path of one, or a resolved one.
        plugins: what `--plugin` would name, in order.
        out: directory or fsspec URL; None: `runs/<method>-<n>`.
        resume: go on with what `out` holds; without a configuration and plugins with its own, as
            `mtl run --resume --out DIR` does.
        trust: load the plugin files and loggers that the configuration of a run names, which is
            that of `out` or of a teacher: they are programs.
        display: shows the progress; None: what a terminal would show is logged to `mtlcore`, by
            the main process alone.

    Raises:
        MtlError: the run failed; the message says why and what is saved.
    """
    found = Plugins.from_environment()
    if trust:
        found.trust_runs()
    if not isinstance(config, RunConfig):
        layer = None
        if isinstance(config, Mapping):
            layer = Layer("config", config)
        elif config is not None:
            layer = file_layer(str(config))
        config = configure(found, plugins or (), layer, out=out, resume=resume)
    location = out or place_of(config)
    if display is None:
        display = LoggingDisplay() if is_main_process() else SilentDisplay()
    for note in config.notes:
        display.warn(note)
    return execute(found, config, location, resume, display)


def place_of(config: RunConfig) -> str:
    """Make a directory below `runs` for a run that was given none, and return it.

    Of several processes that train together, the main one makes it; the others write nothing.
    """
    return next_directory(config.method) if is_main_process() else f"runs/{config.method}"


def try_step(config: RunConfig) -> dict[str, Any]:
    """Build everything, take one step on real data, and leave nothing behind.

    Returns:
        Facts about the run, and the losses of the step.

    Raises:
        MtlError: Whatever would stop the run at its first step.
    """
    with (
        tempfile.TemporaryDirectory(prefix="mtl-dry-run-") as place,
        closing(RunDirectory(place, resume=True)) as directory,
    ):
        session = Session(begins_with(config), directory, SilentDisplay())
        example = check(session)
        _make_loggers(session)
        _start(session)
        report = Training(session).first_step()
    if report.skipped is not None:
        raise MtlError(f"the first step learns nothing: {report.skipped}")
    return {
        "method": config.method,
        "device": str(session.device),
        "epochs": session.epochs,
        "steps": session.total_steps,
        "samples": {name: len(split) for name, split in session.splits.items()},
        "parameters": parameter_table(session.learner),
        "flops": count_flops(session.learner, example),
        "losses": report.losses,
    }


def execute(
    plugins: Plugins, config: RunConfig, location: str, resume: bool, display: Display
) -> dict[str, Any]:
    """Run a resolved configuration in a directory.

    Args:
        plugins: Where its components come from.
        config: The resolved configuration.
        location: Directory or URL of the run.
        resume: Whether to go on from the directory's last checkpoint.
        display: What to show meanwhile.

    Returns:
        The summary. Of several processes that torchrun started, all but the main one return an
        empty one.

    Raises:
        UsageError: The directory is not empty, or holds a run of other settings.
        MtlError: The run failed.
    """
    with (
        _memory_told(location),
        init_distributed() as distributed,
        _directory(location, resume, distributed, config) as directory,
    ):
        _refuse_different(config, distributed)
        state = distributed.broadcast(lambda: _checkpoint(directory, config) if resume else None)
        summary = None if directory.goes_on else directory.read_json(SUMMARY)
        if distributed.any_of([summary is not None])[0]:
            display.note(f"{location}: this run is finished, nothing to do")
            return summary or {}
        if directory.taken_from is not None:
            display.warn(
                f"{location}: {directory.taken_from} has written there and did not say that it "
                "ended; if it still goes on, it stops at its next upload"
            )
        if config.training.threads is not None:
            torch.set_num_threads(config.training.threads)
        built = begins_with(config, resumed=state is not None)
        session = Session(built, directory, display, distributed)
        _refuse_other_data(session)
        example = check(session)
        if distributed.is_main_process:
            if (price := price_told(session.learner, example)) is not None:
                display.note(price)
            directory.loggers = _make_loggers(session)
        about = _begin(session, plugins, state)
        with _failure_recorded(session, about):
            with display:
                display.start(session.total_steps, session.progress.step, _title(session))
                Training(session).run()
            return _finish(session, example, about) if distributed.is_main_process else {}


@contextmanager
def _memory_told(location: str) -> Iterator[None]:
    """Explain errors of memory that is used up.

    Raises:
        MtlError: There was one.
    """
    try:
        yield
    except Exception as error:
        said = out_of_memory(error)
        if said is None:
            raise
        whose = "GPU" if isinstance(error, torch.OutOfMemoryError) else "machine"
        raise MtlError(
            f"the memory of this {whose} does not suffice ({said}). Lower training.batch_size "
            "(training.accumulate keeps the size of a step), data.size, data.workers or the "
            f"model's width, or set training.precision=bf16. What is saved is in {location}"
        ) from error


def _refuse_different(config: RunConfig, distributed: Distributed) -> None:
    """Refuse processes that were started with different settings: they would wait for each other.

    Raises:
        UsageError: Their configurations differ; every process says in what.
    """
    own = {k: v for k, v in flatten(config.tree).items() if not _is_of_the_machine(k)}
    every = distributed.all_gather(own)
    for rank, other in enumerate(every):
        differing = changed_settings(every[0], other)
        if differing:
            raise UsageError(
                f"the processes of this run have different settings: those of rank {rank} differ "
                f"from those of rank 0 in {', '.join(differing)}; start all with the same command"
            )


def _refuse_other_data(session: Session) -> None:
    """Refuse processes that see different data: their plans would name different samples.

    Raises:
        UsageError: A split has not the same number of samples for all.
    """
    own = {name: len(split) for name, split in session.splits.items()}
    every = session.distributed.all_gather(own)
    for rank, other in enumerate(every):
        for name in own:
            if other.get(name) != every[0][name]:
                raise UsageError(
                    f"data: rank {rank} finds {other.get(name)} samples in the split {name!r} and "
                    f"rank 0 {every[0][name]}; give all processes the same data"
                )


@contextmanager
def _directory(
    location: str, resume: bool, distributed: Distributed, config: RunConfig
) -> Iterator[RunDirectory]:
    """Open the run's directory; for any but the main process one that is thrown away."""
    stored = stored_config(location) if resume and distributed.is_main_process else None
    longer = stored is not None and any(map(_is_its_length, _changed(stored, config)))
    with (
        nullcontext(location)
        if distributed.is_main_process
        else tempfile.TemporaryDirectory(prefix="mtl-rank-") as place
    ):
        directory = RunDirectory(place, resume or not distributed.is_main_process, longer)
        try:
            yield directory
        finally:
            directory.close()


def _checkpoint(directory: RunDirectory, config: RunConfig) -> dict[str, Any] | None:
    """Return the state to go on from; None where the run never got that far."""
    if not directory.checkpoint.exists():
        return None
    stored = stored_config(str(directory.path))
    if stored is None:
        raise MtlError(
            f"{directory.location}/config.toml: is missing, so that the run cannot go on; put it "
            "back, or start a run of its own with another --out"
        )
    if changed := [path for path in _changed(stored, config) if not _is_its_length(path)]:
        raise UsageError(
            f"{directory.location}: --resume goes on with the run's own settings, and these "
            f"differ: {', '.join(changed)}. Leave them out, or start a run of its own with "
            f"another --out (only {', '.join(_OF_THE_MACHINE)}, its length and the places of "
            "teachers may change)"
        )
    state = load_checkpoint(directory.checkpoint)
    began = state.get("config")  # a checkpoint of an earlier version has none
    edited = _changed(began, config) if isinstance(began, dict) else []
    length = [path for path in edited if _is_its_length(path)]
    if length and "length" not in state:
        raise UsageError(
            f"{directory.location}: was begun by an earlier version, which did not write down what "
            f"makes a run of another length another run; leave {', '.join(length)} as it was"
        )
    if edited := [path for path in edited if path not in length]:
        raise UsageError(
            f"{directory.location}/config.toml: was edited after the run began: "
            f"{', '.join(edited)}. Put them back, or start a run of its own with another --out"
        )
    return state


def _changed(stored: Mapping[str, Any], config: RunConfig) -> list[str]:
    return [path for path in changed_settings(stored, config.tree) if not _is_of_the_machine(path)]


def _is_its_length(path: str) -> bool:
    return path in _LENGTH


def _is_of_the_machine(path: str) -> bool:
    return path in _OF_THE_MACHINE or path.startswith("teachers.")


def _begin(session: Session, plugins: Plugins, state: dict[str, Any] | None) -> dict[str, Any]:
    """Restore what there is, or start from initial weights; return what run.json tells."""
    directory, config = session.directory, session.config
    if state is not None:
        restore(session, state)
        _note_changes(session, state)
        if told := changed_length(session, state):
            session.display.note(told)
            directory.begin_again()
    else:
        for note in _start(session):
            session.display.note(note)
    # The metrics of other ranks are thrown away.
    kept = state["metrics_length"] if state and session.distributed.is_main_process else 0
    directory.open_metrics(kept)
    before = RunFiles(str(directory.path)).provenance
    about = provenance(plugins, session, before, resumed=state is not None)
    directory.write_config(config.tree)
    directory.write_json("run.json", {**about, "status": "running", "reason": None})
    if config.loggers and session.distributed.is_main_process:
        resumed, step = "id" in before, session.progress.step
        directory.loggers.start(
            run_info(directory.location, directory.path, config.tree, about, resumed, step)
        )
    return about


def _make_loggers(session: Session) -> Loggers:
    loggers = Loggers(session.display.warn, session.directory.location)
    for chosen in session.config.loggers:
        loggers.add(chosen.component.spec.name, chosen.make)
    return loggers


def _start(session: Session) -> list[str]:
    """Give a session its first weights; return notes for people."""
    notes = load_initial(session.learner, session.config)
    if session.average is not None:
        session.average.restart()
    return notes


def _title(session: Session) -> str:
    config = session.config
    title = (
        f"{config.method} learns {', '.join(task.name for task in config.tasks)} from "
        f"{config.dataset.component.spec.name}: {session.epochs} epochs of "
        f"{session.steps_per_epoch} steps on {session.device}"
    )
    processes = session.distributed.world_size
    return f"{title}, {processes} processes" if processes > 1 else title


def _finish(session: Session, example: Inputs, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write report and summary of a trained session; return the summary."""
    directory = session.directory
    try:
        write_report(session, directory)
    except OSError as error:
        place = directory.path / "report"
        raise MtlError(f"{place}: cannot be written ({describe(error)})") from error
    summary = summarise(session, example)
    directory.write_json("run.json", {**about, "status": "finished", "reason": None})
    # Last: --resume takes a run that has it for finished.
    directory.write_json(SUMMARY, summary)
    pictures = report_pictures(directory.path)
    directory.loggers.finish(RunOutcome(status="finished", summary=summary, pictures=pictures))
    return summary


@contextmanager
def _failure_recorded(session: Session, about: Mapping[str, Any]) -> Iterator[None]:
    """Let run.json say why the run ended before its time."""
    directory = session.directory
    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, Interrupted | KeyboardInterrupt | BrokenPipeError)
        status: Literal["interrupted", "pruned", "failed"]
        status = "interrupted" if interrupted else "failed"
        if isinstance(error, Pruned):
            status = "pruned"
        reason = str(error) or type(error).__name__
        # Where the disk is full this fails too, but the first error is the one to show.
        with suppress(MtlError):
            directory.write_json("run.json", {**about, "status": status, "reason": reason})
        at_once = isinstance(error, KeyboardInterrupt)
        directory.loggers.finish(RunOutcome(status=status, reason=reason), at_once=at_once)
        if at_once:
            raise Interrupted(
                "stopped at once; go on from the last checkpoint with: "
                f"{session.config.resume_command(directory.location)}"
            ) from error
        if isinstance(error, SystemExit):
            raise MtlError(exit_told(error)) from error
        raise


def _note_changes(session: Session, state: Mapping[str, Any]) -> None:
    """Tell what keeps a resumed run from being bit for bit the uninterrupted one."""
    before, now = len(state["ranks"]), session.distributed.world_size
    if before != now:
        session.display.warn(
            f"the run had {before} processes before and has {now} now: it goes on, but not bit "
            "for bit, with steps of another size"
        )
    if state["threads"] != torch.get_num_threads():
        session.display.warn(
            f"the run had {state['threads']} threads before and has "
            f"{torch.get_num_threads()} now: it goes on, but not bit for bit "
            f"(training.threads={state['threads']} would)"
        )
