"""A small trained run that tasks join, and what its adaptations share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import mtlcore

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def small() -> dict[str, Any]:
    """The configuration of the run."""
    return {
        "tasks": ["segmentation", "depth"],
        "data": {"train": 12, "val": 4, "size": [32, 32], "workers": 0},
        "model": {"backbone": {"width": 0.03125}},
        "balancer": {"name": "uncertainty"},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "training": {"epochs": 2, "batch_size": 4, "threads": 1},
    }


@pytest.fixture(scope="module")
def without_pictures(no_pictures: None) -> Iterator[None]:
    """Runs without pictures, and with plugins where they are named."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTL_PLUGINS", "")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapt")


@pytest.fixture(scope="module")
def run(folder: Path, small: dict[str, Any], without_pictures: None) -> Path:
    mtlcore.run(small, out=str(folder / "run"))
    return folder / "run"


@pytest.fixture(scope="module")
def adapt(mtl: Command) -> Command:
    """`mtl adapt` where it must succeed."""

    def command(run: Path, out: Path, *arguments: str, tasks: str = "edges") -> Result:
        result = mtl("adapt", str(run), "--tasks", tasks, "--out", str(out), *arguments)
        assert result.exit_code == 0, (result.output, result.exception)
        return result

    return command


@pytest.fixture(scope="session")
def files() -> Callable[[Path], dict[Path, tuple[bytes, int]]]:
    """What is below a folder: file -> its bytes and when it was written."""

    def below(path: Path) -> dict[Path, tuple[bytes, int]]:
        return {
            file.relative_to(path): (file.read_bytes(), file.stat().st_mtime_ns)
            for file in path.rglob("*")
            if file.is_file()
        }

    return below
