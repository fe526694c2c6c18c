"""Loggers in a run: what they are told, and that they cannot harm it."""

from __future__ import annotations

import copy
import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest

import mtlcore
from mtlcore.config import Layer, resolve
from mtlcore.display import Display
from mtlcore.errors import ConfigError, Interrupted, MtlError, UsageError
from mtlcore.metrics import MetricValues
from mtlcore.plugins import Plugins
from mtlcore.storage import Loggers, RunInfo, RunLogger, RunOutcome, load_checkpoint
from mtlcore.studies import prepare_study
from mtlcore.testing import LoggerContract, told_lines, told_run
from mtlcore.testing.base import same

TINY: dict[str, Any] = {
    "tasks": ["segmentation", "depth"],
    "data": {"train": 6, "val": 3, "size": [32, 32], "workers": 0},
    "model": {"backbone": {"width": 0.03125}},
    "training": {"epochs": 3, "batch_size": 3, "evaluate_every": 1},
    "device": "cpu",
}
# A logger that notes every call in a file of its own, and may raise in one of them.
NOTES = """
import json
from pathlib import Path

from mtlcore import LoggerSpec, hookimpl


@hookimpl
def mtl_loggers():
    from mtlcore.storage import RunLogger, without_nan

    class Notes(RunLogger):
        def __init__(self, *, file: str, breaks: str = ""):
            self.file, self.breaks = Path(file), breaks
            self.tell("make")

        def start(self, run):
            assert (run.directory / "run.json").exists()
            self.tell("start", id=run.id, resumed=run.resumed, step=run.step,
                      config=run.config, origins=run.origins, about=run.about)

        def record(self, lines):
            self.tell("record", lines=without_nan(list(lines)))

        def finish(self, outcome):
            self.tell("finish", status=outcome.status, reason=outcome.reason,
                      summary=without_nan(outcome.summary),
                      pictures=[[file.name, file.stat().st_size] for file in outcome.pictures])

        def tell(self, call, **values):
            with self.file.open("a") as file:
                file.write(json.dumps({"call": call, **values}) + "\\n")
            if call == self.breaks:
                raise SystemExit(3) if call == "record" else ConnectionError("no network")

    yield LoggerSpec(name="notes", target=Notes, summary="Notes every call.")
"""


class Told(Display):
    """Keeps what is shown, and may stop the run after an epoch."""

    def __init__(self, stop_after: int = 0) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.stop_after = stop_after

    def _begin(self, title: str) -> None: ...

    def note(self, message: str) -> None:
        self.notes.append(message)

    def epoch(
        self, epoch: int, epochs: int, losses: Mapping[str, float], metrics: MetricValues | None
    ) -> None:
        if epoch == self.stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    def stop(self) -> None: ...


class TestJsonLines(LoggerContract):
    def make(self, folder: Path) -> Any:
        return mtlcore.create("loggers", "json-lines", to=str(folder / "lines.jsonl"))

    def arrived(self, folder: Path) -> list[dict[str, Any]]:
        lines = map(json.loads, (folder / "lines.jsonl").read_text().splitlines())
        # Of those that came again, the later ones hold.
        places = {(x["step"], x["split"], x["task"], x["metric"]): x for x in lines}
        return list(places.values())


def config(tmp_path: Path, *loggers: dict[str, Any]) -> dict[str, Any]:
    plugin = tmp_path / "notes.py"
    plugin.write_text(NOTES)
    return {**copy.deepcopy(TINY), "plugins": [str(plugin)], "loggers": list(loggers)}


def notes_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> Any:
    return load_checkpoint(run / "checkpoints/last.safetensors")["learner"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without loggers."""
    out = tmp_path_factory.mktemp("plain") / "run"
    mtlcore.run(TINY, out=str(out))
    return out


def test_a_logger_is_told_everything(tmp_path: Path, plain: Path) -> None:
    notes, out = tmp_path / "notes", tmp_path / "run"
    summary = mtlcore.run(config(tmp_path, {"name": "notes", "file": str(notes)}), out=str(out))
    make, start, *records, finish = notes_of(notes)
    assert make == {"call": "make"}
    about = json.loads((out / "run.json").read_text())
    assert start["id"] == about["id"] and len(about["id"]) == 32
    assert (start["resumed"], start["step"]) == (False, 0)
    assert start["config"]["training"]["epochs"] == 3
    assert start["config"]["optimizer"]["name"] == "adam"
    assert start["origins"]["training.epochs"] == "config"
    assert start["about"]["seed"] == 0
    assert [line for record in records for line in record["lines"]] == lines_of(out)
    assert {record["call"] for record in records} == {"record"}
    assert (finish["status"], finish["reason"]) == ("finished", None)
    assert finish["summary"] == json.loads((out / "summary.json").read_text())
    assert finish["summary"]["steps"] == summary["steps"]
    pictures = dict(finish["pictures"])
    assert {"predictions.png", "curves.svg"} <= set(pictures) and all(pictures.values())
    assert len({about["id"], json.loads((plain / "run.json").read_text())["id"]}) == 2


@pytest.mark.parametrize("call", ["make", "start", "record", "finish"])
def test_one_that_raises_is_told_of_once_and_left_alone(
    tmp_path: Path, plain: Path, call: str
) -> None:
    broken, sound, out = tmp_path / "broken", tmp_path / "sound", tmp_path / "run"
    whole = config(
        tmp_path,
        {"name": "notes", "file": str(broken), "breaks": call},
        {"name": "notes", "file": str(sound)},
    )
    display = Told()
    mtlcore.run(whole, out=str(out), display=display)
    about = [note for note in display.notes if "loggers" in note]
    reason = "SystemExit: 3" if call == "record" else "ConnectionError: no network"
    assert about == [
        f"loggers: notes failed ({reason}); it is told nothing more, and the run goes on. "
        f"mtl log {out} --to notes sends all of it later"
    ]
    calls = [note["call"] for note in notes_of(broken)]
    assert calls[-1] == call and calls.count(call) == 1
    assert [note["call"] for note in notes_of(sound)][-1] == "finish"
    assert json.loads((out / "run.json").read_text())["status"] == "finished"
    assert same(weights(out), weights(plain))


def test_a_run_that_goes_on_has_the_same_identity(tmp_path: Path, plain: Path) -> None:
    notes, out = tmp_path / "notes", tmp_path / "run"
    whole = config(tmp_path, {"name": "notes", "file": str(notes)})
    with pytest.raises(Interrupted):
        mtlcore.run(whole, out=str(out), display=Told(stop_after=1))
    interrupted = notes_of(notes)[-1]
    assert (interrupted["call"], interrupted["status"]) == ("finish", "interrupted")
    assert "Go on with" in interrupted["reason"] and interrupted["summary"] is None
    assert interrupted["pictures"] == []
    id_before = notes_of(notes)[1]["id"]
    # Another list of loggers is no other run.
    whole["loggers"] += [{"name": "json-lines", "to": str(tmp_path / "lines")}]
    mtlcore.run(whole, out=str(out), resume=True, display=Told())
    starts = [note for note in notes_of(notes) if note["call"] == "start"]
    assert [start["resumed"] for start in starts] == [False, True]
    assert starts[1]["id"] == id_before == json.loads((out / "run.json").read_text())["id"]
    step = starts[1]["step"]
    assert 0 < step < 6
    told = [line for note in notes_of(notes) if note["call"] == "record" for line in note["lines"]]
    assert told == lines_of(out)
    rest = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert rest == lines_of(out)[-len(rest) :]
    assert all(line["step"] > step or line["split"] == "val" for line in rest)
    assert same(weights(out), weights(plain))


def test_a_run_that_fails_tells_why(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    whole = config(tmp_path, {"name": "notes", "file": str(notes)})
    whole["optimizer"] = {"lr": 1e30}
    whole["training"]["max_skipped"] = 1
    with pytest.raises(MtlError, match="in a row were"):
        mtlcore.run(whole, out=str(tmp_path / "run"), display=Told())
    finish = notes_of(notes)[-1]
    assert finish["status"] == "failed" and "skipped" in finish["reason"]


def test_json_lines_goes_to_streams_and_urls(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = copy.deepcopy(TINY)
    whole["training"]["epochs"] = 1
    url = f"memory://{tmp_path.name}/lines.jsonl"
    whole["loggers"] = [{"name": "json-lines"}, {"name": "json-lines", "to": "stdout"},
                        {"name": "json-lines", "to": url}]  # fmt: skip
    mtlcore.run(whole, out=str(tmp_path / "run"), display=Told())
    expected = (tmp_path / "run/metrics.jsonl").read_text()
    said = capfd.readouterr()
    assert said.err == said.out == expected
    with fsspec.open(url, "rt") as file:
        assert file.read() == expected


def test_a_place_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    whole = copy.deepcopy(TINY)
    (tmp_path / "file").write_text("")
    whole["loggers"] = [{"name": "json-lines", "to": str(tmp_path / "file" / "lines")}]
    display = Told()
    mtlcore.run(whole, out=str(tmp_path / "run"), display=display)
    (note,) = (note for note in display.notes if note.startswith("loggers: json-lines failed"))
    assert "Error" in note and "the run goes on" in note


@pytest.mark.parametrize(
    ("loggers", "message"),
    [
        ([{"name": "json-line"}], r"loggers\[0\]\.name: .*did you mean 'json-lines'"),
        ([{"name": "json-lines", "file": "x"}], r"loggers\[0\]\.file: unknown setting"),
        ({"name": "json-lines"}, "loggers: expected a list of tables"),
    ],
)
def test_mistakes_are_told_with_their_path(tmp_path: Path, loggers: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mtlcore.run({**TINY, "loggers": loggers}, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_refused_setting_stops_the_run_before_it_begins(tmp_path: Path) -> None:
    plugin = tmp_path / "strict.py"
    plugin.write_text(NOTES.replace('self.tell("make")', 'raise ValueError("file: no")'))
    whole = {**TINY, "plugins": [str(plugin)], "loggers": [{"name": "notes", "file": "x"}]}
    with pytest.raises(UsageError, match="logger 'notes': file: no"):
        mtlcore.run(whole, out=str(tmp_path / "run"))
    assert not (tmp_path / "run" / "run.json").exists()


# A logger that works in the background, where it may be slow or never answer.
SLOW = """
import time
from pathlib import Path

from mtlcore import LoggerSpec, hookimpl


@hookimpl
def mtl_loggers():
    from mtlcore.storage import RunLogger

    class Slow(RunLogger):
        in_background = True

        def __init__(self, *, file: str, seconds: float = 0.0, breaks: bool = False):
            self.file, self.seconds, self.breaks = Path(file), seconds, breaks

        def start(self, run):
            if self.breaks:
                raise ConnectionError("no network")
            time.sleep(self.seconds)
            self.tell(f"start {run.name} {run.group}")

        def record(self, lines):
            self.tell(f"record {len(lines)}")

        def finish(self, outcome):
            self.tell(f"finish {outcome.status}")

        def tell(self, text):
            with self.file.open("a") as file:
                print(text, file=file)

    yield LoggerSpec(name="slow", target=Slow, summary="Takes its time.")
"""


def slow(tmp_path: Path, **settings: Any) -> dict[str, Any]:
    plugin = tmp_path / "slow.py"
    plugin.write_text(SLOW)
    table = {"name": "slow", "file": str(tmp_path / "told"), **settings}
    return {**copy.deepcopy(TINY), "plugins": [str(plugin)], "loggers": [table]}


def test_a_logger_in_the_background_is_waited_for_at_the_end(tmp_path: Path, plain: Path) -> None:
    out = tmp_path / "run"
    mtlcore.run(slow(tmp_path, seconds=3.0), out=str(out), display=Told())
    start, *records, finish = (tmp_path / "told").read_text().splitlines()
    assert (start, finish) == ("start run None", "finish finished")
    told = [int(record.removeprefix("record ")) for record in records]
    assert sum(told) == len(lines_of(out))
    assert len(told) < len(lines_of(plain)) / 4  # while it was busy, lines were gathered
    assert same(weights(out), weights(plain))


def test_one_that_never_answers_is_left_behind(tmp_path: Path) -> None:
    notes: list[str] = []
    loggers = Loggers(notes.append, "runs/x", patience=2.5)

    class Stuck(RunLogger):
        in_background = True

        def start(self, run: RunInfo) -> None:
            time.sleep(60)

        def record(self, lines: Any) -> None: ...

        def finish(self, outcome: RunOutcome) -> None: ...

    loggers.add("stuck", Stuck)
    begun = time.monotonic()
    loggers.start(told_run(tmp_path))
    loggers.record(told_lines(1))
    assert time.monotonic() < begun + 1
    loggers.finish(RunOutcome(status="interrupted", reason="enough"))
    assert time.monotonic() < begun + 10
    waiting, failed = notes
    assert "waiting up to" in waiting
    assert "it has not taken in everything" in failed and "mtl log runs/x --to stuck" in failed


def test_one_that_falls_far_behind_is_left_alone(tmp_path: Path) -> None:
    notes: list[str] = []
    loggers = Loggers(notes.append)
    released = threading.Event()

    class Waiting(RunLogger):
        in_background = True

        def start(self, run: RunInfo) -> None:
            released.wait(60)

        def record(self, lines: Any) -> None: ...

        def finish(self, outcome: RunOutcome) -> None: ...

    loggers.add("waiting", Waiting)
    loggers.start(told_run(tmp_path))
    for step in range(3000):
        loggers.record(told_lines(step))
    released.set()
    (note,) = notes
    assert "it is too slow" in note


def test_what_fails_in_the_background_is_told_and_sent_later(
    tmp_path: Path, plain: Path, mtl: Any
) -> None:
    out, display = tmp_path / "run", Told()
    mtlcore.run(slow(tmp_path, breaks=True), out=str(out), display=display)
    (note,) = (note for note in display.notes if note.startswith("loggers: "))
    assert note.startswith("loggers: slow failed (ConnectionError: no network)")
    assert f"mtl log {out} --to slow" in note
    assert same(weights(out), weights(plain))
    plugin = str(tmp_path / "slow.py")
    refused = mtl("log", str(out), "--to", "slow", "--plugin", plugin)
    assert refused.exit_code == 2 and "breaks = True" in refused.stderr, refused.stderr
    told = tmp_path / "told"
    done = mtl("log", str(out), "--to", "slow", "--plugin", plugin,
               "--set", f"file={told}", "--set", "breaks=false")  # fmt: skip
    assert done.exit_code == 0, done.output
    start, *records, finish = told.read_text().splitlines()
    assert (start, finish) == ("start run None", "finish finished")
    assert sum(int(r.removeprefix("record ")) for r in records) == len(lines_of(out))


def test_plugin_selects_a_logger_beside_a_method(tmp_path: Path) -> None:
    plugin = tmp_path / "slow.py"
    plugin.write_text(SLOW.replace("file: str,", "file: str = 'told',"))
    plugins = Plugins.from_environment()
    layer = Layer("a.toml", {"loggers": [{"name": "json-lines"}]})
    found = resolve(plugins, [str(plugin)], [layer])
    assert [table["name"] for table in found.tree["loggers"]] == ["json-lines", "slow"]
    assert found.method == "default"
    assert found.origins["loggers"] == f"a.toml, plugin {plugin}"
    again = resolve(plugins, [str(plugin)], [Layer("a.toml", found.tree)])
    assert [table["name"] for table in again.tree["loggers"]] == ["json-lines", "slow"]


def test_a_run_in_a_study_knows_its_study(tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    plugin = slow(tmp_path)["plugins"][0]
    study.write_text(
        f"""
        name = "which one"
        seeds = [0]
        [base]
        plugins = [{plugin!r}]
        tasks = ["depth"]
        loggers = [{{ name = "slow", file = {str(tmp_path / "told")!r} }}]
        data = {{ train = 4, val = 2, size = [32, 32], workers = 0 }}
        model = {{ backbone = {{ width = 0.03125 }} }}
        training = {{ epochs = 1, batch_size = 2 }}
        [variants.plain]
        """
    )
    (cell,) = prepare_study(
        Plugins.from_environment(), str(study), str(tmp_path / "out"), 1, lambda note: None
    )
    mtlcore.run(out=cell, resume=True, trust=True, display=Told())
    assert (tmp_path / "told").read_text().splitlines()[0] == "start plain seed-0 which one"
