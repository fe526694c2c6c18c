"""From the places of results to their comparison.

comparison = compare(["runs/equal-0", "runs/equal-1", "runs/pcgrad-0", "runs/pcgrad-1"])
comparison = compare(["studies/balancers"])  # a directory that `mtl study` left
comparison = compare(["balancers.json"])  # a copy of its values.json
comparison.spread(comparison.variants[0], "depth", "abs_error").mean
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import attrs

from mtlcore.errors import UsageError, did_you_mean
from mtlcore.metrics import DELTA_M
from mtlcore.results.comparison import Comparison, find_definition
from mtlcore.results.kept import read_kept
from mtlcore.results.run_results import Epoch, read_run
from mtlcore.results.targets import Target
from mtlcore.results.variants import SINGLE_TASK, variants_of_runs, variants_of_study
from mtlcore.storage import StoredStudy, stored_study


def compare(
    locations: Sequence[str],
    *,
    baseline: str | None = None,
    definition: str | None = None,
    epoch: Epoch | None = None,
    targets: Sequence[Target] = (),
) -> Comparison:
    """Compare finished runs, or the cells of a study.

    Runs that differ by nothing but their seed are one variant. Runs of one task each that agree in
    all but the task are the single-task models of a seed, together the variant "single-task".

    Args:
        locations: Directories or URLs of runs, or that of one study, or a file of kept results.
        baseline: Name of a variant. Unset: the study's, or the single-task models, or the first
            variant.
        definition: Definition of delta_m, a name in `DELTA_M`. Unset: the study's, or "mtan".
        epoch: The evaluations that are compared. Unset: the study's, or "last".
        targets: Targets to look for, after the study's own.

    Raises:
        UsageError: A run is missing, unfinished or given twice, or a name is unknown.
        MtlError: A file is damaged.
    """
    whole = _whole_comparison(locations[0]) if locations else None
    if whole is None:
        comparison = _of_runs(locations)
    elif len(locations) > 1:
        raise UsageError(f"{locations[0]}: is a study, which is compared alone; name its cells")
    else:
        comparison = whole
    comparison = attrs.evolve(
        comparison,
        baseline=baseline or comparison.baseline,
        definition=find_definition(definition) if definition else comparison.definition,
        epoch=epoch or comparison.epoch,
        targets=(*comparison.targets, *targets),
    )
    _check(comparison)
    return comparison


def _whole_comparison(location: str) -> Comparison | None:
    """Return the comparison of a study or of a file of kept results; None for a run."""
    if location.endswith(".json"):
        return read_kept(location)
    study = stored_study(location)
    return None if study is None else compare_study(study)


def _of_runs(locations: Sequence[str]) -> Comparison:
    variants = tuple(variants_of_runs([read_run(location) for location in locations]))
    if not variants:
        raise UsageError("nothing to compare: name the directories of runs, or of a study")
    names = [variant.name for variant in variants]
    return Comparison(
        title="Comparison",
        variants=variants,
        baseline=SINGLE_TASK if SINGLE_TASK in names else names[0],
        definition=DELTA_M["mtan"],
    )


def compare_study(study: StoredStudy) -> Comparison:
    """Compare the cells of a study, or of a part of it."""
    return Comparison(
        title=study.name,
        variants=variants_of_study(study.cells),
        baseline=study.baseline,
        definition=find_definition(study.delta_m),
        epoch=cast(Epoch, study.epoch),
        targets=tuple(Target.parse(target) for target in study.targets),
        notes=study.notes,
        search=study.search,
    )


def _check(comparison: Comparison) -> None:
    names = [variant.name for variant in comparison.variants]
    if comparison.baseline not in names:
        raise UsageError(
            f"baseline {comparison.baseline!r}: no such variant"
            f"{did_you_mean(comparison.baseline, names)} (there are: {', '.join(names)})"
        )
    for target in comparison.targets:
        known = [
            f"{task}.{metric}"
            for run in comparison.runs
            for task, metrics in run.higher_is_better.items()
            for metric in metrics
        ]
        if known and f"{target.task}.{target.metric}" not in known:
            raise UsageError(
                f"target {target}: no run has this metric"
                f"{did_you_mean(f'{target.task}.{target.metric}', known)} "
                f"(there are: {', '.join(dict.fromkeys(known))})"
            )
