"""Every code block and command of the documentation runs, page by page, in a folder of its own.

What stands in a comment before a block is for this test:

    <!-- test: file NAME -->       the block is what the file NAME holds
    <!-- test: with ARGUMENTS -->  given to each `mtl run` of the block to make it small
    <!-- test: slow -->            the block runs among the slow tests only
    <!-- test: slow page -->       so does the whole page; somewhere on it
    <!-- test: elsewhere FILE -->  the block runs in that test
    <!-- test: shown -->           output, or a part of something; nothing to run

and Python between `<!-- test` and `-->` on lines of their own runs where it stands, unseen.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import attrs
import pytest

from mtlcore.cli import main
from mtlcore.plugins import KINDS, hook_name, hookspecs

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for path in [*DOCS.rglob("*.md"), ROOT / "CONTRIBUTING.md", *ROOT.glob("plugins/*/README.md")]
    if "_build" not in path.parts
)
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
SVG = "{http://www.w3.org/2000/svg}"
LANGUAGES = {"python", "sh", "toml", "json", "text"}
SMALL = "--set=data.train=6 --set=data.val=2 --set=data.size=32x32 --set=training.epochs=1 "
SMALL += "--set=training.batch_size=3 --set=data.workers=0"


@attrs.frozen
class Block:
    """A block of a page, or hidden code.

    Args:
        line: number of its first line, from 1.
        language: as it stands behind the fence; "hidden" for code in a comment.
        code: its lines.
        marks: what the comment before it says, by its first word.
    """

    line: int
    language: str
    code: str
    marks: dict[str, str] = attrs.field(factory=dict)


def blocks(page: Path) -> list[Block]:
    """All of a page, in order."""
    found, marks = [], dict[str, str]()
    text = page.read_text("utf-8")
    pattern = r"^<!-- test: (.+?) -->$|^<!-- test$\n(.*?)^-->$|^```([^\n]*)\n(.*?)^```$"
    for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        mark, hidden, language, code = match.groups()
        line = text.count("\n", 0, match.start()) + 2
        if mark == "slow page":
            continue
        if mark is not None:
            word, _, rest = mark.partition(" ")
            marks[word] = rest
        elif hidden is not None:
            found.append(Block(line, "hidden", hidden))
        elif language.startswith("{"):
            continue  # the site makes something of it
        else:
            found.append(Block(line, language, code, marks))
            marks = {}
    assert not marks, f"{page}: nothing follows the comment {marks}"
    return found


def is_slow(page: Path) -> bool:
    """Whether all of a page is for the slow tests."""
    return "<!-- test: slow page -->\n" in page.read_text("utf-8")


# Runs the steps of a page in its folder; `sh` and `photographs` are there for hidden code too.
DRIVER = '''
import json, os, subprocess, sys
from pathlib import Path

def sh(code, small=os.environ["SMALL"]):
    """Run lines of a shell, stopping at the first that fails."""
    subprocess.run(["bash", "-euo", "pipefail", "-c", code], check=True,
                   env={**os.environ, "SMALL": small})

def photographs(root, train=4, val=2, size=(48, 64)):
    """Folders rgb, segmentation and depth of random photographs."""
    import numpy as np
    from PIL import Image
    random = np.random.default_rng(0)
    for split, number in (("train", train), ("val", val)):
        for i in range(number):
            maps = {
                "rgb": random.integers(0, 256, (*size, 3), dtype=np.uint8),
                "segmentation": random.choice(np.array([0, 1, 255], np.uint8), size),
                "depth": random.integers(0, 3000, size).astype(np.uint16),
            }
            for kind, values in maps.items():
                place = Path(root) / split / kind
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(place / f"{i:03d}.png")

page, steps = json.loads(Path("steps.json").read_text())
names = {"__name__": "__main__", "sh": sh, "photographs": photographs}
for step in steps:
    if step["file"]:
        file = Path(step["file"])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(step["code"])
    elif step["language"] == "sh":
        sh(step["code"], step["small"])
    else:
        print(f"{page}:{step['line']}", flush=True)
        exec(compile("\\n" * (step["line"] - 1) + step["code"], page, "exec"), names)
'''

# Answers what pages call from forks of two processes: a start of Python that imports torch takes
# longer than most blocks and commands. Python code finds torch imported and nothing of mtlcore.
SERVER = """
import json, os, runpy, signal, socket, sys, traceback
import torch

def python(arguments):
    if arguments[0] == "-m":
        sys.path[0] = os.getcwd()
        sys.argv = arguments[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
        sys.argv = arguments
        runpy.run_path(sys.argv[0], run_name="__main__")

def mtl(arguments):
    from mtlcore.cli import main
    main(arguments, prog_name="mtl")

def serve(listener, answer):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        line, _ = listener.accept()
        files = socket.recv_fds(line, 1, 3)[1]
        if os.fork():
            line.close()
            for file in files:
                os.close(file)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for listener in listeners.values():
            listener.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        arguments, folder, environment = json.loads(line.makefile("rb").read())
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        code = 0
        try:
            answer(arguments)
        except SystemExit as end:
            code = end.code or 0
            if isinstance(code, str):
                print(code, file=sys.stderr)
                code = 1
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        line.sendall(str(code).encode())
        os._exit(0)

listeners = {}
for answer in (python, mtl):
    listeners[answer] = socket.socket(socket.AF_UNIX)
    listeners[answer].bind(answer.__name__ + ".socket")
    listeners[answer].listen()
print("ready", flush=True)
if os.fork():
    serve(listeners[python], python)
import mtlcore.cli, mtlcore.engine, mtlcore.report, mtlcore.runs
mtlcore.plugins.Plugins()
serve(listeners[mtl], mtl)
"""

# What stands for the programs that a page calls.
PROGRAMS = {
    "mtl": """
given = sys.argv[1:]
small = shlex.split(os.environ["SMALL"]) if "run" in given[:3] and "--resume" not in given else []
ask("mtl", *given, *small)
""",
    "torchrun": """
small = [] if "--resume" in sys.argv else shlex.split(os.environ["SMALL"])
run(sys.executable, "-m", "torch.distributed.run", *sys.argv[1:], *small)
""",
    "python": """ask("python", *sys.argv[1:])""",
    "pytest": """ask("python", "-m", "pytest", "-p", "no:cacheprovider", *sys.argv[1:])""",
    # Installing needs a network, and is tested with wheels: here, only that there is such a thing.
    "pip": """
assert sys.argv[1] == "install", sys.argv
known = {"mtlcore", *(path.name for path in Path(ROOT, "plugins").iterdir())}
extras = tomllib.loads(Path(ROOT, "pyproject.toml").read_text())["project"]
for word in (word for word in sys.argv[2:] if not word.startswith("-")):
    name, _, extra = word.partition("[")
    assert name in {*known, "."}, f"pip install {word}: no such distribution"
    if extra and name != ".":
        assert {*extra.rstrip("]").split(",")} <= {*extras["optional-dependencies"]}, word
""",
    "make": """run("make", "--dry-run", "--directory", ROOT, *sys.argv[1:], stdout=DEVNULL)""",
}
HEADER = f"""#!{sys.executable}
import json, os, shlex, shutil, socket, subprocess, sys, tomllib
from pathlib import Path
from subprocess import DEVNULL
ROOT = {str(ROOT)!r}
def ask(who, *arguments):
    folder = os.getcwd()
    with socket.socket(socket.AF_UNIX) as line:
        os.chdir(os.path.dirname(os.path.abspath(__file__)))  # a socket's path must be short
        line.connect(who + ".socket")
        os.chdir(folder)
        socket.send_fds(line, [b"."], [0, 1, 2])
        line.sendall(json.dumps([arguments, folder, {{**os.environ}}]).encode())
        line.shutdown(socket.SHUT_WR)
        sys.exit(int(line.makefile().read()))
def run(program, *arguments, **options):
    own = os.path.dirname(os.path.abspath(__file__))
    rest = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if p != own)
    found = shutil.which(program, path=rest)
    sys.exit(subprocess.run([found, *arguments], check=False, **options).returncode)
"""


def runnable(page: Path, slow: bool) -> Iterator[dict[str, Any]]:
    """The steps of a page, as the driver takes them."""
    for block in blocks(page) if slow or not is_slow(page) else ():
        marks = block.marks
        hidden = block.language == "hidden"
        if "shown" in marks or "elsewhere" in marks or ("slow" in marks and not slow):
            continue
        if "file" in marks or hidden or block.language in ("python", "sh"):
            yield {"language": block.language, "code": block.code, "line": block.line,
                   "file": marks.get("file", ""), "small": marks.get("with", SMALL)}  # fmt: skip


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What a page runs in: the programs that it calls, and those who answer them."""
    programs = tmp_path_factory.mktemp("programs")
    for name, code in PROGRAMS.items():
        (programs / name).write_text(HEADER + code)
        (programs / name).chmod(stat.S_IRWXU)
    (programs / "server.py").write_text(SERVER)
    env = {key: value for key, value in os.environ.items() if key != "MTL_PLUGINS"}
    env |= {"PATH": f"{programs}{os.pathsep}{env['PATH']}", "SMALL": SMALL, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "server.py"], cwd=programs, env=env, stdout=subprocess.PIPE,
        start_new_session=True,
    ) as server:  # fmt: skip
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield env
        finally:
            os.killpg(server.pid, signal.SIGKILL)


def read_aloud(page: Path, folder: Path, env: dict[str, str], slow: bool) -> None:
    """Do what the page says in a folder."""
    steps = list(runnable(page, slow))
    if not [step for step in steps if not step["file"] and step["language"] != "hidden"]:
        pytest.skip("nothing to run, or elsewhere")
    (folder / "steps.json").write_text(json.dumps([str(page), steps]))
    (folder / "driver.py").write_text(DRIVER)
    result = subprocess.run(
        ["python", "driver.py"], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{page}\n{result.stdout[-3000:]}\n{result.stderr[-6000:]}"


@pytest.mark.parametrize("name", NAMES)
def test_what_a_page_says_runs(name: str, tmp_path: Path, environment: dict[str, str]) -> None:
    read_aloud(ROOT / name, tmp_path, environment, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [n for n in NAMES if is_slow(ROOT / n) or any("slow" in b.marks for b in blocks(ROOT / n))],
)
def test_the_long_ones_run_too(name: str, tmp_path: Path, environment: dict[str, str]) -> None:
    read_aloud(ROOT / name, tmp_path, environment, slow=True)


@pytest.mark.parametrize("name", NAMES)
def test_no_block_is_left_out_by_mistake(name: str) -> None:
    for block in blocks(ROOT / name):
        place = f"{name}:{block.line}"
        if block.language == "hidden":
            continue
        assert block.language in LANGUAGES, f"{place}: what is {block.language!r}?"
        if block.language == "toml":
            tomllib.loads(block.code)
        if "elsewhere" in block.marks:
            assert (ROOT / block.marks["elsewhere"]).is_file(), place
        if "shown" in block.marks:
            assert block.language in ("json", "text"), f"{place}: it can run"


def test_every_hook_has_a_page_with_its_signature() -> None:
    for kind in KINDS:
        hook = hook_name(kind)
        assert hasattr(hookspecs, hook)
        page = (DOCS / "hooks" / f"{kind}.md").read_text("utf-8")
        assert f"autofunction:: mtlcore.plugins.hookspecs.{hook}" in page
        assert f"def {hook}(" in page, "a minimal example"


def test_every_component_and_every_setting_of_a_run_is_documented() -> None:
    components = (DOCS / "reference" / "components.md").read_text("utf-8")
    settings = (DOCS / "reference" / "settings.md").read_text("utf-8")
    for kind in KINDS:
        assert f"```{{mtl-components}} {kind}\n" in components
    for record in ("DataConfig", "TrainingConfig", "InitialConfig"):
        assert f"mtlcore.config.schema:{record}" in settings


def test_every_command_is_documented() -> None:
    page = (DOCS / "reference" / "command-line.md").read_text("utf-8")
    for name in ("mtl", *main.commands):
        assert f"```{{mtl-help}} {name}\n" in page


def test_every_plugin_has_a_page() -> None:
    """Or a row on the page of what works with what, where it stands around methods."""
    around = (DOCS / "compatibility.md").read_text("utf-8").partition("## What works with")[2]
    for folder in (ROOT / "plugins").iterdir():
        name = folder.name.removeprefix("mtlcore-plugin-")
        page = DOCS / "methods" / f"{name}.md"
        assert page.is_file() or f"\n| `{name}` |" in around, page


@pytest.mark.parametrize("page", sorted(DOCS.glob("results/*.md")), ids=lambda page: page.stem)
def test_a_results_page_opens_with_its_answer_and_folds_the_rest(page: Path) -> None:
    first, *folded = re.split(r"^:::\{dropdown\} .+$", page.read_text("utf-8"), flags=re.MULTILINE)
    shown = re.sub(r"^<!-- results \S+ -->\n\n", "", first, flags=re.MULTILINE)
    title, answer, table, *picture = shown.strip().split("\n\n")
    assert title.startswith("# ")
    assert answer.startswith("**") and answer.count("\n") < 10
    assert all(line.startswith("|") for line in table.splitlines())
    assert all(re.fullmatch(r"!\[.+\]\(\.\./images/.+\)", part) for part in picture)
    assert len(picture) <= 1
    assert folded
    for part in folded:
        assert part.endswith(("\n:::\n", "\n:::\n\n")), "text that is not folded"


# The drawing of the house, docs/extensions/rooms.py.


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(DOCS / "extensions")
    return importlib.import_module("rooms")


TABLE = """
## The rooms

| room | what is decided there |
| --- | --- |
| `errors.py` | what a mistake says |
| `tasks.py` | names; see `engine/` |
| `engine/` | steps |

## Rules
"""
PACKAGE = {
    "__init__.py": "",
    "errors.py": '"""Mistakes.\n\nMore."""\n',
    "tasks.py": '"""Tasks: <a> & b."""\nfrom house.errors import Mistake\n',
    "engine/__init__.py": '"""Steps."""\nfrom .loop import run\n',
    "engine/loop.py": "def run():\n    from ..tasks import Task\n    from house import errors\n",
}


def write_package(place: Path, **changed: str) -> Path:
    for name, text in {**PACKAGE, **changed}.items():
        path = place / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return place / "house"


def test_the_house_is_what_its_imports_say(rooms: Any, tmp_path: Path) -> None:
    names = rooms.ordered_names(TABLE)
    assert names == ["errors.py", "tasks.py", "engine/"]
    found = rooms.read_rooms(write_package(tmp_path), names)
    assert [room.summary for room in found] == ["Mistakes.", "Tasks: <a> & b.", "Steps."]
    assert [sorted(room.imports) for room in found] == [
        [],
        ["errors.py"],
        ["errors.py", "tasks.py"],
    ]
    assert rooms.floors(found) == {"errors.py": 0, "tasks.py": 1, "engine/": 2}
    # The import that the way through tasks.py implies is not drawn.
    assert rooms.direct(found)["engine/"] == {"tasks.py"}
    assert rooms.upward(found) == []
    drawing = ElementTree.fromstring(rooms.draw(found))
    paths = [path.attrib["class"] for path in drawing.findall(f"{SVG}path")]
    assert sorted(paths) == ["f1 t0", "f2 t1"]
    heights = [float(rect.attrib["y"]) for rect in drawing.iter(f"{SVG}rect")]
    assert heights == sorted(heights, reverse=True), "the last of the table stands on top"


def test_an_import_that_goes_up_is_drawn_as_one(rooms: Any, tmp_path: Path) -> None:
    package = write_package(tmp_path, **{"errors.py": "import house.engine.loop\n"})
    found = rooms.read_rooms(package, rooms.ordered_names(TABLE))
    assert rooms.upward(found) == [("errors.py", "engine/")]
    drawing = ElementTree.fromstring(rooms.draw(found))
    paths = [path.attrib["class"] for path in drawing.findall(f"{SVG}path")]
    assert sorted(paths) == ["f1 t0", "f2 t1", "up f0 t2"]


def test_the_house_and_its_table_must_agree(rooms: Any, tmp_path: Path) -> None:
    package = write_package(tmp_path, **{"extra.py": ""})
    with pytest.raises(ValueError, match=r"extra\.py has no row; gone/ is not in house/"):
        rooms.read_rooms(package, ["errors.py", "tasks.py", "engine/", "gone/"])
    with pytest.raises(ValueError, match=r"tasks\.py has two rows"):
        rooms.read_rooms(package, ["errors.py", "tasks.py", "engine/", "extra.py", "tasks.py"])
    with pytest.raises(ValueError, match="## The rooms"):
        rooms.ordered_names("# Architecture\n\n| room |\n| --- |\n| `engine/` |\n")


def test_arrows_pass_beside_rooms_that_they_skip(rooms: Any) -> None:
    names = [f"m{i}.py" for i in range(6)]
    chain = [rooms.Room(name, "", 1, frozenset(names[:i][-1:])) for i, name in enumerate(names)]
    far = rooms.Room("far.py", "", 1, frozenset({"side.py", "m4.py"}))
    drawing = ElementTree.fromstring(
        rooms.draw([rooms.Room("side.py", "", 1, frozenset()), *chain, far])
    )
    boxes = [
        {key: float(rect.attrib[key]) for key in ("x", "y", "width", "height")}
        for rect in drawing.iter(f"{SVG}rect")
    ]
    for one, other in combinations(boxes, 2):
        apart = abs(one["y"] - other["y"]) > one["height"]
        assert apart or abs(one["x"] - other["x"]) > min(one["width"], other["width"])
    # From far.py on floor 5 to side.py on floor 0: a piece per floor, past every box between.
    pieces = [p for p in drawing.findall(f"{SVG}path") if p.attrib["class"].endswith(" t0")]
    assert len(pieces) == 5
    ends = [re.findall(r"[-\d.]+,[-\d.]+", piece.attrib["d"])[-1] for piece in pieces]
    for x, y in (map(float, end.split(",")) for end in ends):
        for box in boxes[1:]:
            inside = box["x"] < x < box["x"] + box["width"]
            assert not (inside and box["y"] < y < box["y"] + box["height"])
