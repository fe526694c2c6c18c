"""Results in one small file: what every cell reached, enough to compare without the runs.

A study leaves it as `values.json`; `mtl compare values.json` makes its tables again, with another
baseline or definition of delta-m too. Numbers have nine significant digits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from mtlcore.errors import MtlError, UsageError
from mtlcore.results.comparison import Comparison, find_definition
from mtlcore.results.run_results import Epoch, RunResult
from mtlcore.results.targets import Target
from mtlcore.results.variants import FailedCell, Variant
from mtlcore.storage import (
    KeptResults,
    KeptRun,
    KeptVariant,
    MetricRow,
    Record,
    StoredSearch,
    StoredTrial,
    checked,
    or_nan,
    read_json,
    without_nan,
)

#: The file in a study's directory.
VALUES = "values.json"
_FORMAT = 1
_DIGITS = 9


def kept_results(comparison: Comparison) -> str:
    """Return what the runs of a comparison reached, as JSON with a line per run.

    Of the course of a run those metrics are kept for which the comparison has targets.
    """
    search = comparison.search
    head = {
        "format": _FORMAT,
        "title": comparison.title,
        "baseline": comparison.baseline,
        "delta_m": comparison.definition.name,
        "epoch": comparison.epoch,
        "targets": [str(target) for target in comparison.targets],
        "notes": list(comparison.notes),
        "metrics": {task: dict(metrics) for task, metrics in comparison.directions.items()},
        "units": dict(comparison.units),
        "search": None if search is None else attrs.asdict(search),
    }
    lines = [f"{json.dumps(key)}: {_dumped(value)}," for key, value in head.items()]
    variants = ",\n".join(_variant_lines(comparison, variant) for variant in comparison.variants)
    return "{\n" + "\n".join(lines) + f'\n"variants": [\n{variants}\n]\n}}\n'


def read_kept(place: str) -> Comparison:
    """Return the comparison in a file that `kept_results` filled.

    Args:
        place: Path or URL of the file.

    Raises:
        UsageError: There is none, or it is of another version.
        MtlError: It is damaged.
    """
    tree = read_json(place, dict[str, Any])
    if tree is None:
        raise UsageError(f"{place}: there is no such file")
    if "format" not in tree or "variants" not in tree:
        raise UsageError(
            f"{place}: holds no kept results; of a study's directory {VALUES} does, or name the "
            "directory itself"
        )
    if tree["format"] != _FORMAT:
        raise UsageError(
            f"{place}: is of another version (format {tree['format']}, this one reads {_FORMAT})"
        )
    try:
        return _comparison_of(checked(tree, KeptResults, place))
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from error
    except (KeyError, ValueError) as error:  # tasks without metrics, rows of another length
        raise MtlError(f"{place}: is damaged: its rows do not fit its metrics ({error})") from error


def _variant_lines(comparison: Comparison, variant: Variant) -> str:
    runs = ",\n".join(f"  {_dumped(_kept_run(comparison, run))}" for run in variant.all_runs)
    failed = [
        {**attrs.asdict(cell), "location": comparison.place(cell.location)}
        for cell in variant.failed
    ]
    return (
        f' {{"name": {json.dumps(variant.name)}, "groups": {_dumped(variant.groups)}, '
        f'"failed": {_dumped(failed)}, "runs": [\n{runs}\n ]}}'
    )


def _kept_run(comparison: Comparison, run: RunResult) -> dict[str, Any]:
    summary = run.summary
    last, best = (_row(comparison, run, epoch) for epoch in ("last", "best"))
    return {
        "seed": run.seed,
        "method": run.method,
        "location": comparison.place(run.location),
        "tasks": run.tasks,
        "last": last,
        "best": None if best == last else best,
        "best_epoch": summary["best"]["epoch"],
        "chosen_on": summary["best"]["chosen_on"],
        "averaged_over": summary["averaged_over"],
        "parameters": run.parameters,
        "seconds": float(summary["seconds"]),
        "seconds_per_step": run.seconds_per_step,
        "stalled_seconds": run.stalled_seconds,
        "peak_memory": run.peak_memory,
        "curves": {
            f"{target.task}.{target.metric}": [
                [record["epoch"], record["seconds"], record["value"]]
                for record in run.records
                if (record["split"], record["task"], record["metric"])
                == ("val", target.task, target.metric)
            ]
            for target in comparison.targets
        },
    }


def _row(comparison: Comparison, run: RunResult, epoch: Epoch) -> dict[str, list[float]]:
    metrics = run.metrics(epoch)
    return {
        task: [or_nan(metrics[task].get(metric)) for metric in comparison.directions[task]]
        for task in run.tasks
    }


def _dumped(value: Any) -> str:
    return json.dumps(without_nan(_rounded(value)), allow_nan=False)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else value
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def _comparison_of(content: KeptResults) -> Comparison:
    search = content["search"]
    return Comparison(
        title=content["title"],
        variants=tuple(_variant_of(variant, content) for variant in content["variants"]),
        baseline=content["baseline"],
        definition=find_definition(content["delta_m"]),
        epoch=content["epoch"],
        targets=tuple(Target.parse(target) for target in content["targets"]),
        notes=tuple(content["notes"]),
        search=None
        if search is None
        else StoredSearch(
            objectives=tuple(search["objectives"]),
            trials=tuple(StoredTrial(**trial) for trial in search["trials"]),
        ),
    )


def _variant_of(variant: KeptVariant, content: KeptResults) -> Variant:
    runs: dict[int, tuple[RunResult, ...]] = {}
    for run in variant["runs"]:
        runs[run["seed"]] = (*runs.get(run["seed"], ()), _run_of(run, content))
    groups = variant["groups"]
    return Variant(
        name=variant["name"],
        runs=runs,
        groups=None if groups is None else tuple(map(tuple, groups)),
        failed=tuple(
            FailedCell(
                seed=cell["seed"],
                group=None if cell["group"] is None else tuple(cell["group"]),
                location=cell["location"],
                reason=cell["reason"],
                pruned=cell["pruned"],
            )
            for cell in variant["failed"]
        ),
    )


def _run_of(run: KeptRun, content: KeptResults) -> RunResult:
    metrics = content["metrics"]
    return RunResult(
        location=run["location"],
        config={"seed": run["seed"], "method": run["method"], "tasks": run["tasks"]},
        summary={
            "final": {"val": _metrics_of(run["last"], metrics)},
            "best": {
                "epoch": run["best_epoch"],
                "chosen_on": run["chosen_on"],
                "val": _metrics_of(run["best"] or run["last"], metrics),
            },
            "averaged_over": run["averaged_over"],
            "higher_is_better": {task: metrics[task] for task in run["tasks"]},
            "units": {task: u for task, u in content["units"].items() if task in run["tasks"]},
            "parameters": {"total": run["parameters"]},
            "seconds": run["seconds"],
            "seconds_per_step": run["seconds_per_step"],
            "stalled_seconds": run["stalled_seconds"],
            "peak_memory": run["peak_memory"],
        },
        kept_records=tuple(_records_of(run["curves"])),
    )


def _metrics_of(row: MetricRow, metrics: Mapping[str, Mapping[str, bool]]) -> dict[str, Any]:
    return {
        task: dict(zip(metrics[task], map(or_nan, values), strict=True))
        for task, values in row.items()
    }


def _records_of(curves: Mapping[str, Sequence[Sequence[float | None]]]) -> Iterator[Record]:
    for path, points in curves.items():
        task, _, metric = path.rpartition(".")
        for epoch, seconds, value in points:
            yield {"split": "val", "task": task, "metric": metric, "epoch": epoch,
                   "seconds": seconds, "value": or_nan(value)}  # fmt: skip
