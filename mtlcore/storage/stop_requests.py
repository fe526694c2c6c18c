"""Asking a running run to stop, from outside: a small file in its directory."""

from __future__ import annotations

import json

from mtlcore.errors import MtlError, UsageError, describe
from mtlcore.storage.run_files import open_run, read_json
from mtlcore.storage.schemas import StopRequest

#: The file that asks a run to stop, and says why.
STOP = "stop.json"


def request_stop(location: str, reason: str) -> None:
    """Ask a running run to stop at the end of its current epoch.

    The run finishes the epoch, with the evaluation that is due then, and saves its state. It ends
    with `Pruned` (exit code 3), and `run.json` holds the status "pruned" and the reason. Later,
    `mtl run --resume` goes on with it. A run in its last epoch finishes.

    Args:
        location: Path or fsspec URL of the run's directory.
        reason: Why it should stop, for people.

    Raises:
        UsageError: There is no run, or it is not running.
        MtlError: The request cannot be written.
    """
    files = open_run(location)
    status = files.provenance.get("status")
    if status != "running":
        raise UsageError(f"{location}: cannot be asked to stop, it is {status or 'not begun'}")
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(f"{files.location}/{STOP}")
    try:
        # Renamed when it is whole: the run may look for it at any moment.
        filesystem.pipe_file(f"{path}.partial", json.dumps({"reason": reason}).encode())
        filesystem.mv(f"{path}.partial", path)
    except Exception as error:  # a network's file system raises what its libraries raise
        raise MtlError(f"{path}: cannot be written ({describe(error)})") from error


def take_stop_request(location: str) -> str | None:
    """Return why the run at a location should stop, and delete the request; None without one.

    Raises:
        MtlError: The request cannot be read or deleted.
    """
    place = f"{location.rstrip('/')}/{STOP}"
    request = read_json(place, StopRequest)
    if request is None:
        return None
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(place)
    try:
        filesystem.rm_file(path)
    except Exception as error:  # a network's file system raises what its libraries raise
        raise MtlError(f"{place}: cannot be deleted ({describe(error)})") from error
    return request["reason"]
