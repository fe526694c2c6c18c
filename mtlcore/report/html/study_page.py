"""The page of a study, or of any runs that are compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mtlcore.report.charts.axes import number_text
from mtlcore.report.charts.drawing import Chart
from mtlcore.report.charts.front import best_so_far, planes
from mtlcore.report.charts.lines import Line, Point, over_seeds
from mtlcore.report.charts.run_charts import SPLITS, arrow_of, step_charts, task_heading
from mtlcore.report.charts.series import Along, Key, series
from mtlcore.report.html.figures import figures, legend, plane_figures
from mtlcore.report.html.page import Section, alert, page, paragraph, remarks
from mtlcore.report.html.pictures import HATCHED, task_panels
from mtlcore.report.html.run_page import duration, settings_of, solver_note
from mtlcore.report.markup import Markup, element, items, joined, table
from mtlcore.results import Comparison, Variant, notes_of, search_result, tables_of
from mtlcore.storage import Pictures

_SAMPLES = 4  # whose pictures are shown: a page is to stay small

Curves = Mapping[Key, Sequence[Sequence[Point]]]  # one for each seed


def study_page(comparison: Comparison) -> str:
    """Return the page of a comparison; it begins with the cells without a result."""
    sections = []
    if comparison.runs:
        steps = {variant.name: _curves(variant, "step") for variant in comparison.variants}
        epochs = {variant.name: _curves(variant, "epoch") for variant in comparison.variants}
        sections = [
            Section("search", "Search", _search(comparison)),
            Section("results", "Results", _results(comparison)),
            Section("curves", "Learning curves", _learning(comparison, steps, epochs)),
            Section("balancing", "Balancing", _balancing(comparison, steps)),
            Section("pictures", "Pictures", _pictures(comparison)),
            Section("settings", "Settings that differ", _differing(comparison)),
            Section("runs", "Runs", _runs(comparison)),
        ]
    return page(comparison.title, _lead(comparison), sections)


def _lead(comparison: Comparison) -> Markup:
    number, seeds = len(comparison.variants), len(comparison.seeds)
    parts = [
        paragraph(
            f"{number} variant{'s' * (number != 1)} over {seeds} seed{'s' * (seeds != 1)}, "
            f"{len(comparison.runs)} finished runs; the baseline is {comparison.baseline}."
        )
    ]
    failures = [
        f"{variant.name}, {cell.label}: {cell.reason}"
        for variant in comparison.variants
        for cell in variant.failed
    ]
    if failures:
        parts.append(alert(element("p", "These have no result:"), items(failures)))
    return joined(parts)


def _search(comparison: Comparison) -> Markup:
    """Return what the trials reached, and with which settings; empty without a search."""
    result = search_result(comparison)
    if result is None or not result.trials:
        return Markup()
    names = [trial.name for trial in result.front]
    lead = "Best trial" if len(result.objectives) == 1 else "Pareto front"
    paths = list(dict.fromkeys(path for trial in result.trials for path in trial.parameters))
    rows = [
        [
            element("b", trial.name) if trial.name in names else trial.name,
            *(number_text(value) if math.isfinite(value) else "-" for value in trial.values),
            *(_shown(trial.parameters.get(path, "-")) for path in paths),
        ]
        for trial in result.trials
    ]
    chart = best_so_far(result)
    return joined(
        [
            paragraph(
                f"{lead}: {', '.join(names) or 'no trial has a result'}. Objectives are means over "
                "seeds; a trial without them has no result, or was pruned."
            ),
            figures([chart]) if chart is not None else plane_figures(planes(result)),
            table("Trials", ["trial", *result.objectives, *paths], rows),
        ]
    )


def _shown(value: object) -> str:
    return number_text(value) if isinstance(value, float) else str(value)


def _results(comparison: Comparison) -> Markup:
    parts = [
        table(
            summary.title,
            summary.head,
            [
                [element("b", entry.text) if entry.bold else entry.text for entry in row]
                for row in summary.rows
            ],
        )
        for summary in tables_of(comparison)
    ]
    return joined([*parts, element("h3", "How to read this"), remarks(notes_of(comparison))])


# Curves


def _curves(variant: Variant, along: Along) -> Curves:
    """Return the curves of all seeds of a variant, merged where each task has its own run."""
    curves: dict[Key, list[Sequence[Point]]] = {}
    for run in variant.all_runs:
        for key, points in series(run.records, along).items():
            curves.setdefault(key, []).append(points)
    return curves


def _learning(
    comparison: Comparison, steps: Mapping[str, Curves], epochs: Mapping[str, Curves]
) -> Markup:
    names = [variant.name for variant in comparison.variants]
    parts = [
        paragraph(
            "Lines are means over seeds, bands one standard deviation around them; of values of "
            "single steps both are running means over a twentieth of the run."
        ),
        legend(
            Line(label=name, look=number, points=())
            for number, name in enumerate(names)
            if steps[name]
        ),
    ]
    for task, higher_is_better in comparison.higher_is_better.items():
        charts = [
            _chart(f"loss, {SPLITS['train']}", ("train", task, "loss"), names, steps, "step"),
            _chart(f"loss, {SPLITS['val']}", ("val", task, "loss"), names, epochs, "epoch"),
        ]
        for metric, higher in higher_is_better.items():
            title = f"{metric}{arrow_of(higher)}, {SPLITS['val']}"
            charts.append(_chart(title, ("val", task, metric), names, epochs, "epoch"))
        heading = element("h3", task_heading(task, comparison.units))
        parts += [heading, figures([chart for chart in charts if chart.lines])]
    return joined(parts)


def _chart(
    title: str, key: Key, names: Sequence[str], curves: Mapping[str, Curves], along: Along
) -> Chart:
    """Return a chart with a line per variant that recorded the metric."""
    lines = [
        over_seeds(name, number, curves[name][key])
        for number, name in enumerate(names)
        if key in curves[name]
    ]
    of_steps = key[0] == "train"
    return Chart(
        title=title,
        lines=lines,
        x_label=along,
        smooth=of_steps,
        may_be_logarithmic=of_steps,
    )


def _balancing(comparison: Comparison, steps: Mapping[str, Curves]) -> Markup:
    tasks = list(comparison.higher_is_better)
    parts = []
    for variant in comparison.variants:
        curves = steps[variant.name]
        lines = {
            key: over_seeds(key[2], tasks.index(key[1]) if key[1] in tasks else 0, seeds)
            for key, seeds in curves.items()
            if key[0] == "train" and key[2] != "loss"
        }
        if charts := step_charts(lines, balancing=True):
            status = solver_note(run.records for run in variant.all_runs)
            parts += [element("h3", variant.name), status, figures(charts)]
    if not parts:
        return Markup()
    return joined([paragraph("Means over seeds, and one standard deviation around them."), *parts])


# Pictures


def _pictures(comparison: Comparison) -> Markup:
    shown = {
        variant.name: _first_pictures(variant) for variant in comparison.variants if variant.runs
    }
    parts = []
    for task in comparison.higher_is_better:
        variants = {name: by_task[task] for name, by_task in shown.items() if task in by_task}
        if variants:
            parts += [element("h3", task), task_panels(task, variants, _SAMPLES)]
    if not parts:
        return Markup()
    reading = "The same samples of the validation split, each variant's by its first seed. "
    return joined([paragraph(reading + HATCHED), *parts])


def _first_pictures(variant: Variant) -> dict[str, Pictures]:
    """Return the pictures of the first seed by the tasks that they show."""
    by_task: dict[str, Pictures] = {}
    for run in variant.runs[variant.seeds[0]]:
        pictures = run.files.pictures
        if pictures is not None and pictures.samples:
            by_task.update(dict.fromkeys(pictures.tasks, pictures))
    return by_task


# Settings and runs


def _differing(comparison: Comparison) -> Markup:
    """Return the settings in which variants differ, of each variant's first run."""
    settings = {
        variant.name: settings_of(variant.all_runs[0].config)
        for variant in comparison.variants
        if variant.runs
    }
    paths = list(dict.fromkeys(path for values in settings.values() for path in values))
    rows = [
        [path, *values]
        for path in paths
        if len(set(values := [of.get(path, "-") for of in settings.values()])) > 1
        and path != "seed"
    ]
    if not rows:
        return Markup()
    # Of a variant with a run per task the first is shown.
    title = "Settings of each variant's first run, where they are not the same"
    return table(title, ["setting", *settings], rows, numbers_from=len(settings) + 1)


def _runs(comparison: Comparison) -> Markup:
    rows = [
        [
            variant.name,
            str(run.seed),
            ", ".join(run.tasks),
            str(run.summary["epochs"]),
            str(run.summary["steps"]),
            str(run.summary.get("skipped_steps", 0)),
            duration(float(run.summary["seconds"])),
            comparison.place(run.location),
        ]
        for variant in comparison.variants
        for run in variant.all_runs
    ]
    titles = ["variant", "seed", "tasks", "epochs", "steps", "skipped", "time", "directory"]
    return table("Finished runs", titles, rows, numbers_from=len(titles))
