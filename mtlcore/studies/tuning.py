"""Tuning: each variant chooses among the same settings, by a seed of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from mtlcore.errors import MtlError
from mtlcore.results import Comparison, compare
from mtlcore.studies.spec import Study, StudyVariant, Tuning


def tuning_study(study: Study, tuning: Tuning) -> Study:
    """Return the study whose variants are those of a study with each candidate."""
    variants = tuple(
        attrs.evolve(variant, name=f"{variant.name}+{name}", tuned=settings, seeds=None)
        for variant in study.variants
        for name, settings in _candidates(variant, tuning).items()
    )
    settings = attrs.evolve(
        study.settings,
        name=f"{study.settings.name}: tuning",
        seeds=(tuning.seed,),
        baseline=next(v.name for v in variants if v.name.startswith(f"{study.baseline}+")),
    )
    return attrs.evolve(study, settings=settings, variants=variants, tuning=None)


def tuned_study(study: Study, tuning: Tuning, folder: Path) -> Study:
    """Return a study whose variants have the candidates that served them best.

    Args:
        study: As its file describes it.
        tuning: Its candidates.
        folder: Directory of the tuning study, which has ended.

    Raises:
        MtlError: No candidate of a variant has a result.
    """
    comparison = _with_a_reference(compare([str(folder)]))
    chosen = {variant.name: _best(variant, tuning, comparison) for variant in study.variants}
    lost = [name for name, candidate in chosen.items() if candidate is None]
    if lost:
        raise MtlError(
            f"{study.path}: no candidate of {', '.join(lost)} has a result on the seed "
            f"{tuning.seed}; {folder} says why"
        )
    words = "; ".join(f"{name}: {candidate}" for name, candidate in chosen.items())
    note = (
        f"Each variant has the best of its candidates by Δm ({comparison.definition.name}) on the "
        f"seed {tuning.seed}, which is in no table: {words}."
    )
    variants = tuple(
        attrs.evolve(variant, tuned=_candidates(variant, tuning)[chosen[variant.name] or ""])
        for variant in study.variants
    )
    return attrs.evolve(study, variants=variants, tuning=None, notes=(*study.notes, note))


def _candidates(variant: StudyVariant, tuning: Tuning) -> Mapping[str, Mapping[str, Any]]:
    return tuning.candidates if variant.candidates is None else variant.candidates


def _best(variant: StudyVariant, tuning: Tuning, comparison: Comparison) -> str | None:
    """Return the candidate with the best delta_m, the first of equals; None: none has a result."""
    gains = _gains(variant, tuning, comparison)
    return max(gains, key=lambda name: gains[name]) if gains else None


def _with_a_reference(comparison: Comparison) -> Comparison:
    """Compare with the first variant that has finite metrics, where the baseline has not."""
    named = comparison.variant(comparison.baseline)
    for reference in (named, *comparison.variants):
        found = attrs.evolve(comparison, baseline=reference.name)
        own = found.delta_m(reference)
        if own is not None and math.isfinite(own.mean):
            return found
    return comparison


def _gains(variant: StudyVariant, tuning: Tuning, comparison: Comparison) -> Mapping[str, float]:
    sign = 1 if comparison.definition.higher_is_better else -1
    gains = {}
    for name in _candidates(variant, tuning):
        result = comparison.variant(f"{variant.name}+{name}")
        spread = comparison.delta_m(result)
        if spread is not None and not result.failed:
            gains[name] = sign * spread.mean if math.isfinite(spread.mean) else -math.inf
    return gains
