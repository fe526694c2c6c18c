"""The toy problem of the CAGrad and Nash-MTL papers: who reaches the Pareto front, and where.

Two parameters and two losses whose gradients conflict; Adam with a rate of 1e-3.

* Navon et al. 2022 (arXiv 2202.01017), section 5: the first loss is a tenth as large; five starts.
* Liu et al. 2021 (arXiv 2110.14048), figure 1: both losses as they are; three starts, and thrice as
  many iterations.

    pip install matplotlib
    python benchmarks/toy_problem.py --out toy          # toy.png, toy.json, a table on the screen
    python benchmarks/toy_problem.py --paper cagrad --out toy_cagrad

A run *reaches the front* where its last position is within 0.25 of the front's line as the papers
draw it: x2 = -8.3552, x1 from -7 to 7.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import attrs
import torch
from torch import Tensor
from torch.nn import Parameter

import mtlcore
from mtlcore.balancing import Balancer

FRONT_X2, FRONT_X1 = -8.3552, 7.0
NEAR = 0.25


@attrs.frozen
class Setting:
    """What a paper ran.

    Args:
        starts: Where runs begin.
        steps: Iterations of each.
        scale: Of the first loss.
        methods: Name of a row -> name and settings of its balancer.
    """

    starts: tuple[tuple[float, float], ...]
    steps: int
    scale: float
    methods: dict[str, tuple[str, dict[str, float]]]

    def balancer(self, method: str) -> Balancer:
        """A fresh balancer of a row."""
        name, settings = self.methods[method]
        return mtlcore.create("balancers", name, **settings)


PAPERS = {
    "nash-mtl": Setting(
        starts=((-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0)),
        steps=35_000,
        scale=0.1,
        methods={name: (name, {}) for name in ("equal", "pcgrad", "nash-mtl")},
    ),
    "cagrad": Setting(
        starts=((-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0)),
        steps=100_000,
        scale=1.0,
        methods={
            "equal": ("equal", {}),
            "mgda": ("mgda", {}),
            "pcgrad": ("pcgrad", {}),
            "cagrad": ("cagrad", {"c": 0.5}),
        },
    ),
}


def losses(x: Tensor, scale: float) -> dict[str, Tensor]:
    """Both losses at points.

    Args:
        x: (..., 2).
        scale: of the first loss.

    Returns:
        "first" and "second", each (...).
    """
    x1, x2 = x.unbind(-1)
    floor, zero = x.new_tensor(5e-6), x.new_tensor(0.0)
    ridge, bend = torch.tanh(-x2), torch.tanh(0.5 * x2)
    f1 = torch.maximum((0.5 * (-x1 - 7) - ridge).abs(), floor).log() + 6
    f2 = torch.maximum((0.5 * (-x1 + 3) + ridge + 2).abs(), floor).log() + 6
    above, below = torch.maximum(bend, zero), torch.maximum(-bend, zero)
    valley = 0.1 * (-x2 - 8) ** 2
    q1 = ((-x1 + 7) ** 2 + valley) / 10 - 20
    q2 = ((-x1 - 7) ** 2 + valley) / 10 - 20
    return {"first": scale * (f1 * above + q1 * below), "second": f2 * above + q2 * below}


def descend(
    balancer: Balancer, start: Sequence[float], steps: int, every: int, scale: float
) -> Tensor:
    """The positions (n, 2) at every so many of the iterations and at the end, from a start."""
    x = Parameter(torch.tensor(start, dtype=torch.float64))
    adam = torch.optim.Adam([x], lr=1e-3)
    balancer.generator = torch.Generator().manual_seed(0)
    path = [x.detach().clone()]
    for step in range(steps):
        adam.zero_grad()
        balancer.backward(losses(x, scale), shared_params=[x])
        adam.step()
        if (step + 1) % every == 0 or step + 1 == steps:
            path.append(x.detach().clone())
    return torch.stack(path)


def distance(point: Tensor) -> float:
    """From the front's line."""
    x1, x2 = point.tolist()
    return float(((max(abs(x1) - FRONT_X1, 0.0)) ** 2 + (x2 - FRONT_X2) ** 2) ** 0.5)


def summary(method: str, start: Sequence[float], path: Tensor, scale: float) -> dict[str, object]:
    """What the table says of one run."""
    away = distance(path[-1])
    values = {name: float(value) for name, value in losses(path[-1], scale).items()}
    return {
        "method": method,
        "start": list(start),
        "end": path[-1].tolist(),
        "losses": [values["first"], values["second"]],
        "distance": away,
        "reached": away <= NEAR,
    }


def table(rows: Sequence[dict[str, object]]) -> str:
    """As Markdown."""
    lines = [
        "| balancer | start | end | losses | distance | front |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        start, end, values = (_pair(row[key]) for key in ("start", "end", "losses"))
        reached = "reached" if row["reached"] else "not reached"
        lines.append(
            f"| {row['method']} | {start} | {end} | {values} | {row['distance']:.3f} | {reached} |"
        )
    return "\n".join(lines)


def _pair(values: object) -> str:
    assert isinstance(values, list)
    return f"({values[0]:.2f}, {values[1]:.2f})"


def draw(paths: dict[str, list[Tensor]], file: Path, scale: float) -> None:
    """Trajectories over the mean loss's contours, a panel per balancer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axis = torch.linspace(-10, 10, 401, dtype=torch.float64)
    x1, x2 = torch.meshgrid(axis, axis, indexing="xy")
    mean = sum(losses(torch.stack([x1, x2], dim=-1), scale).values()) / 2
    figure, panels = pyplot.subplots(1, len(paths), figsize=(4.6 * len(paths), 4.8), sharey=True)
    for panel, (method, runs) in zip(panels, paths.items(), strict=True):
        panel.contour(x1, x2, mean, levels=24, linewidths=0.6, cmap="Greys", alpha=0.7)
        panel.plot([-FRONT_X1, FRONT_X1], [FRONT_X2] * 2, color="0.45", linewidth=7, alpha=0.6,
                   solid_capstyle="round", label="Pareto front")  # fmt: skip
        for number, path in enumerate(runs):
            colour = f"C{number}"
            panel.plot(*path.T, color=colour, linewidth=1.6)
            panel.plot(*path[0], "o", color=colour, markersize=6)
            panel.plot(*path[-1], "*", color=colour, markersize=13, markeredgecolor="black")
        panel.set(title=method, xlim=(-10, 10), ylim=(-10, 10), xlabel="x1")
    panels[0].set_ylabel("x2")
    panels[0].legend(loc="lower left", fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Run all balancers from all starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--paper", choices=PAPERS, default="nash-mtl", help="whose setting")
    parser.add_argument("--steps", type=int, help="iterations per start; the paper's unless given")
    parser.add_argument("--out", type=Path, default=Path("toy_problem"), help="without a suffix")
    given = parser.parse_args()
    torch.set_num_threads(1)
    setting = PAPERS[given.paper]
    steps = given.steps or setting.steps
    paths: dict[str, list[Tensor]] = {}
    rows = []
    for method in setting.methods:
        for start in setting.starts:
            path = descend(
                setting.balancer(method), start, steps, max(1, steps // 700), setting.scale
            )
            paths.setdefault(method, []).append(path)
            rows.append(summary(method, start, path, setting.scale))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    given.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    draw(paths, given.out.with_suffix(".png"), setting.scale)
    print(f"\n{table(rows)}")


if __name__ == "__main__":
    main()
