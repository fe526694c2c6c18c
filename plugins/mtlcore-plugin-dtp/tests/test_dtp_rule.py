"""Weights by indicators: the golden sequences, what counts as one, evaluations of a run, edges."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtlcore.balancing import BalancerContext
from mtlcore.errors import MtlError, UsageError
from mtlcore.tasks import Task
from mtlcore_dtp.balancer import DTP

NAMES = ("red", "green", "blue")
TASKS = [Task(name=name, kind="classification", channels=4) for name in NAMES]


def prepared(**settings: Any) -> DTP:
    balancer = DTP(**settings)
    balancer.prepare(TASKS)
    return balancer


def weights(balancer: DTP) -> list[float]:
    """The weights of the losses, from gradients."""
    leaves = {n: torch.ones((), dtype=torch.float64, requires_grad=True) for n in NAMES}
    context = BalancerContext(tasks=NAMES, present=NAMES)
    torch.stack([*balancer.transform(dict(leaves), context).values()]).sum().backward()
    found = [float(leaf.grad) for leaf in leaves.values() if leaf.grad is not None]
    assert [balancer.current_weights()[name] for name in NAMES] == found
    return found


def test_golden_sequences(golden: Callable[[str], Any]) -> None:
    """Running means of the indicators, and weights."""
    sequence = golden("golden_more.json")["sequence"]
    for case in sequence["dtp"]:
        balancer = prepared(discount=case["discount"], gamma=case["gamma"])
        assert weights(balancer) == [1.0, 1.0, 1.0]
        for kpis, expected in zip(sequence["kpi"], case["steps"], strict=True):
            found = {n: {"accuracy": k} for n, k in zip(NAMES, kpis, strict=True)}
            balancer.after_evaluation(found)
            assert weights(balancer) == pytest.approx(expected["weights"], rel=1e-12)
            means = [balancer.get_extra_state()["means"][name] for name in NAMES]
            assert means == pytest.approx(expected["kpi_average"], rel=1e-12)


def test_what_says_nothing_changes_nothing() -> None:
    balancer = prepared()
    balancer.after_evaluation({"red": {"accuracy": 0.5}, "green": {"accuracy": math.nan}})
    red, green, blue = weights(balancer)
    assert (red, green, blue) == (pytest.approx(0.5 * math.log(2)), 1.0, 1.0)
    balancer.after_evaluation({"red": {"accuracy": math.nan}})
    assert weights(balancer) == [red, green, blue]
    balancer.reset()
    assert weights(balancer) == [1.0, 1.0, 1.0]


def test_perfect_and_hopeless_tasks() -> None:
    balancer = prepared(gamma=0.0, kpis={"blue": "r2"})
    balancer.after_evaluation({"red": {"accuracy": 1.0}, "green": {"accuracy": 0.0}})
    balancer.after_evaluation({"blue": {"r2": -7.0}})
    red, green, blue = weights(balancer)
    assert (red, math.copysign(1, red)) == (0.0, 1.0)
    assert green == blue == pytest.approx(math.log(1000))


def test_percent_are_parts_of_a_hundred() -> None:
    balancer = DTP(kpis={"red": "within_30"})
    balancer.prepare(
        [Task(name="red", kind="normals", channels=3), Task(name="up", kind="normals", channels=3)]
    )
    balancer.after_evaluation({"red": {"within_30": 50.0}, "up": {"within_11_25": 25.0}})
    expected = {"red": 0.5 * math.log(2), "up": 0.75 * math.log(4)}
    assert balancer.current_weights() == pytest.approx(expected)


def test_edges() -> None:
    with pytest.raises(UsageError, match=r"balancer\.kpis: no task named 'white'; the run has red"):
        prepared(kpis={"white": "accuracy"})
    with pytest.raises(UsageError, match="of the task 'odd'; for the kind 'unheard-of' none is"):
        DTP().prepare([Task(name="odd", kind="unheard-of", channels=1)])
    with pytest.raises(UsageError, match="'red' has no metric 'accuracy'; it has loss, auc"):
        prepared().after_evaluation({"red": {"loss": 1.0, "auc": 0.5}})
    with pytest.raises(MtlError, match="the metric loss of red is 3, and an indicator is from 0"):
        prepared(kpis={"red": "loss"}).after_evaluation({"red": {"loss": 3.0}})


def test_a_run_weighs_by_its_own_metrics(
    mtl: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of the second epoch are those that the metrics of the first one say."""
    monkeypatch.chdir(tmp_path)
    small = "data.train=4 data.val=2 data.size=32x32 training.epochs=2 training.batch_size=4"
    mtl("run", "--plugin", "dtp", "--out", "r", *(f"--set={s}" for s in small.split()))
    lines = [json.loads(line) for line in Path("r/metrics.jsonl").read_text().splitlines()]
    miou = next(
        x["value"]
        for x in lines
        if (x["split"], x["metric"], x["task"]) == ("val", "miou", "segmentation")
    )
    last = [x for x in lines if (x["metric"], x["task"]) == ("weight", "segmentation")][-1]
    k = max(miou, 1e-3)
    assert last["value"] == pytest.approx(-(1 - k) * math.log(k))
