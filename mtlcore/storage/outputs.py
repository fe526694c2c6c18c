"""Writing a file where a user asks for it: a path, a device, a link to a file, or a URL."""

from __future__ import annotations

from pathlib import Path

from mtlcore.errors import MtlError, describe
from mtlcore.storage.checkpoints import written_whole


def write_output(place: str, content: bytes) -> None:
    """Write a file, whole or not at all; folders that are missing are made.

    A symbolic link is followed. What is there and is no file, such as `/dev/stdout` or a pipe, is
    written to and never replaced.

    Args:
        place: Path or fsspec URL.
        content: What is written.

    Raises:
        MtlError: It cannot be written.
    """
    try:
        if "://" in place:
            import fsspec

            filesystem, path = fsspec.core.url_to_fs(place)
            filesystem.makedirs(filesystem._parent(path), exist_ok=True)
            filesystem.pipe_file(path, content)
            return
        file = Path(place)
        # /dev/stdout may be a file, which belongs to whoever opened it.
        if (file.exists() and not file.is_file()) or file.is_relative_to("/dev"):
            with file.open("wb") as device:
                device.write(content)
            return
        file = file.resolve()
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as partial:
            partial.write_bytes(content)
    except BrokenPipeError:
        raise
    except Exception as error:  # a network's file system raises what its libraries raise
        raise MtlError(f"{place}: cannot be written ({describe(error)})") from error
