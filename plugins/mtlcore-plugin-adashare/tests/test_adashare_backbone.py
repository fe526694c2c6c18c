"""What every backbone keeps, the equations of blocks and terms, and the phases."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from mtlcore.errors import UsageError
from mtlcore.models import Backbone
from mtlcore.standard.resnet import ResNet
from mtlcore.standard.unet import UNet
from mtlcore.tasks import Task
from mtlcore.testing import TINY_TASKS, BackboneContract
from mtlcore_adashare.backbone import AdaShare

NAMES = [task.name for task in TINY_TASKS]
KEYS = [task.key for task in TINY_TASKS]
RESNET = partial(ResNet, depth=18, width=1 / 8)
BLOCKS = [f"encoder.layer{stage}.{place}" for stage in (1, 2, 3, 4) for place in (0, 1)]


@pytest.fixture(autouse=True)
def _a_seed() -> None:
    torch.manual_seed(0)


class TestAdaShare(BackboneContract):
    # Only terms and drawn passes reach policies, from some point on.
    unreached = tuple(f"{block}.own." for block in BLOCKS)

    def make(self, tasks: Sequence[Task]) -> Backbone:
        return AdaShare(tasks, encoder=RESNET)


def searching(**settings: object) -> AdaShare:
    return AdaShare(TINY_TASKS, encoder=RESNET, warmup=0.0, curriculum=0.0, **settings)


def set_logits(backbone: AdaShare, task: str, rows: Sequence[Sequence[float]]) -> None:
    for block, row in zip(backbone.blocks(), rows, strict=True):
        with torch.no_grad():
            block.policy(task).copy_(torch.tensor(row))


@pytest.mark.parametrize("place", [0, 1], ids=["with a shortcut", "without"])
def test_a_drawn_block_mixes_its_map_and_its_shortcuts(place: int) -> None:
    backbone = searching(search=1.0).eval()
    plain = RESNET(TINY_TASKS).eval()
    block, reference = backbone.encoder.layer2[place], plain.layer2[place]
    state = block.shared.state_dict()
    reference.load_state_dict(
        {n.replace("downsample.inner", "downsample"): x for n, x in state.items()}
    )
    backbone.at_progress(0.5)  # heat .316, all blocks, not the policies' step
    backbone.at_progress(0.5)
    block.train()  # draws; its parts stay in evaluation
    for part in (block.shared, *block.shared.modules()):
        part.training = False
    x = torch.randn(2, 8 if place == 0 else 16, 6, 8)
    block.enter(KEYS[1])
    torch.manual_seed(3)
    found = block(x)
    torch.manual_seed(3)
    gumbel = -torch.empty(2).exponential_().log()
    run, skip = ((block.policy(KEYS[1]) + gumbel) / backbone._search.heat).softmax(0)
    past = x if reference.downsample is None else reference.downsample(x)
    torch.testing.assert_close(found, run * reference(x) + skip * past)


def test_the_temperature_and_the_curriculum() -> None:
    """Of 8 blocks the last one first, one more in equal times; .965 after every hundredth of it."""
    backbone = AdaShare(
        TINY_TASKS, encoder=RESNET, search=0.8, warmup=0.25, curriculum=0.5, cold=5 * 0.965**100
    )
    search = backbone._search
    backbone.at_progress(0.19)
    assert search.active == 0
    for part, heat, active in ((0.0, 5.0, 1), (0.36, 5 * 0.965**36, 6), (0.9, 5 * 0.965**90, 8)):
        backbone.at_progress(0.2 + 0.6 * part + 1e-9)
        assert search.heat == pytest.approx(heat)
        assert search.active == active


def test_weights_and_policies_learn_in_turn() -> None:
    backbone = searching(search=1.0)
    x = torch.rand(2, 3, 64, 64)
    logits = {id(p) for p in backbone._logits()}
    for step in range(4):
        backbone.at_progress(step / 10)
        features = backbone(x, NAMES)
        loss = torch.stack([features.of(name)[0].square().sum() for name in NAMES]).sum()
        own = torch.autograd.grad(loss, backbone._logits(), allow_unused=True)
        if step % 2:  # the policies'
            assert {id(p) for p in backbone.learn_alone()} == logits
            assert set(features.terms) == {"sparsity", "sharing"}
            assert all(gradient is not None for gradient in own)
        else:
            assert not list(backbone.learn_alone())
            assert not features.terms
            assert own == (None,) * len(own)


def test_terms_are_those_of_the_equations() -> None:
    """Sparsity of the blocks with a policy, sharing of all, the deeper the more."""
    backbone = AdaShare(TINY_TASKS, encoder=RESNET, search=1.0, warmup=0.0, curriculum=1.0)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 8, 2, generator=generator)
    for key, rows in zip(KEYS, logits, strict=True):
        set_logits(backbone, key, rows.tolist())
    backbone.at_progress(0.0)
    backbone.at_progress(0.3)
    active = backbone._search.active
    assert active == 3
    terms = backbone(torch.rand(2, 3, 64, 64), NAMES[:1]).terms
    sparsity = sum(
        -float(row[1] - torch.logsumexp(row, 0)) / active for x in logits for row in x[-active:]
    )
    sharing = sum(
        (number + 1) / 8 * abs(float(logits[one, number, 0] - logits[other, number, 0]))
        for one, other in ((0, 1), (0, 2), (1, 2))
        for number in range(8)
    )
    assert terms["sparsity"].item() == pytest.approx(0.05 * sparsity, rel=1e-5)
    assert terms["sharing"].item() == pytest.approx(0.05 * sharing, rel=1e-5)


def run_alone(backbone: AdaShare, task: str, runs: Sequence[bool], x: Tensor) -> Tensor:
    """What the encoder computes of some of its blocks, put together by hand."""
    encoder = backbone.encoder
    y = (x - encoder.mean) / encoder.std
    y = encoder.maxpool(encoder.bn1(encoder.conv1(y)).relu())
    for block, run in zip(backbone.blocks(), runs, strict=True):
        shortcut = block.shared.downsample
        if run:
            y = block.shared(y)
        elif shortcut is not None:
            y = shortcut.inner(y)
    return y


def test_policies_are_drawn_once_and_the_rest_begins_anew() -> None:
    backbone = searching()
    set_logits(backbone, KEYS[0], [[30.0, 0.0]] * 8)
    set_logits(backbone, KEYS[1], [[0.0, 30.0]] * 8)
    with torch.no_grad():  # norms begin as they began
        for module in backbone.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.fill_(2.0)
                module.bias.fill_(2.0)
    before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    assert backbone.at_progress(0.49) is None
    change = backbone.at_progress(0.5)
    assert change is not None
    assert change.reset_heads
    assert change.reset_balancer
    for name, parameter in backbone.named_parameters():
        policy = ".own." in name
        assert (name in change.reset) is not policy
        assert torch.equal(parameter, before[name]) is policy, name
    assert backbone.at_progress(0.6) is None
    policies = backbone.policies()
    assert policies[NAMES[0]] == [1.0] * 8
    assert policies[NAMES[1]] == [0.0] * 8
    assert set(policies[NAMES[2]]) <= {0.0, 1.0}
    backbone.eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        features = backbone(x, NAMES)
        for name in NAMES:
            runs = [bool(run) for run in policies[name]]
            torch.testing.assert_close(features.of(name)[0], run_alone(backbone, name, runs, x))


def test_kept_policies_are_drawn_as_likely_as_they_were_learnt() -> None:
    counts = torch.zeros(8)
    for seed in range(60):
        backbone = searching()
        for key in KEYS:
            set_logits(backbone, key, [[0.0, 1.0986]] * 8)  # a quarter runs
        torch.manual_seed(seed)
        backbone.at_progress(0.5)
        counts += sum(torch.tensor(backbone.policies()[name]) for name in NAMES)
    assert counts.mean().item() / 180 == pytest.approx(0.25, abs=0.04)


def test_a_skipped_block_costs_its_shortcut_alone() -> None:
    backbone = searching().train()
    set_logits(backbone, KEYS[0], [[0.0, 30.0]] * 8)
    backbone.at_progress(0.5)
    called = []
    for block in backbone.blocks():
        block.shared.register_forward_hook(lambda *_: called.append(1))
    backbone(torch.rand(2, 3, 64, 64), NAMES[:1])
    assert not called
    shortcut = backbone.encoder.layer2[0].shared.downsample.inner[1]
    assert shortcut.num_batches_tracked == 1


def test_a_run_may_train_what_another_searched() -> None:
    first = searching(search=1.0)
    set_logits(first, KEYS[1], [[0.0, 30.0]] * 8)
    assert first.at_progress(0.999) is None
    second = searching(search=0.0)
    second.load_state_dict(first.state_dict())
    assert second.at_progress(0.0) is not None
    assert second.policies()[NAMES[1]] == [0.0] * 8
    with pytest.raises(UsageError, match=r"name that run by initial\.run"):
        searching(search=0.0).at_progress(0.0)


def test_an_evaluation_of_a_search_comes_back_with_its_state() -> None:
    """Without a step, as in `mtl eval`."""
    first = searching(search=1.0)
    set_logits(first, KEYS[0], [[0.0, 3.0]] * 8)
    first.at_progress(0.5)
    second = searching(search=1.0)
    second.load_state_dict(first.state_dict())
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        one, other = (b.eval()(x, NAMES[:1]).of(NAMES[0])[0] for b in (first, second))
        expected = run_alone(first, NAMES[0], [False] * 8, x)
    assert torch.equal(one, other)
    torch.testing.assert_close(one, expected)


def test_what_no_task_can_skip_is_refused() -> None:
    with pytest.raises(UsageError, match="UNet names no residual blocks"):
        AdaShare(TINY_TASKS, encoder=partial(UNet, width=1 / 32, decoder="none"))


def test_weights_of_a_file_are_not_lost_silently() -> None:
    class Pretrained(ResNet):
        def facts(self) -> dict[str, str]:
            return {"weights": "somewhere.safetensors"}

    pretrained = partial(Pretrained, depth=18, width=1 / 8)
    with pytest.raises(UsageError, match="weights are read of a file"):
        AdaShare(TINY_TASKS, encoder=pretrained)
    AdaShare(TINY_TASKS, encoder=pretrained, search=1.0)


def test_what_is_recorded_is_how_likely_each_task_runs_a_block() -> None:
    backbone = searching()
    set_logits(backbone, KEYS[1], [[1.0986, 0.0]] * 8)
    values = backbone.current_values()
    assert set(values) == {f"run/{number}" for number in range(8)}
    assert values["run/3"][NAMES[0]] == pytest.approx(0.5)
    assert values["run/3"][NAMES[1]] == pytest.approx(0.75, abs=1e-4)
