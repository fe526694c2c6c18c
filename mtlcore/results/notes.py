"""What a reader of a comparison's tables must know, in sentences."""

from __future__ import annotations

import math

from mtlcore.results.comparison import Comparison
from mtlcore.results.power import detectable
from mtlcore.results.summary_tables import FEW_SEEDS, fewest_common_seeds
from mtlcore.results.variants import Variant


def notes_of(comparison: Comparison) -> list[str]:
    """Return what a reader must know of the tables, a sentence or two each."""
    if not comparison.runs:
        return ["No run has a result.", *comparison.notes]
    seeds, definition = comparison.seeds, comparison.definition
    sign = "positive" if definition.higher_is_better else "negative"
    texts = [
        _note_of_metrics(comparison),
        f"{len(seeds)} seed{'s' * (len(seeds) != 1)} ({', '.join(map(str, seeds))}): "
        + (
            "mean ± sample standard deviation over them; the best mean is bold, which alone does "
            "not say that it is better than the next."
            if len(seeds) > 1
            else "no spread can be told; the best value is bold, which may be chance."
        ),
        f"Δm ({definition.name}): {definition.formula}, relative to {comparison.baseline}, in "
        f"percent: {sign} is better. So in {definition.papers}; other definitions give other "
        "numbers. Each seed is compared with the mean metrics of the baseline; where one of them "
        "is zero, Δm is NaN.",
        "Mean rank: over all metrics, of the means; 1 is the best.",
    ]
    if comparison.counted.keys() < comparison.higher_is_better.keys():
        texts.append(
            f"Δm and mean rank are over the tasks of {comparison.baseline} "
            f"({', '.join(comparison.counted)}): it learns no other."
        )
    if len(comparison.variants) > 1:
        texts.append(_note_of_differences(comparison))
    if (found := detectable(comparison, len(seeds))) is not None:
        texts.append(
            f"{len(seeds)} seeds find these true differences from {comparison.baseline} in "
            f"four of five such studies, by the spread seen here: {found}."
        )
    texts += [
        f"{models}: its parameters and time per step are summed over the models, its memory is "
        "that of the largest, its best epoch the mean over them."
        for models in dict.fromkeys(map(_models, comparison.variants))
        if models
    ]
    if any(math.isfinite(variant.seconds_per_step) for variant in comparison.variants):
        texts.append(
            "Time per step: the median over a run's steps, the first of a process apart, loading "
            "included; the mean over seeds. Peak memory: on a GPU of torch's tensors there, "
            "elsewhere of the whole process."
        )
    if stalled := [run for run in comparison.runs if run.stalled_seconds]:
        total = sum(run.stalled_seconds for run in stalled)
        texts.append(
            f"Processes stood still for {total:.0f} s in {len(stalled)} run"
            f"{'s' * (len(stalled) != 1)} (a step of ten seconds and more took ten times the "
            "median; the machine slept, or a cell was suspended): times per step do not count "
            "that, times to a target and of whole runs do."
        )
    return [*texts, *comparison.notes]


def failures(comparison: Comparison) -> list[str]:
    """Return a line per cell without a result."""
    return [
        f"{variant.name}, {cell.label}: {cell.reason} ({cell.location})"
        for variant in comparison.variants
        for cell in variant.failed
    ]


def _models(variant: Variant) -> str:
    """Return how a variant's tasks are shared among several models; empty where it has one."""
    if variant.groups is None or variant.single_task:
        return "One model per task" if variant.single_task else ""
    return f"One model per group of tasks ({' | '.join(map(', '.join, variant.groups))})"


def _note_of_metrics(comparison: Comparison) -> str:
    chosen = (
        "the best epoch is the one with the best mean rank of the tasks' first metrics on "
        f"{comparison.chosen_on}"
    )
    if comparison.epoch == "best":
        return (
            f"Metrics on val, at the best epoch of each run; {chosen}, so that they flatter "
            "slightly where both are the same split."
        )
    numbers = sorted({int(run.summary["averaged_over"]) for run in comparison.runs})
    last = (
        "of the last evaluation"
        if numbers == [1]
        else f"means over the last {' or '.join(map(str, numbers))} evaluations"
    )
    return f"Metrics on val, {last}: no split chose their epoch. Beside them, {chosen}."


def _note_of_differences(comparison: Comparison) -> str:
    fewest = fewest_common_seeds(comparison)
    if fewest == 0:
        return f"Nothing has a seed in common with {comparison.baseline}: no differences."
    if fewest == 1:
        return (
            f"Differences from {comparison.baseline} are between runs of the same seed; of a "
            "single common seed no interval can be told."
        )
    text = (
        f"Differences from {comparison.baseline} are between runs of the same seed, with "
        "Student's 95 % interval of their mean. An asterisk marks an interval without zero; of "
        "twenty comparisons of equals, one has it by chance."
    )
    if fewest < FEW_SEEDS:
        text += f" With only {fewest} common seeds the intervals are wide: add seeds."
    return text
