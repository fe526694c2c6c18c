"""A Slurm of two nodes on this machine, where Debian's packages and the rights for it are there."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

NEEDED = ("slurmctld", "slurmd", "munged", "munge", "sbatch", "srun")
CONFIGURATION = """
ClusterName=mtlcore
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MinJobAge=60
MpiDefault=none
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES State=UP OverSubscribe=YES DefMemPerCPU=100
"""


@attrs.frozen
class Cluster:
    """Two nodes, n1 and n2."""

    folder: Path

    def start(self, node: str) -> None:
        subprocess.run(["slurmd", "-N", node], check=True)

    def kill(self, node: str) -> None:
        """Let a node die, with all that runs there."""
        daemon = int((self.folder / f"{node}.pid").read_text())
        table = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True,
                               check=True).stdout  # fmt: skip
        rows = [line.split(None, 2) for line in table.splitlines()]
        # The step daemons are no children of the node's daemon, but name its node.
        lost = {int(pid) for pid, _, args in rows if args.startswith("slurmstepd")
                and node in self._node_of(int(pid))}  # fmt: skip
        grown = True
        while grown:
            more = {int(pid) for pid, parent, _ in rows if int(parent) in lost} - lost
            lost |= more
            grown = bool(more)
        # All at once: what dies later would tell the controller of the others' end.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in (daemon, *lost):
                os.kill(pid, number)

    def _node_of(self, pid: int) -> str:
        """The log file that a step daemon has open says whose it is."""
        files = Path(f"/proc/{pid}/fd").iterdir()
        return " ".join(os.readlink(file) for file in files)

    def nodes_of(self, state: str) -> str:
        return _said("squeue", "--noheader", f"--states={state}", "--format=%N")


@pytest.fixture(scope="session")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, until: Callable[..., None]
) -> Iterator[Cluster]:
    missing = [program for program in NEEDED if shutil.which(program) is None]
    if missing:
        pytest.skip(f"no Slurm on this machine (there is no {', '.join(missing)})")
    if os.geteuid() != 0:
        pytest.skip("a Slurm of one's own needs root")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool-n1", "spool-n2"):
        (folder / name).mkdir()
    ports = [_free_port() for _ in range(3)]
    file = folder / "slurm.conf"
    file.write_text(CONFIGURATION.format(host=socket.gethostname(), folder=folder, ports=ports))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SLURM_CONF", str(file))
        munge = None if _answers("munge", "-n") else _start_munge(until)
        cluster = Cluster(folder)
        subprocess.run(["slurmctld"], check=True)
        for node in ("n1", "n2"):
            cluster.start(node)
        until(lambda: _said("sinfo", "--noheader", "--format=%t %D") == "idle 2")
        yield cluster
        for pid in folder.glob("*.pid"):
            os.kill(int(pid.read_text()), signal.SIGTERM)
        until(lambda: not list(folder.glob("*.pid")))
        if munge is not None:
            munge.terminate()
            munge.wait()


def _start_munge(until: Callable[..., None]) -> subprocess.Popen[bytes]:
    Path("/run/munge").mkdir(parents=True, exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    process = subprocess.Popen(["runuser", "-u", "munge", "--", "munged", "--foreground"])
    until(lambda: _answers("munge", "-n"))
    return process


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _answers(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
