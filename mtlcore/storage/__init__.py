"""What a run's directory holds, and how it is written and read."""

from mtlcore.storage.checkpoints import load_checkpoint, save_checkpoint, written_whole
from mtlcore.storage.json_values import or_nan, without_nan
from mtlcore.storage.run_directory import (
    BEST,
    LAST,
    RunDirectory,
    changed_settings,
    next_directory,
    stored_config,
)
from mtlcore.storage.run_files import (
    Pictures,
    Row,
    RunFiles,
    Sample,
    read,
    read_files,
    read_pictures,
)

__all__ = [
    "BEST",
    "LAST",
    "Pictures",
    "Row",
    "RunDirectory",
    "RunFiles",
    "Sample",
    "changed_settings",
    "load_checkpoint",
    "next_directory",
    "or_nan",
    "read",
    "read_files",
    "read_pictures",
    "save_checkpoint",
    "stored_config",
    "without_nan",
    "written_whole",
]
