"""`mtl new-plugin`: what it writes is whole, installs, lists, passes its tests and trains."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import Result

import mtlcore.testing
from mtlcore.plugins import KINDS, KNOWN, Plugins, singular

ROOT = Path(__file__).parents[2]
Command = Callable[..., Result]
NAMES = {kind: f"try-{singular(kind)}" for kind in KINDS}
TINY = ("training.steps=2", "training.batch_size=2", "data.train=4", "data.val=2",
        "data.size=32x32", "data.workers=0", "device=cpu")  # fmt: skip


@pytest.fixture(scope="session")
def new_plugin(mtl: Command) -> Command:
    return lambda *arguments: mtl("new-plugin", *map(str, arguments), plugins=Plugins(allow=()))


# What is refused


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Sign_Vote", "did you mean 'sign-vote'?"),
        ("SignVote", "did you mean 'sign-vote'?"),
        ("sign--vote", "did you mean 'sign-vote'?"),
        ("2nd", "beginning with a letter"),
        ("x", "2 to 30 lower-case letters"),
        ("x" * 31, "2 to 30 lower-case letters"),
        ("../x", "joined by single dashes"),
        ("mtlcore-plugin-vote", "leave 'mtlcore-plugin-' out"),
        ("standard", "mtlcore's own components"),
        ("adam", "the optimizer standard/adam"),
        ("none", "None cannot name its class"),
        ("tensor", "Tensor cannot name its class"),
        ("gradient-balancer", "GradientBalancer cannot name its class"),
        *((word, "has this name") for known, others in KNOWN.items() for word in (known, *others)),
    ],
)
def test_names_that_cannot_be(new_plugin: Command, tmp_path: Path, name: str, message: str) -> None:
    result = new_plugin(name, "--kind", "balancers", "--out", tmp_path)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


def test_names_of_installed_plugins_are_refused(mtl: Command, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from mtlcore import MethodSpec, hookimpl\n\n\n@hookimpl\ndef mtl_methods():\n"
        '    yield MethodSpec(name="theirs", preset={})\n'
    )
    plugins = Plugins(allow=(), files=[str(file)])
    for name, message in (("mine", "an installed plugin mine"), ("theirs", "mine/theirs")):
        result = mtl("new-plugin", name, "--kind=heads", f"--out={tmp_path}", plugins=plugins)
        assert result.exit_code == 2 and message in result.stderr
    assert list(tmp_path.iterdir()) == [file]


def test_what_is_there_stays(new_plugin: Command, tmp_path: Path) -> None:
    folder = tmp_path / "mtlcore-plugin-vote"
    folder.mkdir()
    result = new_plugin("vote", "--kind", "balancers", "--out", tmp_path)
    assert result.exit_code == 2 and f"{folder}: exists already" in result.stderr
    assert not list(folder.iterdir())
    result = new_plugin("vote", "--kind", "balancer-ish", "--out", tmp_path)
    assert result.exit_code == 2 and "'balancers'" in result.stderr


def test_nothing_is_half_written(
    new_plugin: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_text

    def full(path: Path, text: str, *arguments: object) -> int:
        if path.name == "plugin.py":
            raise OSError(28, "No space left on device")
        return write(path, text, *arguments)

    monkeypatch.setattr(Path, "write_text", full)
    result = new_plugin("vote", "--kind", "balancers", "--out", tmp_path)
    assert result.exit_code == 2 and "No space left on device" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_way(new_plugin: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = new_plugin("vote", "--kind", "balancers", "--out", tmp_path / "file")
    assert result.exit_code == 2 and "cannot be written" in result.stderr


def test_it_is_light() -> None:
    code = "import sys, mtlcore.cli, mtlcore.cli.new_plugin; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "rich", "cattrs"} & set(done.stdout.split())


# What is written


@pytest.mark.parametrize("name", ["ab", "a-1", "a" * 30, "a-bcdefghijklmnopqrst-uvwxyz-1"])
def test_it_is_in_form_whatever_its_name(new_plugin: Command, tmp_path: Path, name: str) -> None:
    for kind in KINDS:
        result = new_plugin(name, "--kind", kind, "--out", tmp_path / kind)
        assert result.exit_code == 0, result.output
        others = {
            "launchers": f"--launcher {name}",
            "searchers": "mtl study study.toml --out",
            "exporters": f"mtl export RUN --to {name}",
        }
        assert others.get(kind, f"mtl run --plugin {name}") in result.stdout
    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, tmp_path], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


def test_the_wheel_holds_the_templates(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir"]
    subprocess.run([*command, str(tmp_path), str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    templates = {p.relative_to(ROOT) for p in (ROOT / "mtlcore/templates").rglob("*.template")}
    assert len(templates) > 12 * 4
    assert {path.as_posix() for path in templates} <= set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def written(new_plugin: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plugin of each kind."""
    place = tmp_path_factory.mktemp("plugins")
    for kind, name in NAMES.items():
        result = new_plugin(name, "--kind", singular(kind), "--out", place)
        assert result.exit_code == 0, result.output
    return place


@pytest.fixture(scope="module")
def python(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of its own with all of them; it sees what is installed here, too."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False)
    site = next((place / "lib").glob("python*/site-packages"))
    here = sysconfig.get_path("purelib")
    (site / "here.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-compile", "--disable-pip-version-check", "--target", str(site),
         *(str(folder) for folder in written.iterdir())],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return place / "bin" / "python"


def run(python: Path, cwd: Path, *command: str) -> str:
    done = subprocess.run([str(python), *command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_whole_distribution(written: Path, kind: str) -> None:
    name = NAMES[kind]
    folder, package = written / f"mtlcore-plugin-{name}", f"mtlcore_{name.replace('-', '_')}"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {
        "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", ".gitignore",
        ".github/workflows/tests.yml", ".pre-commit-config.yaml",
        f"src/{package}/__init__.py", f"src/{package}/py.typed",
        f"src/{package}/plugin.py", f"tests/test_{name.replace('-', '_')}.py",
    } < files  # fmt: skip
    for file in files:
        text = (folder / file).read_text()
        assert not re.search(r"\$(?!\{\{)", text), f"{file}: a placeholder is left"
        assert "MODULE" not in file + text and "PACKAGE" not in file + text
    assert not list(folder.parent.glob(".*"))


def test_they_have_the_habits_of_this_repository(written: Path) -> None:
    folder = written / f"mtlcore-plugin-{NAMES['methods']}"
    workflow, ours = (
        yaml.safe_load((place / ".github/workflows/tests.yml").read_text())
        for place in (folder, ROOT)
    )
    assert workflow["jobs"]["test"]["strategy"] == ours["jobs"]["test"]["strategy"]
    assert workflow["permissions"] == ours["permissions"]
    assert workflow["concurrency"] == ours["concurrency"]
    uses = [step["uses"] for step in workflow["jobs"]["test"]["steps"] if "uses" in step]
    assert uses == [s["uses"] for s in ours["jobs"]["test"]["steps"] if "uses" in s]
    revisions = [
        repo["rev"]
        for place in (folder, ROOT)
        for repo in yaml.safe_load((place / ".pre-commit-config.yaml").read_text())["repos"]
        if repo["repo"].endswith("/ruff-pre-commit")
    ]
    assert len(revisions) == 2 and len(set(revisions)) == 1
    projects = [
        tomllib.loads((place / "pyproject.toml").read_text())["project"] for place in (folder, ROOT)
    ]
    assert projects[0]["classifiers"] == projects[1]["classifiers"]
    assert all(project["authors"] for project in projects)
    changelog = (folder / "CHANGELOG.md").read_text()
    assert f"## {projects[0]['version']} (unreleased)" in changelog


def test_they_are_listed(python: Path, tmp_path: Path) -> None:
    rows = json.loads(run(python, tmp_path, "-m", "mtlcore", "list", "--json"))
    found = {(row["kind"], row["name"]) for row in rows if row["plugin"] in NAMES.values()}
    assert set(NAMES.items()) <= found
    run(python, tmp_path, "-m", "mtlcore", "--strict-plugins", "plugins")


@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param(("methods", "balancers"), id="some"),
        pytest.param((*NAMES,), id="all", marks=pytest.mark.slow),
    ],
)
def test_their_own_tests_pass(
    kinds: tuple[str, ...], python: Path, written: Path, tmp_path: Path
) -> None:
    folders = [written / f"mtlcore-plugin-{NAMES[kind]}" for kind in kinds]
    output = run(
        python, tmp_path, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider",
        "-c", str(written / f"mtlcore-plugin-{NAMES['methods']}" / "pyproject.toml"),
        "--rootdir", str(written), *(str(folder / "tests") for folder in folders),
    )  # fmt: skip
    assert re.search(r"^[1-9]\d+ passed", output, re.MULTILINE), output


# One process for all: most of the time is spent on importing torch.
COMMANDS = """
import json, sys
from mtlcore.cli import main
from mtlcore.plugins import Plugins, settings_of

for command in json.loads(sys.argv[1]):
    print("mtl", *command, flush=True)
    main(command, standalone_mode=False)
plugins = Plugins.from_environment()
tables = {}
for kind, name in json.loads(sys.argv[2]).items():
    if kind != "methods":
        tables[name] = [setting.name for setting in settings_of(plugins.get(kind, name).load())]
print(json.dumps(tables))
"""


@pytest.mark.slow
def test_what_their_readmes_say_is_so(python: Path, written: Path, tmp_path: Path) -> None:
    commands, tables = [], {}
    tiny = [f"--set={change}" for change in TINY]
    for kind, name in NAMES.items():
        text = (written / f"mtlcore-plugin-{name}" / "README.md").read_text()
        (line,) = re.findall(r"^    mtl ((?:run|study|export) .+)$", text, re.MULTILINE)
        if kind in ("launchers", "searchers"):
            study = str(written / f"mtlcore-plugin-{name}" / "study.toml")
            out = ["--out", str(tmp_path / kind)]
            commands.append([*shlex.split(line.replace("study.toml", study)), *out])
        elif kind == "exporters":
            line = line.replace("RUN", str(tmp_path / "balancers"))
            commands.append(shlex.split(line.replace("model.pt2.gz", str(tmp_path / kind))))
        else:
            commands.append([*shlex.split(line), *tiny, "--out", str(tmp_path / kind)])
        changes = re.findall(r"`(--(?:plugin|set) [^`]+)`", text)
        commands += [["config", *shlex.split(c.replace("TASK", "depth"))] for c in changes]
        commands += [shlex.split(c) for c in re.findall(r"`mtl (config [^`]+)`", text)]
        tables[name] = re.findall(r"^\| `[\w.]+\.(\w+)` \|", text, re.MULTILINE)
    output = run(python, tmp_path, "-c", COMMANDS, json.dumps(commands), json.dumps(NAMES))
    real = json.loads(output.splitlines()[-1])
    for kind, name in NAMES.items():
        if kind in ("launchers", "searchers"):
            study = json.loads((tmp_path / kind / "study.json").read_text())
            assert [cell["status"] for cell in study["cells"]] == ["finished"] * 2
        elif kind == "exporters":
            assert (tmp_path / kind).read_bytes().startswith(b"\x1f\x8b")  # of gzip
        else:
            summary = json.loads((tmp_path / kind / "summary.json").read_text())
            assert (summary["steps"], summary["skipped_steps"]) == (2, 0), name
        if kind != "methods":
            # Number and size of a dataset's samples are settings of the core's.
            assert tables[name] == [s for s in real[name] if s not in ("samples", "size")], name
    assert "within" in (tmp_path / "metrics" / "metrics.jsonl").read_text()


def test_what_the_documentation_shows_is_what_is_written(
    new_plugin: Command, tmp_path: Path
) -> None:
    text = (ROOT / "docs" / "plugin-guide.md").read_text()
    (command,) = re.findall(r"^mtl (new-plugin .+)$", text, re.MULTILINE)
    result = new_plugin(*shlex.split(command)[1:], "--out", tmp_path)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "mtlcore-plugin-sign-vote"
    printed = re.findall(r"^  (.+)$", result.stdout, re.MULTILINE)
    assert printed[0] == f"cd {folder}"
    assert all(f"\n{line}\n" in text for line in printed[1:])
    (tree,) = re.findall(r"```text\nmtlcore-plugin-sign-vote/\n(.+?)```", text, re.DOTALL)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {line.split()[0] for line in tree.splitlines()} == files
    balancer = (folder / "src" / "mtlcore_sign_vote" / "balancer.py").read_text()
    code, *_ = re.findall(r"```python\n(.+?)```", text, re.DOTALL)
    lines = [line for line in code.splitlines() if line]
    assert [line for line in balancer.splitlines() if line in lines] == lines


def test_the_documentation_names_every_kind_and_contract() -> None:
    text = (ROOT / "docs" / "plugin-guide.md").read_text()
    assert set(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE)) == set(KINDS)
    contracts = {name for name in mtlcore.testing.__all__ if name.endswith("Contract")}
    assert set(re.findall(r"`(\w+Contract)`", text)) == contracts


@pytest.mark.slow
def test_they_are_typed(python: Path, written: Path) -> None:
    for folder in written.iterdir():
        cache = f"--cache-dir={written / '.mypy_cache'}"
        output = run(python, folder, "-m", "mypy", cache)
        assert "Success" in output
