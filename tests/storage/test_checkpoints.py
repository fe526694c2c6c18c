"""Checkpoints: what is read equals what was written, or nothing was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open

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


@pytest.mark.parametrize("sizes", [(3, 40), (3, 3)], ids=["other size", "same size"])
def test_a_checkpoint_is_read_while_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int]
) -> None:
    """By a run that goes on: header and tensors are of one file."""
    path = tmp_path / "last.safetensors"
    old, new = ({"step": step, "numbers": torch.full((n,), step)} for step, n in enumerate(sizes))
    save_checkpoint(path, old)
    opened = []

    @contextmanager
    def opened_twice(file: Path, framework: str) -> Iterator[Any]:
        """Yield the header of the first file and the tensors of what has replaced it."""
        opened.append(file)
        with safe_open(file, framework) as first:
            header = first.metadata()
        if len(opened) == 1:
            save_checkpoint(path, new)
            if sizes[0] != sizes[1]:
                raise RuntimeError("the file is smaller than its header says")
        with safe_open(file, framework) as second:
            yield SimpleNamespace(
                metadata=lambda: header, keys=second.keys, get_tensor=second.get_tensor
            )

    monkeypatch.setattr("safetensors.safe_open", opened_twice)
    found = load_checkpoint(path)
    assert len(opened) == 2
    assert found["step"] == 1 and found["numbers"].tolist() == [1] * sizes[1]
