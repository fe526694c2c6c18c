"""Whatever goes wrong: the exit code, a message that names the thing and the way out, files whole.

One table of mistakes. Each is made in a folder of its own and met by the real command; signals and
broken disks by a process of its own. Nothing that was there before may have changed, and nothing
new may be half-written.
"""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from mtlcore.cli import main
from mtlcore.errors import MtlError
from mtlcore.loading import lost_workers_told
from mtlcore.storage import load_checkpoint, save_checkpoint

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
OWN = ["--set=data.name=folder", "--set=data.root=photos"]  # beside TINY
SIZE = (32, 32)
DESCRIPTION = """
image = "{split}/rgb/{name}.png"
names = "{split}.txt"
[tasks.segmentation]
kind = "segmentation"
file = "{split}/segmentation/{name}.png"
classes = ["table", "object"]
[tasks.depth]
kind = "depth"
file = "{split}/depth/{name}.npy"
invalid = 0
"""
HEAD = "from mtlcore import BalancerSpec, DatasetSpec, LossSpec, hookimpl\n"
FIRST = "photos/train/rgb/0.png"


# ------------------------------------------------------------------------------ things to break


@dataclass
class Place:
    """The folder of one case, which is also the working directory."""

    path: Path
    finished: Path

    def write(self, name: str, content: str | bytes) -> Path:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    def photos(self) -> None:
        """Four photographs to train on and two to judge by, labelled for two tasks."""
        random = np.random.default_rng(0)
        self.write("photos/dataset.toml", DESCRIPTION)
        for split, count in (("train", 4), ("val", 2)):
            self.write(f"photos/{split}.txt", "".join(f"{i}\n" for i in range(count)))
            for i in range(count):
                colours = random.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
                classes = random.integers(0, 2, SIZE, dtype=np.uint8)
                self.write(f"photos/{split}/rgb/{i}.png", png(colours))
                self.write(f"photos/{split}/segmentation/{i}.png", png(classes))
                metres = random.uniform(1, 3, SIZE).astype(np.float32)
                self.write(f"photos/{split}/depth/{i}.npy", npy(metres))

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
        self.write(f"site/{module}.py", HEAD + code)
        info = f"site/{dist.replace('-', '_')}-1.0.dist-info"
        metadata = f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\nRequires-Dist: {requires}\n"
        self.write(f"{info}/METADATA", metadata)
        self.write(f"{info}/entry_points.txt", f"[mtlcore]\n{name} = {module}\n")


def png(array: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def balancer(name: str) -> str:
    return f"""
@hookimpl
def mtl_balancers():
    yield BalancerSpec(name={name!r}, target="mtlcore.standard.balancers:Equal")
"""


NAN_BALANCER = """
@hookimpl
def mtl_balancers():
    from mtlcore.balancing import LossBalancer

    class Spoil(LossBalancer):
        def transform(self, losses, context):
            if context.step < 3:
                return losses
            return {**losses, "depth": losses["depth"] * float("nan")}

    yield BalancerSpec(name="spoil", target=Spoil)
"""
NAN_LOSS = """
@hookimpl
def mtl_losses():
    from mtlcore.standard.losses import L1

    class Spoil(L1):
        calls = 0

        def elementwise(self, prediction, target):
            self.calls += self.training
            loss = super().elementwise(prediction, target)
            return loss * float("nan") if self.training and self.calls > 3 else loss

    yield LossSpec(name="spoil", target=Spoil, task_kinds=("depth",))
"""


# ---------------------------------------------------------------------------------- the table


@dataclass
class Case:
    """A mistake: `prepare` makes it and returns what else the command is called with."""

    name: str
    prepare: Callable[[Place], list[str]]
    code: int
    says: list[str]
    command: list[str] = field(default_factory=lambda: ["run", *TINY])
    plugins: str = ""


def case(
    name: str, code: int, says: list[str], *arguments: str, command: str = "run", **options: Any
) -> Case:
    """A case that needs nothing but arguments."""
    head = ["run", *TINY] if command == "run" else command.split()
    return Case(name, lambda place: list(arguments), code, says, head, **options)


CASES: list[Case] = []


def listed(name: str, code: int, *says: str, command: str = "run", plugins: str = "") -> Any:
    """Put a case in the table: the function below prepares it."""

    def add(prepare: Callable[[Place], list[str]]) -> Callable[[Place], list[str]]:
        head = ["run", *TINY] if command == "run" else command.split()
        CASES.append(Case(name, prepare, code, list(says), head, plugins))
        return prepare

    return add


SKIP_HINT = "--set data.on_error=skip"


def spoilt(name: str, code: int, says: list[str], spoil: Callable[[Place], object]) -> Case:
    """A run on own photographs after something happened to them."""

    def prepare(place: Place) -> list[str]:
        place.photos()
        spoil(place)
        return OWN

    return Case(name, prepare, code, says)


def _without(place: Place, *names: str) -> None:
    for name in names:
        (place.path / name).unlink()


def _labels(place: Place, task: str, content: bytes, number: int = 1) -> None:
    suffix = "png" if task == "segmentation" else "npy"
    place.write(f"photos/train/{task}/{number}.{suffix}", content)


def _holed() -> bytes:
    metres = np.ones(SIZE, np.float32)
    metres[3, 4] = np.nan
    return npy(metres)


CASES += [
    spoilt("image truncated", 1, [FIRST, "truncated", SKIP_HINT], lambda p: p.cut(FIRST)),
    spoilt("image is text", 1, [FIRST, "neither an image nor .npy", SKIP_HINT],
           lambda p: p.write(FIRST, "no picture")),
    spoilt("image empty", 1, [FIRST, "0 bytes", SKIP_HINT], lambda p: p.write(FIRST, "")),
    spoilt("later image truncated", 1, ["train/rgb/3.png", "truncated", SKIP_HINT],
           lambda p: p.cut("photos/train/rgb/3.png")),
    spoilt("file of an image missing", 1, [FIRST, "no such file", SKIP_HINT],
           lambda p: _without(p, FIRST)),
    spoilt("labels of a task missing everywhere", 0,
           ["note: photos", "'train'", "'depth'", "{split}/depth/{name}.npy"],
           lambda p: _without(p, *(f"photos/train/depth/{i}.npy" for i in range(4)))),
    spoilt("label truncated", 1, ["train/segmentation/1.png", "truncated", SKIP_HINT],
           lambda p: p.cut("photos/train/segmentation/1.png")),
    spoilt("label of another size", 1, ["train/segmentation/1.png", "24x32", "32x32", SKIP_HINT],
           lambda p: _labels(p, "segmentation", png(np.zeros((24, 32), np.uint8)))),
    spoilt("label out of range", 1,
           ["train/segmentation/1.png", "segmentation label 7", "classes 0 to 1", "invalid",
            SKIP_HINT],
           lambda p: _labels(p, "segmentation", png(np.full(SIZE, 7, np.uint8)))),
    spoilt("NaN in a label", 1,
           ["train/depth/1.npy", "depth label is NaN", "as invalid", SKIP_HINT],
           lambda p: _labels(p, "depth", _holed())),
    spoilt("label that is a JPEG's text", 1, ["train/depth/2.npy", "neither", SKIP_HINT],
           lambda p: _labels(p, "depth", b"JFIF", 2)),
    spoilt("empty split", 1, ["photos/val.txt", "no images found"],
           lambda p: p.write("photos/val.txt", "\n")),
    spoilt("list of a split missing", 1, ["photos/val.txt", "no such file"],
           lambda p: _without(p, "photos/val.txt")),
    spoilt("description missing", 2, ["photos/dataset.toml", "no such file", "data.spec"],
           lambda p: _without(p, "photos/dataset.toml")),
    spoilt("description with a misspelt key", 2,
           ["photos/dataset.toml", "tasks.segmentation.clases", "did you mean 'classes'?"],
           lambda p: p.write("photos/dataset.toml", DESCRIPTION.replace("classes", "clases"))),
    spoilt("description not TOML", 2, ["photos/dataset.toml", "line 2"],
           lambda p: p.write("photos/dataset.toml", "\nimage = {split}\n")),
]  # fmt: skip

CASES += [
    case("no root", 2, ["data", "gone: no such directory"], "--set=data.name=folder",
         "--set=data.root=gone"),
    case("root not given", 2, ["data.root", "give the folder"], "--set=data.name=folder"),
    case("no root of nyuv2", 1, ["gone", "no such"], "--set=data.name=nyuv2",
         "--set=data.root=gone"),
    case("unknown dataset", 2, ["data.name", "'romos'", "'rooms'"], "--set=data.name=romos"),
    case("unknown plugin", 2, ["'pcgrd'", "pcgrad"], "--plugin=pcgrd"),
    case("plugin file missing", 2, ["gone.py", "no such file"], "--plugin=gone.py"),
    case("unknown component", 2, ["balancer.name", "'equl'", "'equal'"],
         "--set=balancer.name=equl"),
    case("unknown setting", 2, ["optimizer.weight_deca", "'weight_decay'"],
         "--set=optimizer.weight_deca=1"),
    case("unknown table", 2, ["trainig", "'training'"], "--set=trainig.epochs=1"),
    case("unknown task", 2, ["'dept'", "'depth'"], "--set=tasks=['dept']"),
    case("wrong type", 2, ["training.epochs", "expected", "'many'"], "--set=training.epochs=many"),
    case("value out of range", 2, ["'batch_size' must be >= 1: 0"], "--set=training.batch_size=0"),
    case("several problems at once", 2, ["seed", "training.epochs"], "--set=seed=x",
         "--set=training.epochs=y"),
    case("assignment without =", 2, ["--set training.epochs", "path=value"],
         "--set=training.epochs"),
    case("configuration missing", 2, ["gone.toml", "cannot read"], "gone.toml"),
    case("resume without a place", 2, ["--resume", "--out"], "--resume"),
    case("eval where no run is", 2, ["gone", "no run there"], command="eval gone"),
    case("predict where no run is", 2, ["gone", "no run there"],
         command="predict gone a.png --out out"),
]  # fmt: skip


@listed("configuration not TOML", 2, "own.toml", "not TOML", "line 1")
def _(place: Place) -> list[str]:
    place.write("own.toml", "training: {epochs: 3}\n")
    return ["own.toml"]


@listed("configuration is a directory", 2, "own", "cannot read")
def _(place: Place) -> list[str]:
    (place.path / "own").mkdir()
    return ["own"]


@listed("no image can be read", 1, "none of the 4", FIRST, "no such file")
def _(place: Place) -> list[str]:
    place.photos()
    _without(place, *(f"photos/train/rgb/{i}.png" for i in range(4)))
    return [*OWN, "--set=data.on_error=skip"]


@listed("an unreadable image is left out where asked for", 0)
def _(place: Place) -> list[str]:
    place.photos()
    place.cut(FIRST)
    return [*OWN, "--set=data.on_error=skip"]


@listed("nyuv2 label of another shape", 1, "train/depth/0.npy", "(16, 16, 1)", "32", SKIP_HINT)
def _(place: Place) -> list[str]:
    for split in ("train", "val"):
        place.write(f"nyu/{split}/image/0.npy", npy(np.zeros((*SIZE, 3), np.float32)))
        place.write(f"nyu/{split}/label/0.npy", npy(np.zeros(SIZE, np.float32)))
        place.write(f"nyu/{split}/depth/0.npy", npy(np.ones((16, 16, 1), np.float32)))
    return ["--set=data.name=nyuv2", "--set=data.root=nyu"]


# Plugins


@listed("plugin that fails to import", 2, "broken", "no_such_module", plugins="broken")
def _(place: Place) -> list[str]:
    place.plugin("broken", "import no_such_module\n")
    return ["--plugin=broken"]


@listed("everything else works beside a broken plugin", 0, plugins="broken")
def _(place: Place) -> list[str]:
    place.plugin("broken", "import no_such_module\n")
    return ["--set=training.epochs=1"]


@listed("broken plugin with --strict-plugins", 1, "broken", "no_such_module",
        command="--strict-plugins list balancers", plugins="broken")  # fmt: skip
def _(place: Place) -> list[str]:
    place.plugin("broken", "import no_such_module\n")
    return []


@listed("plugin for another core", 2, "future", "needs mtlcore>=9", plugins="future")
def _(place: Place) -> list[str]:
    place.plugin("future", balancer("future"), requires="mtlcore>=9")
    return ["--plugin=future"]


@listed("two plugins with one name", 1, "same id as another", "mtlcore-first", "mtlcore-second",
        "rename", command="--strict-plugins plugins", plugins="twin")  # fmt: skip
def _(place: Place) -> list[str]:
    place.plugin("twin", balancer("twin"), dist="mtlcore-first")
    place.plugin("twin", balancer("twin"), dist="mtlcore-second")
    return []


@listed("two components with one name", 2, "'twin' is ambiguous", "one/twin", "two/twin",
        plugins="one,two")  # fmt: skip
def _(place: Place) -> list[str]:
    place.plugin("one", balancer("twin"))
    place.plugin("two", balancer("twin"))
    return ["--set=balancer.name=twin"]


@listed("plugin file with a syntax error", 2, "own.py", "SyntaxError")
def _(place: Place) -> list[str]:
    place.write("own.py", "def (:\n")
    return ["--plugin=own.py"]


@listed("loss that turns NaN", 1, "depth", "step 13", "10 steps in a row",
        "run/checkpoints/last.safetensors", "optimizer.lr")  # fmt: skip
def _(place: Place) -> list[str]:
    place.write("own.py", HEAD + NAN_LOSS)
    return ["--plugin=own.py", "--set=losses.depth.name=spoil", "--set=training.epochs=20",
            "--out=run"]  # fmt: skip


@listed("balancer that turns NaN", 1, "depth", "step 7", "4 steps in a row",
        "run/checkpoints/last.safetensors", "optimizer.lr")  # fmt: skip
def _(place: Place) -> list[str]:
    place.write("own.py", HEAD + NAN_BALANCER)
    return ["--plugin=own.py", "--set=training.epochs=20", "--set=training.max_skipped=4",
            "--out=run"]  # fmt: skip


@listed("data process that dies", 1, "process that loads data", "data.workers=0")
def _(place: Place) -> list[str]:
    place.write("own.py", HEAD + """
import os
from mtlcore.datasets.rooms import Rooms

class Deadly(Rooms):
    def __getitem__(self, index):
        return super().__getitem__(index) if os.getpid() == PARENT else os._exit(9)

PARENT = os.getpid()

@hookimpl
def mtl_datasets():
    yield DatasetSpec(name="deadly", target=Deadly)
""")  # fmt: skip
    return ["--plugin=own.py", "--set=data.name=deadly", "--set=data.workers=1"]


# Runs and checkpoints

LAST = "run/checkpoints/last.safetensors"


def _text(file: Path) -> None:
    file.write_text("no checkpoint")


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _foreign(file: Path) -> None:
    save_file({"weight": torch.zeros(2)}, file)


def _other_version(file: Path) -> None:
    save_file(load_file(file), file, {"format": "mtlcore-99", "tree": "{}"})


def _other_tree(file: Path) -> None:
    save_file({"a": torch.zeros(2)}, file, {"format": "mtlcore-1", "tree": '{"x": {"$tensor": "b"'})


def _other_model(file: Path) -> None:
    state = load_checkpoint(file)
    for name, _ in list(_tensors(state["learner"])):
        del state["learner"][name]
    save_checkpoint(file, state)


def _tensors(state: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    return ((name, value) for name, value in state.items() if isinstance(value, torch.Tensor))


def _missing(file: Path) -> None:
    file.unlink()


DAMAGE: list[tuple[str, Callable[[Path], None], str]] = [
    ("truncated", _cut, "not a readable checkpoint"),
    ("text", _text, "not a readable checkpoint"),
    ("foreign", _foreign, "not a checkpoint of this version"),
    ("of another version", _other_version, "mtlcore-99"),
    ("with a broken header", _other_tree, "not a readable checkpoint"),
    ("of another model", _other_model, "belongs to another model"),
    ("missing", _missing, "no such checkpoint"),
]


def _damaged(place: Place, damage: Callable[[Path], None]) -> list[str]:
    place.run()
    place.write("a.png", png(np.zeros((*SIZE, 3), np.uint8)))
    damage(place.path / LAST)
    return []


USES = {
    "resume": "run --resume --out run",
    "eval": "eval run --checkpoint last",
    "predict": "predict run a.png --out out --checkpoint last",
}
for use, words in USES.items():
    for what, damage, says in DAMAGE:
        if (use, what) != ("resume", "missing"):  # that starts afresh
            prepare = functools.partial(_damaged, damage=damage)
            name = f"{use} of a checkpoint {what}"
            CASES.append(Case(name, prepare, 1, [LAST, says], words.split()))


@listed("resume of the best checkpoint in place of the last", 1, LAST, "holds no optimizer",
        "another --out", command=USES["resume"])  # fmt: skip
def _(place: Place) -> list[str]:
    folder = place.run() / "checkpoints"
    shutil.copy(folder / "best.safetensors", folder / "last.safetensors")
    return []


@listed("resume with other settings", 2, "run", "optimizer.lr", "another --out",
        command=USES["resume"])  # fmt: skip
def _(place: Place) -> list[str]:
    place.run()
    return [*TINY, "--set=optimizer.lr=1.0"]


@listed("resume with part of the metrics lost", 1, "run/metrics.jsonl", "lost", "put the file back",
        command=USES["resume"])  # fmt: skip
def _(place: Place) -> list[str]:
    place.run()
    place.cut("run/metrics.jsonl")
    return []


@listed("resume with options, without the configuration", 1, "run/config.toml", "missing",
        "another --out", command=USES["resume"])  # fmt: skip
def _(place: Place) -> list[str]:
    (place.run() / "config.toml").unlink()
    return ["--set=seed=0"]


@listed("resume without the configuration", 2, "--out run: no run there", "no config.toml",
        command=USES["resume"])  # fmt: skip
def _(place: Place) -> list[str]:
    (place.run() / "config.toml").unlink()
    return []


for use, words in USES.items():

    @listed(f"{use} with a damaged configuration", 1, "run/config.toml", "not TOML", command=words)
    def _(place: Place) -> list[str]:
        place.write("a.png", png(np.zeros((*SIZE, 3), np.uint8)))
        (place.run() / "config.toml").write_text("= 3\n")
        return []


@listed("output directory not empty", 2, "run: is not empty", "another --out", "--resume")
def _(place: Place) -> list[str]:
    place.run()
    return ["--out=run"]


@listed("output directory is a file", 2, "run: cannot be written")
def _(place: Place) -> list[str]:
    place.write("run", "a file")
    return ["--out=run"]


@listed("output directory inside a file", 2, "run/inside: cannot be written")
def _(place: Place) -> list[str]:
    place.write("run", "a file")
    return ["--out=run/inside"]


@listed("predict on a text", 1, "a.txt", "neither an image nor .npy", command="predict")
def _(place: Place) -> list[str]:
    place.run()
    place.write("a.txt", "no picture")
    return ["run", "a.txt", "--out=out"]


@listed("predict on a directory", 2, "photos: is a folder", command="predict")
def _(place: Place) -> list[str]:
    place.run()
    place.photos()
    return ["run", "photos", "--out=out"]


@listed("predict on two of one name", 2, "a/x.png and b/x.png", "different folders",
        command="predict")  # fmt: skip
def _(place: Place) -> list[str]:
    place.run()
    return ["run", "a/x.png", "b/x.png", "--out=out"]


@listed("predict into a file", 2, "out: cannot be written", command="predict")
def _(place: Place) -> list[str]:
    place.run()
    place.write("out", "a file")
    return ["run", "a.png", "--out=out"]


# ----------------------------------------------------------------------------------- the test


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    result = CliRunner().invoke(main, ["run", *TINY, "--out", str(out)], env={"MTL_PLUGINS": ""})
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def place(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return Place(tmp_path, finished)


def contents(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


READERS: dict[str, Callable[[Path], object]] = {
    ".json": lambda file: json.loads(file.read_text()),
    ".jsonl": lambda file: [json.loads(line) for line in file.read_text().splitlines()],
    ".toml": lambda file: tomllib.loads(file.read_text()),
    ".safetensors": load_checkpoint,
    ".png": lambda file: Image.open(file).load(),
    ".npy": np.load,
}


def assert_whole(path: Path, but: set[Path] = frozenset()) -> None:
    """Every file under the path can be read to its end, and none is left over from writing."""
    for file in set(path.rglob("*")) - but:
        assert file.suffix != ".partial", file
        if file.suffix in READERS:
            READERS[file.suffix](file)


def assert_message(stderr: str, says: list[str]) -> None:
    """After notes, if any, one message that begins with the program's name."""
    assert "Traceback" not in stderr, stderr
    lines = stderr.splitlines()
    while lines and lines[0].startswith("note: "):
        del lines[0]
    assert lines and lines[0].startswith("mtl: "), stderr
    for fragment in says:
        assert fragment in stderr, f"{fragment!r} is not in:\n{stderr}"


# The command shows a warning as a note; here pytest would make it an error first.
@pytest.mark.filterwarnings("default::UserWarning")
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_mistake_ends_in_a_message_and_whole_files(case: Case, place: Place) -> None:
    arguments = [*case.command, *case.prepare(place)]
    before = contents(place.path)
    result = CliRunner().invoke(main, arguments, env={"MTL_PLUGINS": case.plugins})
    assert result.exit_code == case.code, (result.output, result.exception)
    if case.code:
        assert_message(result.stderr, case.says)
    else:
        assert all(fragment in result.stderr for fragment in case.says), result.stderr
    after = contents(place.path)
    assert {file: after.get(file) for file in before} == before
    assert_whole(place.path, but=set(before))


def test_what_a_killed_process_left_goes_when_the_run_goes_on(place: Place) -> None:
    run = place.run()
    left = [run / f"{name}.partial" for name in ("run.json", "checkpoints/best.safetensors")]
    for file in [*left, run / "film.mp4.partial"]:
        file.write_bytes(b"half")
    result = CliRunner().invoke(main, ["run", "--resume", "--out", "run"], env={"MTL_PLUGINS": ""})
    assert result.exit_code == 0, result.output
    assert [file.name for file in run.rglob("*.partial")] == ["film.mp4.partial"]


def test_no_two_cases_have_one_name() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("spoil", [NAN_BALANCER, NAN_LOSS], ids=["balancer", "loss"])
def test_the_last_checkpoint_before_nan_is_good(place: Place, spoil: str) -> None:
    place.write("own.py", HEAD + spoil)
    loss = ["--set=losses.depth.name=spoil"] if "mtl_losses" in spoil else []
    arguments = ["run", *TINY, "--plugin=own.py", *loss, "--set=training.epochs=20", "--out=run"]
    assert CliRunner().invoke(main, arguments).exit_code == 1
    state = load_checkpoint(place.path / LAST)
    assert state["progress"]["step"] >= 2
    for name, tensor in _tensors(state["learner"]):
        assert torch.isfinite(tensor).all(), name
    assert json.loads((place.path / "run/run.json").read_text())["status"] == "failed"


# --------------------------------------------------- processes of their own: signals and disks

SABOTEUR = """
import os
import signal

WHEN, _, SIGNAL = os.environ.get("MTL_TEST_STRIKE", "").partition(" ")


def strike(moment):
    global WHEN
    if moment == WHEN:
        WHEN = ""
        os.kill(os.getpid(), getattr(signal, SIGNAL))


def at(moment, module, name):
    function = getattr(module, name)

    def strike_and_go_on(*arguments, **options):
        strike(moment)
        return function(*arguments, **options)

    setattr(module, name, strike_and_go_on)


strike("import")
if WHEN:
    import mtlcore.storage.checkpoints, mtlcore.engine, mtlcore.learner, mtlcore.report
    import mtlcore.engine.session

    at("building", mtlcore.engine.session, "build_learner")
    at("constants", mtlcore.engine.constant_baselines.ConstantFit, "update")
    at("evaluation", mtlcore.learner.Learner, "predict")
    at("write", mtlcore.storage.checkpoints, "_flush")
    at("report", mtlcore.report.writing, "save_curves")
"""
COMMAND = [sys.executable, "-m", "mtlcore"]


def mtl(place: Place, *arguments: str, strike: str = "") -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "MTL_PLUGINS": "saboteur",
        "MTL_TEST_STRIKE": strike,
        "PYTHONPATH": str(place.path / "site"),
    }
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=place.path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def assert_resumes(place: Place, finished: Path) -> None:
    """Going on from `run` ends with the weights of the run that nothing disturbed."""
    result = CliRunner().invoke(main, ["run", "--resume", "--out", "run"], env={"MTL_PLUGINS": ""})
    assert result.exit_code == 0, result.output
    ends = [
        dict(_tensors(load_checkpoint(path / "checkpoints/last.safetensors")["learner"]))
        for path in (place.path / "run", finished)
    ]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


# Before the run has written its configuration there is nothing that could be gone on with.
EARLY = {"import": "mtl: stopped", "building": "mtl: stopped"}
LATE = {
    "constants": "after step 0 of 6; saved. Go on with: mtl run --resume --out run",
    "evaluation": "after step 2 of 6; saved. Go on with: mtl run --resume --out run",
    "write": "Go on with: mtl run --resume --out run",
    "report": "go on from the last checkpoint with: mtl run --resume --out run",
}
FAST = [("SIGINT", "import"), ("SIGINT", "constants"), ("SIGTERM", "evaluation"),
        ("SIGINT", "write")]  # fmt: skip
SIGNALS = [
    pytest.param(*pair, marks=() if pair in FAST else pytest.mark.slow)
    for pair in ((name, moment) for name in ("SIGINT", "SIGTERM") for moment in (EARLY | LATE))
]


@pytest.mark.parametrize(("name", "moment"), SIGNALS)
def test_a_signal_at_any_moment(place: Place, finished: Path, name: str, moment: str) -> None:
    place.plugin("saboteur", SABOTEUR)
    result = mtl(place, "run", *TINY, "--out=run", strike=f"{moment} {name}")
    assert result.returncode == 130, result.stderr
    assert_message(result.stderr, [(EARLY | LATE)[moment]])
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert_whole(place.path)
    if moment in LATE:
        about = json.loads((place.path / "run/run.json").read_text())
        assert about["status"] == "interrupted"
        assert_resumes(place, finished)
    else:
        assert not contents(place.path / "run")


def test_a_reader_that_goes_away_is_no_error_to_shout_about(place: Place, finished: Path) -> None:
    # 30 epochs: more lines are to come when `head` has gone.
    run = [*COMMAND, "run", *TINY, "--set=training.epochs=30", "--out=run"]
    environment = {**os.environ, "MTL_PLUGINS": ""}
    with subprocess.Popen(
        run, cwd=place.path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"run: run\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
    assert json.loads((place.path / "run/run.json").read_text())["status"] == "interrupted"
    assert_whole(place.path)


@functools.cache
def no_mounts() -> str:
    """Why no file system can be mounted here; empty where it can."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return "needs Linux with unshare"
    attempt = ["unshare", "-m", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    tried = subprocess.run(attempt, capture_output=True, text=True, check=False)
    return f"no tmpfs can be mounted: {tried.stderr.strip()}" if tried.returncode else ""


def in_namespace(place: Place, script: str) -> list[str]:
    """Run a script whose mounts nobody else sees and that end with it; `mtl` is the command.

    Returns:
        For each "rc" it prints, the text before: a command's messages.
    """
    if reason := no_mounts():
        pytest.skip(reason)
    (place.path / "disk").mkdir()
    (place.path / "tiny.sh").write_text(
        f'mtl() {{ "{sys.executable}" -m mtlcore "$@"; }}\n{script}'
    )
    result = subprocess.run(
        ["unshare", "-m", "sh", "tiny.sh"],
        cwd=place.path,
        env={**os.environ, "MTL_PLUGINS": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split("rc ")


def quoted(arguments: list[str]) -> str:
    return " ".join(f'"{argument}"' for argument in arguments)


@pytest.mark.parametrize(
    "size",
    ["300k", *(pytest.param(size, marks=pytest.mark.slow) for size in ("8k", "100k", "600k"))],
)
def test_a_full_disk(place: Place, finished: Path, size: str) -> None:
    run = f"mtl run {quoted(TINY)} --out disk/run >/dev/null 2>messages"
    first, second, _ = in_namespace(
        place,
        f"""
mount -t tmpfs -o size={size} tmpfs disk || exit 1
{run}; status=$?; cat messages; echo "rc $status"
cp -r disk/run full
mount -o remount,size=20m disk
mtl run --resume --out disk/run >/dev/null 2>messages; status=$?; cat messages; echo "rc $status"
cp -r disk/run run
""",
    )
    assert second.startswith("1\n"), second
    assert_message(first, ["mtl: disk/run/", "cannot be written", "No space left"])
    assert_whole(place.path / "full")
    assert (place.path / "run/summary.json").exists()
    shutil.rmtree(place.path / "full")
    assert_resumes(place, finished)


def test_a_directory_that_cannot_be_written(place: Place, finished: Path) -> None:
    run = place.run()
    parts = in_namespace(
        place,
        f"""
mount --bind disk disk && mount -o remount,bind,ro disk || exit 1
mount --bind run run && mount -o remount,bind,ro run || exit 1
mtl run {quoted(TINY)} --out disk/run 2>&1 >/dev/null; echo "rc $?"
mtl run --resume --out run 2>&1 >/dev/null; echo "rc $?"
mtl predict run {finished}/report/predictions.png --out disk/out 2>&1 >/dev/null; echo "rc $?"
""",
    )
    assert [part.splitlines()[0] for part in parts[1:]] == ["2", "1", "2"]
    refused = [parts[0], *("\n".join(part.splitlines()[1:]) for part in parts[1:3])]
    for text, name in zip(refused, ("disk/run", "run/", "disk/out"), strict=True):
        assert_message(text, [name, "cannot be written", "Read-only"])
    assert_whole(run)


def test_a_killed_loader_is_told_wherever_torch_raises_it() -> None:
    with pytest.raises(MtlError, match=r"data\.workers=0"), lost_workers_told():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    with pytest.raises(RuntimeError, match="another"), lost_workers_told():
        raise RuntimeError("another error")
