"""The logger against a server of MLflow on this machine, with its store in SQLite."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import Run

import mtlcore
from mtlcore.storage import RunOutcome, tag_of, without_nan
from mtlcore.testing import (
    TINY_RUN,
    LoggerContract,
    NotesDisplay,
    assert_plugin_is_light,
    assert_plugin_is_whole,
    told_lines,
    told_run,
)
from mtlcore_mlflow.logger import TAG, MLflow

_LARGEST = sys.float_info.max  # what MLflow's SQL stores have for infinity


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(uri: str) -> bool:
    try:
        return requests.get(f"{uri}/health", timeout=5).ok
    except requests.RequestException:
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place, port = tmp_path_factory.mktemp("mlflow"), free_port()
    uri = f"http://127.0.0.1:{port}"
    with (place / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1",
             "--port", str(port), "--workers", "1",
             "--backend-store-uri", f"sqlite:///{place}/store.db",
             "--artifacts-destination", str(place / "artifacts")],
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            # Evaluations that it might run, in ten processes more.
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )  # fmt: skip
    try:
        begun = time.monotonic()
        while not answers(uri):
            assert process.poll() is None, (place / "log").read_text()
            assert time.monotonic() < begun + 300, (place / "log").read_text()
            time.sleep(0.2)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def run_in(uri: str, experiment: str) -> Run:
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    (run,) = client.search_runs([found.experiment_id])
    return run


def values_of(uri: str, run: Run) -> dict[tuple[str, int], list[Any]]:
    """Name and step -> the values there, with their time."""
    client = MlflowClient(uri)
    values: dict[tuple[str, int], list[Any]] = {}
    for name in run.data.metrics:
        for value in client.get_metric_history(run.info.run_id, name):
            values.setdefault((name, value.step), []).append(value)
    return values


class TestContract(LoggerContract):
    @pytest.fixture(autouse=True)
    def _server(self, server: str) -> None:
        self.uri = server

    def make(self, folder: Path) -> MLflow:
        return MLflow(uri=self.uri, experiment=folder.name)

    def arrived(self, folder: Path) -> list[dict[str, Any]]:
        found = values_of(self.uri, run_in(self.uri, folder.name))
        assert {len(values) for values in found.values()} == {1}
        return [
            {
                "step": step,
                "epoch": int(found["epoch", step][0].value),
                "split": name.split("/")[0],
                "task": name.split("/")[1] if name.count("/") == 2 else None,
                "metric": name.split("/")[-1],
                "value": value.value if abs(value.value) != _LARGEST else float("inf"),
                "seconds": (value.timestamp - 1_700_000_000_000) / 1000,
            }
            for (name, step), (value,) in found.items()
            if name.startswith(("train/", "val/"))
        ]


def test_everything_of_a_run_is_there(
    server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    experiment, out = uuid.uuid4().hex, tmp_path / "run"
    table = {"name": "mlflow", "uri": server, "experiment": experiment}
    display = NotesDisplay()
    summary = mtlcore.run({**TINY_RUN, "loggers": [table]}, out=str(out), display=display)
    assert not [note for note in display.notes if "failed" in note]
    assert capfd.readouterr().out == ""
    run = run_in(server, experiment)
    assert run.data.tags[TAG] == json.loads((out / "run.json").read_text())["id"]
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    found = values_of(server, run)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        (value,) = found[tag_of(line), line["step"]]
        assert without_nan(value.value) == line["value"]
    assert run.data.params["training.epochs"] == "2"
    rmse = summary["final"]["val"]["depth"]["rmse"]
    assert run.data.metrics["final/val/depth/rmse"] == rmse
    client, there = MlflowClient(server), tmp_path / "downloaded"
    there.mkdir()
    client.download_artifacts(run.info.run_id, "", str(there))
    assert "epochs = 2  # config" in (there / "config.toml").read_text()
    assert json.loads((there / "summary.json").read_text()) == (
        json.loads((out / "summary.json").read_text())
    )
    for name in ("report/predictions.png", "report/curves.svg"):
        assert (there / name).read_bytes() == (out / name).read_bytes()


def test_a_server_that_is_down_leaves_a_run_alone(tmp_path: Path, mtl: Callable[..., Any]) -> None:
    out, uri = tmp_path / "run", f"http://127.0.0.1:{free_port()}"
    display = NotesDisplay()
    whole = {**TINY_RUN, "loggers": [{"name": "mlflow", "uri": uri}]}
    mtlcore.run(whole, out=str(out), display=display)
    assert json.loads((out / "run.json").read_text())["status"] == "finished"
    (note,) = (note for note in display.notes if note.startswith("loggers: mlflow failed"))
    assert f"no MLflow server answers at {uri}" in note
    assert f"mtl log {out} --to mlflow" in note
    done = mtl("log", str(out), "--to", "mlflow", "--trust")
    assert done.exit_code == 1 and f"no MLflow server answers at {uri}" in done.stderr
    done = mtl("log", str(out), "--to", "mlflow")
    assert done.exit_code == 2 and "--trust" in done.stderr and uri in done.stderr


def test_mtl_log_completes_what_is_there(
    server: str, tmp_path: Path, mtl: Callable[..., Any]
) -> None:
    experiment, out = uuid.uuid4().hex, tmp_path / "run"
    mtlcore.run(TINY_RUN, out=str(out))
    for _ in range(2):
        done = mtl("log", str(out), "--to", "mlflow", "--set", f"uri={server}",
                   "--set", f"experiment={experiment}")  # fmt: skip
        assert done.exit_code == 0, done.output
    found = values_of(server, run_in(server, experiment))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {(tag_of(line), line["step"]) for line in lines} <= {*found}
    assert {len(values) for values in found.values()} == {1}


def test_the_study_is_the_experiment(server: str, tmp_path: Path) -> None:
    study = uuid.uuid4().hex
    logger = MLflow(uri=server)
    logger.start(told_run(tmp_path, group=study))
    logger.record(told_lines(1))
    logger.finish(RunOutcome(status="failed", reason="diverged"))
    run = run_in(server, study)
    assert run.info.status == "FAILED" and run.data.tags["mtlcore.reason"] == "diverged"


def test_the_plugin_can_be_listed_and_explained_without_torch() -> None:
    assert_plugin_is_light("mtlcore_mlflow.plugin")
    assert_plugin_is_whole("mtlcore_mlflow.plugin")
