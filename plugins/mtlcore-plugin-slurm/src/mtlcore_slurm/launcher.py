"""The launcher: every cell of a study is a job of Slurm, submitted through submitit."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

from mtlcore.errors import MtlError, UsageError, describe
from mtlcore.launchers import CellJob, JobLauncher, JobState
from mtlcore.ranges import Count, Natural, Positive
from mtlcore.system import FROM_TERMINAL, signals_blocked
from mtlcore_slurm.queue import ProcessTable, Queue, SlurmQueue

if TYPE_CHECKING:
    import submitit


@final
class Slurm(JobLauncher):
    """Submits every cell to Slurm and leaves it there until it ends, whatever becomes of the study.

    The machines must see the study's directory and this environment under the same paths. When
    Slurm says that a job's time is nearly up, the cell saves, and its job is queued again.

    Args:
        folder: The study's directory.
        lock: File descriptor of the study's lock, which jobs do not need.
        executor: "slurm", or "local": the same jobs as processes of this machine, to try them.
        partition: Of the cluster; None: its default.
        time: Minutes after which Slurm ends a job.
        cpus: Processors of a job; None: the threads of its cell (`training.threads`).
        gpus: GPUs of a job.
        mem: Gigabytes of memory of a job; None: what the partition gives.
        requeues: How often a job whose time is up is queued again.
        setup: Shell commands before each job, such as "module load cuda".
        options: Further options of sbatch by their long names, such as `{account = "vision"}`.

    Raises:
        UsageError: submitit is missing, or the executor cannot be used here.
    """

    def __init__(
        self,
        folder: Path,
        lock: int,
        *,
        executor: Literal["slurm", "local"] = "slurm",
        partition: str | None = None,
        time: Count = 240,
        cpus: Count | None = None,
        gpus: Natural = 0,
        mem: Positive | None = None,
        requeues: Natural = 100,
        setup: tuple[str, ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(folder, lock)
        self._executor_name, self._requeues, self._cpus = executor, requeues, cpus
        self._parameters: dict[str, Any] = {"timeout_min": time, "gpus_per_node": gpus}
        if mem is not None:
            self._parameters["mem_gb"] = float(mem)
        if setup:
            self._parameters[f"{executor}_setup"] = list(setup)
        if partition is not None:
            self._parameters["slurm_partition"] = partition
        if options:
            self._parameters["slurm_additional_parameters"] = dict(options)
        # What is right for a process of this machine, where no file is shown late.
        self.patience = 0.0 if executor == "local" else JobLauncher.patience
        self._queue: Queue = (
            ProcessTable(str(folder.resolve())) if executor == "local" else SlurmQueue(seconds=5.0)
        )
        if executor == "slurm":
            self._queue.find("", None)  # is there a Slurm?

    def submit(self, job: CellJob, name: str) -> str:
        """Let submitit write and submit the job."""
        from mtlcore_slurm.submitted import SubmittedCell

        local = self._executor_name == "local"
        executor = self._executor(job.command.log.parent.resolve() / "job" / "submitit")
        executor.update_parameters(
            name=name,
            nodes=1,
            tasks_per_node=1,
            cpus_per_task=self._cpus or job.command.threads,
            **self._parameters,
        )
        try:
            # What is started meanwhile hears nothing of Ctrl-C, nor of a terminal that closes.
            with signals_blocked(FROM_TERMINAL) if local else nullcontext():
                submitted = executor.submit(SubmittedCell(job=job, from_terminal=local))
        except Exception as error:  # submitit passes on whatever sbatch says
            raise MtlError(f"sbatch did not take {name}: {describe(error)}") from error
        self._queue.submitted(submitted)
        return str(submitted.job_id)

    def find(self, name: str, identity: str | None) -> str | None:
        """Ask the queue."""
        return self._queue.find(name, identity)

    def state(self, identity: str) -> JobState:
        """Ask the queue."""
        return self._queue.state(identity)

    def cancel(self, identity: str) -> None:
        """Take the job out of the queue."""
        self._queue.cancel(identity)

    def _executor(self, folder: Path) -> submitit.AutoExecutor:
        try:
            import submitit
        except ImportError as error:
            raise UsageError(
                "the launcher slurm needs submitit: pip install mtlcore-plugin-slurm"
            ) from error
        times = {f"{self._executor_name}_max_num_timeout": self._requeues}
        return submitit.AutoExecutor(folder=folder, cluster=self._executor_name, **times)
