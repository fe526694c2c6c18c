"""The toy problem of the Pareto MTL paper: its front is concave, and the methods differ on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="module")
def toy(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("benchmarks/pareto_front.py")


def ends(toy: ModuleType, method: str) -> list[tuple[float, float]]:
    """Places on the front, and distances from it."""
    make = toy.METHODS[method]
    return [toy.place(toy.descend(make(run), toy.start(run))[-1]) for run in range(toy.RUNS)]


def test_losses(toy: ModuleType) -> None:
    x = toy.start(0)
    for name, sign in (("first", -1), ("second", 1)):
        squares = sum((float(value) + sign / 20**0.5) ** 2 for value in x)
        expected = 1 - torch.tensor(-squares).exp()
        assert float(toy.losses(x)[name]) == pytest.approx(float(expected), rel=1e-6)


def test_the_front_is_concave_and_nothing_lies_below_it(toy: ModuleType) -> None:
    places = torch.linspace(-1, 1, 201, dtype=torch.float64)
    curve = toy.front(places)
    for share in torch.linspace(0.01, 0.99, 50):
        weighted = curve @ torch.tensor([share, 1 - share], dtype=curve.dtype)
        assert abs(float(places[weighted.argmin()])) > 0.9
    for seed in range(20):
        values = torch.stack([*toy.losses(toy.start(seed)).values()])
        assert not bool((values < curve).all(dim=-1).any())


def test_a_place_is_found_again(toy: ModuleType) -> None:
    for at in (-1.0, -0.3, 0.75):
        values = toy.front(torch.tensor([at], dtype=torch.float64))[0]
        assert toy.place(values) == pytest.approx((at, 0), abs=1e-3)
    assert toy.uncovered([-1.0, 1.0]) == pytest.approx(1)
    assert toy.uncovered([-1.0, 0.0, 1.0]) == pytest.approx(0.5, abs=0.01)


def test_a_weighted_sum_finds_the_ends_of_the_front_only(toy: ModuleType) -> None:
    found = ends(toy, "weighted sum")
    assert all(abs(at) > 0.9 for at, _ in found)
    assert {at > 0 for at, _ in found} == {True, False}
    assert toy.uncovered([at for at, _ in found]) > 0.95


def test_pareto_mtl_covers_it_along_its_length(toy: ModuleType) -> None:
    found = ends(toy, "Pareto MTL")
    assert max(away for _, away in found) < 1e-3
    assert toy.uncovered([at for at, _ in found]) < 0.25
    # The more the preference is the second task's, the larger its loss may be.
    places = [at for at, _ in found]
    assert places == sorted(places)


def test_it_is_drawn(toy: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = toy.descend(toy.pareto_mtl(3), toy.start(3), steps=4)
    assert path.shape == (5, 2)
    toy.draw({"weighted sum": [path], "Pareto MTL": [path, path]}, tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 10_000
