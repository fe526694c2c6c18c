"""The launcher on a Ray cluster of two nodes, both on this machine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mtlcore.errors import MtlError
from mtlcore.testing import LauncherContract, assert_plugin_is_light, assert_plugin_is_whole
from mtlcore_ray.launcher import Ray

Start = Callable[..., subprocess.Popen[str]]
Until = Callable[..., None]

# Ray's own processes and sockets are closed when its garbage is collected.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "default::FutureWarning")

STUDY = """
name = "On a cluster"
seeds = [0]
launcher = {{name = "ray", address = "{address}"}}

[base]
tasks = ["depth"]
data = {{train = 8, val = 2, size = [32, 32], workers = 0}}
training = {{epochs = {epochs}, batch_size = 2, threads = 1, evaluate_every = 1}}

[variants.slow]
optimizer.lr = 1e-4
[variants.fast]
optimizer.lr = 1e-2
"""

DYING = """
import sys
from pathlib import Path

from mtlcore.testing import LauncherContract
from mtlcore_ray.launcher import Ray


class OnRay(LauncherContract):
    def make(self, folder, lock):
        return Ray(folder, lock, address=sys.argv[1])


OnRay().die(Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    import ray
    from ray.cluster_utils import Cluster

    quiet = {"num_cpus": 3, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    made = Cluster(initialize_head=True, head_node_args=quiet)
    made.add_node(num_cpus=3, object_store_memory=80 * 2**20)
    yield made
    ray.shutdown()
    made.shutdown()


class TestOnTwoNodes(LauncherContract):
    @pytest.fixture(autouse=True)
    def _on(self, cluster: Any) -> None:
        self.address = cluster.address

    def make(self, folder: Path, lock: int) -> Ray:
        return Ray(folder, lock, address=self.address)

    def start_and_die(self, folder: Path) -> None:
        """Ray has threads, with which no process forks well."""
        done = subprocess.run([sys.executable, "-c", DYING, self.address, str(folder)], check=False)
        assert done.returncode == -signal.SIGKILL, "the cell could not be started"


def test_is_light_and_whole() -> None:
    assert_plugin_is_light("mtlcore_ray.plugin")
    assert_plugin_is_whole("mtlcore_ray.plugin")


def test_without_a_cluster_it_says_how_to_start_one(tmp_path: Path) -> None:
    import ray

    ray.shutdown()
    with pytest.raises(MtlError, match=r"no Ray cluster at '127\.0\.0\.1:1'.*ray start --head"):
        Ray(tmp_path, -1, address="127.0.0.1:1")


def epoch_of(cell: Path) -> int:
    file = cell / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return json.loads(lines[-1])["epoch"] if lines else 0


@pytest.mark.slow
def test_a_killed_study_goes_on_while_its_cells_run(
    cluster: Any, tmp_path: Path, study_process: Start, until: Until
) -> None:
    file, out = tmp_path / "study.toml", tmp_path / "out"
    file.write_text(STUDY.format(address=cluster.address, epochs=25))
    first = study_process(file, out, "--jobs", "2")
    cells = [out / "cells" / name / "seed-0" for name in ("slow", "fast")]
    until(lambda: all(epoch_of(cell) for cell in cells))
    first.kill()
    first.communicate()
    second = study_process(file, out, "--jobs", "2")
    said, _ = second.communicate(timeout=600)
    assert second.returncode == 0, said
    for cell in cells:
        assert (cell / "log.txt").read_text().count("25 epochs") == 1, "begun again"


@pytest.mark.slow
def test_cells_of_a_lost_node_run_again(
    cluster: Any, tmp_path: Path, study_process: Start, until: Until
) -> None:
    """Both cells run on a node that only they can use; it goes, and another one comes."""
    file, out = tmp_path / "study.toml", tmp_path / "out"
    text = STUDY.format(address=cluster.address, epochs=30)
    file.write_text(text.replace('ray", ', 'ray", resources = {special = 1}, '))
    node = cluster.add_node(num_cpus=3, resources={"special": 2})
    process = study_process(file, out, "--jobs", "2")
    cells = [out / "cells" / name / "seed-0" for name in ("slow", "fast")]
    until(lambda: all(epoch_of(cell) >= 2 for cell in cells))
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=3, resources={"special": 2})
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert said.count("lost, and begun again") == 2
    for cell in cells:
        assert (cell / "log.txt").read_text().count("30 epochs") == 2
