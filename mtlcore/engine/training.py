"""The loop: plan, load, step, record; evaluate; save."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import final

from mtlcore.engine.checkpointing import average_buffers, save_last
from mtlcore.engine.compiling import backward_passes_allowed
from mtlcore.engine.lone_samples import LoneSamples
from mtlcore.engine.phases import enter_step
from mtlcore.engine.recording import Recorder
from mtlcore.engine.session import Session
from mtlcore.engine.stop_request import StopRequest, StopRequested
from mtlcore.engine.stopping import Stopping
from mtlcore.engine.transfers import Transfers
from mtlcore.engine.validation import Validation
from mtlcore.engine.waiting import DataWaits
from mtlcore.episodes import LoadedPlan, StepPlan, share_of
from mtlcore.loading import lost_workers_told
from mtlcore.optimizers import StepReport


@final
class Training:
    """Trains a session to its end.

    Args:
        session: The run, fresh or restored from a checkpoint.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._several_processes = session.distributed.world_size > 1
        self._stop = StopRequest(session)
        self._recorder = Recorder(session)
        self._validation = Validation(session, self._recorder, self._stop)
        self._lone = LoneSamples(session)
        self._waits = DataWaits(session)
        self._transfers = Transfers(session.device)
        self._is_warm = False

    def run(self) -> None:
        """Train to the end.

        Raises:
            Interrupted: A signal asked to stop; everything is saved.
            Pruned: `request_stop` asked for it; everything is saved.
            MtlError: Too many steps in a row had no finite loss or gradient, parameters are no
                longer finite, or nothing was learnt.
        """
        session = self.session
        with self._stop.listening(), lost_workers_told():
            try:
                self._recorder.describe_data()
                if session.progress.constants is None:
                    constants = session.distributed.broadcast(self._validation.fit_constants)
                    session.progress.constants = constants
                    save_last(session)
                while not self._is_finished():
                    self._epoch()
                    self._recorder.refuse_idleness(finished=self._is_finished())
                skipped = session.distributed.all_gather(session.loader.skipped)
                session.loader.skipped = [message for rank in skipped for message in rank]
            except StopRequested:
                save_last(session)
                raise self._stop.interruption() from None

    def first_step(self) -> StepReport:
        """Take the first step of the run and nothing more."""
        plans = self.plan_block()[:1]
        self.session.learner.train()
        return self.step(next(iter(self.session.loader.plans(plans, self._several_processes))))

    def plan_block(self) -> list[StepPlan]:
        """Return the steps of the current block that are left, and of them this process's share."""
        session = self.session
        steps = session.planning.draw(self._learning_tasks())
        steps = steps[session.progress.done - session.planning.first :]
        if not self._several_processes:
            return steps
        rank, world_size = session.distributed.rank, session.distributed.world_size
        return [share_of(step, rank, world_size) for step in steps]

    def step(self, loaded: LoadedPlan | None) -> StepReport:
        """Learn from a loaded plan.

        Args:
            loaded: None where no sample of it could be read.
        """
        session = self.session
        enter_step(session)
        if loaded is None:
            return StepReport(losses={}, skipped="none of its samples can be read")
        batches = tuple(self._lone.without(b.to(session.device)) for b in loaded.batches)
        learnt_from = [n for e in loaded.episodes for n in (e.support, e.query) if n is not None]
        if not self._several_processes and not any(len(batches[n]) for n in learnt_from):
            return StepReport(
                losses={}, skipped="one sample is left of the batch, too few for batch norm"
            )
        with backward_passes_allowed(session.learner):
            plan = LoadedPlan(batches, loaded.episodes, loaded.validation)
            return session.optimizer.step(session.learner, plan)

    def finish_step(self, report: StepReport) -> None:
        """Count and record a step, show it, and tell the sampler of it."""
        session, progress = self.session, self.session.progress
        if report.skipped is None:
            session.sampler.after_step(session.learner.context)
        progress.step += 1
        progress.done += 1
        self._recorder.step(report)
        if session.config.training.sync_buffers == "step":
            self._average_buffers()
        if session.average is not None and report.skipped is None:
            session.average.update()
        session.display.step(progress.step, report.losses)

    def _epoch(self) -> None:
        planning, progress = self.session.planning, self.session.progress
        self._block()
        while not planning.ends_epoch:
            planning.begin(progress.done)
            self._block()
        self._end_epoch()

    def _block(self) -> None:
        """Take the steps that are left of a block; nothing is loaded beyond it."""
        session = self.session
        remaining = self.plan_block()
        session.learner.train()
        started = time.monotonic()
        plans = session.loader.plans(remaining, self._several_processes)
        for loaded in self._waits.watched(self._transfers.ahead(plans)):
            self.finish_step(self.step(loaded))
            started = self._time_step(started)
            self._stop.check()

    def _end_epoch(self) -> None:
        session, progress = self.session, self.session.progress
        self._average_buffers()
        metrics = self._validation.evaluate() if self._validation.is_due() else None
        self._waits.tell()
        session.display.epoch(progress.epoch + 1, session.epochs, progress.mean_losses(), metrics)
        if progress.stopping.reset_due:
            progress.stopping = Stopping()
        if metrics is not None:
            self._validation.stop_early(metrics)
        progress.epoch += 1
        progress.done, progress.losses = 0, {}
        session.planning.begin(0)
        save_last(session)
        self._stop.check_request(self._is_finished())

    def _average_buffers(self) -> None:
        average_buffers(self.session.learner)
        if self.session.average is not None:
            self.session.average.copy_buffers()

    def _is_finished(self) -> bool:
        progress = self.session.progress
        return progress.epoch >= self.session.epochs or progress.stopping.ended is not None

    def _learning_tasks(self) -> Sequence[str]:
        stopped = self.session.progress.stopping.stopped
        return tuple(task for task in self.session.config.learning if task not in stopped)

    def _time_step(self, started: float) -> float:
        """Count the time since `started`, but for this process's first step; return the time now.

        The first step starts workers and warms up caches and kernels.
        """
        now = time.monotonic()
        if self._is_warm:
            self.session.progress.step_times.add(now - started)
        self._is_warm = True
        return now
