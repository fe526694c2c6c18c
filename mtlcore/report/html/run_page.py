"""The page of one run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from mtlcore.report.charts.run_charts import learning_charts, step_charts, task_heading, task_looks
from mtlcore.report.charts.series import Series, series
from mtlcore.report.html.figures import figures
from mtlcore.report.html.page import Section, alert, page, paragraph, remarks
from mtlcore.report.html.pictures import run_panels
from mtlcore.report.markup import Markup, element, joined, table
from mtlcore.report.metric_table import (
    learning_told,
    metric_text,
    region_tables,
    result_notes,
    result_rows,
)
from mtlcore.storage import Record, RunFiles, flatten


def run_page(run: RunFiles) -> str:
    """Return the page of a run, finished or not."""
    curves = series(run.records)
    tasks = [str(task) for task in run.config["tasks"]]
    title = f"{run.config['method']}: {', '.join(tasks)} from {run.config['data']['name']}"
    return page(
        title,
        _lead(run),
        [
            Section("results", "Results", _results(run)),
            Section("curves", "Learning curves", _learning(run, curves)),
            Section("balancing", "Balancing", _balancing(run, curves)),
            Section("optimisation", "Optimisation", _of_steps(curves, balancing=False)),
            Section("pictures", "Pictures", _pictures(run)),
            Section("parameters", "Parameters", _parameters(run)),
            Section("configuration", "Configuration", _configuration(run)),
            Section("provenance", "Provenance", _provenance(run)),
        ],
    )


def duration(seconds: float) -> str:
    """Return a duration such as "0:02:10", "-" for NaN."""
    return "-" if math.isnan(seconds) else str(timedelta(seconds=round(seconds)))


def settings_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of a configuration by path, with values nearly as TOML writes them."""
    return {path: _toml(value) for path, value in flatten(config).items()}


def _lead(run: RunFiles) -> Markup:
    status = run.provenance.get("status", "unknown")
    device = run.provenance.get("device", "an unknown device")
    facts = [f"seed {run.config['seed']}", f"on {device}"]
    summary = run.summary
    if summary is not None:
        facts += [
            f"{summary['epochs']} epochs, {summary['steps']} steps",
            duration(summary["seconds"]),
        ]
        return paragraph(", ".join(facts))
    reason = f": {run.provenance['reason']}" if run.provenance.get("reason") else ""
    last = max((record["step"] for record in run.records), default=0)
    warning = f"This run is not finished ({status}{reason}). What follows goes to step {last}."
    return joined([alert(warning), paragraph(", ".join(facts))])


def _results(run: RunFiles) -> Markup:
    summary = run.summary
    if summary is None:
        return paragraph("There is no table before the end of the run.")
    rows = result_rows(summary)
    cells = []
    task = ""
    for row in rows:
        task = row.task or task
        model = metric_text(row.model)
        cells.append(
            [
                f"{task}: {row.metric}",
                element("b", f"* {model}", class_="good") if row.better else model,
                *(metric_text(value) for value in row.constants),
            ]
        )
    titles = ["metric", "model", "best constant", "best per pixel"]
    skipped = summary.get("skipped_samples") or []
    samples = [f"samples left out: {', '.join(skipped)}"] if skipped else []
    return joined(
        [
            table("Final metrics; arrows point to what is better", titles, cells),
            *(
                table(
                    f"{regions.task} by region: final metrics where the labels have each class",
                    ["region", *regions.metrics],
                    [[name, *map(metric_text, values)] for name, values in regions.rows],
                )
                for regions in region_tables(summary)
            ),
            remarks([*result_notes(summary, rows), *samples]),
        ]
    )


def _learning(run: RunFiles, curves: Series) -> Markup:
    summary = run.summary or {}
    parts = []
    for task in map(str, run.config["tasks"]):
        charts = learning_charts(
            curves,
            task,
            higher_is_better=summary.get("higher_is_better", {}),
            constants=summary.get("constants", {}),
        )
        if charts:
            heading = task_heading(task, summary.get("units", {}))
            parts += [element("h3", heading), figures(charts)]
    if not parts:
        return paragraph("Nothing was recorded yet.")
    reading = paragraph(
        "Dotted: the best constants, which look at no input. Values of single steps are faint; the "
        "line over them is their running mean over a twentieth of the run."
    )
    return joined([reading, *parts])


def _of_steps(curves: Series, balancing: bool) -> Markup:
    return figures(step_charts(task_looks(curves), balancing=balancing))


def _balancing(run: RunFiles, curves: Series) -> Markup:
    charts = _of_steps(curves, balancing=True)
    return joined([solver_note([run.records]), charts]) if charts else Markup()


def solver_note(runs: Iterable[Sequence[Record]]) -> Markup:
    """Return in how many steps a gradient balancer was degenerate; empty without gradients."""
    training = [[record for record in records if record["split"] == "train"] for records in runs]
    together = [record for records in training for record in records]
    if not {record["metric"] for record in together} & {"cosine", "degenerate"}:
        return Markup()
    steps = sum(max((record["step"] for record in records), default=0) for records in training)
    degenerate = sum(r["value"] for r in together if r["metric"] == "degenerate")
    return paragraph(f"Status of the balancer: degenerate in {degenerate:.0f} of {steps} steps.")


def _pictures(run: RunFiles) -> Markup:
    if run.pictures is None or not run.pictures.samples:
        return Markup()
    return run_panels(run.pictures)


def _parameters(run: RunFiles) -> Markup:
    parameters = (run.summary or {}).get("parameters", {})
    modules = parameters.get("modules", {})
    if not modules:
        return Markup()
    others = {f"of {kind}": n for kind, n in parameters.get("components", {}).items() if n}
    rows = [[name, f"{number:,}"] for name, number in {**modules, **others}.items()]
    rows.append(["model, all together", learning_told(parameters)])
    return table("Parameters by module", ["module", "parameters"], rows)


def _configuration(run: RunFiles) -> Markup:
    origins = run.provenance.get("origins", {})
    rows = [
        [path, value, *([origins.get(path, "")] if origins else [])]
        for path, value in settings_of(run.config).items()
    ]
    titles = ["setting", "value", *(["from"] if origins else [])]
    content = table("All settings of the run", titles, rows, numbers_from=9)
    return element("details", element("summary", f"{len(rows)} settings"), content, class_="long")


def _provenance(run: RunFiles) -> Markup:
    rows = []
    for name, value in run.provenance.items():
        if name == "origins" or value is None:
            continue
        if isinstance(value, Mapping):
            rows += [[f"{name} {key}", str(inner)] for key, inner in value.items()]
        elif isinstance(value, list):
            rows.append([name, " ".join(map(str, value))])
        else:
            rows.append([name, str(value)])
    content = table("How the run came about", ["what", "value"], rows, numbers_from=9)
    return element("div", content, class_="long") if rows else Markup()


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)
