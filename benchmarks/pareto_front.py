"""The toy problem of the Pareto MTL paper: who covers a concave front, and who finds its ends.

Lin et al. 2019 (arXiv 1912.12854): 20 parameters x, two losses

    f1 = 1 - exp(-sum_i (x_i - 1 / sqrt(20))^2),    f2 = 1 - exp(-sum_i (x_i + 1 / sqrt(20))^2),

100 steps of size 1 from random starts, x_i uniform in (-0.5, 0.5). The front, where all x_i are
equal and between -1 / sqrt(20) and 1 / sqrt(20), is concave but for a short stretch at each end, so
that every weighted sum of the losses is lowest in one of these.

    pip install matplotlib
    python benchmarks/pareto_front.py --out front        # front.png, front.json, two lines
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Parameter

import mtlcore
from mtlcore.balancing import Balancer, BalancerContext
from mtlcore.tasks import Task

TASKS = tuple(Task(name=name, kind="regression", channels=1) for name in ("first", "second"))
DIMENSIONS, STEPS, RUNS = 20, 100, 10


def losses(x: Tensor) -> dict[str, Tensor]:
    """Both losses at points (..., d), each (...)."""
    centre = x.shape[-1] ** -0.5
    return {
        "first": -torch.expm1(-(x - centre).square().sum(-1)),
        "second": -torch.expm1(-(x + centre).square().sum(-1)),
    }


def front(places: Tensor) -> Tensor:
    """(n,) places on the front, from -1 where f2 is 0 to 1 where f1 is -> (n, 2) losses."""
    x = places[:, None].expand(-1, DIMENSIONS) * DIMENSIONS**-0.5
    return torch.stack([*losses(x).values()], dim=-1)


def start(seed: int) -> Tensor:
    """A random start."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(DIMENSIONS, generator=generator, dtype=torch.float64) - 0.5


def descend(balancer: Balancer, x: Tensor, steps: int = STEPS) -> Tensor:
    """The losses (steps + 1, 2) on the way from a start."""
    x = Parameter(x.clone())
    balancer.prepare(TASKS)
    path = [_values(x)]
    for step in range(steps):
        context = BalancerContext(
            tasks=tuple(task.name for task in TASKS),
            present=tuple(task.name for task in TASKS),
            step=step,
            progress=step / steps,
        )
        x.grad = None
        balancer.backward(losses(x), [x], context)
        assert x.grad is not None
        with torch.no_grad():
            # Weights sum to the number of tasks, in the paper to 1.
            x -= x.grad / len(TASKS)
        balancer.after_step(context)
        path.append(_values(x))
    return torch.stack(path)


def _values(x: Tensor) -> Tensor:
    return torch.stack([*losses(x.detach()).values()])


def weighted_sum(run: int) -> Balancer:
    """One of `RUNS` weightings of the losses, evenly between the tasks."""
    share = (run + 0.5) / RUNS
    weights = {"first": 2 * share, "second": 2 - 2 * share}
    balancer: Balancer = mtlcore.create("balancers", "fixed", weights=weights)
    return balancer


def pareto_mtl(run: int) -> Balancer:
    """One of `RUNS` preferences."""
    balancer: Balancer = mtlcore.create(
        "balancers", "pareto-mtl", preferences=RUNS, preference=run, initial=0.2
    )
    return balancer


METHODS = {"weighted sum": weighted_sum, "Pareto MTL": pareto_mtl}


def place(values: Tensor) -> tuple[float, float]:
    """Where on the front the nearest point to (2,) losses lies, -1 to 1, and how far it is."""
    places = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    distances = (front(places) - values).norm(dim=-1)
    return float(places[distances.argmin()]), float(distances.min())


def uncovered(places: list[float]) -> float:
    """The longest stretch of the front without an end point, as a part of its length."""
    curve = front(torch.linspace(-1, 1, 2001, dtype=torch.float64))
    along = torch.cat([torch.zeros(1), (curve[1:] - curve[:-1]).norm(dim=-1).cumsum(0)])
    at = [float(along[round((p + 1) * 1000)]) for p in sorted(places)]
    edges = [0.0, *at, float(along[-1])]
    return max(b - a for a, b in pairwise(edges)) / float(along[-1])


def draw(paths: dict[str, list[Tensor]], file: Path) -> None:
    """Ways and end points over the front, a panel per method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curve = front(torch.linspace(-1, 1, 201, dtype=torch.float64))
    figure, panels = pyplot.subplots(1, len(paths), figsize=(4.6 * len(paths), 4.9), sharey=True)
    for panel, (method, runs) in zip(panels, paths.items(), strict=True):
        panel.plot(*curve.T, color="0.45", linewidth=7, alpha=0.5, solid_capstyle="round",
                   label="Pareto front", zorder=1)  # fmt: skip
        for number, path in enumerate(runs):
            colour = pyplot.get_cmap("viridis")(number / max(1, len(runs) - 1))
            if method == "Pareto MTL":
                angle = torch.tensor(number / max(1, len(runs) - 1) * torch.pi / 2)
                ray = 1.5 * torch.stack([angle.cos(), angle.sin()])
                panel.plot([0, ray[0]], [0, ray[1]], color=colour, linewidth=0.8, linestyle=":")
            panel.plot(*path.T, color=colour, linewidth=1.0, alpha=0.8)
            panel.plot(
                *path[-1], "o", color=colour, markersize=9, markeredgecolor="black", zorder=3
            )
        panel.set(title=method, xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), xlabel="f1")
        panel.set_aspect("equal")
    panels[0].set_ylabel("f2")
    panels[0].legend(loc="lower left", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Run both methods from the same starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("front"), help="without a suffix")
    given = parser.parse_args()
    torch.set_num_threads(1)
    paths, rows = {}, []
    for method, make in METHODS.items():
        paths[method] = [descend(make(run), start(run)) for run in range(RUNS)]
        ends = [path[-1] for path in paths[method]]
        found = [place(end) for end in ends]
        rows += [
            {"method": method, "run": run, "losses": end.tolist(), "place": at, "distance": away}
            for run, (end, (at, away)) in enumerate(zip(ends, found, strict=True))
        ]
        print(
            f"{method}: places {', '.join(f'{at:.2f}' for at, _ in found)}; at most "
            f"{max(away for _, away in found):.4f} from the front, whose longest stretch without "
            f"an end point is {uncovered([at for at, _ in found]):.1%} of it"
        )
    given.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    draw(paths, given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
