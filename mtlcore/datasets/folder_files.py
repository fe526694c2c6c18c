"""Which files of a folder are photographs, which names they have, and which split they are in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from mtlcore.data import DataError
from mtlcore.datasets.folder_description import Description, Kept, choices
from mtlcore.datasets.random_numbers import kept_names
from mtlcore.loading import MissingFile, Root, check_split, decode_text

_PARTS = ("train", "val")
_LOOKED_UP = 20  # lines of a list, at most, that are looked up before anything is read


def paths_of(pattern: str, split: str, name: str) -> list[str]:
    """Return the paths that a pattern may mean, one for each of its `{jpg,png}`."""
    return [path.replace("{name}", name) for path in choices(pattern, split)]


def photograph_paths(description: Description, split: str, name: str) -> list[str]:
    """Return the paths that a photograph may have: those of its labels are none."""
    labels = {p for x in description.labels for p in paths_of(x.file, split, name)}
    return [path for path in paths_of(description.image, split, name) if path not in labels]


def read_first(root: Root, paths: Sequence[str]) -> tuple[bytes, str]:
    """Return the contents of the first of these files that there is, and its path.

    Raises:
        MissingFile: there is none of them.
        DataError: it cannot be read.
    """
    for path in paths[:-1]:
        try:
            return root.read_bytes(path), path
        except MissingFile:
            continue
    return root.read_bytes(paths[-1]), paths[-1]


def listed(root: Root, pattern: str, split: str) -> list[str]:
    """Return what stands for `{name}` in a pattern, [] where its folder cannot be listed."""
    try:
        return [*dict.fromkeys(name for name, _ in _candidates(root, pattern, split))]
    except DataError:  # files can be read from places that cannot be listed
        return []


def names_of_split(root: Root, description: Description, split: str) -> tuple[list[str], list[str]]:
    """Return the names of a split's photographs, and notes of what is odd about them.

    Raises:
        UsageError: there is no such split.
        DataError: it has no photograph, or a list names what there is not.
    """
    if description.val is not None:
        check_split("folder", split, _PARTS)
    notes: list[str] = []
    if description.names is None:
        names = _photographs(root, description, split)
    else:
        path = description.names.replace("{split}", split)
        names = _read_list(root, description, path, split, notes)
    if not names:
        source = (description.names or description.image).replace("{split}", split)
        raise DataError(f"{root.where(source)}: no images found")
    if description.val is None:
        notes += _shared_names(root, description, split, names)
        return names, notes
    kept = _kept(root, description, names, notes)
    part = [name for name in names if (name in kept) == (split == "val")]
    if not part:
        raise DataError(
            f"{root.root}: val leaves no photograph of {len(names)} for the split {split!r}"
        )
    return part, notes


def _photographs(root: Root, description: Description, split: str) -> list[str]:
    """Return the names of all photographs that there are.

    A file that is the label of another photograph is none, although the pattern of photographs may
    match it too: `0_mask.png` beside `0.png`.
    """
    candidates = _candidates(root, description.image, split)
    patterns = [label.file for label in description.labels]
    labels = {path for name, _ in candidates for p in patterns for path in paths_of(p, split, name)}
    shortest: dict[str, str] = {}
    for name, path in candidates:
        if path not in labels:
            shortest[path] = min(name, shortest.get(path, name), key=len)
    found: dict[str, str] = {}
    for path, name in shortest.items():
        if path != found.setdefault(name, path):
            raise DataError(
                f"{root.where(path)}: is a photograph of the same name as {found[name]}; remove "
                "one of them, or let image in the description match only one"
            )
    return list(found)


def _candidates(root: Root, pattern: str, split: str) -> list[tuple[str, str]]:
    """Return the names and paths that a pattern matches, by the entries of the folder it is in."""
    found: list[tuple[str, str]] = []
    entries: dict[str, list[str]] = {}
    missing: MissingFile | None = None
    for choice in choices(pattern, split):
        before, _, after = choice.partition("{name}")
        folder, _, prefix = before.rpartition("/")
        suffix = after.partition("/")[0]
        entry = re.compile(re.escape(prefix) + "(.+)" + re.escape(suffix), re.DOTALL)
        try:
            if folder not in entries:
                entries[folder] = root.list(folder)
        except MissingFile as error:
            missing = error
            continue
        matches = map(entry.fullmatch, entries[folder])
        # Hidden files are no images: archives made on a Mac hold a "._x.png" beside every "x.png".
        names = [match[1] for match in matches if match and not match[0].startswith(".")]
        # Where {name} is a folder, what is in it is not looked at: the choices are the same name.
        inside = "/" in after
        known = {name for name, _ in found} if inside else ()
        found += [(n, choice.replace("{name}", n)) for n in names if n not in known]
    if missing is not None and not entries:
        raise missing
    # Of one pattern the order is that of the folder.
    return found if len(choices(pattern, split)) == 1 else sorted(found)


def _read_list(
    root: Root, description: Description, path: str, split: str, notes: list[str]
) -> list[str]:
    """Return the names in a list, one per line.

    Raises:
        DataError: it is no text, or a line that looks odd names no photograph.
    """
    where = root.where(path)
    text = decode_text(root.read_bytes(path), where, description.encoding)
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line]
    counts = Counter(line for _, line in lines)
    if len(counts) < len(lines):
        twice = counts.most_common(1)[0][0]
        notes.append(
            f"{where}: {len(lines) - len(counts)} line(s) repeat a name, such as {twice!r}; each "
            "photograph is used once"
        )
    ends = {choice.rpartition("{name}")[2] for choice in choices(description.image, split)}
    odd = [
        (number, line)
        for number, line in lines
        if line.startswith("#") or re.search(r"[\s/,;\\]", line) or line.endswith((*ends - {""},))
    ]
    for number, line in odd[:_LOOKED_UP]:
        paths = paths_of(description.image, split, line)
        if not any(map(root.exists, paths)):
            raise DataError(
                f"{where}: line {number}, {line!r}: there is no {root.where(paths[0])}; a line is "
                "what stands for {name} in image and nothing else: no folder, no extension, no "
                "label, no comment"
            )
    return list(counts)


def _shared_names(
    root: Root, description: Description, split: str, names: Sequence[str]
) -> list[str]:
    """Return a note of photographs that training and validation share, where lists part them."""
    if split not in _PARTS or description.names is None or "{split}" in description.image:
        return []
    mine, theirs = (
        description.names.replace("{split}", part) for part in (split, *{*_PARTS} - {split})
    )
    if mine == theirs or not root.exists(theirs):
        return []
    text = decode_text(root.read_bytes(theirs), root.where(theirs), description.encoding)
    others = {line.strip() for line in text.splitlines()}
    shared = [name for name in names if name in others]
    if not shared:
        return []
    return [
        f"{root.root}: {' and '.join(sorted((mine, theirs)))} share {len(shared)} photograph(s), "
        f"such as {shared[0]!r}: what validation measures there has been seen in training"
    ]


def _kept(root: Root, description: Description, names: Sequence[str], notes: list[str]) -> set[str]:
    """Return the names that are kept for validation."""
    if isinstance(description.val, Kept):
        return kept_names(names, description.val.fraction, description.val.seed)
    assert description.val is not None
    chosen, known = _read_list(root, description, description.val, "val", notes), set(names)
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise DataError(
            f"{root.where(description.val)}: {unknown[0]!r} is none of the {len(names)} photographs"
        )
    return set(chosen)
