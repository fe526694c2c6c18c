"""Whatever goes wrong: the exit code, a message that names the thing and the way out, files whole.

Each mistake is made in a folder of its own and met by the real command. Nothing that was there
before may have changed, and nothing new may be half-written. Signals and broken disks are in
test_interruptions.py. One file: it is one table of mistakes.
"""

from __future__ import annotations

import functools
import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from safetensors.torch import load_file, save_file

from mtlcore.storage import load_checkpoint, save_checkpoint

OWN = ["--set=data.name=folder", "--set=data.root=photos"]  # beside what makes a run tiny
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
Command = Callable[..., Result]
Place = Any  # the class in conftest.py
HEAD = "from mtlcore import BalancerSpec, DatasetSpec, LossSpec, hookimpl\n"
FIRST = "photos/train/rgb/0.png"


# ------------------------------------------------------------------------------ things to break


def png(array: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def photos(place: Place) -> None:
    """Four photographs to train on and two to judge by, labelled for two tasks."""
    random = np.random.default_rng(0)
    place.write("photos/dataset.toml", DESCRIPTION)
    for split, count in (("train", 4), ("val", 2)):
        place.write(f"photos/{split}.txt", "".join(f"{i}\n" for i in range(count)))
        for i in range(count):
            colours = random.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            classes = random.integers(0, 2, SIZE, dtype=np.uint8)
            place.write(f"photos/{split}/rgb/{i}.png", png(colours))
            place.write(f"photos/{split}/segmentation/{i}.png", png(classes))
            metres = random.uniform(1, 3, SIZE).astype(np.float32)
            place.write(f"photos/{split}/depth/{i}.npy", npy(metres))


def balancer(name: str) -> str:
    return f"""{HEAD}
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
    command: tuple[str, ...] = ("run",)  # a run is made tiny
    plugins: str = ""


def case(
    name: str, code: int, says: list[str], *arguments: str, command: str = "run", **options: Any
) -> Case:
    """A case that needs nothing but arguments."""
    return Case(name, lambda place: list(arguments), code, says, tuple(command.split()), **options)


CASES: list[Case] = []


def listed(name: str, code: int, *says: str, command: str = "run", plugins: str = "") -> Any:
    """Put a case in the table: the function below prepares it."""

    def add(prepare: Callable[[Place], list[str]]) -> Callable[[Place], list[str]]:
        CASES.append(Case(name, prepare, code, list(says), tuple(command.split()), plugins))
        return prepare

    return add


SKIP_HINT = "--set data.on_error=skip"


def spoilt(name: str, code: int, says: list[str], spoil: Callable[[Place], object]) -> Case:
    """A run on own photographs after something happened to them."""

    def prepare(place: Place) -> list[str]:
        photos(place)
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
    case("value out of range", 2, ["training.batch_size: expected int >= 1", "got 0"],
         "--set=training.batch_size=0"),
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
    photos(place)
    _without(place, *(f"photos/train/rgb/{i}.png" for i in range(4)))
    return [*OWN, "--set=data.on_error=skip"]


@listed("an unreadable image is left out where asked for", 0)
def _(place: Place) -> list[str]:
    photos(place)
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
            CASES.append(Case(name, prepare, 1, [LAST, says], tuple(words.split())))


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
    return [*place.tiny, "--set=optimizer.lr=1.0"]


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
    photos(place)
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


# The command shows a warning as a note; here pytest would make it an error first.
@pytest.mark.filterwarnings("default::UserWarning")
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_mistake_ends_in_a_message_and_whole_files(
    mtl: Command, case: Case, place: Place
) -> None:
    tiny = place.tiny if case.command == ("run",) else []
    arguments = [*case.command, *tiny, *case.prepare(place)]
    before = place.contents()
    result = mtl(*arguments, env={"MTL_PLUGINS": case.plugins})
    assert result.exit_code == case.code, (result.output, result.exception)
    if case.code:
        place.assert_message(result.stderr, case.says)
    else:
        assert all(fragment in result.stderr for fragment in case.says), result.stderr
    after = place.contents()
    assert {file: after.get(file) for file in before} == before
    place.assert_whole(but=set(before))


def test_no_two_cases_have_one_name() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("spoil", [NAN_BALANCER, NAN_LOSS], ids=["balancer", "loss"])
def test_the_last_checkpoint_before_nan_is_good(mtl: Command, place: Place, spoil: str) -> None:
    place.write("own.py", HEAD + spoil)
    loss = ["--set=losses.depth.name=spoil"] if "mtl_losses" in spoil else []
    arguments = [*place.tiny, "--plugin=own.py", *loss, "--set=training.epochs=20", "--out=run"]
    assert mtl("run", *arguments).exit_code == 1
    state = load_checkpoint(place.path / LAST)
    assert state["progress"]["step"] >= 2
    for name, tensor in _tensors(state["learner"]):
        assert torch.isfinite(tensor).all(), name
    assert json.loads((place.path / "run/run.json").read_text())["status"] == "failed"
