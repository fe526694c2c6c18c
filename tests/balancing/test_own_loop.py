"""`balancer.backward` in somebody's own loop: right, or refused by name with nothing written."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import mtlcore
from mtlcore import Task
from mtlcore.balancing import BalancerContext, GradientBalancer, GramianBalancer, Tentative
from mtlcore.errors import MtlError, UsageError
from mtlcore.plugins import Component, Plugins

TASKS = (
    Task(name="a", kind="regression", channels=1),
    Task(name="b", kind="classification", channels=3),
)
# What some need beside their name.
SETTINGS = {"fixed": {"weights": {"a": 2.0}}, "ira": {"main": "a"}, "sdmgrad": {"batches": 1}}


def needs_losses_alone(component: Component) -> bool:
    """Not maps, features, a last shared layer, or another batch."""
    made = component.made()
    several = made.batches > 1 and "batches" not in SETTINGS.get(component.spec.name, {})
    maps = getattr(made, "needs_maps", False)
    return not (maps or several or made.validation or getattr(made, "scope", "shared") != "shared")


# One scan for all tests: `mtlcore.create` makes one each time.
PLUGINS = Plugins()
NAMES = sorted(c.spec.name for c in PLUGINS.all("balancers") if needs_losses_alone(c))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
        self.heads = nn.ModuleDict({"a": nn.Linear(16, 1), "b": nn.Linear(16, 3)})

    def losses(self, inputs=None, trunk=None) -> dict[str, Tensor]:
        drawn = torch.Generator().manual_seed(1)
        x = torch.randn(6, 8, generator=drawn) if inputs is None else inputs
        y = torch.randn(6, 1, generator=drawn)
        features = (trunk or self.trunk)(x)
        return {
            "a": F.l1_loss(self.heads["a"](features), y),
            "b": F.cross_entropy(self.heads["b"](features), torch.tensor([0, 1, 2, 0, 1, 2])),
        }


def unprepared(name: str):
    return PLUGINS.get("balancers", name).load()(**SETTINGS.get(name, {}))


def make(name: str):
    balancer = unprepared(name)
    balancer.generator = torch.Generator().manual_seed(0)
    balancer.prepare(TASKS)
    return balancer


def gradients(*modules: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for m in modules for p in m.parameters()]


def same(first, second) -> bool:
    return all(
        (a is None) == (b is None) and (a is None or torch.allclose(a, b, rtol=1e-5, atol=1e-7))
        for a, b in zip(first, second, strict=True)
    )


class Strange(GradientBalancer):
    """Somebody's own; proposes a state in the step that makes it."""

    def __init__(self, granularity="whole", scope="shared"):
        super().__init__()
        self.granularity, self.scope = granularity, scope
        self.state = Tentative()

    def combine(self, rows, context=None):
        self.state.propose("mean", rows.mean(0))
        return rows.sum(0)

    def after_step(self, context):
        self.state.commit()


@pytest.fixture(params=[*NAMES, "own"])
def balancer(request: pytest.FixtureRequest):
    return Strange() if request.param == "own" else make(request.param)


def test_losses_that_are_no_losses_are_named_and_nothing_is_written(balancer) -> None:
    for wrong in (None, 0.0, float("nan"), torch.tensor(0.0), "detached", "map", "complex"):
        net = Net()
        losses = net.losses()
        losses["b"] = {
            "detached": losses["b"].detach(),
            "map": losses["b"] * torch.ones(2),
            "complex": losses["b"] * 1j,
        }.get(wrong, wrong) if isinstance(wrong, str) else wrong  # fmt: skip
        with pytest.raises(UsageError, match="loss of 'b'"):
            balancer.backward(losses, net.trunk.parameters())
        assert all(g is None for g in gradients(net, balancer))


def broken(net: Net, how: str) -> dict[str, Tensor]:
    losses = net.losses()
    if how == "loss":  # cross-entropy over no element
        scores = net.heads["b"](net.trunk(torch.ones(1, 8)))
        return {**losses, "b": F.cross_entropy(scores, torch.tensor([-100]), ignore_index=-100)}
    if how == "infinite":
        return {**losses, "b": losses["b"] * torch.inf}
    if how == "head":  # its gradient alone is infinite, not that of what is shared
        return {**losses, "b": losses["b"] + (net.heads["b"].weight * 0).abs().sqrt().sum()}
    # Finite with a gradient that is not, at what is shared.
    return {**losses, "b": losses["b"] + (net.trunk[0].weight * 0).abs().sqrt().sum()}


@pytest.mark.parametrize("how", ["loss", "infinite", "shared", "head"])
def test_what_is_not_finite_is_told_and_not_written(balancer, how: str) -> None:
    net = Net()
    balancer.backward(net.losses(), net.trunk.parameters())
    before = gradients(net, balancer)
    result = balancer.backward(broken(net, how), net.trunk.parameters())
    assert result.status == "not finite"
    assert result.problem is not None
    if how in ("loss", "infinite"):
        assert result.problem.startswith("the loss of b is ")
    after = gradients(net, balancer)
    assert all(
        (a is None and b is None) or torch.equal(a, b) for a, b in zip(before, after, strict=True)
    )
    assert balancer.backward(net.losses(), net.trunk.parameters()).status != "not finite"


def test_the_task_whose_gradient_is_not_finite_is_named() -> None:
    net = Net()
    result = make("pcgrad").backward(broken(net, "shared"), net.trunk.parameters())
    assert result.problem == "the gradient of b is not finite"


def test_a_step_that_is_refused_proposes_nothing() -> None:
    net, balancer = Net(), Strange()
    balancer.backward(broken(net, "shared"), net.trunk.parameters())
    balancer.state.commit()
    assert balancer.state.get_extra_state() == {}


def test_a_batch_without_tasks_is_no_error(balancer) -> None:
    net = Net()
    assert balancer.backward({}, net.trunk.parameters()).weights == {}
    assert all(g is None for g in gradients(net, balancer))


def test_gradients_are_added_to_those_that_are_there(balancer) -> None:
    net, twice = Net(), Net()
    other = copy.deepcopy(balancer)
    other.generator = copy.deepcopy(balancer.generator)
    balancer.backward(net.losses(), net.trunk.parameters())
    before = torch.get_rng_state()
    twice.trunk[0].weight.grad = torch.ones_like(twice.trunk[0].weight)
    kept = twice.trunk[0].weight.grad
    if other.generator is not None:
        other.generator.manual_seed(0)
    other.backward(twice.losses(), twice.trunk.parameters())
    assert twice.trunk[0].weight.grad is kept
    torch.set_rng_state(before)
    assert torch.allclose(kept, net.trunk[0].weight.grad + 1, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_balancer_that_was_not_prepared_says_so(name: str) -> None:
    net = Net()
    balancer = unprepared(name)
    if type(balancer).prepare is mtlcore.balancing.Balancer.prepare:
        balancer.backward(net.losses(), net.trunk.parameters())
        return
    with pytest.raises(UsageError, match=r"does not know the task 'a'; call balancer\.prepare"):
        balancer.backward(net.losses(), net.trunk.parameters())
    balancer.prepare(TASKS[:1])
    with pytest.raises(UsageError, match="'b'"):
        balancer.backward(net.losses(), net.trunk.parameters())
    assert all(g is None for g in gradients(net, balancer))


def test_ira_says_what_it_lacks() -> None:
    net = Net()
    for prepare, told in (
        (lambda _: None, r"IRA does not know the task 'a'; call balancer\.prepare"),
        (lambda b: b.prepare(TASKS), "b cannot be auxiliary to a"),
    ):
        balancer = mtlcore.create("balancers", "ira", main="a", auxiliary=("b",))
        with pytest.raises(MtlError, match=told):
            prepare(balancer)
            balancer.backward(net.losses(), net.trunk.parameters())
        assert all(g is None for g in gradients(net))


def test_an_input_that_requires_gradients_is_no_parameter(balancer) -> None:
    plain, net = Net(), Net()
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
    other = copy.deepcopy(balancer)
    other.generator = None if balancer.generator is None else torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    balancer.backward(plain.losses(x), plain.trunk.parameters())
    torch.manual_seed(0)
    learning = x.clone().requires_grad_()
    other.backward(net.losses(learning), net.trunk.parameters())
    assert same(gradients(net), gradients(plain))
    # As after `backward` of the sum of what is balanced: of the losses, for rows.
    if isinstance(balancer, GradientBalancer | GramianBalancer):
        expected = torch.autograd.grad(sum(net.losses(learning).values()), learning)[0]
        torch.testing.assert_close(learning.grad, expected)
    else:
        assert learning.grad is not None


def test_a_parameter_that_is_left_out_is_still_an_error() -> None:
    net = Net()
    with pytest.raises(UsageError, match="not in `shared_params`"):
        make("pcgrad").backward(net.losses(), net.trunk[0].parameters())


@pytest.mark.parametrize("wrong", ["module", "named", "computed"])
def test_what_is_no_parameter_is_named(wrong: str) -> None:
    net = Net()
    given = {
        "module": net.trunk,
        "named": net.trunk.named_parameters(),
        "computed": [net.trunk[0].weight * 2],
    }[wrong]
    with pytest.raises(UsageError, match="shared_params holds"):
        make("pcgrad").backward(net.losses(), given)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["not reentrant", "reentrant", "reentrant from the input"])
def test_checkpoints_are_right_or_refused(name: str, how: str) -> None:
    plain, net = Net(), Net()
    torch.manual_seed(5)
    make(name).backward(plain.losses(), plain.trunk.parameters())
    x = None
    reentrant = how != "not reentrant"

    def trunk(inputs: Tensor) -> Tensor:
        first = 0 if how.endswith("input") else 2
        return checkpoint(net.trunk[first:], net.trunk[:first](inputs), use_reentrant=reentrant)

    if how.endswith("input"):  # as torch's documentation has it for reentrant ones
        x = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    balancer = make(name)
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = net.losses(x, trunk)
    if reentrant and isinstance(balancer, GradientBalancer | GramianBalancer):
        with pytest.raises(UsageError, match="use_reentrant=False"):
            balancer.backward(losses, net.trunk.parameters())
        assert all(g is None for g in gradients(net))
    else:
        balancer.backward(losses, net.trunk.parameters())
        if x is None:
            assert same(gradients(net), gradients(plain))
        else:
            assert all(g is not None for g in gradients(net))


def test_sparse_gradients_are_added_or_refused() -> None:
    table = nn.Embedding(5, 4, sparse=True)
    heads = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])

    def losses() -> dict[str, Tensor]:
        features = table(torch.tensor([0, 3]))
        return {t: head(features).square().mean() for t, head in zip("ab", heads, strict=True)}

    for _ in range(2):
        make("uncertainty").backward(losses(), table.parameters())
    found = table.weight.grad.to_dense()
    table.weight.grad = None
    for _ in range(2):
        (0.5 * sum(losses().values())).backward()
    torch.testing.assert_close(found, table.weight.grad.to_dense())
    table.weight.grad = None
    for balancer in (make("pcgrad"), Strange()):
        with pytest.raises(UsageError, match=r"shape \(5, 4\) is sparse"):
            balancer.backward(losses(), table.parameters())
    assert table.weight.grad is None


class Complex(nn.Module):
    """A complex weight between real ones of odd size; as one of pairs of numbers, if asked."""

    def __init__(self, size: int, pairs: bool) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(3, generator=drawn))
        values = torch.randn(3, size, 2, generator=drawn)
        self.weight = nn.Parameter(values if pairs else torch.view_as_complex(values))
        self.heads = nn.ParameterList(
            nn.Parameter(v if pairs else torch.view_as_complex(v))
            for v in torch.randn(2, size, 2, generator=drawn)
        )

    def losses(self) -> dict[str, Tensor]:
        weight, *heads = (
            x if x.is_complex() else torch.view_as_complex(x) for x in (self.weight, *self.heads)
        )
        features = (self.first.to(weight.dtype) @ weight).conj()
        return {
            task: ((features * head).sum() - shift).abs()
            for task, head, shift in zip("ab", heads, (1, 2 + 3j), strict=True)
        }


@pytest.mark.parametrize("size", [5, 2**16 + 1])  # rows in a buffer; rows as autograd gave them
@pytest.mark.parametrize("name", ["equal", "pcgrad", "nash-mtl", "whole", "parameter", "element"])
def test_complex_parameters_count_as_pairs_of_real_ones(name: str, size: int) -> None:
    found, results = [], []
    for pairs in (False, True):
        net = Complex(size, pairs)
        balancer = Strange(name) if name in ("whole", "parameter", "element") else make(name)
        results.append(balancer.backward(net.losses(), [net.first, net.weight]))
        grads = [p.grad for p in net.parameters()]
        found.append([torch.view_as_real(g) if g.is_complex() else g for g in grads])
    assert results[0].weights == pytest.approx(results[1].weights, rel=1e-4)
    for complex_one, real in zip(*found, strict=True):
        torch.testing.assert_close(complex_one, real, rtol=1e-4, atol=1e-4)


def test_losses_of_one_element_or_of_two_types_are_scalars(balancer) -> None:
    net = Net()
    losses = net.losses()
    shaped = {"a": losses["a"].double(), "b": losses["b"].reshape(1)}
    assert balancer.backward(shaped, net.trunk.parameters()).status != "not finite"
    assert all(g is not None for g in gradients(net))


def test_features_that_nothing_learns_from_are_an_error() -> None:
    net, balancer = Net(), Strange(scope="features")
    for features in ((), (torch.zeros(3),)):
        with pytest.raises(UsageError, match="'features' compares"):
            balancer.backward(net.losses(), net.trunk.parameters(), features=features)


def test_a_context_of_the_callers_is_filled_in(balancer) -> None:
    net, context = Net(), BalancerContext(tasks=("a", "b"))
    losses = net.losses()
    balancer.backward(losses, net.trunk.parameters(), context)
    assert context.present == ("a", "b")
    assert context.losses == pytest.approx({t: float(x.detach()) for t, x in losses.items()})


def test_the_former_name_of_the_shared_parameters_still_works() -> None:
    net, old = Net(), Net()
    make("nash-mtl").backward(net.losses(), net.trunk.parameters())
    with pytest.warns(DeprecationWarning, match="shared_params"):
        make("nash-mtl").backward(old.losses(), shared=old.trunk.parameters())
    assert same(gradients(net), gradients(old))


@pytest.mark.parametrize("name", NAMES)
def test_several_processes_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, balancer = Net(), make(name)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(UsageError, match="2 processes train together"):
        balancer.backward(net.losses(), net.trunk.parameters())
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    balancer.backward(net.losses(), net.trunk.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_a_compiled_function_of_several_losses_is_refused_by_name() -> None:
    net = Net()
    compiled = torch.compile(net.losses, backend="aot_eager")
    with pytest.raises(UsageError, match="compile the trunk and each head by themselves"):
        make("pcgrad").backward(compiled(), net.trunk.parameters())
    make("equal").backward(compiled(), net.trunk.parameters())
    plain = Net()
    make("equal").backward(plain.losses(), plain.trunk.parameters())
    assert same(gradients(net), gradients(plain))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
@pytest.mark.parametrize("scope", ["shared", "features"])
def test_a_compiled_trunk_is_refused_or_right(scope: str) -> None:
    """With inductor and its caches a second pass may be wrong; this backend is always right."""
    from torch._functorch import config as autograd
    from torch._inductor import config as inductor

    plain, net = Net(), Net()
    Strange().backward(plain.losses(), plain.trunk.parameters())
    compiled, features = torch.compile(net.trunk, backend="aot_eager"), []

    def trunk(x: Tensor) -> Tensor:
        features.append(compiled(x))
        return features[-1]

    def balance() -> None:
        features.clear()
        losses = net.losses(trunk=trunk)
        Strange(scope=scope).backward(losses, net.trunk.parameters(), features=features)

    if scope == "shared":
        for donated, caches in ((True, False), (False, False), (True, True)):
            with (
                autograd.patch(donated_buffer=donated),
                inductor.patch(force_disable_caches=caches),
                pytest.raises(UsageError, match="one per task"),
            ):
                balance()
        assert all(g is None for g in gradients(net))
        with autograd.patch(donated_buffer=False), inductor.patch(force_disable_caches=True):
            balance()
    else:
        balance()
    assert same(gradients(net), gradients(plain))
