"""Partial supervision by design: which labels of the training samples a run may use.

Published regimes (Li, Liu and Bilen, MTPSL, CVPR 2022): "one" keeps one label of every sample,
"random" between 1 and K - 1 of its K labels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import final

import attrs
import torch

from mtlcore.errors import ConfigError, UsageError, shown
from mtlcore.plugins import convert
from mtlcore.storage import decoded

_RATIOS = re.compile(r"\s*([a-z][a-z0-9_]*)\s*=\s*([0-9.]+)\s*")


@final
@attrs.frozen
class LabelRegime:
    """The training samples whose labels are used, for each task.

    Args:
        kept: task -> samples, by number or by the stem of their file.
    """

    kept: Mapping[str, frozenset[int | str]]

    def tasks(self, index: int, key: str) -> frozenset[str]:
        """Return the tasks whose labels are used of sample `index`, which was read from `key`."""
        stem = PurePosixPath(key).stem
        return frozenset(
            task for task, samples in self.kept.items() if index in samples or stem in samples
        )

    def counts(self) -> dict[str, int]:
        """Return the number of labelled samples per task."""
        return {task: len(samples) for task, samples in self.kept.items()}

    def mismatches(self, names: Sequence[str]) -> list[str]:
        """Tell which names are those of no sample, and how many samples have no label then.

        Args:
            names: of the samples, in order.

        Returns:
            A sentence each; none where samples are meant by their numbers alone.
        """
        known, told = set(names), list[str]()
        for task, samples in self.kept.items():
            listed = {sample for sample in samples if isinstance(sample, str)}
            if unused := sorted(listed - known):
                told.append(
                    f"{task}: {len(unused)} of {len(listed)} names are those of no training "
                    f"sample, such as {shown(unused[0])}; a name is that of a file, without folder "
                    "and ending"
                )
        every = frozenset[int | str]().union(*self.kept.values())
        left = [name for i, name in enumerate(names) if i not in every and name not in every]
        if left and any(isinstance(sample, str) for sample in every):
            told.append(
                f"{len(left)} of {len(names)} training samples have no label of any task, such as "
                f"{left[0]!r}"
            )
        return told

    def to_json(self) -> dict[str, list[int | str]]:
        """Return the content of a file that `data.labels = "FILE.json"` reads."""
        return {task: sorted(samples, key=str) for task, samples in self.kept.items()}


def draw_regime(
    labels: str, tasks: Sequence[str], samples: int, generator: torch.Generator
) -> LabelRegime | None:
    """Draw the regime that `data.labels` asks for; return None if all labels are used.

    Args:
        labels: "full"; "one"; "random"; ratios such as "segmentation=0.9,depth=0.1"; or the path
            of a JSON file: task -> list of sample numbers or file stems.
        tasks: names of the run's tasks, but those that the dataset labels itself.
        samples: number of samples in the training split, but those that repeat others.
        generator: the only source of randomness.

    Raises:
        UsageError: none of these, ratios that do not fit, or an unreadable file.
    """
    if labels == "full":
        return None
    if not tasks:
        raise UsageError(
            f"data.labels: {labels!r} leaves out labels that somebody made, and the dataset makes "
            "those of all tasks of the run itself; leave it at full"
        )
    if labels == "one":
        share = dict.fromkeys(tasks, 1 / len(tasks))
        return _apart(share, samples, generator)
    if labels == "random":
        return _between(tasks, samples, generator)
    if labels.endswith(".json"):
        return _read(labels, tasks, samples)
    return _ratios(labels, tasks, samples, generator)


def _apart(shares: Mapping[str, float], samples: int, generator: torch.Generator) -> LabelRegime:
    """Disjoint sets of exactly these shares (to a sample), as in the released files."""
    order = torch.randperm(samples, generator=generator).tolist()
    kept, total, begin = {}, 0.0, 0
    for task, share in shares.items():
        total += share
        end = round(min(total, 1.0) * samples)
        kept[task] = frozenset[int | str](order[begin:end])
        begin = end
    return LabelRegime(kept)


def _between(tasks: Sequence[str], samples: int, generator: torch.Generator) -> LabelRegime:
    """Per sample k uniform in 1..K-1, then k tasks without replacement."""
    if len(tasks) < 2:
        raise UsageError("data.labels: 'random' leaves out labels of at least two tasks")
    kept: dict[str, set[int | str]] = {task: set() for task in tasks}
    numbers = torch.randint(1, len(tasks), (samples,), generator=generator).tolist()
    for sample, number in enumerate(numbers):
        for place in torch.randperm(len(tasks), generator=generator).tolist()[:number]:
            kept[tasks[place]].add(sample)
    return LabelRegime({task: frozenset(chosen) for task, chosen in kept.items()})


def _ratios(
    labels: str, tasks: Sequence[str], samples: int, generator: torch.Generator
) -> LabelRegime:
    matches = [_RATIOS.fullmatch(part) for part in labels.split(",")]
    shares = {match[1]: float(match[2]) for match in matches if match}
    if not all(matches):
        raise UsageError(
            f"data.labels: {labels!r} is none of full, one, random, ratios such as "
            f"{tasks[0]}=0.5, or a .json file"
        )
    if set(shares) != set(tasks) or any(not 0 <= share <= 1 for share in shares.values()):
        raise UsageError(
            f"data.labels: {labels!r} must give each task of the run ({', '.join(tasks)}) a share "
            "between 0 and 1"
        )
    if sum(shares.values()) <= 1 + 1e-9:
        return _apart({task: shares[task] for task in tasks}, samples, generator)
    # More than one label per sample on average: each task draws its samples by itself.
    return LabelRegime(
        {
            task: frozenset[int | str](
                torch.randperm(samples, generator=generator).tolist()[
                    : round(shares[task] * samples)
                ]
            )
            for task in tasks
        }
    )


def _read(path: str, tasks: Sequence[str], samples: int) -> LabelRegime:
    try:
        tree = decoded(Path(path).read_bytes(), "JSON")
    except (OSError, ValueError) as error:
        raise UsageError(f"data.labels: {path}: cannot be read ({error})") from error
    problems: list[str] = []
    content = convert(tree, dict[str, list[int | str]], "", problems)
    if problems:
        raise ConfigError(f"data.labels: {path}: {p.removeprefix(': ')}" for p in problems)
    for task, chosen in content.items():
        for sample in chosen:
            if isinstance(sample, int) and not 0 <= sample < samples:
                raise UsageError(
                    f"data.labels: {path}: {task}: there is no sample {sample}; the training split "
                    f"has {samples}, numbered from 0"
                )
    missing = [task for task in tasks if task not in content]
    if missing:
        raise UsageError(f"data.labels: {path}: says nothing about {', '.join(missing)}")
    return LabelRegime({task: frozenset(content[task]) for task in tasks})
