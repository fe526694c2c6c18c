"""A folder to make mistakes in, a run to spoil, and what must hold of the files afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from mtlcore.storage import load_checkpoint

Command = Callable[..., Result]

TINY = [
    "--set=tasks=['segmentation', 'depth']",
    "--set=data.train=6",
    "--set=data.val=3",
    "--set=data.size=32x32",
    "--set=data.workers=0",
    "--set=model.backbone.width=0.03125",
    "--set=training.epochs=3",
    "--set=training.batch_size=3",
    "--set=training.evaluate_every=1",
    "--set=training.threads=1",
]
READERS: dict[str, Callable[[Path], object]] = {
    ".json": lambda file: json.loads(file.read_text()),
    ".jsonl": lambda file: [json.loads(line) for line in file.read_text().splitlines()],
    ".toml": lambda file: tomllib.loads(file.read_text()),
    ".safetensors": load_checkpoint,
    ".png": lambda file: Image.open(file).load(),
    ".npy": np.load,
}


@dataclass
class Place:
    """The folder of one case, which is also the working directory."""

    path: Path
    finished: Path
    tiny: list[str]  # arguments of a run of a second

    def write(self, name: str, content: str | bytes) -> Path:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    def cut(self, name: str) -> None:
        data = (self.path / name).read_bytes()
        self.write(name, data[: len(data) // 2])

    def run(self) -> Path:
        """A run that was stopped before its summary was written."""
        shutil.copytree(self.finished, self.path / "run")
        (self.path / "run" / "summary.json").unlink()
        return self.path / "run"

    def plugin(self, name: str, code: str, requires: str = "mtlcore", dist: str = "") -> None:
        """An installed distribution with one plugin."""
        dist = dist or f"mtlcore-plugin-{name}"
        module = f"{dist.replace('-', '_')}_of_{self.path.name.replace('-', '_')}"
        self.write(f"site/{module}.py", code)
        info = f"site/{dist.replace('-', '_')}-1.0.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\nRequires-Dist: {requires}\n"
        self.write(f"{info}/METADATA", metadata)
        self.write(f"{info}/entry_points.txt", f"[mtlcore]\n{name} = {module}\n")

    def contents(self, under: str = ".") -> dict[Path, bytes]:
        files = (self.path / under).rglob("*")
        return {file: file.read_bytes() for file in files if file.is_file()}

    def assert_whole(self, under: str = ".", but: set[Path] = frozenset()) -> None:
        """Every file can be read to its end, and none is left over from writing."""
        for file in set((self.path / under).rglob("*")) - but:
            assert file.suffix != ".partial", file
            if file.suffix in READERS:
                READERS[file.suffix](file)

    @staticmethod
    def assert_message(stderr: str, says: list[str]) -> None:
        """After notes, if any, one message that begins with the program's name."""
        assert "Traceback" not in stderr, stderr
        lines = stderr.splitlines()
        while lines and lines[0].startswith("note: "):
            del lines[0]
        assert lines and lines[0].startswith("mtl: "), stderr
        for fragment in says:
            assert fragment in stderr, f"{fragment!r} is not in:\n{stderr}"


@pytest.fixture(scope="session")
def finished(mtl: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    result = mtl("run", *TINY, "--out", str(out), env={"MTL_PLUGINS": ""})
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def place(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return Place(tmp_path, finished, TINY)


@pytest.fixture(scope="session")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., tuple[int, str]]]:
    """The command `mtl` in a process of its own: `answered(words, folder)`.

    Returns its exit code and what it wrote. After `patience` seconds, Ctrl-C is pressed; of
    `memory` the command has so many bytes.
    """
    errors = tmp_path_factory.mktemp("server") / "errors.txt"
    with (
        errors.open("w") as told,
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("command_server.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=told, text=True,
            env={**os.environ, "MTL_PLUGINS": "", "OMP_NUM_THREADS": "1"},
        ) as server,
    ):  # fmt: skip
        assert server.stdin and server.stdout

        def answer(
            words: list[str], folder: Path, patience: float = 5.0, memory: int = 2**31
        ) -> tuple[int, str]:
            request = {
                "words": words, "folder": str(folder), "patience": patience, "memory": memory,
            }  # fmt: skip
            print(json.dumps(request), file=server.stdin, flush=True)
            line = server.stdout.readline()
            assert line, errors.read_text()
            reply = json.loads(line)
            return reply["code"], reply["said"]

        yield answer
        server.stdin.close()
