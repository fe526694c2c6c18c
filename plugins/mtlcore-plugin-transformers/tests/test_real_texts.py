"""A sentence encoder that a package holds tells paraphrases, and learns two tasks with a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtlcore.datasets.table_encoding import Target
from mtlcore.testing import TINY_TASKS
from mtlcore_transformers.text import TransformersText
from mtlcore_transformers.texts import Texts

SENTENCES = (
    "What is the cheapest flight to Paris?",
    "Which airline flies to Paris for the least money?",
    "A cat is asleep on the sofa.",
    "The company's profits fell by a third this quarter.",
)


@pytest.mark.slow
def test_paraphrases_are_near_one_another(
    packaged_weights: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = str(packaged_weights("minilm"))
    lines = ["text,x", *(f'"{text}",{i}' for i, text in enumerate(SENTENCES))]
    for split in ("train", "val"):
        (tmp_path / f"{split}.csv").write_text("\n".join(lines))
    targets = {"x": Target(kind="regression", column="x")}
    data = Texts(str(tmp_path), "val", file="{split}.csv", targets=targets, tokenizer=folder)
    backbone = TransformersText(TINY_TASKS, model=folder, weights="pretrained").eval()
    inputs = data.collate_inputs([data[i].inputs for i in range(len(data))])
    with torch.no_grad():
        vectors = torch.nn.functional.normalize(backbone(inputs, []).shared[0], dim=1)
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > 0.7
    assert cosines[0, 2:].max() < 0.2 and cosines[2, 3] < 0.2
    facts = backbone.facts()
    assert facts["weights_sha256"].startswith("53aa5117") and "apache-2.0" in facts["licence"]


@pytest.mark.slow
def test_a_frozen_encoder_learns_words_that_it_has_not_seen(
    packaged_weights: Callable[[str], Path], tmp_path: Path, mtl: Any
) -> None:
    """Trained on animals and tools, whose names in the validation split are others."""
    words = {
        "train": ("cat dog horse cow sheep lion wolf tiger", "hammer saw drill chisel plane file"),
        "val": ("goat bear fox donkey", "screwdriver wrench axe pliers"),
    }
    for split, (animals, tools) in words.items():
        rows = [
            {"text": f"I saw {adjective} {word}.", "kind": kind, "size": size}
            for kind, names in (("animal", animals), ("tool", tools))
            for word in names.split()
            for adjective, size in (("a tiny", 0), ("an enormous", 1))
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    folder = packaged_weights("minilm")
    file = tmp_path / "texts.toml"
    file.write_text(f"""
[data]
name = "texts"
root = "{tmp_path}"
file = "{{split}}.jsonl"
tokenizer = "{folder}"
workers = 0
[data.targets.kind]
kind = "classification"
column = "kind"
classes = ["animal", "tool"]
[data.targets.size]
kind = "regression"
column = "size"
[model]
freeze = ["backbone"]
[model.backbone]
name = "transformers-text"
model = "{folder}"
weights = "pretrained"
[optimizer]
lr = 1e-2
[training]
epochs = 20
batch_size = 8
""")
    done = mtl("run", str(file), "--out", str(tmp_path / "run"))
    assert done.exit_code == 0, done.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["final"]["val"]["kind"]["accuracy"] >= 0.9
    assert summary["final"]["val"]["size"]["mae"] < 0.3
    assert summary["parameters"]["trainable"] == 2 * 384 + 2 + 384 + 1
