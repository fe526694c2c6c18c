"""The launcher: every cell of a study is an actor of a Ray cluster.

The actors are detached: they outlive the program that started them, and have a name by which the
next start of the study finds them. The cell itself is a process beside its actor, which it does not
outlive.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import attrs

from mtlcore.errors import MtlError, UsageError, describe
from mtlcore.launchers import CellJob, JobLauncher, JobState
from mtlcore.ranges import Count, NonNegative, Positive

_NAMESPACE = "mtlcore"
# What Ray itself sets for a process, or what is true of one machine only.
_OF_A_MACHINE = ("CUDA_VISIBLE_DEVICES", "HOSTNAME", "RAY_")


@final
class CellActor:
    """What Ray runs for a cell."""

    def run(self, job: CellJob) -> None:
        """Run the cell to its end, and leave the cluster."""
        import ray

        job.run()
        ray.actor.exit_actor()

    def begun(self) -> bool:
        """Return at once: the actor has a machine."""
        return True


@final
class Ray(JobLauncher):
    """Runs every cell on a machine of a Ray cluster, until it ends, whatever becomes of the study.

    The machines must see the study's directory and this environment under the same paths. A cell
    whose machine is lost is begun again on another one, from its last checkpoint.

    Args:
        folder: The study's directory.
        lock: File descriptor of the study's lock, which actors do not need.
        address: Of the cluster, such as "10.0.0.1:6379"; "auto" is the one of this machine, or that
            of the environment variable `RAY_ADDRESS`. A program that is connected already stays so.
        cpus: Processors of a cell; None: its threads (`training.threads`).
        gpus: GPUs of a cell; a fraction shares one.
        mem: Gigabytes of memory that a cell counts for; None: Ray does not count.
        resources: What else a machine must have, such as `{a100 = 1}`.

    Raises:
        UsageError: ray is missing.
        MtlError: There is no such cluster.
    """

    patience = 5.0

    def __init__(
        self,
        folder: Path,
        lock: int,
        *,
        address: str = "auto",
        cpus: Count | None = None,
        gpus: NonNegative = 0.0,
        mem: Positive | None = None,
        resources: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(folder, lock)
        self._ray = _connected(address)
        self._cpus = cpus
        self._options: dict[str, Any] = {"num_gpus": gpus}
        if mem is not None:
            self._options["memory"] = int(mem * 2**30)
        if resources:
            self._options["resources"] = dict(resources)
        self._begun: dict[str, Any] = {}  # name -> answer of `begun`, once it is there

    def submit(self, job: CellJob, name: str) -> str:
        """Create the actor, and let it run the cell once it has a machine."""
        actor = (
            self._ray.remote(CellActor)
            .options(
                name=name,
                namespace=_NAMESPACE,
                lifetime="detached",
                max_restarts=0,
                max_concurrency=2,  # it answers while the cell runs
                num_cpus=self._cpus or job.command.threads,
                **self._options,
            )
            .remote()
        )
        self._begun[name] = actor.begun.remote()
        environment = {k: v for k, v in os.environ.items() if not k.startswith(_OF_A_MACHINE)}
        actor.run.remote(attrs.evolve(job, environment=environment))
        return name

    def find(self, name: str, identity: str | None) -> str | None:
        """Look for an actor of that name."""
        actor = self._actor(name)
        if actor is None:
            return None
        self._begun[name] = actor.begun.remote()
        return name

    def state(self, identity: str) -> JobState:
        """Return whether the actor is there, and has a machine."""
        if self._actor(identity) is None:
            return JobState(phase="lost", reason="its actor is gone, perhaps with its machine")
        ready, _ = self._ray.wait([self._begun[identity]], timeout=0)
        return JobState(phase="running" if ready else "waiting")

    def cancel(self, identity: str) -> None:
        """Remove the actor."""
        if (actor := self._actor(identity)) is not None:
            self._ray.kill(actor)

    def _actor(self, name: str) -> Any:
        try:
            return self._ray.get_actor(name, namespace=_NAMESPACE)
        except ValueError:  # that is how Ray says that there is none
            return None


def _connected(address: str) -> Any:
    try:
        import ray
    except ImportError as error:
        raise UsageError("the launcher ray needs ray: pip install mtlcore-plugin-ray") from error
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit() and "/" not in host:
            # Ray itself tries for minutes.
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(
            address=address,
            namespace=_NAMESPACE,
            ignore_reinit_error=True,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise MtlError(
            f"launcher.address: no Ray cluster at {address!r} ({describe(error)}); start one by "
            "ray start --head, and ray start --address=... on its other machines"
        ) from error
    return ray
