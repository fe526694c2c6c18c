"""Reading files by fsspec.

Local paths, `zip://`, `memory://`, `https://` and everything else that fsspec opens will do.
Files from a network are kept in `$MTLCORE_CACHE` (default `~/.cache/mtlcore`) and never fetched
twice; they are not checked for a newer version. A root that does not keep files reads them where
they are.
"""

from __future__ import annotations

import builtins
import codecs
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar, final

from mtlcore.data import DataError
from mtlcore.errors import UsageError, describe, did_you_mean

__all__ = [
    "MissingFile",
    "Root",
    "cache_folder",
    "check_split",
    "decode_text",
    "marked_encoding",
    "open_root",
]

_T = TypeVar("_T")

_NEAR = ("file", "local", "memory")  # protocols that need no cache
_OWN_CACHES = ("simplecache", "filecache", "blockcache", "cached")


class MissingFile(DataError):
    """Raised where there is no such file: a missing label is told from an unreadable one."""


@final
class Root:
    """A folder: a local path or an fsspec URL, also a chained one (`zip://sub::file.zip`).

    No path with `..` leads out of it; symbolic links in it are followed.

    The file system is opened on first use, and again in each forked or spawned process, because
    processes must not share connections. Spawned processes do not see a `memory://` root.

    Args:
        root: the path or URL.
        keep: whether files from a network are fetched whole and kept on this machine.
    """

    def __init__(self, root: str, keep: bool = True) -> None:
        self.root, self.keep = root, keep
        self._opened: tuple[int, Any, str] | None = None

    def __reduce__(self) -> tuple[type[Root], tuple[str, bool]]:
        return Root, (self.root, self.keep)

    def __repr__(self) -> str:
        return f"Root({self.root!r})"

    def where(self, relative: str) -> str:
        """Return the full path or URL of a file, for messages."""
        links = self.root.split("::")
        first = next((i for i, link in enumerate(links) if "://" in link), len(links) - 1)
        links[first] = _join(links[first], relative)
        return "::".join(links)

    def read_bytes(self, relative: str) -> bytes:
        """Return the contents of a file; an empty `relative` means the root itself.

        Raises:
            MissingFile: there is no such file, or no such root.
            DataError: it cannot be read, with the reason.
        """

        def near(filesystem: Any, path: str) -> bytes:
            if self._is_local:  # fsspec takes longer around a small file than reading it does
                with open(path, "rb") as file:
                    return file.read()
            contents: bytes = filesystem.cat_file(path)
            return contents

        return self._reach(relative, near, Path.read_bytes)

    def open(self, relative: str) -> IO[bytes]:
        """Return a file that is read in parts, at any place in it; close it.

        Raises:
            MissingFile: there is no such file, or no such root.
            DataError: it cannot be opened, with the reason.
        """
        return self._reach(
            relative,
            lambda filesystem, path: filesystem.open(path, "rb"),
            lambda copy: copy.open("rb"),
        )

    def read_parts(self, relative: str, parts: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        """Return parts of a file, of which nothing else is read.

        They are asked for at once where the file system can do that. A part is shorter than it was
        to be where the file ends before.

        Args:
            relative: the file.
            parts: begin and end of each, in bytes.

        Raises:
            MissingFile: there is no such file, or no such root.
            DataError: it cannot be read, or not in parts, with the reason.
        """

        def near(filesystem: Any, path: str) -> Sequence[bytes]:
            if not filesystem.async_impl:
                with filesystem.open(path, "rb") as file:
                    return _parts(file, parts)
            begins, ends = [begin for begin, _ in parts], [end for _, end in parts]
            found: Sequence[bytes | Exception] = filesystem.cat_ranges(
                [path] * len(parts), begins, ends
            )
            data = []
            for part, begin, end in zip(found, begins, ends, strict=True):
                if isinstance(part, Exception):
                    raise part
                if len(part) > end - begin:
                    raise OSError("what serves it serves whole files only, no parts")
                data.append(part)
            return data

        def far(copy: Path) -> Sequence[bytes]:
            with copy.open("rb") as file:
                return _parts(file, parts)

        return self._reach(relative, near, far)

    def exists(self, relative: str) -> bool:
        """Return whether there is such a file or directory; False if the root is missing.

        Raises:
            DataError: the file system cannot tell; the message says why.
        """
        self._refuse_way_out(relative)
        try:
            filesystem, base = self._open()
            return bool(filesystem.exists(_join(base, relative)))
        except FileNotFoundError:
            return False
        except Exception as error:
            raise self._explain(relative, error) from error

    def list(self, relative_dir: str) -> list[str]:
        """Return the sorted names (not paths) of what a directory holds.

        Raises:
            MissingFile: there is no such directory, or no such root.
            DataError: it cannot be listed, with the reason.
        """
        self._refuse_way_out(relative_dir)
        try:
            filesystem, base = self._open()
            path = _join(base, relative_dir)
            paths = filesystem.ls(path, detail=False)
            if path and not paths:  # before fsspec 2026.9: empty, or an archive has no such folder
                filesystem.info(path)
        except Exception as error:
            raise self._explain(relative_dir, error) from error
        return sorted(name.rstrip("/").rpartition("/")[2] for name in paths)

    def numbers(self, folder: str) -> builtins.list[int]:
        """Return the numbers of the files 0.npy, 1.npy, ... in a folder, sorted.

        Raises:
            DataError: the folder is missing or empty, or holds something else.
        """
        stems = [name.removesuffix(".npy") for name in self.list(folder) if name[0] != "."]
        odd = [stem for stem in stems if not stem.isdecimal()]
        if odd or not stems:
            content = f"holds {odd[0]!r}" if odd else "is empty"
            raise DataError(
                f"{self.where(folder)}: {content}; files 0.npy, 1.npy, ... were expected"
            )
        return sorted(map(int, stems))

    @property
    def _is_local(self) -> bool:
        return "::" not in self.root and _protocol(self.root) in ("file", "local")

    def _reach(
        self, relative: str, near: Callable[[Any, str], _T], far: Callable[[Path], _T]
    ) -> _T:
        """Return what is read of a file: by its file system and path there, or of its copy."""
        self._refuse_way_out(relative)
        try:
            filesystem, base = self._open()
            path = _join(base, relative)
            if self.keep and _is_far(self.root):
                return far(_cached(filesystem, path, self.where(relative)))
            return near(filesystem, path)
        except KeyError as error:  # before fsspec 2026.9: an archive has no such file
            missing = not self.exists(relative)
            raise self._explain(relative, FileNotFoundError() if missing else error) from error
        except Exception as error:  # a network's file system raises what its libraries raise
            raise self._explain(relative, error) from error

    def _open(self) -> tuple[Any, str]:
        if self._opened is None or self._opened[0] != os.getpid():
            from fsspec.core import url_to_fs  # late: it is slow to import

            self._opened = (os.getpid(), *url_to_fs(_with_local_archive(self.root)))
        return self._opened[1:]

    def _refuse_way_out(self, relative: str) -> None:
        """Refuse a path with `..`: lists and descriptions that come with data are not trusted."""
        if ".." in re.split(r"[/\\]", relative):
            raise DataError(
                f"{self.where(relative)}: leads out of the data's folder {self.root}; name files "
                "inside of it, or give the folder above as data.root"
            )

    def _explain(self, relative: str, error: Exception) -> DataError:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            return DataError(f"{self.where(relative)}: {describe(error)}")
        if self._is_local and (link := _broken_link(self.where(relative))):
            return DataError(f"{link}: is a link to {os.readlink(link)}, which does not exist")
        if relative and not _is_far(self.root):
            try:
                filesystem, base = self._open()
            except FileNotFoundError:
                return MissingFile(f"{self.root}: no such file or directory")
            if filesystem.isfile(base):
                hint = f"; write zip://::{self.root}" if self.root.endswith(".zip") else ""
                return MissingFile(f"{self.root}: is a file, not a directory{hint}")
            if base and not filesystem.exists(base):
                return MissingFile(f"{self.root}: no such directory")
        return MissingFile(f"{self.where(relative)}: no such file or directory")


def open_root(dataset: str, root: str | None, folder: str, keep: bool = True) -> Root:
    """Return the folder that a dataset reads from.

    Args:
        dataset: name of the dataset, for the message.
        root: what `data.root` gives.
        folder: which folder that must be, such as "the folder that holds train/".
        keep: as `Root` has it.

    Raises:
        UsageError: `root` is None.
    """
    if root is None:
        raise UsageError(f"data.root: {dataset} reads files; give {folder}")
    return Root(root, keep)


def marked_encoding(data: bytes) -> str:
    """Return the encoding that the mark at the beginning of a text says; UTF-8 without one."""
    marks = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"),
             (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
    return next((name for mark, name in marks if data.startswith(mark)), "utf-8")


def decode_text(data: bytes, where: str, encoding: str | None = None) -> str:
    """Return the text of a file: UTF-8, UTF-16 with its mark, or the encoding that is named.

    Args:
        data: contents of the file; a mark of its encoding at the beginning is left out.
        where: its path, for messages.
        encoding: such as "cp1252" or "latin-1"; None: as the mark says, UTF-8 without one.

    Raises:
        UsageError: there is no such encoding.
        DataError: the contents are not of that encoding.
    """
    try:
        return data.decode(encoding or marked_encoding(data)).removeprefix("\ufeff")
    except LookupError as error:
        raise UsageError(f"encoding: {error}; there are utf-8, cp1252, latin-1, ...") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{where}: line {line} is no text in {error.encoding} (byte {data[error.start]:#x}); "
            'save it as UTF-8, or name its encoding (encoding = "cp1252", or "latin-1", ...)'
        ) from error


def _parts(file: IO[bytes], parts: Sequence[tuple[int, int]]) -> list[bytes]:
    found = []
    for begin, end in parts:
        file.seek(begin)
        found.append(file.read(end - begin))
    return found


def _broken_link(path: str) -> Path | None:
    """Return the link on the way to a path that leads nowhere, if there is one."""
    local = Path(path.partition("://")[2] or path)
    return next((p for p in (local, *local.parents) if p.is_symlink() and not p.exists()), None)


def _join(base: str, relative: str) -> str:
    if not base or not relative:
        return base or relative
    return base + relative if base.endswith("/") else f"{base}/{relative}"


def _protocol(link: str) -> str:
    return link.partition("://")[0] if "://" in link else "file"


def _is_far(root: str) -> bool:
    """Whether each file comes by itself over a network, through no cache that the URL names."""
    return "::" not in root and _protocol(root) not in _NEAR


def _with_local_archive(root: str) -> str:
    """Replace an archive on a network by its copy: reading it piece by piece would be slow."""
    head, chained, last = root.rpartition("::")
    wants_own = any(link.partition("://")[0] in _OWN_CACHES for link in head.split("::"))
    if not chained or wants_own or _protocol(last) in _NEAR:
        return root
    from fsspec.core import url_to_fs

    filesystem, path = url_to_fs(last)
    return f"{head}::{_cached(filesystem, path, last)}"


def _cached(filesystem: Any, path: str, url: str) -> Path:
    """Return a local copy of a remote file, whole or not there at all.

    fsspec's own simplecache downloads under the final name, where another worker would find half a
    file, and an interrupted run would leave one for ever.
    """
    folder = cache_folder() / "files"
    copy = folder / hashlib.sha256(url.encode()).hexdigest()[:40]
    if copy.exists():
        return copy
    folder.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=folder, suffix=".part")
    os.close(handle)
    try:
        filesystem.get_file(path, partial)
        os.replace(partial, copy)
    finally:
        Path(partial).unlink(missing_ok=True)
    return copy


def cache_folder() -> Path:
    """Return the folder for what is fetched or computed once: `MTLCORE_CACHE`.

    Raises:
        UsageError: there is no home directory, and the variable is not set.
    """
    try:
        return Path(os.environ.get("MTLCORE_CACHE") or "~/.cache/mtlcore").expanduser()
    except RuntimeError as error:
        raise UsageError(
            "there is no home directory for what is downloaded; set MTLCORE_CACHE to a folder"
        ) from error


def check_split(dataset: str, split: str, splits: Sequence[str]) -> None:
    """Raise an error if a dataset has no such split.

    Args:
        dataset: name of the dataset, for the message.
        split: that is asked for.
        splits: that there are.

    Raises:
        UsageError: there is no such split; the message names those that there are.
    """
    if split not in splits:
        raise UsageError(
            f"{dataset} has no split {split!r}, only {', '.join(splits)}"
            + did_you_mean(split, splits)
        )
