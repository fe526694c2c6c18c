"""Rotations and lengths: the paper's loss by autograd, whole steps, what is kept, and edges."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mtlcore.balancing import BalancerContext
from mtlcore.distributed import Distributed
from mtlcore.standard.segnet import SegNet
from mtlcore.testing import TINY_TASKS
from mtlcore_rotograd.backbone import RotatedBackbone
from mtlcore_rotograd.balancer import OneLength
from mtlcore_rotograd.rotations import Rotation, alignments

NAMES = tuple(task.name for task in TINY_TASKS)
F64 = torch.float64


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def rotation(channels: int, seed: int) -> Rotation:
    made = Rotation(channels).double()
    made.generator.copy_(drawn(channels, channels, seed=seed))
    return made


def test_a_rotation_keeps_lengths_angles_and_orientation() -> None:
    turn = rotation(5, 0)
    matrix = turn.matrix()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(5, dtype=F64))
    assert float(torch.linalg.det(matrix)) == pytest.approx(1)
    maps, vectors = drawn(2, 5, 3, 4, seed=1), drawn(2, 5, seed=2)
    torch.testing.assert_close(turn(maps)[1, :, 2, 3], matrix @ maps[1, :, 2, 3])
    torch.testing.assert_close(turn(vectors)[1], matrix @ vectors[1])
    assert Rotation(3)(vectors[:, :3].float()).equal(vectors[:, :3].float())


def paper_loss(
    generator: Tensor, task: int, turned: Sequence[Tensor], matrices: Sequence[Tensor]
) -> Tensor:
    """Mean over samples and places of |R v - G~|^2, with what is not R held constant."""
    lengths = [float(g.norm()) for g in turned]
    common = sum(lengths) / len(lengths)
    at_features = [
        torch.einsum("dc,bd...->bc...", r, g) for r, g in zip(matrices, turned, strict=True)
    ]
    target = torch.stack([g * common / n for g, n in zip(at_features, lengths, strict=True)])
    upper = generator.triu(1)
    matrix = torch.linalg.matrix_exp(upper - upper.mT)
    error = torch.einsum("dc,bc...->bd...", matrix, target.mean(0)) - turned[task]
    return error.square().sum(1).mean()


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 2, 5)])
def test_alignments_are_the_slope_of_the_paper_s_loss(shape: tuple[int, ...]) -> None:
    """Up to a positive factor for each task, by which Adam does not move otherwise."""
    turned = [drawn(*shape, seed=n) * 10.0**n for n in range(3)]
    rotations = [rotation(4, seed=7 + n) for n in range(3)]
    matrices = [r.matrix() for r in rotations]
    found = alignments(
        [{n: [g] for n, g in zip(NAMES, turned, strict=True)}],
        {n: [m] for n, m in zip(NAMES, matrices, strict=True)},
    )
    for number, name in enumerate(NAMES):
        generator = rotations[number].generator.clone().requires_grad_()
        loss = paper_loss(generator, number, turned, matrices)
        (expected,) = torch.autograd.grad(loss, generator)
        away = -(rotations[number].matrix(generator) * found[name][0]).sum()
        (slope,) = torch.autograd.grad(away, generator)
        torch.testing.assert_close(slope / slope.norm(), expected / expected.norm())


def test_a_turn_is_a_step_of_adam() -> None:
    turn = rotation(4, 0)
    reference = nn.Parameter(turn.generator.clone())
    adam = torch.optim.Adam([reference], lr=0.01)
    for seed in range(1, 5):
        alignment = drawn(4, 4, seed=seed)
        adam.zero_grad()
        (-(turn.matrix(reference) * alignment).sum()).backward()
        adam.step()
        turn.turn(alignment, 0.01)
        torch.testing.assert_close(turn.generator, reference.detach())


def test_it_turns_by_what_its_generator_is_now() -> None:
    """However that came there: R is computed anew where S changed, and only there."""
    turn, other = rotation(4, 0), rotation(4, 9)
    vectors = drawn(2, 4, seed=2)

    def turned_by(matrix: Tensor) -> None:
        torch.testing.assert_close(turn(vectors), vectors @ matrix.T)

    turned_by(turn.matrix())
    assert turn.current() is turn.current()
    turn.turn(drawn(4, 4, seed=3), 0.1)
    turned_by(turn.matrix())
    turn.generator.copy_(other.generator)  # as averages of weights do
    turned_by(other.matrix())
    instead = {"generator": drawn(4, 4, seed=5)}  # as MTML's inner steps do
    found = torch.func.functional_call(turn, instead, (vectors,))
    torch.testing.assert_close(found, vectors @ turn.matrix(instead["generator"]).T)
    turned_by(other.matrix())
    turn.load_state_dict(rotation(4, 6).state_dict())
    assert turn.kept.equal(rotation(4, 6).matrix())
    assert "kept" not in turn.state_dict()


def test_parts_of_a_step_and_processes_add_up() -> None:
    turned = {n: [drawn(6, 4, 2, seed=k)] for k, n in enumerate(NAMES)}
    matrices = {n: [rotation(4, seed=k).matrix()] for k, n in enumerate(NAMES)}
    parts = [{n: [g[0][a : a + 3]] for n, g in turned.items()} for a in (0, 3)]
    whole = alignments([turned], matrices)
    # One part lacks a task, as an accumulated step may.
    lame: list[Mapping[str, Sequence[Tensor | None]]] = [
        parts[0], {**parts[1], "depth": [None]}
    ]  # fmt: skip
    other = {**turned, "depth": [turned["depth"][0].clone()]}
    other["depth"][0][3:] = 0
    for found, expected in (
        (alignments(parts, matrices), whole),
        (alignments(lame, matrices), alignments([other], matrices)),
        *((found, whole) for found in in_two_processes(parts, matrices)),
    ):
        for name in NAMES:
            torch.testing.assert_close(found[name][0], expected[name][0])


def in_two_processes(
    parts: Sequence[Mapping[str, Sequence[Tensor | None]]], matrices: Mapping[str, list[Tensor]]
) -> list[dict[str, list[Tensor]]]:
    """Each rank has one part; threads stand for processes, and meet where these would."""
    barrier, board = threading.Barrier(2), dict[int, Any]()

    class Rank:
        def __init__(self, number: int) -> None:
            self.number = number

        def all_reduce_floats(self, values: Sequence[float]) -> list[float]:
            ours = torch.tensor(values, dtype=F64)
            self.all_reduce([ours])
            return list(ours.tolist())

        def all_reduce(self, tensors: Sequence[Tensor]) -> None:
            board[self.number] = [t.clone() for t in tensors]
            barrier.wait()
            for mine, theirs in zip(tensors, board[1 - self.number], strict=True):
                mine += theirs
            barrier.wait()

    found: dict[int, dict[str, list[Tensor]]] = {}

    def run(number: int) -> None:
        rank = cast(Distributed, Rank(number))
        found[number] = alignments([parts[number]], matrices, rank)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[0], found[1]]


def test_one_task_alone_has_nothing_to_agree_on() -> None:
    matrices = {n: [torch.eye(4, dtype=F64)] for n in NAMES}
    alone = {"depth": [drawn(6, 4, seed=0)], "normals": [torch.zeros(6, 4, dtype=F64)]}
    assert alignments([alone], matrices) == {}
    assert alignments([], matrices) == {}


def network(rotation_lr: float = 0.05) -> RotatedBackbone:
    torch.manual_seed(0)
    inner = partial(SegNet, width=0.0625)
    return RotatedBackbone(TINY_TASKS, backbone=inner, rotation_lr=rotation_lr).double().train()


def losses(backbone: RotatedBackbone, seed: int = 1, names: Sequence[str] = NAMES) -> list[Tensor]:
    """Heads that pull the features in directions of their own."""
    features = backbone(drawn(2, 3, 32, 32, seed=seed), names)
    found = []
    for name in names:
        x = features.of(name)[-1]
        target = drawn(x.shape[1], seed=50 + NAMES.index(name))[:, None, None]
        found.append((x * target).mean() + 0.01 * x.square().mean())
    return found


def learn(backbone: RotatedBackbone, names: Sequence[str] = NAMES) -> float:
    """One step of the rotations alone; return the mean cosine of the tasks' gradients."""
    backbone.at_progress(0.5)
    features: list[Tensor] = []
    hook = backbone.inner.register_forward_hook(lambda _m, _i, out: features.append(out.shared[-1]))
    rows = []
    values = losses(backbone, names=names)
    hook.remove()
    for loss in values:
        (row,) = torch.autograd.grad(loss, features[0], retain_graph=True)
        rows.append(row.flatten() / row.norm())
    backbone.after_step(BalancerContext(tasks=NAMES, present=tuple(names)))
    unit = torch.stack(rows)
    return float((unit @ unit.T).fill_diagonal_(0).sum() / (len(unit) * (len(unit) - 1)))


def test_gradients_are_turned_towards_one_another() -> None:
    """Opposing heads pull in one direction after some steps, and no length has changed."""
    backbone = network()
    before = learn(backbone)
    for _ in range(40):
        after = learn(backbone)
    assert before < 0.3 < 0.9 < after
    with torch.no_grad():
        inner = backbone.inner(drawn(2, 3, 32, 32, seed=1), NAMES).shared[-1]
        turned = backbone(drawn(2, 3, 32, 32, seed=1), NAMES).of("depth")[-1]
    torch.testing.assert_close(inner.norm(dim=1), turned.norm(dim=1))
    assert not torch.allclose(inner, turned)


def generators(backbone: RotatedBackbone) -> list[Tensor]:
    return [x.clone() for name, x in backbone.named_buffers() if name.endswith("generator")]


def test_steps_that_are_not_taken_leave_no_trace() -> None:
    backbone, other = network(), network()
    sum(losses(backbone, seed=9)).backward()  # and the step is skipped
    learn(backbone)
    learn(other)
    for one, two in zip(generators(backbone), generators(other), strict=True):
        assert one.equal(two)
    before = generators(backbone)
    backbone.eval()
    sum(losses(backbone)).backward()
    backbone.after_step(BalancerContext(tasks=NAMES, present=NAMES))
    assert all(a.equal(b) for a, b in zip(before, generators(backbone), strict=True))


def test_absent_tasks_keep_their_rotation() -> None:
    backbone = network()
    learn(backbone)
    before = [x.clone() for x in backbone.rotations["task_depth"].buffers()]
    learn(backbone, ("segmentation", "normals"))
    after = [*backbone.rotations["task_depth"].buffers()]
    assert all(a.equal(b) for a, b in zip(before, after, strict=True))


def test_the_scale_of_what_arrives_does_not_matter() -> None:
    """Losses in mixed precision come scaled, and nobody tells the backbone by how much."""
    found = []
    for scale in (1.0, 2.0**16):
        backbone = network()
        backbone.at_progress(0.0)
        (scale * sum(losses(backbone))).backward()
        backbone.after_step(BalancerContext(tasks=NAMES, present=NAMES))
        found.append(generators(backbone))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-15)


def test_rotations_come_back_from_a_checkpoint() -> None:
    backbone = network()
    for _ in range(3):
        learn(backbone)
    restored = network()
    restored.load_state_dict(backbone.state_dict())
    learn(backbone)
    learn(restored)
    for one, two in zip(generators(backbone), generators(restored), strict=True):
        assert one.equal(two) and bool(one.any()) == bool(two.any())


def weigh(balancer: OneLength, lengths: Sequence[float], take: bool = True) -> list[list[float]]:
    context = BalancerContext(tasks=NAMES, present=NAMES[: len(lengths)])
    rows = torch.diag(torch.tensor(lengths, dtype=F64))
    found = balancer.weights(rows @ rows, context=context)
    if take:
        balancer.after_step(context)
    return cast(list[list[float]], found.tolist())


def common(lengths: Sequence[float], first: Sequence[float]) -> float:
    falls = [a / b for a, b in zip(lengths, first, strict=True)]
    return sum(f * n for f, n in zip(falls, lengths, strict=True)) / sum(falls)


def test_all_gradients_get_the_length_of_those_that_fell_least() -> None:
    """In the first step the plain mean; after `burn_in` steps the references are new."""
    balancer = OneLength(burn_in=2)
    lengths = ([1.0, 4.0, 7.0], [0.5, 4.0, 1.0], [2.0, 2.0, 8.0], [1.0, 2.0, 2.0])
    references = (lengths[0], lengths[0], lengths[2], lengths[2])
    assert common(lengths[0], lengths[0]) == 4.0
    for now, first in zip(lengths, references, strict=True):
        weigh(balancer, [99.0, 1.0, 3.0], take=False)  # skipped: no trace
        shared, heads = weigh(balancer, now)
        found = [w * n for w, n in zip(shared, now, strict=True)]
        assert found == pytest.approx([common(now, first)] * 3, rel=1e-12)
        assert heads == [1.0, 1.0, 1.0]
    balancer.reset()
    assert weigh(balancer, lengths[1])[0] == pytest.approx([w / 0.5 * 5.5 / 3 for w in
                                                            (1.0, 0.125, 0.5)])  # fmt: skip


def test_a_task_without_gradient_counts_for_nothing() -> None:
    balancer = OneLength()
    shared, heads = weigh(balancer, [2.0, 0.0, 4.0])
    assert (shared, heads, balancer.status) == ([1.5, 0.0, 0.75], [1.0] * 3, "degenerate")
    assert weigh(balancer, [0.0, 0.0, 0.0])[0] == [0.0, 0.0, 0.0]
    shared, _ = weigh(balancer, [2.0, 5.0, 4.0])  # its first gradient is its reference
    assert balancer.status == "converged"
    assert [w * n for w, n in zip(shared, (2, 5, 4), strict=True)] == pytest.approx([11 / 3] * 3)
    without = balancer.weights(torch.diag(torch.tensor([4.0, 16.0], dtype=F64)))
    assert without[0].tolist() == [1.5, 0.75]


def test_a_run_turns_and_goes_on(
    mtl: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the balancer of lengths, with accumulation."""
    monkeypatch.chdir(tmp_path)
    small = "data.train=4 data.val=2 data.size=32x32 training.steps=2 training.batch_size=1"
    small += " training.accumulate=2 model.backbone.backbone.width=0.03125"
    result = mtl(
        "run", "--plugin", "rotograd", "--out", "r", *(f"--set={s}" for s in small.split())
    )
    assert result.exit_code == 0, result.output
    (state,) = Path("r").rglob("*last*.safetensors")
    kept = {n: x for n, x in load_file(state).items() if n.endswith("generator")}
    assert any(bool(x.any()) for x in kept.values())


def test_rotations_turn_alike_in_a_run_of_any_length() -> None:
    """It is asked before each step, and that is no phase."""
    backbone = RotatedBackbone(TINY_TASKS, backbone=partial(SegNet, width=0.03125))
    assert not backbone.has_phases
