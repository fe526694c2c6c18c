"""What mtlcore's loop costs above the bare forward, backward and optimizer step.

Both do the same arithmetic on the same batch in one process, in turn, so that a machine whose speed
drifts slows both; medians over steps are compared. Cases: a model of about 1 ms a step, where every
microsecond of bookkeeping shows, and the demo. For the demo the loader is measured too: how long
steps wait for their batches while one worker renders ahead.

    python benchmarks/loop.py [--steps N] [--json] [--device cuda]

On a GPU, ATI-Net has its published width on images of 288x384, two to a batch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import devices
import torch
from torch import Tensor, nn

from mtlcore import BackboneSpec, hookimpl
from mtlcore.config import Layer, resolve
from mtlcore.display import SilentDisplay
from mtlcore.engine import Session, Training
from mtlcore.episodes import LoadedPlan
from mtlcore.features import Features
from mtlcore.losses import Loss, reduce_loss
from mtlcore.models import Backbone
from mtlcore.plugins import Plugins
from mtlcore.storage import RunDirectory


class Small(Backbone):
    """Two convolutions: about a millisecond a step on a CPU."""

    out_channels = (8,)
    strides = (1,)

    def __init__(self, tasks: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        )

    def forward(self, inputs: Tensor, tasks: Any) -> Features:
        maps = self.layers(inputs)
        return Features(shared=(maps,), cut=(maps,))


@hookimpl
def mtl_backbones() -> Any:
    yield BackboneSpec(name="small", target=Small)


CASES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "1 ms model": (
        [__file__],
        {
            "tasks": ["segmentation", "depth"],
            "data": {"train": 16, "val": 4, "size": [16, 16], "workers": 0},
            "model": {"backbone": {"name": "small"}},
            "training": {"batch_size": 2, "steps": 100_000, "threads": 1},
        },
    ),
    "ATI-Net": (
        ["atinet"],
        {
            "data": {"train": 64, "val": 8},
            "model": {"backbone": {"width": 0.0625, "encoder": {"name": "none"}}},
        },
    ),
}


AS_PUBLISHED: dict[str, Any] = {
    "data": {"size": [288, 384]},
    "model": {"backbone": {"width": 1.0}},
    "training": {"batch_size": 2},
}


def layers_of(case: str) -> tuple[list[str], list[Layer]]:
    """The plugins of a case and what it sets on this device."""
    selected, values = CASES[case]
    where = devices.device().type
    layers = [Layer("benchmark", values), Layer("device", {"device": where})]
    if where == "cuda" and case == "ATI-Net":
        layers.append(Layer("as published", AS_PUBLISHED))
    return selected, layers


def prepare(case: str) -> tuple[Training, LoadedPlan]:
    """A run of the case, and one loaded step of it."""
    selected, layers = layers_of(case)
    config = resolve(Plugins.from_environment(), selected, layers)
    torch.set_num_threads(config.training.threads or 1)
    directory = RunDirectory(tempfile.mkdtemp(prefix="mtl-benchmark-"), resume=True)
    directory.open_metrics(0)
    training = Training(Session(config, directory, SilentDisplay()))
    training.session.learner.train()
    loaded = next(iter(training.session.loader.plans(training.plan_block()[:1])))
    assert loaded is not None
    return training, loaded


def whole_step(training: Training, plan: LoadedPlan) -> Callable[[], None]:
    """One turn of mtlcore's loop, everything but loading."""

    def step() -> None:
        training.finish_step(training.step(plan))

    return step


def bare_step(training: Training, plan: LoadedPlan) -> Callable[[], None]:
    """What anybody would write: the same model, losses and optimizer, and nothing else."""
    learner, batch = training.session.learner, plan.batches[0].to(devices.device())
    model, tasks = learner.model, learner.tasks
    parameters = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)

    def loss_of(task: str, prediction: Tensor) -> Tensor:
        loss = learner.losses[model.tasks[task].key]
        assert isinstance(loss, Loss)
        return reduce_loss(loss, prediction, batch.targets[task], batch.valid[task])[0]

    def step() -> None:
        predictions = model(batch.inputs, tasks)
        losses = [loss_of(task, predictions[task]) for task in tasks]
        torch.stack(losses).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.stack([loss.detach() for loss in losses]).tolist()  # a bare loop shows them too

    return step


def compare(case: str, steps: int) -> dict[str, Any]:
    """Medians of both, step by step in turn."""
    training, plan = prepare(case)
    runners = {"bare": bare_step(training, plan), "mtlcore": whole_step(training, plan)}
    times: dict[str, list[float]] = {name: [] for name in runners}
    for number in range(steps + 5):
        for name, run in runners.items():
            began = devices.now()
            run()
            if number >= 5:
                times[name].append(1e3 * (devices.now() - began))
    ratios = [a / b for a, b in zip(times["mtlcore"], times["bare"], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "case": case,
        "bare_ms": statistics.median(times["bare"]),
        "mtlcore_ms": statistics.median(times["mtlcore"]),
        "ratio": statistics.median(times["mtlcore"]) / statistics.median(times["bare"]),
        "ratio_quartiles": [quartiles[0], quartiles[2]],
    }


def waiting(steps: int) -> dict[str, Any]:
    """ATI-Net with its loader: the part of the time that steps wait for batches."""
    selected, layers = layers_of("ATI-Net")
    longer = {"data": {"train": 8 * steps, "val": 8}}
    config = resolve(Plugins.from_environment(), selected, [*layers, Layer("length", longer)])
    torch.set_num_threads(config.training.threads or 1)
    directory = RunDirectory(tempfile.mkdtemp(prefix="mtl-benchmark-"), resume=True)
    training = Training(Session(config, directory, SilentDisplay()))
    training.session.learner.train()
    loaded = iter(training.session.loader.plans(training.plan_block()))
    next(loaded)  # starts the worker
    waited, began = 0.0, devices.now()
    for _ in range(steps - 1):
        asked = devices.now()
        plan = next(loaded)
        waited += devices.now() - asked
        training.step(plan)
        training.session.progress.step += 1
    total = devices.now() - began
    return {"case": "ATI-Net", "waiting_for_data": waited / total}


def peak(case: str, which: str, steps: int = 5) -> float:
    """Peak memory in MiB of a process that runs only one of both: resident, or on a GPU there."""
    code = (
        f"import sys; sys.path.insert(0, {str(__file__.rpartition('/')[0])!r})\n"
        f"import devices, loop\ndevices.choose({devices.device().type!r})\n"
        f"training, plan = loop.prepare({case!r})\n"
        f"step = loop.{which}(training, plan)\n"
        f"for _ in range({steps}): step()\n"
        "from mtlcore.system import peak_memory; print(peak_memory(devices.device()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    return int(result.stdout.split()[-1]) / 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--steps", type=int, default=40, help="of ATI-Net; ten times as many of 1 ms"
    )
    parser.add_argument("--json", action="store_true")
    devices.add_option(parser)
    arguments = parser.parse_args()
    rows = []
    for case, steps in (("1 ms model", 10 * arguments.steps), ("ATI-Net", arguments.steps)):
        row = compare(case, steps)
        bare, whole = peak(case, "bare_step"), peak(case, "whole_step")
        rows.append({**row, "peak_bare_mib": bare, "peak_mtlcore_mib": whole})
    rows[-1].update(waiting(arguments.steps))
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        low, high = row["ratio_quartiles"]
        print(
            f"{row['case']:<11} bare {row['bare_ms']:8.2f} ms  mtlcore {row['mtlcore_ms']:8.2f} ms"
            f"  ratio {row['ratio']:.3f} (quartiles of pairs {low:.3f} to {high:.3f})"
            f"  peak {row['peak_mtlcore_mib'] / row['peak_bare_mib']:.3f}"
        )
    print(f"demo: {100 * rows[-1]['waiting_for_data']:.2f} % of the time waits for data")


if __name__ == "__main__":
    main()
