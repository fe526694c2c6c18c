"""The benchmark of exactness: ours are exact, and it finds out what is not."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def agreements(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("agreements")


def test_ours_are_exact(agreements: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two equal gradients, up to 1e-6, cannot be told apart better in a Gramian."""
    monkeypatch.setattr(agreements, "LIBRARIES", {"mtlcore": agreements.ours})
    rows = agreements.agreements()
    assert {row["method"] for row in rows} == {m.balancer for m in agreements.METHODS}
    for row in rows:
        assert (row["silently_wrong"], row["refused"]) == (0, 0), row
        for sort, error in row["errors"].items():
            assert error < (1e-3 if sort == "neardup" else 1e-11), row
    assert "| upgrad | mtlcore |" in agreements.table(rows)


def test_what_is_wrong_is_counted(agreements: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean is no method's answer; what raises is refused, and has no error."""

    def mean(_method: Any, count: int) -> Any:
        def update(rows: torch.Tensor) -> torch.Tensor:
            if count == 5:
                raise ValueError("three tasks only")
            return rows.mean(0)

        return update

    monkeypatch.setattr(agreements, "LIBRARIES", {"peer": mean})
    found = {row["method"]: row for row in agreements.agreements()}
    assert found["upgrad"]["refused"] == 10 and found["upgrad"]["reasons"] == ["ValueError"]
    assert found["mgda"]["silently_wrong"] > 5
    assert "10 (ValueError)" in agreements.table([found["mgda"]])
