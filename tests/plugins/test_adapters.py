"""Adapters on encoders of other plugins: transformers of images and texts, real weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtlcore import create
from mtlcore.errors import UsageError
from mtlcore.models import Backbone, count_parameters
from mtlcore.testing import TINY_TASKS

NAMES = [task.name for task in TINY_TASKS]
VIT = {"name": "timm", "model": "test_vit", "channels": 8}
BERT = {
    "name": "transformers-text",
    "model": "bert",
    "config": {
        "vocab_size": 258, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 24,
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def lora(backbone: dict[str, Any], **settings: Any) -> Backbone:
    made: Backbone = create("backbones", "lora", TINY_TASKS, backbone=backbone, rank=2, **settings)
    return made


def learning(backbone: Backbone) -> list[str]:
    return [name for name, p in backbone.named_parameters() if p.requires_grad]


def test_a_new_pyramid_learns_beside_the_adapters_of_its_transformer() -> None:
    backbone = lora(VIT, targets=("attn.qkv",))
    adapters = [n for n in learning(backbone) if "lora_" in n]
    others = {n.split(".")[1] for n in learning(backbone) if "lora_" not in n}
    assert others == {"pyramid"} and len(adapters) == 2 * 6  # of six blocks
    assert all(p.requires_grad for p in backbone.last_shared_parameters())
    groups = backbone.layer_groups()
    assert {id(p) for n, p in backbone.named_parameters() if n in adapters} <= {
        id(p) for group in groups for p in group
    }


def test_texts_have_an_adapter_per_task() -> None:
    backbone = lora(BERT, per_task=True, targets=("query", "value")).eval()
    assert backbone.input_kind == "tokens"
    inputs = {"tokens": torch.randint(1, 258, (2, 7)), "mask": torch.ones(2, 7, dtype=torch.bool)}
    with torch.no_grad():
        features = backbone(inputs, NAMES)
        plain = backbone.backbone.forward(inputs, []).shared[0]
    assert all(torch.equal(features.of(name)[0], plain) for name in NAMES)
    # Per layer two matrices of 2 x 16 and 16 x 2 each for queries and values.
    assert count_parameters(backbone.task_parameters("depth")) == 2 * 2 * 2 * 32


@pytest.mark.parametrize("inside", [VIT, {**BERT, "gradient_checkpointing": True}])
def test_layers_that_are_computed_again_have_one_adapter(inside: dict[str, Any]) -> None:
    again = {**inside, "gradient_checkpointing": True}
    assert learning(lora(again))
    with pytest.raises(UsageError, match="per_task: gradient checkpointing"):
        lora(again, per_task=True)


OPTIONS = [
    "--set=data.train=16", "--set=data.val=4", "--set=data.size=64x64", "--set=data.workers=0",
    "--set=training.batch_size=4", "--set=device=cpu", "--set=model.head.name=segformer-mlp",
    "--set=model.head.channels=32", "--set=model.backbone.name=lora",
    "--set=model.backbone.per_task=true", "--set=model.backbone.backbone.name=timm",
]  # fmt: skip


@pytest.mark.slow
def test_a_task_joins_a_pretrained_encoder_in_seconds(
    packaged_weights: Callable[[str], Path], tmp_path: Path, mtl: Any
) -> None:
    weights = f"--set=model.backbone.backbone.weights={packaged_weights('efficientnet-lite0')}"
    done = mtl("run", *OPTIONS, weights, "--set=tasks=['segmentation']", "--set=training.steps=20",
               f"--out={tmp_path / 'run'}")  # fmt: skip
    assert done.exit_code == 0, done.output
    joined = mtl("adapt", str(tmp_path / "run"), "--tasks=depth", "--train=heads",
                 "--set=training.steps=60", f"--out={tmp_path / 'more'}")  # fmt: skip
    assert joined.exit_code == 0, joined.output
    summary = json.loads((tmp_path / "more" / "summary.json").read_text())
    assert summary["seconds"] < 120
    assert 0 < summary["parameters"]["trainable"] < summary["parameters"]["total"] / 4
    before = json.loads((tmp_path / "run" / "summary.json").read_text())["final"]["val"]
    after = summary["final"]["val"]
    assert after["segmentation"]["miou"] == pytest.approx(before["segmentation"]["miou"], abs=1e-4)
    lines = map(json.loads, (tmp_path / "more" / "metrics.jsonl").read_text().splitlines())
    losses = [
        line["value"]
        for line in lines
        if (line["split"], line["task"], line["metric"]) == ("train", "depth", "loss")
    ]
    assert losses[-1] < losses[0] / 2
