"""Text encoders keep the contract, average what is no padding, and read their own tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mtlcore.errors import MtlError, UsageError
from mtlcore.features import FeatureInfo
from mtlcore.tasks import Task
from mtlcore.testing import TINY_TASKS, BackboneContract
from mtlcore_transformers.library import mapping, transformers
from mtlcore_transformers.text import TransformersText

BERT: dict[str, Any] = {
    "vocab_size": 258, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 24,
}  # fmt: skip
TAGS = Task(name="tags", kind="tagging", channels=3)
T5: dict[str, Any] = {
    "vocab_size": 258, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2,
}  # fmt: skip


def made(**settings: Any) -> TransformersText:
    return TransformersText(TINY_TASKS, **{"model": "bert", "config": BERT, **settings})


def tokens(batch: int, length: int = 9) -> dict[str, torch.Tensor]:
    """The first sample is as long as it can be."""
    ids = torch.randint(1, 258, (batch, length))
    lengths = torch.tensor([length, *torch.randint(1, length, (batch - 1,)).tolist()])
    mask = torch.arange(length) < lengths[:, None]
    return {"tokens": ids * mask, "mask": mask}


class TestText(BackboneContract):
    def make(self, tasks):
        return TransformersText(tasks, model="bert", config=BERT, gradient_checkpointing=True)

    def inputs(self, backbone, batch=2):
        return tokens(batch)


class TestTextWithTags(BackboneContract):
    """Of tasks per token it gives the hidden states too, whose gradients all tasks share."""

    tasks = (*TINY_TASKS, TAGS)

    def make(self, tasks):
        return TransformersText([*tasks, TAGS], model="bert", config=BERT)

    def inputs(self, backbone, batch=2):
        return tokens(batch)


class TestEncoderOfTwo(BackboneContract):
    def make(self, tasks):
        return TransformersText(tasks, model="t5", config=T5)

    def inputs(self, backbone, batch=2):
        return tokens(batch)


def test_padding_has_no_part_in_the_mean() -> None:
    backbone = made().eval()
    inputs = tokens(3)
    with torch.no_grad():
        found = backbone(inputs, []).shared[0]
        for number, mask in enumerate(inputs["mask"]):
            ids = inputs["tokens"][number][mask][None]
            hidden = backbone.encoder(input_ids=ids).last_hidden_state
            torch.testing.assert_close(found[number], hidden[0].mean(0), rtol=1e-4, atol=1e-5)


def test_hidden_states_stand_beside_their_mean() -> None:
    backbone = TransformersText([*TINY_TASKS, TAGS], model="bert", config=BERT).eval()
    info, inputs = FeatureInfo.of(backbone), tokens(3)
    assert (info.strides, info.main_map, info.vector) == ((1, 0), 0, 1)
    with torch.no_grad():
        features = backbone(inputs, [])
    hidden, mean = features.shared
    assert hidden.shape == (3, 16, 9) and mean.shape == (3, 16)
    for number, mask in enumerate(inputs["mask"]):
        torch.testing.assert_close(mean[number], hidden[number][:, mask].mean(1))


def test_weights_of_a_folder_with_a_head(tmp_path: Path) -> None:
    configuration = transformers().AutoConfig.for_model("bert", **BERT)
    kind = mapping("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING")[type(configuration)]
    whole = kind(configuration)
    whole.save_pretrained(tmp_path)
    backbone = made(model=str(tmp_path), weights="pretrained", config=None)
    own = backbone.encoder.state_dict()
    assert own and all(torch.equal(v, whole.state_dict()[f"bert.{k}"]) for k, v in own.items())
    unused = backbone.facts()["weights_unused"].split(", ")
    assert unused == [
        "bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight"
    ]  # fmt: skip
    with pytest.raises(
        MtlError, match=r"are these weights of BertModel\? missing: encoder\.layer\.2"
    ):
        made(model=str(tmp_path), weights="pretrained", config={"num_hidden_layers": 3})


def test_layers_from_the_input_on() -> None:
    backbone = made()
    groups = backbone.layer_groups()
    assert len(groups) == 3 and groups[0][0] is next(backbone.encoder.parameters())
    assert all(p.requires_grad for p in backbone.parameters())  # it has no pooler


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model": "swin", "config": {}}, "swin cannot read tokens .* choose a model of texts"),
        ({"model": "dinov2", "config": {}}, "dinov2 cannot read tokens"),
    ],
)
def test_models_of_images_are_refused(settings: dict[str, Any], told: str) -> None:
    with torch.device("meta"), pytest.raises(UsageError, match=told):
        made(**settings)


def test_tokens_of_another_vocabulary_are_refused() -> None:
    backbone = made(config={**BERT, "vocab_size": 8})
    with pytest.raises(UsageError, match=r"data\.tokenizer: the texts have token \d+.* knows 8"):
        backbone(tokens(2), [])
    with pytest.raises(UsageError, match=r"data\.length: the texts have 30 tokens.* reads 24"):
        made()(tokens(2, 30), [])
