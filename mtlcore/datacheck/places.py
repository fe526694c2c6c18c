"""What somebody names to be checked: a folder, a description, a configuration or a run."""

from __future__ import annotations

from pathlib import Path

from mtlcore.config import Layer, file_layer
from mtlcore.errors import UsageError
from mtlcore.loading import Root
from mtlcore.storage import stored_config

_SPEC = "dataset.toml"


def layer_of(place: str) -> Layer:
    """Return the configuration that a place stands for.

    Args:
        place: a folder or URL with a `dataset.toml` in it, such a description itself, a run's
            directory, or a configuration as `mtl run` takes it.

    Raises:
        UsageError: it is nothing of these.
        MtlError: the configuration of a run is damaged.
    """
    root = Root(place)
    if root.exists(_SPEC):
        return Layer(place, {"data": {"name": "folder", "root": place}})
    if "://" in place or Path(place).is_dir():
        run = stored_config(place)
        if run is not None:
            return Layer(place, run, of_run=True)
        raise UsageError(
            f"{place}: holds no {_SPEC}, which says how its files are read; write one, or name the "
            "dataset that reads them: --set data.name=NAME --set data.root=" + place
        )
    if not place.lower().endswith(".toml") and Path(place).is_file():
        raise UsageError(
            f"{place}: is no TOML file; name a folder with a {_SPEC}, or a configuration whose "
            '[data] says how the file is read (of a table: name = "tabular", its file and targets)'
        )
    if _is_description(place):
        folder = str(Path(place).parent)
        spec = str(Path(place).absolute())
        return Layer(place, {"data": {"name": "folder", "root": folder, "spec": spec}})
    return file_layer(place)


def _is_description(place: str) -> bool:
    """Return whether a TOML file describes a folder."""
    if Path(place).name == _SPEC:
        return True
    table = file_layer(place).values
    return "data" not in table and ("image" in table or isinstance(table.get("tasks"), dict))
