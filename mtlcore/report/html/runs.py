"""The report of one run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from mtlcore.report.html.charts import Line, Point, chart
from mtlcore.report.html.curves import Key, families, series, title_of
from mtlcore.report.html.markup import Markup, element, joined, table
from mtlcore.report.html.page import Section, alert, charts, page, paragraph, remarks
from mtlcore.report.html.pictures import run_panels
from mtlcore.report.tables import figure_text, result_notes, result_rows
from mtlcore.storage import Row, RunFiles

#: How the report calls the splits that a run records.
SPLITS = {"train": "training", "val": "validation"}
_CONSTANTS = {"global": "constant", "pixel": "per pixel"}
_BALANCING = ("weight", "cosine", "degenerate")
_EXACT = ("learning_rate", "degenerate")  # a running mean would blur them


def run_page(run: RunFiles) -> str:
    """The page of one run, whether it is finished or not."""
    curves = series(run.rows)
    tasks = [str(task) for task in run.config["tasks"]]
    title = f"{run.config['method']}: {', '.join(tasks)} from {run.config['data']['name']}"
    return page(
        title,
        _lead(run),
        [
            Section("results", "Results", _results(run)),
            Section("curves", "Learning curves", _learning(run, curves)),
            Section("balancing", "Balancing", _balancing(run, curves)),
            Section("optimisation", "Optimisation", _steps(curves, balancing=False)),
            Section("pictures", "Pictures", _pictures(run)),
            Section("parameters", "Parameters", _parameters(run)),
            Section("configuration", "Configuration", _configuration(run)),
            Section("provenance", "Provenance", _provenance(run)),
        ],
    )


def duration(seconds: float) -> str:
    """Such as "0:02:10"."""
    return "-" if math.isnan(seconds) else str(timedelta(seconds=round(seconds)))


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The settings of a configuration: path and value as TOML writes them, nearly."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _value(value)


def step_charts(lines: Mapping[Key, Line], balancing: bool) -> list[Markup]:
    """Charts of what was recorded of steps beside losses.

    Args:
        lines: the curve of each key, whose look is that of its task.
        balancing: those of balancers, or all others.
    """
    figures = []
    for (family, task), members in families(lines).items():
        if (family in _BALANCING) != balancing:
            continue
        shared = family == "weight" and task is None  # its lines are the tasks themselves
        drawn = [
            Line(
                label=label,
                look=lines[key].look if shared else number,
                points=lines[key].points,
                band=lines[key].band,
            )
            for number, (label, key) in enumerate(members.items())
        ]
        levels = {"": 0.0} if family == "cosine" else None
        figures.append(
            chart(
                title_of(family, task),
                drawn,
                levels=levels,
                calm=family not in _EXACT,
                may_be_logarithmic=True,
            )
        )
    return figures


def _lead(run: RunFiles) -> Markup:
    status = run.about.get("status", "unknown")
    facts = [f"seed {run.config['seed']}", f"on {run.about.get('device', 'an unknown device')}"]
    summary = run.summary
    if summary is not None:
        facts += [
            f"{summary['epochs']} epochs, {summary['steps']} steps",
            duration(summary["seconds"]),
        ]
        return paragraph(", ".join(facts))
    reason = f": {run.about['reason']}" if run.about.get("reason") else ""
    last = max((row["step"] for row in run.rows), default=0)
    told = f"This run is not finished ({status}{reason}). What follows goes to step {last}."
    return joined([alert(told), paragraph(", ".join(facts))])


def _results(run: RunFiles) -> Markup:
    summary = run.summary
    if summary is None:
        return paragraph("There is no table before the end of the run.")
    rows = result_rows(summary)
    cells = []
    task = ""
    for row in rows:
        task = row.task or task
        model = figure_text(row.model)
        cells.append(
            [
                f"{task}: {row.figure}",
                element("b", f"* {model}", class_="good") if row.better else model,
                *(figure_text(value) for value in row.constants),
            ]
        )
    titles = ["figure", "model", "best constant", "best per pixel"]
    skipped = summary.get("skipped_samples") or []
    samples = [f"samples that could not be read: {', '.join(skipped)}"] if skipped else []
    return joined(
        [
            table("Final figures; arrows point to what is better", titles, cells),
            remarks([*result_notes(summary, rows), *samples]),
        ]
    )


def _learning(run: RunFiles, curves: Mapping[Key, tuple[Point, ...]]) -> Markup:
    summary = run.summary or {}
    tasks = [str(task) for task in run.config["tasks"]]
    parts = []
    for task in tasks:
        unit = summary.get("units", {}).get(task, "")
        losses = [
            Line(label=SPLITS.get(split, split), look=number, points=curves[split, task, "loss"])
            for number, split in enumerate(("train", "val"))
            if (split, task, "loss") in curves
        ]
        figures = [chart("loss", losses, calm=True, may_be_logarithmic=True)] if losses else []
        for (split, of, metric), points in curves.items():
            if split == "train" or of != task or metric == "loss":
                continue
            higher = summary.get("directions", {}).get(task, {}).get(metric)
            arrow = {True: " ↑", False: " ↓", None: ""}[higher]
            line = Line(label="model", look=1, points=points)
            title = f"{metric}{arrow}, {SPLITS.get(split, split)}"
            levels = _constants(summary, task, metric)
            figures.append(chart(title, [line], levels=levels))
        if figures:
            parts += [element("h3", f"{task} ({unit})" if unit else task), charts(figures)]
    if not parts:
        return paragraph("Nothing was recorded yet.")
    told = paragraph(
        "Dotted: the best constants, which look at no image. Values of single steps are faint; the "
        "line over them is their running mean over a twentieth of the run."
    )
    return joined([told, *parts])


def _constants(summary: Mapping[str, Any], task: str, metric: str) -> dict[str, float]:
    found = {}
    for extent, name in _CONSTANTS.items():
        value = summary.get("constants", {}).get(extent, {}).get(task, {}).get(metric)
        if value is not None:
            found[name] = float(value)
    return found


def _steps(curves: Mapping[Key, tuple[Point, ...]], balancing: bool) -> Markup:
    tasks = list(dict.fromkeys(task for _, task, _ in curves if task and "|" not in task))
    lines = {
        key: Line(label=key[2], look=tasks.index(key[1]) if key[1] in tasks else 0, points=points)
        for key, points in curves.items()
    }
    return charts(step_charts(lines, balancing))


def _balancing(run: RunFiles, curves: Mapping[Key, tuple[Point, ...]]) -> Markup:
    found = _steps(curves, balancing=True)
    if not found:
        return Markup()
    return joined([solver_note([run.rows]), found])


def solver_note(runs: Iterable[Sequence[Row]]) -> Markup:
    """How often a gradient balancer's solver found no proper answer; empty without gradients."""
    rows = [[row for row in run if row["split"] == "train"] for run in runs]
    if not {row["metric"] for run in rows for row in run} & {"cosine", "degenerate"}:
        return Markup()
    steps = sum(max((row["step"] for row in run), default=0) for run in rows)
    found = sum(round(row["value"]) for run in rows for row in run if row["metric"] == "degenerate")
    return paragraph(f"Status of the balancer: degenerate in {found} of {steps} steps.")


def _pictures(run: RunFiles) -> Markup:
    if run.pictures is None or not run.pictures.samples:
        return Markup()
    return run_panels(run.pictures)


def _parameters(run: RunFiles) -> Markup:
    found = (run.summary or {}).get("parameters", {})
    modules = found.get("modules", {})
    if not modules:
        return Markup()
    others = {f"of {kind}": n for kind, n in found.get("components", {}).items() if n}
    rows = [[name, f"{number:,}"] for name, number in {**modules, **others}.items()]
    rows.append(["model, all together", f"{found['total']:,}"])
    return table("Learnt numbers by module", ["module", "parameters"], rows)


def _configuration(run: RunFiles) -> Markup:
    origins = run.about.get("origins", {})
    rows = [
        [path, value, *([without_home(origins.get(path, ""))] if origins else [])]
        for path, value in flat(run.config)
    ]
    titles = ["setting", "value", *(["from"] if origins else [])]
    content = table("All settings of the run", titles, rows, numbers_from=9)
    return element("details", element("summary", f"{len(rows)} settings"), content, class_="long")


def _provenance(run: RunFiles) -> Markup:
    rows = []
    for name, value in run.about.items():
        if name == "origins" or value is None:
            continue
        if isinstance(value, Mapping):
            rows += [[f"{name} {key}", str(inner)] for key, inner in value.items()]
        elif isinstance(value, list):
            rows.append([name, without_home(" ".join(map(str, value)))])
        else:
            rows.append([name, str(value)])
    content = table("How the run came about", ["what", "value"], rows, numbers_from=9)
    return element("div", content, class_="long") if rows else Markup()


def without_home(text: str) -> str:
    """A report is shown to others: the home directory's name is none of their business."""
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)
