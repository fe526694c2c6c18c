"""The worked example, through the balancer as the core drives it, in every case of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mtlcore.balancing import BalancerContext
from mtlcore.data import Sample, collate
from mtlcore.tasks import Task
from mtlcore_ira.balancer import IRA

TASKS = (
    Task(name="segmentation", kind="segmentation", channels=3, class_names=("a", "b", "c")),
    Task(name="depth", kind="depth", channels=1, unit="m"),
)
LITERAL: dict[str, Any] = {"ratio_aux": "weighted", "eps_mode": "literal", "clip": float("inf")}


@pytest.fixture
def example(golden: Callable[[str], Any]) -> dict[str, Any]:
    found: dict[str, Any] = golden("ira.json")
    return found


def context_of(labels: list[int], main: Any, auxiliary: Any, step: int) -> BalancerContext:
    """A row of points with these labels and these elementwise losses."""
    sample = Sample(
        inputs=torch.zeros(3, 1, len(labels)),
        targets={
            "segmentation": torch.tensor([labels]),
            "depth": torch.ones(1, 1, len(labels)),
        },
        valid=dict.fromkeys(("segmentation", "depth"), torch.ones(1, len(labels)).bool()),
        key="golden",
    )
    maps = {
        name: torch.tensor([[values]], dtype=torch.float64, requires_grad=True)
        for name, values in (("segmentation", auxiliary), ("depth", main))
    }
    names = ("segmentation", "depth")
    return BalancerContext(
        tasks=names, present=names, step=step, maps=maps, batch=collate([sample], TASKS)
    )


def losses_of(balancer: IRA, context: BalancerContext) -> dict[str, Tensor]:
    return balancer.transform({n: m.mean() for n, m in context.maps.items()}, context)


def new(**settings: Any) -> IRA:
    balancer = IRA(main="depth", **settings)
    balancer.prepare(TASKS)
    return balancer


def weights_of(balancer: IRA) -> list[float]:
    return list(balancer.current_weights()["segmentation"].values())


def check(case: dict[str, Any], inputs: dict[str, Any], **settings: Any) -> None:
    balancer = new(alpha=case["alpha"], eps=case["eps_ratio"], **settings)
    given = case if "D_aux" in case else inputs
    steps = {step["t"]: step for step in case["steps"]}
    for t, (auxiliary, main) in enumerate(zip(given["D_aux"], given["L_main"], strict=True)):
        # One point per class: (1/3) of its loss is the class's.
        context = context_of([0, 1, 2], [3 * x for x in main], [3 * x for x in auxiliary], t)
        balanced = losses_of(balancer, context)
        balancer.after_step(context)
        if t in steps:
            assert balanced["segmentation"].item() == pytest.approx(
                steps[t]["L_aux_total"], rel=1e-12
            )
            assert weights_of(balancer) == pytest.approx(steps[t]["w_new"], rel=1e-11, abs=1e-12)
    assert len(steps) == len(given["D_aux"]) - 1


def test_every_case(example: dict[str, Any]) -> None:
    checked = []
    for case in example["cases"]:
        settings = dict(LITERAL)
        if case["aux_in_ratio"] == "unweighted":
            settings["ratio_aux"] = "unweighted"
        check(case, example["inputs"], **settings)
        checked.append(case["name"])
    assert len(checked) == 4


def test_the_defaults_are_the_unweighted_case(example: dict[str, Any]) -> None:
    """Nothing in it is so large that the bound would matter."""
    (case,) = (c for c in example["cases"] if c["aux_in_ratio"] == "unweighted")
    check(case, example["inputs"])


def test_pixels(example: dict[str, Any]) -> None:
    pixels = example["pixel_example"]
    balancer = new(**LITERAL)
    weights = balancer.phases[0]["task_segmentation"].weight
    weights.copy_(torch.tensor(pixels["w"]))
    context = context_of(pixels["labels"], pixels["d_main"], pixels["d_aux"], 0)
    balanced = losses_of(balancer, context)
    assert balanced["segmentation"].item() == pytest.approx(pixels["L_aux"], rel=1e-14)
    assert balanced["depth"].item() == pytest.approx(pixels["L_main"], rel=1e-14)
    (gradient,) = torch.autograd.grad(balanced["segmentation"], context.maps["segmentation"])
    per_pixel = torch.tensor(pixels["pixel_weights"], dtype=torch.float64) / pixels["N"]
    torch.testing.assert_close(gradient.flatten(), per_pixel, rtol=1e-14, atol=0)
    # What the classes' losses were is what the next step is compared with.
    balancer.after_step(context)
    first = balancer.phases[0]["task_segmentation"].first
    assert first[0].tolist() == pytest.approx(pixels["L_main_c_sum_over_N"], rel=1e-14)
    assert first[1].tolist() == pytest.approx(pixels["L_aux_c"], rel=1e-14)
