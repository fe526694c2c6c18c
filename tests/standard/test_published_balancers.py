"""The weights of the core's balancers: published and golden values."""

from __future__ import annotations

import math

import pytest
import torch

from mtlcore.balancing import BalancerContext
from mtlcore.plugins import settings_of
from mtlcore.standard.balancers import DWA, Uncertainty
from mtlcore.standard.gramian_balancers import UnitNorm
from mtlcore.tasks import Task

NAMES = ("red", "green", "blue")


TASKS = tuple(Task(name=name, kind="depth", channels=1) for name in NAMES)


def context(step=0, **known):
    return BalancerContext(tasks=NAMES, step=step, **known)


def drive(dwa, per_epoch, steps=3):
    """Train on these mean losses; the weights that every epoch used, and those of the next."""
    used = []
    for epoch, means in enumerate([*per_epoch, per_epoch[-1]]):
        for step in range(steps):
            # Single steps differ; their mean is the epoch's.
            losses = {n: m * (1 + (step - 1) / 10) for n, m in zip(NAMES, means, strict=True)}
            here = context(epoch * steps + step, epoch=epoch)
            given = {name: torch.tensor(x, dtype=torch.float64) for name, x in losses.items()}
            balanced = dwa.transform(given, here)
            weights = [float(balanced[name]) / losses[name] for name in NAMES]
            if step == 0:
                used.append(weights)
            assert weights == pytest.approx(used[-1], rel=1e-12)
            here.losses = losses
            dwa.after_step(here)
            assert [dwa.current_weights()[n] for n in NAMES] == pytest.approx(weights, rel=1e-12)
    return used


def test_dwa_epoch_by_epoch(golden):
    case = golden("balancers.json")["dwa"]
    dwa = DWA(temperature=case["T"])
    dwa.prepare(TASKS)
    used = drive(dwa, case["losses_per_epoch"])
    for found, expected in zip(used, case["weights_per_epoch"], strict=True):
        assert found == pytest.approx(expected, rel=1e-12)


def test_dwa_weighs_equally_after_a_reset(golden):
    case = golden("balancers.json")["dwa"]
    dwa = DWA(temperature=case["T"])
    dwa.prepare(TASKS)
    drive(dwa, case["losses_per_epoch"])
    dwa.reset()
    used = drive(dwa, case["losses_per_epoch"])
    for found, expected in zip(used, case["weights_per_epoch"], strict=True):
        assert found == pytest.approx(expected, rel=1e-12)


def test_dwa_over_windows_of_steps():
    """From the step on at which two windows are complete, anew after each one."""
    dwa = DWA(temperature=2.0, window=2)
    dwa.prepare(TASKS)
    losses = {"red": [4.0, 2.0, 1.0, 2.0, 3.0], "green": [1.0, 1.0, 1.0, 1.0, 2.0],
              "blue": [0.0, 0.0, 1.0, 1.0, 1.0]}  # fmt: skip
    expected = [[1.0] * 3] * 4
    # What has no loss in its first window counts as one that does not change.
    for ratios in ((3 / 6, 1.0, 1.0), (5 / 3, 3 / 2, 2.0)):
        powers = [math.exp(ratio / 2.0) for ratio in ratios]
        expected.append([3 * power / sum(powers) for power in powers])
    for step in range(6):
        assert [dwa.current_weights()[n] for n in NAMES] == pytest.approx(expected[step]), step
        if step < 5:
            here = context(step)
            here.losses = {name: losses[name][step] for name in NAMES}
            dwa.after_step(here)


def test_uncertainties_learn_without_decay():
    """It would pull the weights towards one."""
    balancer = Uncertainty(lr=0.025)
    balancer.prepare(TASKS)
    (group,) = balancer.parameter_groups()
    assert (group["weight_decay"], group["lr"]) == (0.0, 0.025)
    assert len(list(group["params"])) == 3
    (group,) = Uncertainty().parameter_groups()
    assert "lr" not in group
    defaults = {setting.name: setting.default for setting in settings_of(Uncertainty)}
    assert defaults == {"form": "kendall", "initial": 0.0, "lr": None}


FORMS = {
    "mtan_half_exp": "kendall",
    "mtml_exp": "mtml",
    "samsung_exp_half_reg": "half-log",
    "revised_log1p_sigma2": "revised",
}


@pytest.mark.parametrize("published", FORMS)
def test_uncertainty_in_its_published_forms(golden, published):
    case = golden("balancers.json")["uncertainty"]
    expected = next(form for form in case["forms"] if form["form"] == published)
    balancer = Uncertainty(form=FORMS[published])
    balancer.prepare(TASKS)
    balancer.double()
    with torch.no_grad():
        for task, s in zip(TASKS, case["s"], strict=True):
            balancer.log_variance[task.key].fill_(s)
    losses = {
        name: torch.tensor(x, dtype=torch.float64, requires_grad=True)
        for name, x in zip(NAMES, case["losses"], strict=True)
    }
    total = sum(balancer.transform(losses, context()).values())
    total.backward()
    assert float(total.detach()) == pytest.approx(expected["total"], rel=1e-12)
    slopes = [float(balancer.log_variance[task.key].grad) for task in TASKS]
    assert slopes == pytest.approx(expected["grad_s"], rel=1e-12)
    weights = [float(losses[name].grad) for name in NAMES]
    assert weights == pytest.approx(expected["loss_weight"], rel=1e-12)
    shown = [balancer.current_weights()[name] for name in NAMES]
    assert shown == pytest.approx(expected["loss_weight"], rel=1e-12)


def test_the_paper_halves_the_losses_of_measured_tasks_only():
    """Eq. 10 of Kendall et al.: L / (2 sigma^2) for regression, L / sigma^2 for classification."""
    measured = ("depth", "inverse-depth", "normals", "regression", "unheard-of")
    classes = ("segmentation", "classification", "edges", "saliency", "multilabel")
    names = [f"t{i}" for i in range(len(measured + classes))]
    tasks = [
        Task(name=name, kind=kind, channels=3)
        for name, kind in zip(names, measured + classes, strict=True)
    ]
    balancer = Uncertainty(form="by-kind")
    balancer.prepare(tasks)
    balancer.double()
    values = torch.linspace(0.5, 2.0, len(tasks), dtype=torch.float64)
    sigmas = torch.linspace(0.3, 3.0, len(tasks), dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        for task, sigma in zip(tasks, sigmas, strict=True):
            balancer.log_variance[task.key].copy_(2 * sigma.log())
    here = BalancerContext(tasks=tuple(names), present=tuple(names))
    total = sum(balancer.transform(dict(zip(names, values, strict=True)), here).values())
    halves = torch.tensor([0.5] * len(measured) + [1.0] * len(classes), dtype=torch.float64)
    expected = (halves * values / sigmas**2 + sigmas.log()).sum()
    torch.testing.assert_close(total.detach(), expected.detach())
    total.backward()
    (slopes,) = torch.autograd.grad(expected, sigmas)
    found = torch.stack([balancer.log_variance[task.key].grad for task in tasks])
    torch.testing.assert_close(found, (slopes * sigmas / 2).detach())  # ds = 2 dsigma / sigma
    shown = [balancer.current_weights()[name] for name in names]
    assert shown == pytest.approx((halves / sigmas**2).tolist(), rel=1e-12)


def test_unit_norm_adds_unit_gradients():
    rows = torch.tensor([[3.0, 4.0], [0.0, -1e-3], [0.0, 0.0]], dtype=torch.float64)
    balancer = UnitNorm()
    weights = balancer.weights(rows @ rows.T)
    assert weights.tolist() == pytest.approx([0.2, 1e3, 0.0])
    assert (weights @ rows).tolist() == pytest.approx([0.6, -0.2])
    assert balancer.status == "degenerate"  # the third task has no gradient
    balancer.weights(rows[:2] @ rows[:2].T)
    assert balancer.status == "converged"
