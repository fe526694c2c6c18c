"""The report of a study, or of any runs that are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mtlcore.report.html.charts import Point, legend
from mtlcore.report.html.charts import chart as line_chart
from mtlcore.report.html.curves import Along, Key, over_seeds, series
from mtlcore.report.html.markup import Markup, element, items, joined, table
from mtlcore.report.html.page import Section, alert, charts, page, paragraph, remarks
from mtlcore.report.html.pictures import HATCHED, task_panels
from mtlcore.report.html.runs import SPLITS, duration, flat, solver_note, step_charts, without_home
from mtlcore.results import Comparison, RunResult, Variant, notes, sections
from mtlcore.storage import Pictures, read_pictures

_SAMPLES = 4  # whose pictures are shown: a page is to stay small

Curves = Mapping[Key, Sequence[Sequence[Point]]]  # one for each seed


def study_page(comparison: Comparison) -> str:
    """The page of a comparison; cells without a result are told first."""
    sections = []
    if comparison.runs:
        steps = {variant.name: _curves(variant, "step") for variant in comparison.variants}
        epochs = {variant.name: _curves(variant, "epoch") for variant in comparison.variants}
        sections = [
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
    lost = [
        f"{variant.name}, seed {cell.seed}{f', {cell.task}' if cell.task else ''}: "
        f"{without_home(cell.reason)}"
        for variant in comparison.variants
        for cell in variant.failed
    ]
    if lost:
        parts.append(alert(element("p", "These have no result:"), items(lost)))
    return joined(parts)


def _results(comparison: Comparison) -> Markup:
    parts = [
        table(
            section.title,
            section.head,
            [
                [element("b", entry.text) if entry.bold else entry.text for entry in row]
                for row in section.rows
            ],
        )
        for section in sections(comparison)
    ]
    return joined([*parts, element("h3", "How to read this"), remarks(notes(comparison))])


# Curves


def _curves(variant: Variant, along: Along) -> Curves:
    """The curves of all seeds of a variant; tasks with runs of their own are put together."""
    found: dict[Key, list[Sequence[Point]]] = {}
    for runs in variant.runs.values():
        for run in runs:
            for key, points in series(run.rows, along).items():
                found.setdefault(key, []).append(points)
    return found


def _learning(
    comparison: Comparison, steps: Mapping[str, Curves], epochs: Mapping[str, Curves]
) -> Markup:
    names = [variant.name for variant in comparison.variants]
    parts = [
        paragraph(
            "Lines are means over seeds, bands one standard deviation around them; of values of "
            "single steps both are running means over a twentieth of the run."
        ),
        legend((name, number) for number, name in enumerate(names) if steps[name]),
    ]
    for task, directions in comparison.directions.items():
        unit = comparison.units.get(task)
        figures = []
        loss = f"loss, {SPLITS['train']}"
        figures += _chart(loss, ("train", task, "loss"), names, steps, "step")
        loss = f"loss, {SPLITS['val']}"
        figures += _chart(loss, ("val", task, "loss"), names, epochs, "epoch")
        for metric, higher in directions.items():
            title = f"{metric} {'↑' if higher else '↓'}, {SPLITS['val']}"
            figures += _chart(title, ("val", task, metric), names, epochs, "epoch")
        parts += [element("h3", f"{task} ({unit})" if unit else task), charts(figures)]
    return joined(parts)


def _chart(
    title: str, key: Key, names: Sequence[str], curves: Mapping[str, Curves], along: Along
) -> list[Markup]:
    """A chart with a line per variant that recorded it; none where no variant did."""
    lines = [
        over_seeds(name, number, curves[name][key])
        for number, name in enumerate(names)
        if key in curves[name]
    ]
    if not lines:
        return []
    of_steps = key[0] == "train"
    return [line_chart(title, lines, x_label=along, calm=of_steps, may_be_logarithmic=of_steps)]


def _balancing(comparison: Comparison, steps: Mapping[str, Curves]) -> Markup:
    tasks = list(comparison.directions)
    parts = []
    for variant in comparison.variants:
        curves = steps[variant.name]
        lines = {
            key: over_seeds(key[2], tasks.index(key[1]) if key[1] in tasks else 0, seeds)
            for key, seeds in curves.items()
            if key[0] == "train" and key[2] != "loss"
        }
        if figures := step_charts(lines, balancing=True):
            told = solver_note(run.rows for run in variant.all_runs)
            parts += [element("h3", variant.name), told, charts(figures)]
    if not parts:
        return Markup()
    return joined([paragraph("Means over seeds, and one standard deviation around them."), *parts])


# Pictures


def _pictures(comparison: Comparison) -> Markup:
    shown = {
        variant.name: _first_pictures(variant) for variant in comparison.variants if variant.runs
    }
    parts = []
    for task in comparison.directions:
        mine = {name: found[task] for name, found in shown.items() if task in found}
        if mine:
            parts += [element("h3", task), task_panels(task, mine, _SAMPLES)]
    if not parts:
        return Markup()
    told = "The same samples of the validation split, each variant's by its first seed. "
    return joined([paragraph(told + HATCHED), *parts])


def _first_pictures(variant: Variant) -> dict[str, Pictures]:
    """Task -> the pictures of the first seed's run that learnt it."""
    found: dict[str, Pictures] = {}
    for run in variant.runs[variant.seeds[0]]:
        pictures = read_pictures(run.location)
        if pictures is not None and pictures.samples:
            found.update(dict.fromkeys(pictures.tasks, pictures))
    return found


# Settings and runs


def _differing(comparison: Comparison) -> Markup:
    """The settings in which variants differ, of each variant's first run."""
    settings = {
        variant.name: dict(flat(variant.all_runs[0].config))
        for variant in comparison.variants
        if variant.runs
    }
    paths = list(dict.fromkeys(path for found in settings.values() for path in found))
    rows = [
        [path, *values]
        for path in paths
        if len(set(values := [found.get(path, "-") for found in settings.values()])) > 1
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
            _place(run, comparison),
        ]
        for variant in comparison.variants
        for run in variant.all_runs
    ]
    titles = ["variant", "seed", "tasks", "epochs", "steps", "skipped", "time", "directory"]
    return table("Finished runs", titles, rows, numbers_from=len(titles))


def _place(run: RunResult, comparison: Comparison) -> str:
    """A run's directory without what all runs' directories have in common."""
    parts = [other.location.split("/") for other in comparison.runs]
    same = 0
    while len(parts) > 1 and all(len(p) > same + 1 and p[same] == parts[0][same] for p in parts):
        same += 1
    mine = run.location.split("/")
    return "/".join(mine[same:]) if len(parts) > 1 else mine[-1]
