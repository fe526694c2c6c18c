"""The examples of texts: their settings fit their rows, and the real corpora are learnt."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtlcore.data import collate
from mtlcore.datasets.table_encoding import Target
from mtlcore_transformers.texts import Texts

EXAMPLES = Path(__file__).parents[3] / "examples"
ROWS = {
    "movies": [
        {
            "text": "Rain", "rating": 6.4, "minutes": 71, "mpaa": None, "short": 0, "drama": 1,
            **dict.fromkeys(("action", "animation", "comedy", "documentary", "romance"), 0),
        },
        {
            "text": "A Day", "rating": 8.2, "minutes": 7, "mpaa": "PG-13", "short": None,
            **dict.fromkeys(
                ("drama", "action", "animation", "comedy", "documentary", "romance"), None
            ),
        },
    ],
    "brown": [
        {"text": ["The", "jury"], "tags": ["determiner", "noun"], "genre": "reportage"},
        {"text": ["Said", "."], "tags": ["verb", "punctuation"], "genre": "humor"},
    ],
}  # fmt: skip
COUNTS = {
    "movies": {"genres": 7, "rating": 2, "length": 2, "mpaa": 1},
    "brown": {"tags": 4, "genre": 2},
}


@pytest.mark.parametrize("name", ROWS)
def test_an_example_reads_its_rows(name: str, tmp_path: Path) -> None:
    """Of a film without any genre none is known."""
    example = tomllib.loads((EXAMPLES / f"{name}.toml").read_text())["data"]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, ROWS[name])))
    targets = {
        task: Target(**{k: tuple(v) if isinstance(v, list) else v for k, v in table.items()})
        for task, table in example["targets"].items()
    }
    dataset = Texts(str(tmp_path), "train", file=example["file"], targets=targets)
    batch = collate(
        [dataset[0], dataset[1]], Texts.describe(None, targets=targets), dataset.collate_inputs
    )
    assert batch.count == COUNTS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_real_corpus_is_learnt(
    name: str,
    real_data: Callable[[str], Path],
    packaged_weights: Callable[[str], Path],
    mtl: Any,
    tmp_path: Path,
) -> None:
    """With a fifth of the example's texts; tools/text_corpora.py writes the corpora."""
    encoder = packaged_weights("minilm")
    settings = {
        "data.root": real_data(name), "data.tokenizer": encoder, "model.backbone.model": encoder,
        "data.train": 400, "data.val": 100, "data.workers": 0, "training.epochs": 3,
    }  # fmt: skip
    given = [f"--set={key}={value}" for key, value in settings.items()]
    done = mtl("run", str(EXAMPLES / f"{name}.toml"), *given, "--out", str(tmp_path / "run"))
    assert done.exit_code == 0, done.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    found, constant = summary["final"]["val"], summary["constants"]["global"]
    if name == "movies":
        assert found["genres"]["macro_auc"] > 0.54
        assert found["mpaa"]["macro_f1"] >= 0
    else:
        assert found["tags"]["accuracy"] > constant["tags"]["accuracy"] + 0.3
        assert found["genre"]["macro_f1"] > constant["genre"]["macro_f1"]
