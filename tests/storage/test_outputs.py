"""A file is written where it was asked for: through links, to devices, to URLs, never over them."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from click.testing import Result

from mtlcore.errors import MtlError
from mtlcore.storage import write_output

Command = Callable[..., Result]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/page.html").write_text("old")
    for link, target in (("file", "real/page.html"), ("folder", "real"), ("new", "real/new.html")):
        (tmp_path / link).symlink_to(tmp_path / target)
    write_output(str(tmp_path / "file"), b"one")
    write_output(str(tmp_path / "folder/other.html"), b"two")
    write_output(str(tmp_path / "new"), b"three")
    assert all((tmp_path / name).is_symlink() for name in ("file", "folder", "new"))
    found = {file.name: file.read_text() for file in (tmp_path / "real").iterdir()}
    assert found == {"page.html": "one", "other.html": "two", "new.html": "three"}


def test_devices_stay_devices(tmp_path: Path) -> None:
    write_output("/dev/null", b"x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_output(str(pipe), b"through")
    reader.join()
    assert got == [b"through"] and stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_url_is_written(tmp_path: Path) -> None:
    write_output("memory://outputs/deep/x.bin", b"x")
    assert fsspec.filesystem("memory").cat_file("/outputs/deep/x.bin") == b"x"


@pytest.mark.parametrize("place", ["/dev/full", "FOLDER", "FILE/x", "unheardof://x", "https://x/y"])
def test_what_cannot_be_written_is_told(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    place = place.replace("FOLDER", str(tmp_path)).replace("FILE", str(tmp_path / "file"))
    with pytest.raises(MtlError, match="cannot be written"):
        write_output(place, b"x")
    assert (tmp_path / "file").read_text() == "precious"
