"""Lists of labels of any content: labels of the run's samples, or a message that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, byte_string_dtypes, unicode_string_dtypes

from mtlcore.errors import MtlError, UsageError
from mtlcore.loading import convert, draw_regime

TASKS = ("segmentation", "depth")
NAMES = ["a", "b", "2008_000008"]
TREE = {"segmentation": [0, 2, "a"], "depth": ["2008_000008"], "edges": []}
DEPTHS = ["fast", pytest.param("deep", marks=pytest.mark.slow)]


@pytest.mark.parametrize("depth", DEPTHS)
def test_any_list_of_labels_is_read_or_told(tmp_path: Path, mutated: Any, depth: str) -> None:
    file = tmp_path / "labels.json"

    @settings(settings.get_profile(depth))
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        file.write_text(json.dumps(data.draw(mutated(TREE))))
        try:
            regime = draw_regime(str(file), TASKS, len(NAMES), torch.Generator())
        except MtlError as error:
            problems = getattr(error, "problems", [str(error)])
            assert all(str(file) in problem for problem in problems)
            return
        assert regime is not None and set(regime.counts()) == set(TASKS)
        used = [regime.tasks(i, f"x/{name}.png") for i, name in enumerate(NAMES)]
        assert all(tasks <= set(TASKS) for tasks in used)
        # What is not told is used.
        listed = {x for samples in regime.kept.values() for x in samples if isinstance(x, str)}
        told = "\n".join(regime.mismatches(NAMES))
        assert ("are those of no training sample" in told) == bool(listed - set(NAMES))
        # What a run keeps is the same list again.
        file.write_text(json.dumps(regime.to_json()))
        assert draw_regime(str(file), TASKS, len(NAMES), torch.Generator()) == regime

    check()


def read_back(file: Path, tasks: list[str]) -> None:
    """What `mtl labels` makes of a file is a list that a run reads, or a message names the file."""
    try:
        found = convert(file, tasks)
    except UsageError as error:
        assert str(file) in str(error)
        return
    made = file.with_suffix(".json")
    made.write_text(json.dumps(found))
    assert set(found) == set(tasks) or not tasks
    numbers = [x for samples in found.values() for x in samples if isinstance(x, int)]
    regime = draw_regime(str(made), list(found), max([0, *numbers]) + 1, torch.Generator())
    assert regime is not None and regime.kept == {task: set(x) for task, x in found.items()}


COLUMNS = st.sampled_from([[], ["depth"], ["segmentation", "depth"]])
ARRAYS = arrays(
    st.sampled_from([np.uint8, np.int64, np.float32, np.bool_, np.complex64, "datetime64[s]"])
    | byte_string_dtypes(max_len=5)
    | unicode_string_dtypes(max_len=5),
    array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
) | arrays(np.uint8, (3, 2), elements=st.integers(0, 1))


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("suffix", [".npy", ".pth", ".csv", ".txt"])
@pytest.mark.filterwarnings("ignore:loadtxt. input contained no data:UserWarning")
def test_any_published_file_is_converted_or_told(
    tmp_path: Path, mutated: Any, suffix: str, depth: str
) -> None:
    file = tmp_path / f"published{suffix}"
    tree = {"depth": np.array(NAMES).tolist(), "segmentation": [0, 1], 3: [[1], [[2]]]}

    @settings(settings.get_profile(depth))
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        if suffix in (".csv", ".txt"):
            cells = st.sampled_from(["0", "1", "1.0", "nan", "x", "", "-1", "#", "é", "1e999"])
            lines = data.draw(st.lists(st.lists(cells, max_size=3), max_size=4))
            between = data.draw(st.sampled_from([",", " ", ";"]))
            coded = data.draw(st.sampled_from(["utf-8", "utf-16", "latin-1"]))
            file.write_bytes("\n".join(between.join(line) for line in lines).encode(coded))
        elif data.draw(st.booleans()):
            array = data.draw(ARRAYS)
            if suffix == ".npy":
                np.save(file, array)
            elif array.dtype.kind in "bif":
                torch.save(torch.from_numpy(array.copy()), file)
            else:
                torch.save(array.tolist(), file)
        else:
            changed = data.draw(mutated(tree))
            if suffix == ".npy":
                np.save(file, np.array(changed, dtype=object), allow_pickle=True)
            else:
                torch.save(changed, file)
        read_back(file, data.draw(COLUMNS))

    check()


@pytest.mark.parametrize("suffix", [".npy", ".pth", ".csv"])
@settings(settings.get_profile("fast"))
@given(content=st.binary(max_size=60))
def test_any_bytes_are_told(tmp_path: Path, suffix: str, content: bytes) -> None:
    heads = {".npy": b"\x93NUMPY\x01\x00", ".pth": b"\x80\x02", ".csv": b""}
    file = tmp_path / f"published{suffix}"
    file.write_bytes(heads[suffix] + content)
    read_back(file, ["depth"])
