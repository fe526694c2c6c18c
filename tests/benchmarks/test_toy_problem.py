"""The toy problem of the Nash-MTL paper has the published losses and gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def toy(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("benchmarks/toy_problem.py")


def test_losses_and_jacobians(toy: ModuleType, golden: Callable[[str], Any]) -> None:
    published = golden("toy_problem.json")
    for point in published["points"]:
        x = torch.tensor(point["x"], dtype=torch.float64, requires_grad=True)
        found = toy.losses(x, published["scale_first_loss"])
        values = [found["first"], found["second"]]
        assert [float(v.detach()) for v in values] == pytest.approx(point["losses"], rel=1e-12)
        if point["x"] == [0.0, 0.0]:
            continue  # the gradient at the tie of a maximum is a matter of convention
        for value, expected in zip(values, point["jacobian"], strict=True):
            (slope,) = torch.autograd.grad(value, x, retain_graph=True)
            assert slope.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-14)


def test_the_starts_are_those_of_the_paper(toy: ModuleType, golden: Callable[[str], Any]) -> None:
    points = golden("toy_problem.json")["points"]
    assert [list(start) for start in toy.PAPERS["nash-mtl"].starts] == [
        point["x"] for point in points
    ]


def test_distance_is_from_a_line_that_ends(toy: ModuleType) -> None:
    assert toy.distance(torch.tensor([3.0, toy.FRONT_X2])) == pytest.approx(0, abs=1e-6)
    assert toy.distance(torch.tensor([-10.0, toy.FRONT_X2 + 4])) == pytest.approx(5, rel=1e-6)


@pytest.mark.parametrize("paper", ["nash-mtl", "cagrad"])
def test_a_descent_gets_lower_and_is_drawn(toy: ModuleType, tmp_path: Path, paper: str) -> None:
    setting = toy.PAPERS[paper]
    scale, start = setting.scale, setting.starts[-2]
    paths = {}
    for method in setting.methods:
        path = toy.descend(setting.balancer(method), start, 40, 10, scale)
        assert path.shape == (5, 2)
        first, last = (sum(toy.losses(x, scale).values()) for x in (path[0], path[-1]))
        assert last < first, method
        paths[method] = [path]
        row = toy.summary(method, start, path, scale)
        assert (row["reached"], row["end"]) == (False, path[-1].tolist())
    pytest.importorskip("matplotlib")
    toy.draw(paths, tmp_path / "toy.png", scale)
    assert (tmp_path / "toy.png").stat().st_size > 10_000
