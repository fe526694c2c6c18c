"""Label regimes: the frequencies of the released files, drawn from the seed alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result

import mtlcore
from mtlcore.errors import UsageError
from mtlcore.loading import draw_regime
from mtlcore.loading.regimes import LabelRegime

Command = Callable[..., Result]
TASKS = ("segmentation", "depth", "normals")


def draw(labels: str, samples: int = 795, seed: int = 0) -> LabelRegime:
    generator = torch.Generator().manual_seed(seed)
    regime = draw_regime(labels, TASKS, samples, generator)
    assert regime is not None
    return regime


def labels_of(regime: LabelRegime, samples: int = 795) -> list[frozenset[str]]:
    return [regime.tasks(index, "") for index in range(samples)]


def test_full_restricts_nothing() -> None:
    assert draw_regime("full", TASKS, 9, torch.Generator()) is None


def test_one_gives_each_sample_one_label_and_each_task_a_third() -> None:
    """The released file for NYUv2: 795 samples, exactly 265 of each."""
    regime = draw("one")
    assert regime.counts() == dict.fromkeys(TASKS, 265)
    assert all(len(found) == 1 for found in labels_of(regime))


def test_random_gives_one_or_two_labels_each_combination_alike() -> None:
    """The released file for NYUv2: 405 samples with one and 390 with two, six combinations."""
    found = Counter(labels_of(draw("random", 6000), 6000))
    assert len(found) == 6
    assert all(900 < number < 1100 for number in found.values())


def test_ratios_that_fit_are_disjoint_and_exact() -> None:
    regime = draw("segmentation=0.1,depth=0.9,normals=0", 1000)
    assert regime.counts() == {"segmentation": 100, "depth": 900, "normals": 0}
    assert all(len(found) == 1 for found in labels_of(regime, 1000))


def test_ratios_beyond_one_are_drawn_for_each_task() -> None:
    regime = draw("segmentation=1.0,depth=0.5,normals=0.5", 1000)
    assert regime.counts() == {"segmentation": 1000, "depth": 500, "normals": 500}
    both = sum({"depth", "normals"} <= found for found in labels_of(regime, 1000))
    assert 200 < both < 300


@pytest.mark.parametrize("labels", ["one", "random", "segmentation=0.5,depth=0.7,normals=0.2"])
def test_the_seed_decides(labels: str) -> None:
    assert draw(labels) == draw(labels)
    assert draw(labels) != draw(labels, seed=1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("some", "none of full, one, random"),
        ("depth=0.5", "each task of the run"),
        ("segmentation=2,depth=0,normals=0", "between 0 and 1"),
        ("gone.json", r"gone\.json: cannot be read"),
    ],
)
def test_what_is_no_regime_is_refused(labels: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        draw(labels)


def test_a_file_names_samples_by_number_or_stem(tmp_path: Path) -> None:
    file = tmp_path / "labels.json"
    content = {"segmentation": [0, 1], "depth": ["2008_000008"], "normals": []}
    file.write_text(json.dumps(content))
    regime = draw(str(file))
    assert regime.tasks(1, "root/images/2008_000008.jpg") == {"segmentation", "depth"}
    assert regime.tasks(2, "root/images/2008_000009.jpg") == frozenset()
    assert regime.to_json() == content


def test_names_that_partly_match_are_told() -> None:
    regime = LabelRegime({"depth": frozenset({"a", "x", "y", 1}), "edges": frozenset({"b"})})
    assert regime.mismatches(["a", "b", "c", "d"]) == [
        "depth: 2 of 3 names are those of no training sample, such as 'x'; a name is that of a "
        "file, without folder and ending",
        "2 of 4 training samples have no label of any task, such as 'c'",
    ]
    assert regime.mismatches(["a", "x", "y", "b"]) == []
    # Numbers leave samples out on purpose.
    assert LabelRegime({"depth": frozenset({1})}).mismatches(["a", "b"]) == []


def test_a_run_shows_counts_and_keeps_the_regime(tmp_path: Path) -> None:
    config = {
        "tasks": ["segmentation", "depth"],
        "data": {"train": 6, "val": 2, "size": [32, 32], "workers": 0, "labels": "one"},
        "model": {"backbone": {"width": 0.03125}},
        "training": {"epochs": 1, "batch_size": 2},
    }
    summary = mtlcore.run(config, out=str(tmp_path / "run"))
    assert summary["steps"] == 3
    kept = json.loads((tmp_path / "run" / "labels.json").read_text())
    assert {task: len(samples) for task, samples in kept.items()} == {"segmentation": 3, "depth": 3}
    # The file is a regime itself, and the same one.
    config["data"]["labels"] = str(tmp_path / "run" / "labels.json")
    again = mtlcore.run(config, out=str(tmp_path / "again"))
    assert again["final"] == summary["final"]


@pytest.fixture
def convert(mtl: Command) -> Command:
    return lambda path, tasks, out: mtl("labels", str(path), "--tasks", tasks, "--out", str(out))


@pytest.mark.parametrize("suffix", [".npy", ".pth", ".txt"])
def test_a_published_matrix_is_converted(convert: Command, tmp_path: Path, suffix: str) -> None:
    matrix = np.array([[1, 0, 0], [0, 1, 1], [1, 0, 1]])
    file, out = tmp_path / f"labels{suffix}", tmp_path / "labels.json"
    if suffix == ".npy":
        np.save(file, matrix)
    elif suffix == ".pth":
        torch.save(torch.from_numpy(matrix), file)
    else:
        np.savetxt(file, matrix, fmt="%d")
    result = convert(file, "segmentation,depth,normals", out)
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text()) == {"segmentation": [0, 2], "depth": [1], "normals": [1, 2]}
    assert draw(str(out), 3).counts() == {"segmentation": 2, "depth": 1, "normals": 2}


def test_a_published_dictionary_is_converted(convert: Command, tmp_path: Path) -> None:
    file, out = tmp_path / "labels.npy", tmp_path / "labels.json"
    names = {"semseg": np.array(["2008_000008", "2008_000015"]), "edge": ["2008_000019"]}
    np.save(file, names, allow_pickle=True)
    result = convert(file, "", out)
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text()) == {
        "semseg": ["2008_000008", "2008_000015"],
        "edge": ["2008_000019"],
    }


@pytest.mark.parametrize("wrong", [True, None, -1, 1.5, {"a": 1}, [[0], [None]]], ids=str)
def test_a_published_dictionary_of_no_samples_is_refused(
    convert: Command, tmp_path: Path, wrong: Any
) -> None:
    for file, save in ((tmp_path / "labels.npy", np.save), (tmp_path / "labels.pth", save_torch)):
        save(file, {"edge": [0, wrong]})
        result = convert(file, "", tmp_path / "out.json")
        assert result.exit_code == 2, (result.output, result.exception)
        assert f"{file.name}: edge: expected names of samples, or their numbers" in result.stderr
        assert not (tmp_path / "out.json").exists()


def save_torch(file: Path, content: Any) -> None:
    torch.save(content, file)


def test_arrays_and_tensors_in_a_published_dictionary_are_read(
    convert: Command, tmp_path: Path
) -> None:
    file, out = tmp_path / "labels.pth", tmp_path / "labels.json"
    torch.save({"edge": [torch.tensor([0, 2]), torch.tensor(5)], "semseg": (1, "a", b"b")}, file)
    result = convert(file, "", out)
    assert result.exit_code == 0, (result.output, result.exception)
    assert json.loads(out.read_text()) == {"edge": [0, 2, 5], "semseg": [1, "a", "b"]}


def test_a_pickle_that_wants_to_run_something_is_refused(convert: Command, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    np.save(tmp_path / "trap.npy", {"semseg": Trap()}, allow_pickle=True)
    result = convert(tmp_path / "trap.npy", "", tmp_path / "out.json")
    assert result.exit_code == 2
    assert "trap.npy: cannot be read as a label file" in result.stderr
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "out.json").exists()
