"""Notebooks of examples/ are whole ones, and their cells run one after another."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))

# Runs the cells as IPython does where they hold nothing of it but commands after "!", which must
# succeed here: a notebook goes on after one that failed.
RUNNER = """
import json, re, subprocess, sys
import matplotlib
matplotlib.use("Agg")

def command(text):
    text = re.sub(r"\\$(\\w+)", lambda found: str(names.get(found[1], found[0])), text)
    subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True)

names = {"__name__": "__main__", "command": command}
for number, code in enumerate(json.load(open(sys.argv[1]))):
    print(f"cell {number}", flush=True)
    code = re.sub(r"^!(.*)$", lambda found: f"command({found[1]!r})", code, flags=re.M)
    exec(compile(code, f"cell {number}", "exec"), names)
"""


def cells(notebook: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(notebook.read_text("utf-8"))["cells"]
    return found


def text_of(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_what_jupyter_opens(notebook: Path) -> None:
    """By the rules of nbformat 4.5; outputs are left to who runs it, as they would be of before."""
    content = json.loads(notebook.read_text("utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert set(content) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in content["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in ids)
    for cell in content["cells"]:
        common = {"cell_type", "id", "metadata", "source"}
        is_code = cell["cell_type"] == "code"
        assert set(cell) == common | ({"execution_count", "outputs"} if is_code else set())
        assert cell["cell_type"] in ("code", "markdown")
        assert all(line.endswith("\n") for line in cell["source"][:-1])
        assert "".join(cell["source"]).strip()
        if is_code:
            assert cell["outputs"] == [] and cell["execution_count"] is None
            ast.parse(re.sub(r"^!.*$", "pass", text_of(cell), flags=re.MULTILINE))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_its_cells_run(notebook: Path, tmp_path: Path) -> None:
    (tmp_path / "runner.py").write_text(RUNNER)
    code = [text_of(cell) for cell in cells(notebook) if cell["cell_type"] == "code"]
    (tmp_path / "cells.json").write_text(json.dumps(code))
    own = tmp_path / "bin"
    own.mkdir()
    (own / "mtl").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mtlcore "$@"\n')
    (own / "mtl").chmod(0o755)
    env = {key: value for key, value in os.environ.items() if key != "MTL_PLUGINS"}
    env |= {"PATH": f"{own}{os.pathsep}{env['PATH']}", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "runner.py", "cells.json"],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, f"{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    assert (tmp_path / "runs" / "first" / "summary.json").is_file()
    before, _, last = result.stdout.rpartition("\ncell ")
    assert "| photographs" in before, "the study's table is shown"
    assert "depth (1, 1, 96, 128) m" in last, "the exported program is the last to speak"
