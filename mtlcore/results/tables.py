"""A comparison as text for people, papers and programs: Markdown, CSV, LaTeX and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import attrs

from mtlcore.errors import MtlError, describe
from mtlcore.results.comparison import FEW_SEEDS, Comparison, Reached, Target, Variant
from mtlcore.results.statistics import Difference, Spread
from mtlcore.storage import without_nan, written_whole

_MISSING = "-"
_CSV_HEAD = (
    "variant", "task", "metric", "higher_is_better", "unit", "mean", "std", "n", "best",
    "baseline", "difference", "low", "high", "n_common",
)  # fmt: skip
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": "$<$", ">": "$>$", "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
    "Δ": r"$\Delta$", "≤": r"$\le$", "≥": r"$\ge$",
}  # fmt: skip


@final
@attrs.frozen
class Entry:
    """What stands in one place of a table."""

    text: str
    bold: bool = False


@final
@attrs.frozen
class Section:
    """A table with its heading; the first column names the variant."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Entry]]


def write_tables(comparison: Comparison, folder: Path) -> list[Path]:
    """Write `table.md`, `table.csv`, `table.tex` and `results.json`, each whole or not at all.

    Raises:
        MtlError: one of them cannot be written.
    """
    results = without_nan(as_data(comparison))
    texts = {
        "table.md": as_markdown(comparison),
        "table.csv": as_csv(comparison),
        "table.tex": as_latex(comparison),
        "results.json": json.dumps(results, indent=2, allow_nan=False) + "\n",
    }
    for name, text in texts.items():
        try:
            with written_whole(folder / name) as partial:
                partial.write_text(text, "utf-8")
        except OSError as error:
            raise MtlError(f"{folder / name}: cannot be written ({describe(error)})") from error
    return [folder / name for name in texts]


def as_markdown(comparison: Comparison) -> str:
    """Tables that can be read as they are and as Markdown."""
    parts = [f"# {comparison.title}"]
    for section in sections(comparison):
        parts += [f"## {section.title}", _markdown_table(section)]
    if failures := _failures(comparison):
        parts += ["## Without a result", "\n".join(f"* {line}" for line in failures)]
    parts += ["## How to read this", "\n".join(f"* {line}" for line in notes(comparison))]
    return "\n\n".join(parts) + "\n"


def as_latex(comparison: Comparison) -> str:
    """The same tables as `tabular`s with the rules of booktabs."""
    lines = [f"% {comparison.title}: needs \\usepackage{{booktabs}}"]
    lines += [f"% {line}" for line in (*_failures(comparison), *notes(comparison))]
    for section in sections(comparison):
        lines += [
            "",
            f"% {section.title}",
            f"\\begin{{tabular}}{{l{'r' * (len(section.head) - 1)}}}",
        ]
        lines += [r"\toprule", " & ".join(map(_latex, section.head)) + r" \\", r"\midrule"]
        for row in section.rows:
            texts = [_latex(entry.text) for entry in row]
            bold = [
                f"\\textbf{{{text}}}" if entry.bold else text
                for text, entry in zip(texts, row, strict=True)
            ]
            lines.append(" & ".join(bold) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def as_csv(comparison: Comparison) -> str:
    """One line per variant and figure, with full precision; what all tasks share has no task."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_HEAD)
    for variant in comparison.variants:
        for line in _csv_lines(comparison, variant):
            writer.writerow([variant.name, *("" if value is None else value for value in line)])
    return text.getvalue()


def as_data(comparison: Comparison) -> dict[str, Any]:
    """Everything, with the value of each seed, as a JSON tree; NaN stays NaN."""
    definition = comparison.definition
    return {
        "title": comparison.title,
        "baseline": comparison.baseline,
        "seeds": list(comparison.seeds),
        "epoch": comparison.epoch,
        "split": "val",
        "best_epoch_chosen_on": comparison.chosen_on,
        "delta_m": {
            "name": definition.name,
            "formula": definition.formula,
            "higher_is_better": definition.higher_is_better,
        },
        "directions": {task: dict(metrics) for task, metrics in comparison.directions.items()},
        "units": dict(comparison.units),
        "variants": [_variant_data(comparison, variant) for variant in comparison.variants],
        "notes": notes(comparison),
    }


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know of the figures, a sentence or two each."""
    if not comparison.runs:
        return ["No run has a result.", *comparison.notes]
    seeds, definition = comparison.seeds, comparison.definition
    sign = "positive" if definition.higher_is_better else "negative"
    found = [
        _note_of_figures(comparison),
        f"{_count(len(seeds), 'seed')} ({', '.join(map(str, seeds))}): "
        + (
            "mean ± sample standard deviation over them; the best mean is bold, which alone does "
            "not say that it is better than the next."
            if len(seeds) > 1
            else "no spread can be told; the best figure is bold, which may be chance."
        ),
        f"Δm ({definition.name}): {definition.formula}, relative to {comparison.baseline}, in "
        f"percent: {sign} is better. So in {definition.papers}; other definitions give other "
        "numbers. Each seed is compared with the mean figures of the baseline; where one of them "
        "is zero, Δm is NaN.",
        "Mean rank: over all metrics, of the means; 1 is the best.",
    ]
    if len(comparison.variants) > 1:
        found.append(_note_of_differences(comparison))
    if any(variant.single_task for variant in comparison.variants):
        found.append(
            "One model per task: its parameters and time per step are summed over the models, "
            "its memory is that of the largest, its best epoch the mean over them."
        )
    found.append(
        "Time per step: training only, the first step of a process apart. Peak memory: on a GPU "
        "of torch's tensors there, elsewhere of the whole process."
    )
    return [*found, *comparison.notes]


# What stands in the tables


def sections(comparison: Comparison) -> Iterator[Section]:
    """All tables of a comparison, in order."""
    yield _overview(comparison)
    for task in comparison.directions:
        yield _task_section(comparison, task)
    if comparison.targets:
        yield _target_section(comparison)
    if _fewest_common(comparison):
        yield from _difference_sections(comparison)


def _overview(comparison: Comparison) -> Section:
    arrow = _arrow(comparison.definition.higher_is_better)
    spreads = [comparison.delta_m(variant) for variant in comparison.variants]
    ranks = [comparison.mean_rank(variant) for variant in comparison.variants]
    others = [
        spread.mean
        for spread, variant in zip(spreads, comparison.variants, strict=True)
        if spread is not None and variant.name != comparison.baseline
    ]
    top = _top(others, comparison.definition.higher_is_better)
    lowest = _top([rank for rank in ranks if rank is not None], higher=False)
    rows = []
    for variant, spread, rank in zip(comparison.variants, spreads, ranks, strict=True):
        base = variant.name == comparison.baseline
        rows.append(
            [
                Entry(f"{variant.name} (baseline)" if base else variant.name),
                Entry(_spread(spread, 2), not base and _is(spread, top)),
                Entry(_figure(rank, 2), rank is not None and rank == lowest),
                Entry(_figure(variant.parameters, 0)),
                Entry(_milliseconds(variant.seconds_per_step)),
                Entry(_megabytes(variant.peak_memory)),
                Entry(_figure(variant.best_epoch, 1)),
                Entry(_seeds(comparison, variant)),
            ]
        )
    head = [
        "variant", f"Δm % {arrow}", "mean rank ↓", "parameters", "ms per step", "peak MB",
        "best epoch", "seeds",
    ]  # fmt: skip
    return Section("All tasks", head, rows)


def _task_section(comparison: Comparison, task: str) -> Section:
    directions = comparison.directions[task]
    columns = []
    for metric in directions:
        spreads = [comparison.spread(variant, task, metric) for variant in comparison.variants]
        decimals = _decimals(spread.mean for spread in spreads if spread is not None)
        best = comparison.best(task, metric)
        columns.append(
            [
                Entry(_spread(spread, decimals), variant.name in best)
                for variant, spread in zip(comparison.variants, spreads, strict=True)
            ]
        )
    unit = comparison.units.get(task)
    return Section(
        f"{task} ({unit})" if unit else task,
        ["variant", *(f"{metric} {_arrow(higher)}" for metric, higher in directions.items())],
        [
            [Entry(variant.name), *(column[number] for column in columns)]
            for number, variant in enumerate(comparison.variants)
        ],
    )


def _target_section(comparison: Comparison) -> Section:
    return Section(
        "First reached",
        ["variant", *(_target_head(comparison, target) for target in comparison.targets)],
        [
            [
                Entry(variant.name),
                *(Entry(_reached(comparison.reached(variant, t))) for t in comparison.targets),
            ]
            for variant in comparison.variants
        ],
    )


def _difference_sections(comparison: Comparison) -> Iterator[Section]:
    others = [v for v in comparison.variants if v.name != comparison.baseline]
    fewest = _fewest_common(comparison)
    title = f"difference from {comparison.baseline}"
    if fewest > 1:
        title += " [95 % interval]" if fewest >= FEW_SEEDS else " [95 % interval, wide: few seeds]"
    arrow = _arrow(comparison.definition.higher_is_better)
    differences = [comparison.delta_m_difference(variant) for variant in others]
    yield Section(
        f"Δm: {title}",
        ["variant", f"Δm % {arrow}"],
        [
            [Entry(variant.name), Entry(_difference(difference, 2))]
            for variant, difference in zip(others, differences, strict=True)
        ],
    )
    for task, directions in comparison.directions.items():
        decimals = {
            metric: _decimals(
                spread.mean
                for variant in comparison.variants
                if (spread := comparison.spread(variant, task, metric)) is not None
            )
            for metric in directions
        }
        yield Section(
            f"{task}: {title}",
            ["variant", *(f"{metric} {_arrow(higher)}" for metric, higher in directions.items())],
            [
                [
                    Entry(variant.name),
                    *(
                        Entry(
                            _difference(
                                comparison.difference(variant, task, metric), decimals[metric]
                            )
                        )
                        for metric in directions
                    ),
                ]
                for variant in others
            ],
        )


def _failures(comparison: Comparison) -> list[str]:
    return [
        f"{variant.name}, seed {cell.seed}{f', {cell.task}' if cell.task else ''}: {cell.reason} "
        f"({cell.location})"
        for variant in comparison.variants
        for cell in variant.failed
    ]


def _note_of_figures(comparison: Comparison) -> str:
    chosen = f"the best epoch is the one with the lowest losses on {comparison.chosen_on}"
    if comparison.epoch == "best":
        return (
            f"Figures on val, at the best epoch of each run; {chosen}, so that they flatter "
            "slightly where both are the same split."
        )
    numbers = sorted({int(run.summary["averaged_over"]) for run in comparison.runs})
    last = (
        "of the last evaluation"
        if numbers == [1]
        else f"means over the last {' or '.join(map(str, numbers))} evaluations"
    )
    return f"Figures on val, {last}: no split chose their epoch. Beside them, {chosen}."


def _note_of_differences(comparison: Comparison) -> str:
    fewest = _fewest_common(comparison)
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


def _fewest_common(comparison: Comparison) -> int:
    """The fewest seeds that a difference is taken over; 0 where there is no difference."""
    counts = [
        difference.n
        for variant in comparison.variants
        if variant.name != comparison.baseline
        for column in comparison.columns
        if (difference := comparison.difference(variant, *column)) is not None
    ]
    return min(counts, default=0)


# Texts


def _arrow(higher: bool) -> str:
    return "↑" if higher else "↓"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _decimals(values: Iterable[float]) -> int:
    """So many that the largest value shows four significant digits."""
    sizes = [abs(value) for value in values if math.isfinite(value) and value != 0]
    return min(6, max(0, 3 - math.floor(math.log10(max(sizes))))) if sizes else 4


def _figure(value: float | None, decimals: int) -> str:
    if value is None:
        return _MISSING
    return f"{value:,.{decimals}f}" if math.isfinite(value) else "NaN"


def _spread(spread: Spread | None, decimals: int) -> str:
    if spread is None or not math.isfinite(spread.mean):
        return _MISSING if spread is None else "NaN"
    mean = f"{spread.mean:.{decimals}f}"
    return mean if spread.n < 2 else f"{mean} ± {spread.std:.{decimals}f}"


def _difference(difference: Difference | None, decimals: int) -> str:
    if difference is None or not math.isfinite(difference.mean):
        return _MISSING if difference is None else "NaN"
    text = f"{difference.mean:+.{decimals}f}"
    if difference.n < 2:
        return text
    low, high = difference.interval
    star = " *" if difference.excludes_zero else ""
    return f"{text} [{low:+.{decimals}f}, {high:+.{decimals}f}]{star}"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f}" if math.isfinite(seconds) else "NaN"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.0f}" if math.isfinite(size) else "NaN"


def _seeds(comparison: Comparison, variant: Variant) -> str:
    lost = {cell.seed for cell in variant.failed}
    whole = len([seed for seed in variant.seeds if seed not in lost])
    wanted = len({*comparison.seeds, *lost})
    return str(whole) if whole == wanted else f"{whole} of {wanted}"


def _target_head(comparison: Comparison, target: Target) -> str:
    higher = comparison.directions.get(target.task, {}).get(target.metric, False)
    return f"{target.task} {target.metric} {'≥' if higher else '≤'} {target.value:g}"


def _reached(found: Mapping[int, Reached | None]) -> str:
    if not found:
        return _MISSING
    times = [reached for reached in found.values() if reached is not None]
    if not times:
        return "never"
    epoch = statistics.fmean(reached.epoch for reached in times)
    seconds = statistics.fmean(reached.seconds for reached in times)
    text = f"epoch {epoch:.1f}, {seconds:.1f} s"
    return text if len(times) == len(found) else f"{text} ({len(times)} of {len(found)} seeds)"


def _top(values: Sequence[float], higher: bool) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return (max if higher else min)(finite) if finite else None


def _is(spread: Spread | None, top: float | None) -> bool:
    return spread is not None and top is not None and spread.mean == top


def _markdown_table(section: Section) -> str:
    rows = [
        [f"**{entry.text}**" if entry.bold else entry.text for entry in row] for row in section.rows
    ]
    rows = [[text.replace("|", "\\|") for text in row] for row in [list(section.head), *rows]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(
        "| "
        + " | ".join(
            text.ljust(width) if number == 0 else text.rjust(width)
            for number, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in (rows[0], rule, *rows[1:])
    )


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


# Data


def _csv_lines(comparison: Comparison, variant: Variant) -> Iterator[list[Any]]:
    base = comparison.baseline
    for task, metric in comparison.columns:
        spread = comparison.spread(variant, task, metric)
        if spread is None:
            continue
        difference = comparison.difference(variant, task, metric)
        yield [
            task, metric, comparison.directions[task][metric], comparison.units.get(task),
            spread.mean, spread.std, spread.n, variant.name in comparison.best(task, metric),
            base, *_interval(difference),
        ]  # fmt: skip
    delta = comparison.delta_m(variant)
    if delta is not None:
        yield [
            "", f"delta_m:{comparison.definition.name}", comparison.definition.higher_is_better,
            "%", delta.mean, delta.std, delta.n, None, base,
            *_interval(comparison.delta_m_difference(variant)),
        ]  # fmt: skip
    for name, value, unit in (
        ("mean_rank", comparison.mean_rank(variant), None),
        ("parameters", variant.parameters, None),
        ("seconds_per_step", variant.seconds_per_step, "s"),
        ("peak_memory", variant.peak_memory, "byte"),
        ("best_epoch", variant.best_epoch, None),
    ):
        if value is not None:
            yield ["", name, False, unit, value, *[None] * 8]
    for target in comparison.targets:
        found = comparison.reached(variant, target)
        times = [reached for reached in found.values() if reached is not None]
        for name, unit in (("epoch", None), ("seconds", "s")):
            mean = statistics.fmean(getattr(t, name) for t in times) if times else None
            yield [
                target.task, f"{name}_to:{target.metric}={target.value:g}", False, unit, mean,
                None, len(times), *[None] * 6,
            ]  # fmt: skip


def _interval(difference: Difference | None) -> list[Any]:
    if difference is None:
        return [None] * 4
    return [difference.mean, *difference.interval, difference.n]


def _variant_data(comparison: Comparison, variant: Variant) -> dict[str, Any]:
    metrics: dict[str, dict[str, Any]] = {}
    for task, metric in comparison.columns:
        spread = comparison.spread(variant, task, metric)
        if spread is not None:
            metrics.setdefault(task, {})[metric] = {
                **_spread_data(spread),
                "best": variant.name in comparison.best(task, metric),
                "difference": _difference_data(comparison.difference(variant, task, metric)),
            }
    delta = comparison.delta_m(variant)
    return {
        "name": variant.name,
        "single_task": variant.single_task,
        "runs": [run.location for run in variant.all_runs],
        "metrics": metrics,
        "delta_m": None
        if delta is None
        else {
            **_spread_data(delta),
            "difference": _difference_data(comparison.delta_m_difference(variant)),
        },
        "mean_rank": comparison.mean_rank(variant),
        "parameters": variant.parameters,
        "seconds_per_step": variant.seconds_per_step,
        "peak_memory": variant.peak_memory,
        "best_epoch": variant.best_epoch,
        "targets": {
            str(target): {
                str(seed): None if reached is None else attrs.asdict(reached)
                for seed, reached in comparison.reached(variant, target).items()
            }
            for target in comparison.targets
        },
        "failed": [attrs.asdict(cell) for cell in variant.failed],
    }


def _spread_data(spread: Spread) -> dict[str, Any]:
    values = {str(seed): value for seed, value in spread.values.items()}
    return {"mean": spread.mean, "std": spread.std, "n": spread.n, "values": values}


def _difference_data(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    low, high = difference.interval
    values = {str(seed): value for seed, value in difference.values.items()}
    return {"mean": difference.mean, "low": low, "high": high, "n": difference.n, "values": values}
