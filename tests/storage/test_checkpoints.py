"""Checkpoints: what is read equals what was written, or nothing was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mtlcore.errors import MtlError
from mtlcore.storage import load_checkpoint, save_checkpoint


def test_a_nested_state_comes_back_as_it_was(tmp_path: Path) -> None:
    tied = torch.randn(3, 4)
    state = {
        "weights": {"a": tied, "b": tied, "view": tied.T, "half": tied.bfloat16()},
        "numbers": [1, 2.5, -0.0, float("inf"), True, None, "text"],
        "by number": {0: {"step": torch.tensor(3.0)}, 1: (1, (2, 3))},
        "$odd": {"$tensor": "not a tensor"},
        "empty": [{}, [], (), torch.empty(0, 3)],
    }
    save_checkpoint(tmp_path / "x.safetensors", state)
    back = load_checkpoint(tmp_path / "x.safetensors")
    for name, tensor in state["weights"].items():
        assert torch.equal(back["weights"][name], tensor)
        assert back["weights"][name].dtype == tensor.dtype
    assert back["numbers"] == state["numbers"]
    assert torch.equal(back["by number"][0]["step"], torch.tensor(3.0))
    assert back["by number"][1] == (1, (2, 3))
    assert back["$odd"] == state["$odd"]
    assert back["empty"][:3] == [{}, [], ()]
    assert back["empty"][3].shape == (0, 3)


def test_what_cannot_be_held_is_named_and_the_old_file_stays(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_checkpoint(file, {"step": 1})
    with pytest.raises(MtlError, match="function"):
        save_checkpoint(file, {"balancer": {"solver": print}})
    assert load_checkpoint(file) == {"step": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.safetensors"
    save_checkpoint(file, {"step": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mtlcore.storage.checkpoints._flush", full)
    with pytest.raises(MtlError, match=r"No space left .* the last one is untouched"):
        save_checkpoint(file, {"step": 2})
    assert load_checkpoint(file) == {"step": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MtlError, match=r"gone\.safetensors"):
        load_checkpoint(tmp_path / "gone.safetensors")
