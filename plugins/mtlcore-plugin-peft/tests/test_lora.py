"""Adapters keep the contract of backbones, begin as nothing, and are merged into weights."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtlcore.errors import ConfigError, UsageError
from mtlcore.models import Backbone, count_parameters
from mtlcore.standard.mlp import MLP
from mtlcore.standard.resnet import ResNet
from mtlcore.standard.segnet import SegNet
from mtlcore.testing import TINY_TASKS, BackboneContract, tiny_batch, tiny_learner
from mtlcore_peft.lora import LoRA

#: Inner settings of a small ResNet; 32 images of 64 pixels have maps of 2 and more.
SMALL = partial(ResNet, depth=18, width=0.125, pyramid=True)
NAMES = [task.name for task in TINY_TASKS]


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def made(inner: Any = SMALL, **settings: Any) -> LoRA:
    return LoRA(TINY_TASKS, **{"backbone": inner, "rank": 2, **settings})


def trained(backbone: LoRA) -> LoRA:
    """With adapters that change something."""
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return backbone


class TestAdapterOfAll(BackboneContract):
    def make(self, tasks):
        return LoRA(tasks, backbone=SMALL, rank=2, dropout=0.1)


class TestAdapterPerTask(BackboneContract):
    def make(self, tasks):
        return LoRA(tasks, backbone=SMALL, rank=2, per_task=True, targets=("conv2",))


class TestDecoderInside(BackboneContract):
    def make(self, tasks):
        return LoRA(tasks, backbone=partial(SegNet, width=0.03125), rank=2, per_task=True)


class TestVectors(BackboneContract):
    def make(self, tasks):
        return LoRA(tasks, backbone=partial(MLP, inputs=5, hidden=(8, 6)), rank=2)

    def inputs(self, backbone: Backbone, batch: int = 2) -> Tensor:
        return torch.randn(batch, 5)


@pytest.mark.parametrize("per_task", [False, True])
def test_it_begins_as_the_backbone_inside(per_task: bool) -> None:
    backbone = made(per_task=per_task)
    torch.manual_seed(0)
    plain = SMALL(TINY_TASKS).eval()
    backbone.eval()
    images = torch.rand(2, 3, 32, 64)
    with torch.no_grad():
        expected, found = plain(images, NAMES), backbone(images, NAMES)
    for name in NAMES:
        assert all(map(torch.equal, expected.of(name), found.of(name)))


def test_adapters_alone_learn_and_are_counted() -> None:
    one, each = made(targets=("layer1.0.conv1",)), made(targets=("layer1.0.conv1",), per_task=True)
    # Of 8 by 8 channels and 3x3: A has rank 2 x 8 x 9 values, B 8 x rank 2.
    expected = 2 * 8 * 9 + 8 * 2
    learning = {n: p for n, p in one.named_parameters() if p.requires_grad}
    assert count_parameters(learning.values()) == expected
    assert {n.split(".")[-3] for n in learning} == {"lora_A", "lora_B"}
    for task in NAMES:
        assert count_parameters(each.task_parameters(task)) == expected
    shared = {id(p) for p in each.parameters()} - {
        id(p) for task in NAMES for p in each.task_parameters(task)
    }
    assert not any(p.requires_grad for p in each.parameters() if id(p) in shared)


def test_what_is_no_encoder_learns() -> None:
    backbone = made(partial(SegNet, width=0.03125))
    learning = {n.split(".")[1] for n, p in backbone.named_parameters() if p.requires_grad}
    assert learning == {"encoder", "decoder"}
    encoder = [n for n, p in backbone.backbone.encoder.named_parameters() if p.requires_grad]
    assert encoder and all("lora_" in name for name in encoder)
    assert all(p.requires_grad for p in backbone.backbone.decoder.parameters())


def test_the_encoder_stands_still_and_its_norm_too() -> None:
    backbone = made()
    learner = tiny_learner(backbone=lambda tasks: made())
    backbone = learner.model.backbone
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    learner.train()
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # in the first step B alone has a gradient
        optimizer.zero_grad()
        found = learner(tiny_batch(size=(32, 64)), NAMES)
        torch.stack([*found.balanced.values()]).sum().backward()
        optimizer.step()
    moved = {k for k, v in backbone.state_dict().items() if not torch.equal(v, before[k])}
    assert moved and all("lora_" in name for name in moved)


def test_adapters_of_tasks_do_not_see_one_another() -> None:
    backbone = trained(made(per_task=True)).eval()
    images = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        first = backbone(images, NAMES)
        for parameter in backbone.task_parameters("depth"):
            parameter.mul_(2)
        second = backbone(images, list(reversed(NAMES)))
    same = [torch.equal(first.of(n)[0], second.of(n)[0]) for n in NAMES]
    assert same == [name != "depth" for name in NAMES]
    assert not torch.equal(first.of(NAMES[0])[0], first.of(NAMES[1])[0])


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_merged_computes_the_same(options: dict[str, Any]) -> None:
    backbone = trained(made(options=options)).eval()
    images = torch.rand(1, 3, 32, 64)
    merged = backbone.merged()
    with torch.no_grad():
        before, after = backbone(images, NAMES).shared, merged(images, NAMES).shared
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert set(merged.state_dict()) == set(SMALL(TINY_TASKS).state_dict())
    plain = SMALL(TINY_TASKS)
    plain.load_state_dict(merged.state_dict())
    assert any("lora_" in name for name in backbone.state_dict())  # itself it is as it was


def test_merged_is_of_one_task() -> None:
    backbone = trained(made(per_task=True)).eval()
    images = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        expected = backbone(images, ["depth"]).of("depth")
        found = backbone.merged("depth")(images, ["depth"]).of("depth")
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    with pytest.raises(UsageError, match="each task has an adapter; name one of segmentation"):
        backbone.merged()


def test_balancers_compare_at_the_last_adapter() -> None:
    last = list(made().last_shared_parameters())
    assert len(last) == 2 and all(p.requires_grad for p in last)
    assert not list(made(per_task=True).last_shared_parameters())


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        ({"targets": ("conv3",)}, UsageError, r"ends in 'conv3'; did you mean 'conv2'"),
        ({"targets": ("bn1",)}, UsageError, r"targets: no layer .* ends in 'bn1'"),
        ({"targets": ()}, UsageError, r"targets: names no layer"),
        ({"options": {"rank": 3}}, ConfigError, r"options\.rank: no field of LoraConfig"),
        ({"options": {"r": 3}}, ConfigError, r"options\.r: set model\.backbone\.rank instead"),
        ({"options": {"use_dara": True}}, ConfigError, r"did you mean 'use_dora'"),
        ({"options": {"modules_to_save": ["x"]}}, ConfigError, r"modules_to_save: no field"),
        ({"options": {"bias": "some"}}, UsageError, r"options: peft refuses them"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], error: Any, told: str) -> None:
    with pytest.raises(error, match=told):
        made(**settings)


class Again(nn.Identity):
    """Says that it is computed again, as networks of timm and transformers do."""

    grad_checkpointing = True


def test_layers_that_are_computed_again_have_one_adapter() -> None:
    def inner(tasks):
        network = SMALL(tasks)
        network.again = Again()
        return network

    assert made(inner).backbone.again.grad_checkpointing
    with pytest.raises(UsageError, match="per_task: gradient checkpointing computes layers again"):
        made(inner, per_task=True)


# Runs

OPTIONS = [
    "--set=data.train=6", "--set=data.val=2", "--set=data.size=64x32", "--set=data.workers=0",
    "--set=training.epochs=2", "--set=training.batch_size=3", "--set=device=cpu",
    "--set=tasks=['segmentation','depth']", "--set=model.backbone.name=lora",
    "--set=model.backbone.rank=2", "--set=model.backbone.backbone.name=resnet",
    "--set=model.backbone.backbone.depth=18", "--set=model.backbone.backbone.width=0.0625",
]  # fmt: skip


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pth"
    torch.save(ResNet(TINY_TASKS, depth=18, width=0.0625).state_dict(), path)
    return path


def test_a_run_resumes_is_judged_and_adapted_without_the_file(
    mtl: Any, weights: Path, tmp_path: Path
) -> None:
    options = [*OPTIONS, "--set=model.backbone.per_task=true",
               f"--set=model.backbone.backbone.weights={weights}"]  # fmt: skip
    out = tmp_path / "run"
    done = mtl("run", *options, f"--out={out}")
    assert done.exit_code == 0, done.output
    about = json.loads((out / "run.json").read_text())["backbone"]
    assert about["weights"] == str(weights) and "for each task" in about["adapters"]
    summary = json.loads((out / "summary.json").read_text())
    parameters = summary["parameters"]
    assert 0 < parameters["trainable"] < parameters["total"] / 2
    weights.unlink()
    judged = mtl("eval", str(out))
    assert judged.exit_code == 0, judged.output
    joined = mtl("adapt", str(out), "--tasks=normals", "--train=heads", "--set=training.steps=2",
                 f"--out={tmp_path / 'more'}")  # fmt: skip
    assert joined.exit_code == 0, joined.output
    before, after = (state_of(place) for place in (out, tmp_path / "more"))
    moved = {k for k, v in before.items() if not torch.equal(v, after[k])}
    assert not moved, "what was learnt before changed"
    new = {k for k in after.keys() - before.keys() if "lora_B" in k}
    assert new and all("task_normals" in k and bool(after[k].any()) for k in new)


def state_of(run: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    state = load_file(run / "checkpoints" / "last.safetensors")
    return {k: v for k, v in state.items() if "model." in k and "backbone" in k}


def test_a_balancer_of_gradients_needs_something_that_tasks_share(mtl: Any) -> None:
    shared = mtl("run", *OPTIONS, "--set=balancer.name=unit-norm", "--dry-run")
    assert shared.exit_code == 0, shared.output
    refused = mtl("run", *OPTIONS, "--set=balancer.name=unit-norm", "--dry-run",
                  "--set=model.backbone.per_task=true")  # fmt: skip
    assert refused.exit_code == 2, refused.output
    assert "frozen (model.freeze, initial.train, adapters per task)" in refused.stderr


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (
            "backbone.widht=1",
            "model.backbone.backbone.widht: unknown setting; did you mean 'width'",
        ),
        ("backbone.name=resnt", "model.backbone.backbone.name: "),
        ("ranks=1", "backbone.ranks: unknown setting; did you mean 'rank'"),
    ],
)
def test_settings_are_told_by_their_path(mtl: Any, option: str, told: str) -> None:
    done = mtl("run", *OPTIONS, f"--set=model.backbone.{option}", "--dry-run")
    assert done.exit_code == 2, done.output
    assert told in done.stderr


def test_inputs_are_those_of_the_backbone_inside(mtl: Any) -> None:
    table = mtl("run", "--set=data.name=tabular", "--set=data.root=.", "--set=data.file=x.csv",
                "--set=model.backbone.name=lora", "--set=model.backbone.backbone.name=resnet",
                "--set=data.targets.y.kind=regression",
                "--set=data.targets.y.column=y")  # fmt: skip
    assert table.exit_code == 2, table.output
    assert "reads image inputs, and the dataset 'tabular' gives" in table.stderr
