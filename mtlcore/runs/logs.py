"""What loggers are told of a run: when it begins, and all of it once more after its end."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from mtlcore.config import resolve_logger
from mtlcore.errors import MtlError, UsageError, outline
from mtlcore.plugins import REQUIRED, Component, Plugins, as_plain, settings_of
from mtlcore.storage import (
    RunFiles,
    RunInfo,
    RunLogger,
    RunOutcome,
    ended_run,
    open_run,
    report_pictures,
    study_of,
)

_ENDED = ("finished", "interrupted", "pruned", "failed")


def run_info(
    location: str,
    directory: Path,
    config: Mapping[str, Any],
    about: Mapping[str, Any],
    resumed: bool,
    step: int,
) -> RunInfo:
    """Return what loggers are told when a run begins or goes on.

    Args:
        location: Directory or URL of the run.
        directory: The local directory.
        config: The whole configuration.
        about: What `run.json` tells.
        resumed: Whether there may have been lines before.
        step: How many steps are done; at 0, no line is kept.

    Raises:
        MtlError: The run lies in a study, whose file is damaged.
    """
    records = RunFiles(str(directory)).records
    found = study_of(location)
    name, group = location.rstrip("/").rpartition("/")[2], None
    if found is not None:
        study, cell = found
        group, name = study.name, f"{cell.variant} seed-{cell.seed}"
        if cell.group is not None:
            name = f"{name} {'+'.join(cell.group)}"
    return RunInfo(
        id=about["id"],
        name=name or Path(location).resolve().name,
        group=group,
        location=location,
        directory=directory,
        resumed=resumed,
        step=step,
        lines=len(records) if step else 0,
        began=time.time() - (records[-1]["seconds"] if records else 0.0),
        config=config,
        origins=about.get("origins", {}),
        about=about,
    )


def log_run(plugins: Plugins, location: str, name: str, given: Mapping[str, Any]) -> int:
    """Tell a logger all of a run that has ended, as if it happened now.

    Args:
        plugins: Where the logger is looked up. If they trust runs, the run's plugin files count,
            and the settings that it has for a logger of this name.
        location: Path or URL of the run.
        name: The logger's name.
        given: Its settings.

    Returns:
        How many lines of `metrics.jsonl` were told.

    Raises:
        UsageError: There is no run or no such logger, the run still goes on, or its configuration
            has settings for the logger that nobody asked for.
        ConfigError: The logger does not take these settings.
        MtlError: A file of the run is damaged, or the logger failed.
    """
    files = open_run(location)
    if "id" not in files.provenance:
        raise MtlError(
            f"{location}/run.json: is missing or was written by an early version: the run has no "
            "identity, by which a logger would know it"
        )
    if plugins.trusts_runs:
        for file in files.config.get("plugins", ()):  # one may bring the logger
            plugins.load_file(file)
    component = plugins.get("loggers", name)
    settings = _settings_of_run(plugins, component, files, given)
    logger = resolve_logger(plugins, {"name": name, **settings, **given}).make()
    with ended_run(location) as directory:
        return _tell(logger, name, location, directory)


def _settings_of_run(
    plugins: Plugins, component: Component, files: RunFiles, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings that a run has for a logger, other than its defaults.

    Raises:
        UsageError: There are some, and nobody asked for them: they say where the logger writes.
    """
    names = (component.spec.name, component.full_name)
    tables = [table for table in files.config.get("loggers", ()) if table.get("name") in names]
    defaults = {s.name: as_plain(s.default) for s in settings_of(component.load())
                if s.default is not REQUIRED}  # fmt: skip
    settings = {
        key: value
        for key, value in (tables[0] if tables else {}).items()
        if key not in ("name", *given) and value != defaults.get(key)
    }
    if settings and not plugins.trusts_runs:
        listed = ", ".join(f"{key} = {value!r}" for key, value in settings.items())
        raise UsageError(
            f"{files.location}: its configuration has settings for {component.spec.name} "
            f"({listed}), which say where it writes. Add --trust if the run is your own or you "
            "trust whoever made it, or give them with --set"
        )
    return settings


def _tell(logger: RunLogger, name: str, location: str, directory: Path) -> int:
    files = RunFiles(str(directory))
    about = {k: v for k, v in files.provenance.items() if k not in ("status", "reason")}
    outcome = _outcome(files, directory)
    try:
        logger.start(run_info(location, directory, files.config, about, resumed=True, step=0))
        # As the run recorded them: of one step, or of one evaluation.
        for _, lines in itertools.groupby(
            files.records, lambda line: (line["step"], line["split"], line["seconds"])
        ):
            logger.record(tuple(lines))
        logger.finish(outcome)
    except (Exception, SystemExit) as error:
        raise MtlError(f"{location}: {name} failed: {outline(error)}") from error
    return len(files.records)


def _outcome(files: RunFiles, directory: Path) -> RunOutcome:
    if files.summary is not None:
        pictures = report_pictures(directory)
        return RunOutcome(status="finished", summary=files.summary, pictures=pictures)
    status, reason = files.provenance.get("status"), files.provenance.get("reason")
    if status not in _ENDED or status == "finished":
        return RunOutcome(status="interrupted", reason="it was killed")
    return RunOutcome(
        status=cast(Literal["interrupted", "pruned", "failed"], status), reason=reason
    )
