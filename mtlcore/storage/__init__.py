"""The directories of runs and studies: what they hold, and how it is written and read."""

from mtlcore.storage.checkpoints import load_checkpoint, save_checkpoint, written_whole
from mtlcore.storage.ended_runs import ended_run
from mtlcore.storage.json_values import or_nan, without_nan
from mtlcore.storage.loggers import (
    Loggers,
    RunInfo,
    RunLogger,
    RunOutcome,
    result_values,
    tag_of,
)
from mtlcore.storage.outputs import write_output
from mtlcore.storage.reading import checked, decoded
from mtlcore.storage.run_directory import (
    BEST,
    LAST,
    RunDirectory,
    changed_settings,
    next_directory,
    plain_settings,
)
from mtlcore.storage.run_files import (
    METRICS,
    SUMMARY,
    Pictures,
    Record,
    RunFiles,
    SamplePictures,
    open_run,
    place_inside,
    read_json,
    report_pictures,
    stored_config,
)
from mtlcore.storage.schemas import (
    KeptResults,
    KeptRun,
    KeptVariant,
    LastCheckpoint,
    MetricRow,
)
from mtlcore.storage.stop_requests import request_stop, take_stop_request
from mtlcore.storage.study_files import (
    STUDY,
    StoredCell,
    StoredSearch,
    StoredStudy,
    StoredTrial,
    stored_study,
    study_of,
)
from mtlcore.storage.trained_runs import Which, model_of, read_weights, trained_config, with_model
from mtlcore.storage.trees import flatten

__all__ = [
    "BEST",
    "LAST",
    "METRICS",
    "STUDY",
    "SUMMARY",
    "KeptResults",
    "KeptRun",
    "KeptVariant",
    "LastCheckpoint",
    "Loggers",
    "MetricRow",
    "Pictures",
    "Record",
    "RunDirectory",
    "RunFiles",
    "RunInfo",
    "RunLogger",
    "RunOutcome",
    "SamplePictures",
    "StoredCell",
    "StoredSearch",
    "StoredStudy",
    "StoredTrial",
    "Which",
    "changed_settings",
    "checked",
    "decoded",
    "ended_run",
    "flatten",
    "load_checkpoint",
    "model_of",
    "next_directory",
    "open_run",
    "or_nan",
    "place_inside",
    "plain_settings",
    "read_json",
    "read_weights",
    "report_pictures",
    "request_stop",
    "result_values",
    "save_checkpoint",
    "stored_config",
    "stored_study",
    "study_of",
    "tag_of",
    "take_stop_request",
    "trained_config",
    "with_model",
    "without_nan",
    "write_output",
    "written_whole",
]
