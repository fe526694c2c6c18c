"""What IRA's class weights cost above the plain sum of the losses.

Both train the same U-Net on the same batch of rendered rooms (13 classes) in one process, a whole
step of mtlcore's loop each (everything but loading), in turn, so that a machine whose speed drifts
slows both; medians over steps are compared. The paper reports 1.69 times the plain sum.

    python benchmarks/ira.py [--steps N] [--json] [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import devices
import torch

from mtlcore.config import Layer, resolve
from mtlcore.display import SilentDisplay
from mtlcore.engine import Session, Training
from mtlcore.plugins import Plugins
from mtlcore.storage import RunDirectory

COMMON: dict[str, Any] = {
    "tasks": ["segmentation", "depth"],
    "data": {"train": 16, "val": 4, "size": [64, 64], "workers": 0},
    "model": {"backbone": {"name": "unet", "width": 0.25}},
    # So many steps that their record, a few hundred lines over a run, is written as rarely as in
    # one of ordinary length.
    "training": {"batch_size": 8, "steps": 10_000, "threads": 1},
}
BALANCERS: dict[str, dict[str, Any]] = {
    "sum": {"name": "equal"},
    "segmentation's classes": {"name": "ira", "main": "depth"},
    "ten bins of depth": {"name": "ira", "main": "segmentation", "bins": 10},
}


def prepare(balancer: dict[str, Any]) -> Callable[[], None]:
    """A step of a run under this balancer."""
    run = {"device": devices.device().type}
    layer = Layer("benchmark", {**COMMON, **run, "balancer": balancer})
    config = resolve(Plugins.from_environment(), (), [layer])
    torch.set_num_threads(config.training.threads or 1)
    directory = RunDirectory(tempfile.mkdtemp(prefix="mtl-benchmark-"), resume=True)
    directory.open_metrics(0)
    training = Training(Session(config, directory, SilentDisplay()))
    training.session.learner.train()
    plan = next(iter(training.session.loader.plans(training.plan_block()[:1])))
    assert plan is not None

    def step() -> None:
        report = training.step(plan)
        assert report.skipped is None
        training.finish_step(report)

    return step


def compare(steps: int) -> list[dict[str, Any]]:
    """Medians of all, step by step in turn."""
    runners = {name: prepare(balancer) for name, balancer in BALANCERS.items()}
    times: dict[str, list[float]] = {name: [] for name in runners}
    for number in range(steps + 5):
        for name, run in runners.items():
            began = devices.now()
            run()
            if number >= 5:
                times[name].append(1e3 * (devices.now() - began))
    rows = []
    for name, found in times.items():
        ratios = [one / plain for one, plain in zip(found, times["sum"], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        ratio = statistics.median(found) / statistics.median(times["sum"])
        rows.append(
            {
                "balancer": name,
                "ms": statistics.median(found),
                "least_ms": min(found),
                "ratio": ratio,
                "ratio_quartiles": [low, high],
            }
        )
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    devices.add_option(parser)
    arguments = parser.parse_args()
    rows = compare(arguments.steps)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        low, high = row["ratio_quartiles"]
        print(
            f"{row['balancer']:<23} {row['ms']:8.2f} ms (least {row['least_ms']:8.2f})"
            f"  ratio {row['ratio']:.3f} (quartiles of pairs {low:.3f} to {high:.3f})"
        )


if __name__ == "__main__":
    main()
