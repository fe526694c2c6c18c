"""What balancing task gradients costs: mtlcore beside hand-written code and other libraries.

    python benchmarks/balancers.py [--quick] [--json] [--threads 1] [--only mlp] [--backward]
                                   [--depth] [--device cuda]

A step is forward and backward, without an optimizer. Libraries take turns within one process, in
random order, each time for a few steps in a row of which the first is not counted; a row has the
median over the turns, and ratios are medians of the ratios within a turn, with their quartiles.

The *floor* is the faster of two hand-written loops that know their model: K `autograd.grad` calls,
then the Gramian, then a weighted sum with constant weights; no solver. One copies each row into a
persistent (K, P) buffer, the other keeps autograd's tensors and combines them with `_foreach`.

Times for the weights alone are of every balancer of Gramians. Peers are measured where they can be
imported: torchjd (with quadprog, qpsolvers, cvxpy, ecos) and, for weights alone, LibMTL.
Memory is the peak above the model's own before its first step, in a process of its own, as a
multiple of the trunk's parameters (Linux only, and only where the trunk is large). On a GPU it is
that of torch's tensors there, and the cases are a ResNet-50 and the five convolutions.

One file: it starts itself to measure memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import agreements
import devices
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Parameter

import mtlcore
from mtlcore.balancing import BalancerContext, Balancing, GramianBalancer, Scope, TaskGradients
from mtlcore.plugins import REQUIRED, Plugins, settings_of
from mtlcore.tasks import Task

METHODS = ("pcgrad", "nash-mtl")
Step = Callable[[], object]


@dataclass
class Problem:
    """A model with its data, ready to be stepped.

    Args:
        losses: runs the model; a scalar per task.
        shared: parameters of the trunk.
        own: per task those of its head.
        features: what the trunk gave in the last call of `losses`; None where trunk and heads
            cannot be told apart by a tensor between them.
        last: parameters of the trunk's last block; empty where it has none.
    """

    losses: Callable[[], dict[str, Tensor]]
    shared: list[Parameter]
    own: dict[str, list[Parameter]]
    features: Callable[[], Tensor] | None
    last: Sequence[Parameter] = ()

    def forget(self) -> None:
        """Drop gradients, as a training loop does before each step."""
        for parameter in [*self.shared, *(p for ps in self.own.values() for p in ps)]:
            parameter.grad = None


def _trunk_and_heads(trunk: nn.Module, heads: Sequence[nn.Module], inputs: Tensor) -> Problem:
    where = devices.device()
    trunk, inputs = trunk.to(where), inputs.to(where)
    tasks = {f"t{number}": head.to(where) for number, head in enumerate(heads)}
    targets: dict[str, Tensor] = {}
    seen: list[Tensor] = []

    def losses() -> dict[str, Tensor]:
        seen[:] = [trunk(inputs)]
        found = {}
        for task, head in tasks.items():
            prediction = head(seen[0])
            if task not in targets:
                targets[task] = torch.randn_like(prediction)
            found[task] = (prediction - targets[task]).square().mean()
        return found

    own = {task: list(head.parameters()) for task, head in tasks.items()}
    *_, last = (module for module in trunk.modules() if [*module.parameters(recurse=False)])
    return Problem(losses, list(trunk.parameters()), own, lambda: seen[0], list(last.parameters()))


def conv(heads: int) -> Problem:
    """Five convolutions, 130 thousand parameters, on 8 images of 32x32."""
    layers: list[nn.Module] = []
    for channels, outputs in ((3, 32), (32, 64), (64, 64), (64, 64), (64, 64)):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.ReLU()]
    layers.insert(4, nn.MaxPool2d(2))
    return _trunk_and_heads(
        nn.Sequential(*layers),
        [nn.Conv2d(64, 3, 1) for _ in range(heads)],
        torch.randn(8, 3, 32, 32),
    )


def mlp(heads: int) -> Problem:
    """Three linear layers, 52 thousand parameters, on 128 vectors of 64 values."""
    sizes = (64, 128, 192, 96)
    layers = [
        module
        for before, after in pairwise(sizes)
        for module in (nn.Linear(before, after), nn.ReLU())
    ]
    one = [nn.Sequential(nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 1)) for _ in range(heads)]
    return _trunk_and_heads(nn.Sequential(*layers), one, torch.randn(128, 64))


def wide(heads: int) -> Problem:
    """Three linear layers, 12.6 million parameters, on 32 vectors of 2048 values."""
    layers = [m for _ in range(3) for m in (nn.Linear(2048, 2048), nn.ReLU())]
    trunk = nn.Sequential(*layers)
    return _trunk_and_heads(
        trunk, [nn.Linear(2048, 1) for _ in range(heads)], torch.randn(32, 2048)
    )


def resnet(heads: int) -> Problem:
    """ResNet-50, 23.5 million parameters, on 16 images of 256x256; for a GPU."""
    from mtlcore.standard.resnet import ResNet

    task = Task(name="t0", kind="segmentation", channels=3)
    backbone = ResNet([task], depth=50, output_stride=32)
    trunk = Maps(backbone)
    channels = backbone.out_channels[-1]
    return _trunk_and_heads(
        trunk, [nn.Conv2d(channels, 3, 1) for _ in range(heads)], torch.randn(16, 3, 256, 256)
    )


class Maps(nn.Module):
    """The last map of a backbone.

    Args:
        backbone: whose.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.backbone(inputs, ["t0"])
        return features.of("t0")[-1]


def atinet(_: int) -> Problem:
    """ATI-Net on SegNet (width 1/16, tasks interacting), three losses, 8 images of 64x64."""
    from mtlcore.features import FeatureInfo
    from mtlcore.learner import Learner
    from mtlcore.models import MultiTaskModel
    from mtlcore.standard.heads import ConvHead
    from mtlcore.standard.losses import L1, Cosine, CrossEntropy
    from mtlcore.tasks import Task
    from mtlcore.testing import tiny_batch
    from mtlcore_atinet.atinet import ATINet

    tasks = (
        Task(name="segmentation", kind="segmentation", channels=13),
        Task(name="depth", kind="depth", channels=1),
        Task(name="normals", kind="normals", channels=3),
    )
    kinds = {"segmentation": CrossEntropy, "depth": L1, "normals": Cosine}
    backbone = ATINet(tasks, width=1 / 16)
    backbone.at_progress(1.0)
    info = FeatureInfo(backbone.out_channels, backbone.strides)
    heads = {task.name: ConvHead(task, info) for task in tasks}
    model = MultiTaskModel(tasks, backbone, heads)
    learner = Learner(model, {t.name: kinds[t.kind](t) for t in tasks}, [], Balancing([]))
    learner.to(devices.device())
    batch = tiny_batch(8, tasks=tasks, size=(64, 64)).to(devices.device())
    names = [task.name for task in tasks]
    return Problem(
        lambda: learner(batch, names).raw,
        model.shared_parameters(),
        {name: model.task_parameters(name) for name in names},
        None,
    )


CASES: dict[str, tuple[Callable[[int], Problem], int]] = {
    "conv, 3 heads": (conv, 3),
    "conv, 10 heads": (conv, 10),
    "mlp, 3 heads": (mlp, 3),
    "mlp, 10 heads": (mlp, 10),
    "12.6M, 3 heads": (wide, 3),
    "ATI-Net, 3 heads": (atinet, 3),
}
ON_A_GPU: dict[str, tuple[Callable[[int], Problem], int]] = {
    "ResNet-50, 3 heads": (resnet, 3),
    "ResNet-50, 10 heads": (resnet, 10),
    "conv, 3 heads": (conv, 3),
    "conv, 10 heads": (conv, 10),
}
WEIGHED = ("12.6M, 3 heads", "ResNet-50, 3 heads", "ResNet-50, 10 heads")
"""The cases whose memory is measured."""


def cases() -> dict[str, tuple[Callable[[int], Problem], int]]:
    """The cases of the device: on a GPU, models that one would train there."""
    return ON_A_GPU if devices.device().type == "cuda" else CASES


def make(case: str) -> Problem:
    """The case's problem, the same for every library."""
    build, heads = cases()[case]
    torch.manual_seed(0)
    return build(heads)


def summed(problem: Problem) -> Step:
    """The plain sum of the losses: no balancing."""

    def step() -> None:
        torch.stack([*problem.losses().values()]).sum().backward()

    return step


def _rows(problem: Problem) -> Iterator[list[Tensor]]:
    """Per task its gradients at the shared parameters; those of its head are written."""
    losses = problem.losses()
    for number, (task, loss) in enumerate(losses.items()):
        inputs = [*problem.shared, *problem.own[task]]
        retain = number < len(losses) - 1
        found = torch.autograd.grad(loss, inputs, retain_graph=retain, allow_unused=True)
        for parameter, gradient in zip(
            problem.own[task], found[len(problem.shared) :], strict=True
        ):
            parameter.grad = gradient
        shared = zip(problem.shared, found, strict=False)
        yield [torch.zeros_like(p) if g is None else g for p, g in shared]


def floor_buffer(problem: Problem) -> Step:
    """By hand: rows copied into one (K, P) buffer that stays."""
    sizes = [p.numel() for p in problem.shared]
    buffer = torch.empty(len(problem.own), sum(sizes), device=devices.device())
    views = [_shaped(row, problem.shared, sizes) for row in buffer]
    weights = torch.ones(len(problem.own), device=devices.device())

    def step() -> Tensor:
        for view, row in zip(views, _rows(problem), strict=True):
            torch._foreach_copy_(view, row)
        gramian = buffer @ buffer.T
        direction = _shaped(weights @ buffer, problem.shared, sizes)
        for parameter, gradient in zip(problem.shared, direction, strict=True):
            parameter.grad = gradient
        return gramian

    return step


def _shaped(flat: Tensor, like: Sequence[Tensor], sizes: list[int]) -> list[Tensor]:
    return [x.view_as(p) for x, p in zip(flat.split(sizes), like, strict=True)]


def floor_rows(problem: Problem) -> Step:
    """By hand: autograd's tensors, combined with foreach."""

    def step() -> list[Tensor]:
        rows = list(_rows(problem))
        products = [
            torch.stack(
                [torch.dot(a.flatten(), b.flatten()) for a, b in zip(*pair, strict=True)]
            ).sum()
            for pair in ((rows[i], rows[j]) for i in range(len(rows)) for j in range(i, len(rows)))
        ]
        torch._foreach_mul_(rows[0], 1.0)
        for row in rows[1:]:
            torch._foreach_add_(rows[0], row, alpha=1.0)
        for parameter, gradient in zip(problem.shared, rows[0], strict=True):
            parameter.grad = gradient
        return products

    return step


def with_mtlcore(problem: Problem, method: str) -> Step:
    """The engine as the training loop uses it."""
    tasks = tuple(problem.own)
    balancer = mtlcore.create("balancers", method)
    factors = isinstance(balancer, GramianBalancer)
    gradients = TaskGradients(problem.shared, problem.own, factors=factors)
    context = BalancerContext(tasks=tasks, generator=torch.Generator().manual_seed(0))

    def step() -> None:
        gradients.collect_rows(problem.losses())
        gradients.apply(balancer, context)

    return step


def with_depth(problem: Problem, method: str, scope: Scope) -> Step:
    """What `balancer.depth` does in a step that measures nothing: 1 or "features"."""
    tasks = tuple(problem.own)
    gradients = TaskGradients(problem.shared, problem.own, scope=scope, last=problem.last)
    balancer = mtlcore.create("balancers", method)
    context = BalancerContext(tasks=tasks, generator=torch.Generator().manual_seed(0))

    def step() -> None:
        losses = problem.losses()
        cut = () if problem.features is None else (problem.features(),)
        gradients.collect_rows(losses, cut=cut)
        gradients.apply(balancer, context)

    return step


def with_backward(problem: Problem, method: str) -> Step:
    """The one call for other people's loops, which finds each task's parameters itself."""
    balancer = mtlcore.create("balancers", method)

    def step() -> None:
        balancer.backward(problem.losses(), problem.shared)

    return step


def with_torchjd(problem: Problem, method: str, chunk: int | None) -> Step:
    """TorchJD's way for several tasks; all parameters are named, so that it need not search."""
    from torchjd.aggregation import NashMTL, PCGrad
    from torchjd.autojac import backward, jac_to_grad, mtl_backward

    aggregator = PCGrad() if method == "pcgrad" else NashMTL(n_tasks=len(problem.own), max_norm=0)
    own = list(problem.own.values())

    def step() -> None:
        losses = list(problem.losses().values())
        if problem.features is None:  # its function for several tasks needs a tensor between
            backward(losses, inputs=problem.shared, retain_graph=True, parallel_chunk_size=chunk)
            torch.autograd.backward(losses, inputs=[p for ps in own for p in ps])
        else:
            mtl_backward(
                losses,
                problem.features(),
                tasks_params=own,
                shared_params=problem.shared,
                parallel_chunk_size=chunk,
            )
        jac_to_grad(problem.shared, aggregator)

    return step


Made = dict[tuple[str, str | None], Callable[[Problem], Step]]


def libraries(backward: bool = False, depth: bool = False) -> Made:
    """By library and method how a step is made; a method of None serves all."""
    made: Made = {
        ("sum", None): summed,
        ("floor, buffer", None): floor_buffer,
        ("floor, rows", None): floor_rows,
    }
    for method in METHODS:
        made["mtlcore", method] = lambda p, m=method: with_mtlcore(p, m)
        if backward:
            made["mtlcore-backward", method] = lambda p, m=method: with_backward(p, m)
        if depth:
            made["mtlcore-depth-1", method] = lambda p, m=method: with_depth(p, m, "last_shared")
            made["mtlcore-features", method] = lambda p, m=method: with_depth(p, m, "features")
        if find_spec("torchjd") is not None:
            made["torchjd", method] = lambda p, m=method: with_torchjd(p, m, None)
            made["torchjd-sequential", method] = lambda p, m=method: with_torchjd(p, m, 1)
    return made


def take_turns(steps: dict[Any, Step], seconds: float, forget: Step) -> dict[Any, list[float]]:
    """Milliseconds per step of each, one figure per turn, for about so many seconds."""
    order, times = random.Random(0), {key: list[float]() for key in steps}
    counts = {}
    for key, step in steps.items():
        for _ in range(2):
            counts[key] = max(1, min(20, int(30 / _timed(step, 1, forget))))
    end = time.perf_counter() + seconds
    gc.collect()
    gc.disable()
    while time.perf_counter() < end or len(next(iter(times.values()))) < 3:
        for key in order.sample(list(steps), len(steps)):
            _timed(steps[key], 1, forget)
            times[key].append(_timed(steps[key], counts[key], forget))
        gc.collect()
    gc.enable()
    return times


def _timed(step: Step, count: int, forget: Step) -> float:
    start = devices.now()
    for _ in range(count):
        forget()
        step()
    return (devices.now() - start) / count * 1000


def measure(case: str, seconds: float, made: Made) -> list[dict[str, Any]]:
    """The case's rows."""
    problem = make(case)
    steps, failed = {}, []
    for key, build in made.items():
        try:
            step = build(problem)
            step()
        except Exception as error:  # a peer's failure is a result, not the end
            failed.append((key, f"{type(error).__name__}: {error}".splitlines()[0]))
        else:
            steps[key] = step
    times = take_turns(steps, seconds, problem.forget)
    forms = [("floor, buffer", None), ("floor, rows", None)]
    floor = min(forms, key=lambda form: statistics.median(times[form]))
    rows = []
    for method in METHODS:
        for (library, of), found in times.items():
            if of in (None, method) and ((library, of) not in forms or (library, of) == floor):
                name = library.partition(",")[0]
                rows.append(
                    {"case": case, "method": method, "library": name, **_figures(found)}
                    | {"ratio_to_sum": _ratio(found, times["sum", None])["median"]}
                    | {"ratio_to_floor": _ratio(found, times[floor])["median"]}
                    | {"floor_quartiles": _ratio(found, times[floor])["quartiles"]}
                    | {"peak_trunks": peak(case, library, of) if case in WEIGHED else None}
                )
    for (library, method), reason in failed:
        print(f"{case}: {library}, {method}: not measured: {reason}", file=sys.stderr)
    return rows


def _figures(times: Sequence[float]) -> dict[str, Any]:
    return {"ms": statistics.median(times), "ms_least": min(times), "turns": len(times)}


def _ratio(times: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(times, others, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"median": middle, "quartiles": [low, high]}


def solvers(seconds: float) -> list[dict[str, Any]]:
    """Rows for the weights alone, from Gramians of 2 to 40 tasks of which half conflict.

    Of every installed balancer of Gramians that needs no validation batch, beside the libraries
    that have its method.
    """
    rows = []
    for count in (2, 3, 10, 40):
        generator = np.random.default_rng(count)
        signs = generator.choice([-1.0, 1.0], (count, 1))
        jacobian = signs * generator.standard_normal(200) + 2 * generator.standard_normal(
            (count, 200)
        )
        matrix = torch.from_numpy(jacobian).float()
        steps: dict[Any, Step] = {}
        for name in of_gramians():
            steps["mtlcore", name] = weighing(name, matrix)
        for method in agreements.METHODS:
            for library in ("torchjd", "libmtl"):
                try:
                    update = agreements.LIBRARIES[library](method, count)
                    if update is None:
                        continue
                    update(matrix)
                except Exception as error:  # a peer's failure is a result, not the end
                    what = f"{library}, {method.balancer}, K = {count}"
                    print(f"{what}: not measured: {type(error).__name__}", file=sys.stderr)
                    continue
                steps[library, method.balancer] = lambda u=update, m=matrix: u(m)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of peers that do not converge
            times = take_turns(steps, seconds / 4, lambda: None)
        for (library, method), found in sorted(times.items(), key=lambda item: item[0][::-1]):
            row = {"case": f"solver, K = {count}", "method": method, "library": library}
            none = dict.fromkeys(("ratio_to_sum", "ratio_to_floor", "peak_trunks"))
            rows.append({**row, **_figures(found), **none})
    return rows


def of_gramians() -> list[str]:
    """The installed balancers of Gramians without a validation batch."""
    targets = {
        component.spec.name: component.load()
        for component in Plugins.from_environment(()).all("balancers")
    }
    return sorted(
        name
        for name, target in targets.items()
        if isinstance(target, type)
        and issubclass(target, GramianBalancer)
        and target.validation is None
    )


def weighing(name: str, matrix: Tensor) -> Step:
    """A call of a balancer, on the Gramian of rows in single precision."""
    tasks = tuple(f"t{place}" for place in range(len(matrix)))
    target = Plugins.from_environment(()).get("balancers", name).load()
    needed = {s.name: tasks[0] for s in settings_of(target) if s.default is REQUIRED}
    balancer = mtlcore.create("balancers", name, **needed)
    balancer.prepare([Task(name=task, kind="depth", channels=1) for task in tasks])
    gramian = (matrix @ matrix.T).double()
    context = BalancerContext(
        tasks=tasks,
        present=tasks,
        losses=dict.fromkeys(tasks, 1.0),
        generator=torch.Generator().manual_seed(0),
    )
    if balancer.batches > 1:
        context.gramians = gramian.repeat(balancer.batches, balancer.batches, 1, 1)
        context.labelled_batches = torch.full((len(tasks),), float(balancer.batches)).double()
    return lambda: balancer.weights(gramian, context=context)


@cache
def peak(case: str, library: str, method: str | None) -> float | None:
    """Peak memory of a few steps above the model's own, as a multiple of the trunk."""
    where = devices.device().type
    if where != "cuda" and not Path("/proc/self/clear_refs").exists():
        return None
    command = [sys.executable, __file__, "--device", where]
    command += ["--peak-of", case, library, method or ""]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout) if done.returncode == 0 else None


def print_peak(case: str, library: str, method: str | None) -> None:
    """What `peak` runs in a process of its own."""
    problem = make(case)
    step = libraries(True, True)[library, method](problem)
    trunk = 4 * sum(p.numel() for p in problem.shared)
    problem.losses()  # what a first forward pass loads is not balancing's
    gc.collect()
    where = devices.device()
    on_gpu = where.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(where)
        before = torch.cuda.memory_allocated(where)
    else:
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
    for _ in range(3):
        problem.forget()
        step()
    most = torch.cuda.max_memory_allocated(where) if on_gpu else _status("VmHWM")
    print((most - before) / trunk)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = [
        "| case | method | library | ms | / sum | / floor (quartiles) | peak, trunks |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        named = f"| {row['case']} | {row['method']} | {row['library']} | {row['ms']:.3g} |"
        if row["ratio_to_floor"] is None:
            lines.append(f"{named} | | |")
            continue
        low, high = row["floor_quartiles"]
        memory = "" if row["peak_trunks"] is None else f"{row['peak_trunks']:.1f}"
        lines.append(
            f"{named} {row['ratio_to_sum']:.2f} | {row['ratio_to_floor']:.2f} "
            f"({low:.2f}-{high:.2f}) | {memory} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="within three minutes")
    parser.add_argument("--json", action="store_true", help="print a list instead of a table")
    parser.add_argument("--threads", type=int, default=1, help="that torch computes with")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--backward", action="store_true", help="also mtlcore's one call for all")
    parser.add_argument("--depth", action="store_true", help="also less than K passes")
    devices.add_option(parser)
    parser.add_argument("--peak-of", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.peak_of:
        case, library, method = given.peak_of
        print_peak(case, library, method or None)
        return
    if find_spec("torchjd") is None:
        print("torchjd: not measured: it is not installed", file=sys.stderr)
    if find_spec("LibMTL") is None:
        print("libmtl: not measured: it is not installed", file=sys.stderr)
    seconds = 11.0 if given.quick else 40.0
    made = libraries(given.backward, given.depth)
    named = [case for case in cases() if given.only in case]
    rows = [row for case in named for row in measure(case, seconds, made)]
    if given.only in "solver":
        rows += solvers(seconds)
    if given.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{devices.described()}\n\n{table(rows)}")
    if given.only in "agreements":
        print("\nHow far directions are from the exact ones (agreements.py):\n")
        print(agreements.table(agreements.agreements()))


if __name__ == "__main__":
    main()
