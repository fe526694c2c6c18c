"""Where the members of a shard lie in it: found once, and kept."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, final

import attrs
import numpy as np
from numpy.typing import NDArray

from mtlcore.data import DataError
from mtlcore.errors import describe
from mtlcore.loading import Root, cache_folder

_FORM = 1  # of the files that are kept
_ENDS = 65_536  # bytes at both ends of a shard that its stamp is made of
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
_META = re.compile(r"__[^/]*__")


@final
@attrs.frozen(eq=False)
class ShardIndex:
    """The samples of a shard.

    Members of one sample follow one another in the shard: files whose names are the same up to the
    first dot behind the last slash. What comes after that dot is a member's ending.

    Args:
        where: path of the shard, for messages.
        names: of all members, one after another, each ended by a zero byte.
        at: where each name begins in `names`, and their length, (members + 1,).
        offsets: where each member's contents begin in the shard, (members,).
        sizes: how long they are, (members,).
        first: the first member of each sample, and the number of members, (samples + 1,).
    """

    where: str
    names: bytes
    at: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    first: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.first) - 1

    def key(self, sample: int) -> str:
        """Return what the names of a sample's members have in common."""
        return _split(self._name(int(self.first[sample])))[0]

    def members(self, sample: int) -> dict[str, tuple[str, int, int]]:
        """Return ending -> name, offset and size of a sample's members."""
        found = {}
        for member in range(int(self.first[sample]), int(self.first[sample + 1])):
            name = self._name(member)
            found[_split(name)[1]] = name, int(self.offsets[member]), int(self.sizes[member])
        return found

    def _name(self, member: int) -> str:
        start, end = self.at[member], self.at[member + 1] - 1
        return self.names[start:end].decode("utf-8", "surrogateescape")


def open_index(root: Root, path: str) -> ShardIndex:
    """Return the index of a shard: the one that is kept, if the shard is the same, else a new one.

    Raises:
        DataError: the shard is missing, compressed or no tar archive, or two of its members are the
            same.
    """
    where = root.where(path)
    with root.open(path) as shard:
        stamp = _stamp(shard, where)
        place = cache_folder() / "shards" / f"{_digest(where.encode())}.npz"
        kept = _load(place, where, stamp)
        if kept is not None:
            return kept
        shard.seek(0)
        made = _build(shard, where)
    _keep(place, made, stamp)
    return made


def _stamp(shard: IO[bytes], where: str) -> str:
    """Return what changes with a shard: its length, its ends, and when it was written."""
    start = shard.read(_ENDS)
    length = shard.seek(0, io.SEEK_END)
    shard.seek(max(0, length - _ENDS))
    local = Path(where)
    written = local.stat().st_mtime_ns if "://" not in where and local.exists() else 0
    return f"{_FORM} {length} {written} {_digest(start + shard.read())}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:40]


def _build(shard: IO[bytes], where: str) -> ShardIndex:
    if shard.read(4).startswith(_COMPRESSED):
        raise DataError(
            f"{where}: is compressed, and such an archive cannot be read at any place: unpack it "
            "(gunzip, unzstd); photographs are compressed anyway"
        )
    names: list[bytes] = []
    offsets, sizes, first = [], [], []
    key, endings = None, set[str]()
    try:
        for name, offset, size in _files(shard):
            its_key, ending = _split(name)
            if its_key != key:
                key, endings = its_key, set()
                first.append(len(names))
            if ending in endings:
                raise DataError(f"{where}: {name}: another file of this name is beside it")
            endings.add(ending)
            names.append(name.encode("utf-8", "surrogateescape") + b"\0")
            offsets.append(offset)
            sizes.append(size)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DataError(f"{where}: no tar archive, or a damaged one ({describe(error)})") from error
    lengths = [0, *map(len, names)]
    return ShardIndex(
        where=where,
        names=b"".join(names),
        at=np.cumsum(lengths, dtype=np.int64),
        offsets=np.array(offsets, dtype=np.int64),
        sizes=np.array(sizes, dtype=np.int64),
        first=np.array([*first, len(names)], dtype=np.int64),
    )


def _files(shard: IO[bytes]) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size of the files that belong to samples."""
    length = shard.seek(0, io.SEEK_END)
    shard.seek(0)
    with tarfile.open(fileobj=shard, mode="r:") as archive:
        for member in archive:
            base = member.name.rpartition("/")[2]
            # Files without an ending belong to no sample; names such as __key__ are the library's.
            if not member.isreg() or "." not in base[1:] or _META.fullmatch(base):
                continue
            if base.startswith("._"):  # made on a Mac beside every file
                continue
            if member.offset_data + member.size > length:
                raise ValueError(f"{member.name} is cut off")
            yield member.name, member.offset_data, member.size
        # An archive ends in blocks of zeros; one that was cut off may end behind any file.
        if length - archive.offset < tarfile.BLOCKSIZE:
            raise ValueError("its end is missing")


def _split(name: str) -> tuple[str, str]:
    """Return the key and the ending of a member."""
    folder, slash, base = name.rpartition("/")
    key, _, ending = base.partition(".")
    return f"{folder}{slash}{key}", ending.lower()


def _load(place: Path, where: str, stamp: str) -> ShardIndex | None:
    """Return a kept index, None where there is none of this very shard."""
    if not place.exists():
        return None
    try:
        with np.load(io.BytesIO(place.read_bytes()), allow_pickle=False) as kept:
            if str(kept["stamp"]) != stamp:
                return None
            arrays = {name: kept[name] for name in ("at", "offsets", "sizes", "first")}
            return ShardIndex(where=where, names=kept["names"].tobytes(), **arrays)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # half a file of a process that was killed: it is made anew


def _keep(place: Path, index: ShardIndex, stamp: str) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=place.parent, suffix=".part")
        with os.fdopen(handle, "wb") as file:
            np.savez(
                file, stamp=np.array(stamp), names=np.frombuffer(index.names, np.uint8),
                at=index.at, offsets=index.offsets, sizes=index.sizes, first=index.first,
            )  # fmt: skip
        os.replace(partial, place)  # whole or not at all: other processes may read it
    except OSError as error:
        warnings.warn(
            f"{place}: the index of {index.where} cannot be kept ({describe(error)}); it is made "
            "again in every process that opens the data (MTLCORE_CACHE names another folder)",
            stacklevel=3,
        )
