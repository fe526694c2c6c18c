"""Files of weights: state dicts are found in what programs write around them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mtlcore.errors import MtlError
from mtlcore.loading import read_weight_file

STATE = {"b.weight": torch.ones(2), "a.bias": torch.zeros(1)}


def wrapped(prefix: str) -> dict[str, Any]:
    return {prefix + key: value for key, value in STATE.items()}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model": wrapped("module."), "optimizer": {"lr": 1}},
        wrapped("module._orig_mod."),
        {"state_dict": wrapped("x."), "state_dict_ema": wrapped("_orig_mod.module.")},
    ],
)
def test_the_state_dict_is_found(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    file = read_weight_file(str(tmp_path / "w.pth"))
    assert list(file.tensors) == list(STATE)
    assert all(torch.equal(file.tensors[key], value) for key, value in STATE.items())
    assert file.ordered
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    assert file.facts == {"weights": str(tmp_path / "w.pth"), "weights_sha256": digest}


def test_a_prefix_of_some_names_is_a_name(tmp_path: Path) -> None:
    save_file({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w")
    file = read_weight_file(str(tmp_path / "w"))
    assert set(file.tensors) == {"module.a", "b"} and not file.ordered


def test_what_is_no_tensor_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": {**STATE, "note": "x"}}, tmp_path / "w.pth")
    with pytest.raises(MtlError, match=r"w\.pth: 'note' is a str, not a tensor"):
        read_weight_file(str(tmp_path / "w.pth"))
