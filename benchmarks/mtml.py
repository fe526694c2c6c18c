"""What a step of MTML costs above its passes, and that its memory does not grow with episodes.

A first-order step over E episodes runs each episode forward and backward twice: on the support
batch for the inner step, on the query batch for the outer one. The *floor* is these passes alone,
with the run's own model and losses, and nothing that is done with the gradients. Both do so on the
same batches in one process, in turn, so that a machine whose speed drifts slows both; ratios are
medians of the ratios within a turn, with quartiles, and those of processor time, which a busy
machine disturbs less. Memory is the peak of a process that takes a
few such steps and does nothing else.

    python benchmarks/mtml.py [--quick] [--json] [--threads N] [--device cuda]
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import devices
import torch

from mtlcore.config import Layer, resolve
from mtlcore.engine import build_learner
from mtlcore.episodes import Episode, LoadedPlan
from mtlcore.learner import Learner
from mtlcore.plugins import Plugins
from mtlcore.system import peak_memory
from mtlcore.testing import tiny_batch
from mtlcore_mtml.bilevel import MTML

Step = Callable[[], object]

RESNET = {"name": "resnet", "depth": 18, "output_stride": 16, "width": 1.0}
# Per case: what it sets over the method `mtml`, the size of its images, and how many of them.
CASES: dict[str, tuple[dict[str, Any], tuple[int, int], int]] = {
    "rooms, 0.1M": ({}, (64, 64), 8),
    "ResNet-18, 11M": ({"model": {"backbone": RESNET}}, (96, 96), 8),
}
EPISODES = (1, 2, 11)


def prepare(case: str, episodes: int, **settings: Any) -> tuple[Learner, MTML, LoadedPlan]:
    """The case's learner and optimizer, and a step of so many episodes, the largest ones."""
    values, size, samples = CASES[case]
    config = resolve(Plugins.from_environment(), ["mtml"], [Layer("benchmark", values)])
    torch.manual_seed(0)
    learner = build_learner(config).to(devices.device()).train()
    learner.balancing.prepare(config.tasks, None)
    names = [task.name for task in config.tasks]
    subsets = [chosen for n in range(len(names), 1, -1) for chosen in combinations(names, n)]
    drawn = (tiny_batch(samples, seed=i, tasks=config.tasks, size=size) for i in (0, 1))
    batches = tuple(batch.to(devices.device()) for batch in drawn)
    plan = LoadedPlan(batches, tuple(Episode(tasks, 0, 1) for tasks in subsets[:episodes]))
    return learner, MTML(learner, **settings), plan


def floor(learner: Learner, plan: LoadedPlan) -> Step:
    """The passes alone."""
    parameters = [*learner.parameters()]

    def step() -> None:
        for episode in plan.episodes:
            for batch in plan.batches:
                losses = learner(batch, episode.tasks).balanced
                total = torch.stack([*losses.values()]).sum()
                torch.autograd.grad(total, parameters, allow_unused=True)

    return step


def compare(case: str, episodes: int, seconds: float) -> dict[str, Any]:
    """Milliseconds of both, and the ratio."""
    learner, optimizer, plan = prepare(case, episodes)
    steps: dict[str, Step] = {
        "floor": floor(learner, plan),
        "mtml": lambda: optimizer.step(learner, plan),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    cpu: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    end = devices.now() + seconds
    gc.collect()
    gc.disable()
    while devices.now() < end or len(times["floor"]) < 4:
        turn = [*steps] if len(times["floor"]) % 2 else [*reversed(steps)]
        for name in turn:
            began, busy = devices.now(), time.process_time()
            steps[name]()
            times[name].append(1e3 * (devices.now() - began))
            cpu[name].append(time.process_time() - busy)
    gc.enable()
    (low, middle, high), busy_quartiles = (
        statistics.quantiles((a / b for a, b in zip(t["mtml"], t["floor"], strict=True)), n=4)
        for t in (times, cpu)
    )
    return {
        "case": case,
        "episodes": episodes,
        "floor_ms": statistics.median(times["floor"]),
        "mtml_ms": statistics.median(times["mtml"]),
        "ratio": middle,
        "ratio_quartiles": [low, high],
        "cpu_ratio": busy_quartiles[1],
        "cpu_ratio_of_least": min(cpu["mtml"]) / min(cpu["floor"]),
        "turns": len(times["mtml"]),
        "peak_mib": peak(case, episodes),
    }


def peak(case: str, episodes: int) -> float:
    """Peak memory of a process that takes a few steps, in MiB."""
    command = [sys.executable, __file__, "--device", devices.device().type]
    command += ["--peak-of", case, str(episodes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def print_peak(case: str, episodes: int) -> None:
    """What `peak` runs in a process of its own."""
    learner, optimizer, plan = prepare(case, episodes)
    for _ in range(3):
        optimizer.step(learner, plan)
    print(peak_memory(devices.device()) / 2**20)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = [
        "| case | episodes | floor ms | mtml ms | ratio (quartiles) | of CPU time | peak MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        low, high = row["ratio_quartiles"]
        lines.append(
            f"| {row['case']} | {row['episodes']} | {row['floor_ms']:.0f} | {row['mtml_ms']:.0f} | "
            f"{row['ratio']:.3f} ({low:.3f}-{high:.3f}) | {row['cpu_ratio']:.3f} | "
            f"{row['peak_mib']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="within two minutes on a quiet machine"
    )
    parser.add_argument("--json", action="store_true", help="print a list instead of a table")
    parser.add_argument("--threads", type=int, default=1, help="that torch computes with")
    devices.add_option(parser)
    parser.add_argument("--peak-of", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.peak_of:
        print_peak(given.peak_of[0], int(given.peak_of[1]))
        return
    seconds = 8.0 if given.quick else 60.0
    rows = [compare(case, episodes, seconds) for case in CASES for episodes in EPISODES]
    print(json.dumps(rows, indent=1) if given.json else table(rows))


if __name__ == "__main__":
    main()
