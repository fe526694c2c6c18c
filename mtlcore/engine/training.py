"""The loop: plan, load, step, record; evaluate; save. Everything else is somewhere else."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import attrs
import torch

from mtlcore.config import RunConfig
from mtlcore.data import Batch
from mtlcore.display import Display
from mtlcore.distributed import SINGLE_PROCESS, Distributed
from mtlcore.engine.building import (
    build_learner,
    make_loader,
    make_metrics,
    open_splits,
    pick_device,
)
from mtlcore.engine.evaluation import Figures, constant_figures, evaluate
from mtlcore.engine.progress import Progress
from mtlcore.engine.stopping import Stop, Stopping, score
from mtlcore.episodes import (
    BatchPlan,
    EpisodeSampler,
    LoadedPlan,
    StepPlan,
    accumulated,
    in_order,
    share_of,
)
from mtlcore.errors import Interrupted, MtlError, outline
from mtlcore.learner import Learner
from mtlcore.loading import lost_workers_told
from mtlcore.models import Backbone, Transition
from mtlcore.optimizers import Optimizer, StepReport
from mtlcore.storage import BEST, RunDirectory, save_checkpoint
from mtlcore.system import STOPPING, handled, peak_memory

# Constants, and what balancers fit, are fitted on at most this many training samples, evenly
# spread: medians keep labels.
_FITTING_SAMPLES = 1000
_CURVE_POINTS = 200
# What a checkpoint of a run holds.
_STATE = ("learner", "optimizer", "progress", "random", "ranks", "metrics_length", "threads")


class _StopAsked(Exception):
    """A signal came; raised where the state is one that a checkpoint can hold."""


@attrs.frozen
class _WhenAsked:
    """Batches that nobody loads before they are asked for; each time from the first one."""

    load: Callable[[], Iterator[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        return self.load()


class Training:
    """One run from its configuration to its last checkpoint.

    Args:
        config: checked and complete.
        directory: where everything is written.
        display: what a person sees.
        distributed: the processes that train together; each has a directory, and only that of the
            main process stays.

    Raises:
        UsageError: components that cannot work together, or not in several processes.
    """

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        display: Display,
        distributed: Distributed = SINGLE_PROCESS,
    ) -> None:
        self.config, self._directory, self._display = config, directory, display
        self.distributed = distributed
        self.device = pick_device(config.device, distributed)
        self.splits = open_splits(config)
        sizes = {name: len(split) for name, split in self.splits.items()}
        torch.manual_seed(config.seed)
        self.learner: Learner = build_learner(config, distributed).to(self.device)
        self._freezes = config.initial is not None and config.initial.train == "heads"
        if self._freezes:
            self.learner.model.freeze(config.learning)
        self.sampler: EpisodeSampler = config.episodes.make(config.learning, sizes)
        self._batch_size = config.training.batch_size
        self._global_batch = self._batch_size * distributed.world_size
        plans = self.sampler.steps(self._global_batch)
        self.steps_per_epoch: int = -(-plans // config.training.accumulate)
        self.epochs = self._number_of_epochs()
        self._balancing_random = torch.Generator().manual_seed(2 * config.seed + 1)
        self._data_random = torch.Generator().manual_seed(2 * config.seed + 2)
        self._epoch_start = self._data_random.get_state()
        self.loader = make_loader(config, self.splits, self.learner.views)
        if config.training.compile:
            self.learner.model.backbone.compile()
        self.learner.balancing.prepare(config.tasks, _WhenAsked(self._for_balancers))
        self.learner.to(self.device)
        if not distributed.is_main_process:
            # All start from the same weights, and draw dropout each for itself.
            torch.manual_seed(config.seed + distributed.rank)
        self.optimizer: Optimizer = config.optimizer.make(self.learner)
        self.progress = Progress()
        self._started = time.monotonic()
        self._warm = False
        self._stop_signal: int | None = None

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    def seconds(self) -> float:
        """Time spent so far, earlier processes of this run included."""
        return self.progress.seconds + time.monotonic() - self._started

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's state.

        Raises:
            MtlError: it belongs to another model, or is not a run's last one.
        """
        missing = [part for part in _STATE if part not in state]
        if missing:
            raise MtlError(
                f"{self._directory.checkpoint}: holds no {', '.join(missing)}: it is not what a "
                "run can go on from; start one of its own with another --out"
            )
        try:
            self.learner.load_state_dict(state["learner"])
            self.optimizer.load_state_dict(state["optimizer"])
            progress = state["progress"]
            stopping = Stopping(**progress.get("stopping", {}))
            self.progress = Progress(**{**progress, "stopping": stopping})
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise MtlError(
                f"{self._directory.checkpoint}: belongs to another model: {outline(error)}"
            ) from error
        self._epoch_start = state["random"]["epoch_start"]
        self._balancing_random.set_state(state["random"]["balancing"])
        self._data_random.set_state(self._epoch_start)
        if self.distributed.rank < len(state["ranks"]):  # there may be more of them now
            self._restore_own(state["ranks"][self.distributed.rank])

    def run(self) -> None:
        """Train to the end.

        Raises:
            Interrupted: after saving, where a signal asked to stop.
            MtlError: too many steps in a row had no finite loss or gradient.
        """
        with self._signals(), lost_workers_told():
            try:
                self._tell_of_data()
                if self.progress.constants is None:
                    self.progress.constants = self.distributed.broadcast(self._fit_constants)
                    self.save()
                while self.progress.epoch < self.epochs and self.progress.stopping.ended is None:
                    self._epoch()
                everywhere = self.distributed.all_gather(self.loader.skipped)
                self.loader.skipped = [message for found in everywhere for message in found]
            except _StopAsked:
                self._interrupt()

    def first_step(self) -> StepReport:
        """Take the first step of the run and nothing more."""
        plans = self._plans(self._learning())
        self.learner.train()
        self._enter_step()
        return self._step(next(iter(self.loader.plans(plans[:1], self.distributed.world_size > 1))))

    def _step(self, loaded: LoadedPlan | None) -> StepReport:
        if loaded is None:
            return StepReport(losses={}, skipped="none of its samples can be read")
        batches = tuple(batch.to(self.device) for batch in loaded.batches)
        return self.optimizer.step(self.learner, LoadedPlan(batches, loaded.episodes))

    def _tell_of_data(self) -> None:
        for name, split in self.splits.items():
            if len(split) < split.available:
                self._display.note(
                    f"data.{name} = {len(split)}: so many of {split.available} samples are used"
                )
        regime = self.splits["train"].regime
        if regime is not None:
            self._directory.write_json("labels.json", regime.to_json())
            counts = ", ".join(f"{task} {count}" for task, count in regime.counts().items())
            self._display.note(f"labels of {len(self.splits['train'])} samples: {counts}")

    def _epoch(self) -> None:
        progress = self.progress
        self._data_random.set_state(self._epoch_start)
        plans = self._plans(self._learning())
        self.learner.train()
        began = time.monotonic()
        for loaded in self.loader.plans(self._remaining(plans), self.distributed.world_size > 1):
            self._enter_step()
            report = self._step(loaded)
            progress.step += 1
            progress.done += 1
            self._record_step(report)
            if self.config.training.sync_buffers == "step":
                self._average_buffers()
            self._display.step(progress.step, report.losses)
            began = self._time_step(began)
            self._heed_signals()
        self._end_epoch()

    def _learning(self) -> tuple[str, ...]:
        """The tasks that learn and have not stopped."""
        stopped = self.progress.stopping.stopped
        return tuple(task for task in self.config.learning if task not in stopped)

    def _time_step(self, began: float) -> float:
        """Count the time since `began`, but for this process's first step; returns the time now.

        The first step starts workers and warms up caches and kernels.
        """
        now = time.monotonic()
        if self._warm:
            self.progress.step_seconds += now - began
            self.progress.timed_steps += 1
        self._warm = True
        return now

    def _number_of_epochs(self) -> int:
        epochs, steps = self.config.training.epochs, self.config.training.steps
        limits = [epochs, None if steps is None else -(-steps // self.steps_per_epoch)]
        return min(limit for limit in limits if limit is not None)

    def _plans(self, tasks: Sequence[str]) -> list[StepPlan]:
        plans = self.sampler.epoch(
            tasks, self._batch_size * self.distributed.world_size, self._data_random
        )
        steps = accumulated(plans, self.config.training.accumulate)
        if self.distributed.world_size == 1:
            return steps
        return [
            share_of(step, self.distributed.rank, self.distributed.world_size) for step in steps
        ]

    def _remaining(self, plans: Sequence[StepPlan]) -> Sequence[StepPlan]:
        return plans[self.progress.done :]

    def _enter_step(self) -> None:
        context = self.learner.context
        context.step, context.epoch = self.progress.step, self.progress.epoch
        context.progress = self.progress.step / self.total_steps
        context.generator, context.losses = self._balancing_random, {}
        backbone = self.learner.model.backbone
        # A frozen backbone enters no phase: what that would start anew could not learn.
        if type(backbone).at_progress is not Backbone.at_progress and not self._freezes:
            with self._seeded(self.config.seed + self.progress.step):
                change = backbone.at_progress(context.progress)
                if change is not None:
                    self._apply(change)

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        """Re-initialisation draws from torch's global stream: here the same on every process."""
        on_gpu = self.device.type == "cuda"
        state = torch.get_rng_state(), torch.cuda.get_rng_state() if on_gpu else None
        torch.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_rng_state(state[0])
            if state[1] is not None:
                torch.cuda.set_rng_state(state[1])

    def _apply(self, change: Transition) -> None:
        model = self.learner.model
        named = dict(model.backbone.named_parameters())
        forgotten = [named[name] for name in change.reset]
        if change.reset_heads:
            for task in model.tasks:
                model.head(task).reset_parameters()
                forgotten += list(model.head(task).parameters())
        # What a phase started anew must learn again, also for tasks that had stopped.
        self.progress.stopping.renewed = True
        if change.restart_balancer:
            self.learner.balancing.restart()
        self.optimizer.forget(forgotten)
        self._display.note(
            f"step {self.progress.step}: the backbone enters its next phase"
            + (f" ({len(forgotten)} tensors start anew)" if forgotten else "")
        )

    # Recording

    def _record_step(self, report: StepReport) -> None:
        progress = self.progress
        if report.skipped is not None:
            self._count_skipped(report.skipped)
        else:
            progress.skipped_in_a_row = 0
            progress.measure_step(report)
        every = max(1, self.total_steps // _CURVE_POINTS)
        if progress.step % every == 0 or progress.done == self.steps_per_epoch:
            progress.measure_weights(self.learner.balancing.loss_balancers)
            self._directory.record(self._line("train", *line) for line in progress.take_window())

    def _count_skipped(self, reason: str) -> None:
        progress = self.progress
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        self._display.warn(f"step {progress.step}: skipped, {reason}")
        if progress.skipped_in_a_row < self.config.training.max_skipped:
            return
        good = self._directory.checkpoint
        raise MtlError(
            f"stopped at step {progress.step}: {progress.skipped_in_a_row} steps in a row were "
            f"skipped, the last because {reason}. The last good checkpoint is {good}; try a "
            "lower optimizer.lr or optimizer.clip, and look at the data of that task"
        )

    def _line(self, split: str, task: str, metric: str, value: float) -> dict[str, Any]:
        return {
            "step": self.progress.step,
            "epoch": self.progress.epoch + 1,
            "split": split,
            "task": task or None,
            "metric": metric,
            "value": value,
            "seconds": round(self.seconds(), 3),
        }

    # Evaluating

    def _end_epoch(self) -> None:
        progress = self.progress
        self._average_buffers()
        figures = self._evaluate() if self._evaluation_due() else None
        self._display.epoch(progress.epoch + 1, self.epochs, progress.mean_losses(), figures)
        if progress.stopping.renewed:
            progress.stopping = Stopping()
        if figures is not None:
            self._stop_early(figures)
        progress.epoch += 1
        progress.done, progress.losses = 0, {}
        self._epoch_start = self._data_random.get_state()
        self.save()

    def _stop_early(self, figures: Figures) -> None:
        training = self.config.training
        if training.task_patience is None and training.patience is None:
            return
        epoch = self.progress.epoch + 1
        stops = self.progress.stopping.update(
            epoch,
            self._losses(figures),
            self._losses(self.progress.evaluations[0][1]),
            task_patience=training.task_patience,
            patience=training.patience,
        )
        self._directory.record(
            self._line("train", stop.task or "", "stopped", epoch) for stop in stops
        )
        for stop in stops:
            self._display.note(f"epoch {epoch}: {_told(stop)}")

    def _losses(self, figures: Figures) -> dict[str, float]:
        return {task: figures[task]["loss"] for task in self.config.learning}

    def _evaluation_due(self) -> bool:
        training = self.config.training
        watched = training.task_patience is not None or training.patience is not None
        every = training.evaluate_every or (1 if watched else -(-self.epochs // 10))
        left = self.epochs - 1 - self.progress.epoch
        last = training.average_last
        # Counted from the end, so that the last epochs are always among the evaluated ones.
        return left % every == 0 or left < last

    def _evaluate(self) -> Figures:
        plans = in_order("val", len(self.splits["val"]), self._batch_size)
        plans = plans[self.distributed.rank :: self.distributed.world_size]
        metrics = make_metrics(self.config)
        # Stopped on the way, it starts again when the run goes on: what it draws must not count.
        with self._seeded(self.config.seed + self.progress.step):
            figures = evaluate(
                self.learner, self._batches(plans), metrics, self.device, self.distributed
            )
        self._directory.record(
            self._line("val", task, metric, value)
            for task, values in figures.items()
            for metric, value in values.items()
        )
        self.progress.evaluations.append((self.progress.epoch, figures))
        losses = self._losses(figures)
        self.optimizer.after_evaluation(sum(losses.values()))
        self._keep_best(figures, losses)
        return figures

    def _keep_best(self, figures: Figures, losses: dict[str, float]) -> None:
        value = score(losses, self._losses(self.progress.evaluations[0][1]))
        best = self.progress.best
        if best is None or value < best["score"]:
            epoch = self.progress.epoch + 1
            self.progress.best = {
                "epoch": epoch, "split": "val", "score": value, "figures": figures,
            }  # fmt: skip
            if self.distributed.is_main_process:
                save_checkpoint(
                    self._directory.path / BEST, {"learner": dict(self.learner.state_dict())}
                )

    def _fit_constants(self) -> dict[str, Figures]:
        spread, used = self._spread()
        self._display.note(f"fitting the best constant predictors on {used} training samples")
        validation = in_order("val", len(self.splits["val"]), self._batch_size)
        return constant_figures(
            self.config.tasks,
            self._batches(spread),
            lambda: self._batches(validation),
            lambda: make_metrics(self.config),
        )

    def _for_balancers(self) -> Iterator[Batch]:
        spread, used = self._spread()
        self._display.note(f"the balancer looks at the labels of {used} training samples")
        for batch in self.loader.batches(spread):
            if batch is not None:
                yield batch

    def _spread(self) -> tuple[list[BatchPlan], int]:
        """Evenly spread training samples to fit something on, and their number."""
        size = len(self.splits["train"])
        used = min(size, _FITTING_SAMPLES)
        return in_order("train", size, self._batch_size, used), used

    def _batches(self, plans: Sequence[BatchPlan]) -> Iterator[Batch | None]:
        for batch in self.loader.batches(plans):
            # Several processes stop together; here each has batches of its own, or none.
            if self.distributed.world_size == 1:
                self._heed_signals()
            yield batch
        if self.distributed.world_size == 1:
            self._heed_signals()

    # Saving and stopping

    def save(self) -> None:
        """Write the checkpoint from which a run goes on as if nothing had happened."""
        random = {
            "epoch_start": self._epoch_start,
            "balancing": self._balancing_random.get_state(),
        }
        ranks = self.distributed.all_gather(self._own_state())
        if not self.distributed.is_main_process:
            return
        self.progress.peak_memory = max(self.progress.peak_memory, peak_memory(self.device))
        progress = attrs.asdict(self.progress, recurse=False)
        progress["stopping"] = attrs.asdict(self.progress.stopping, recurse=False)
        state = {
            "learner": dict(self.learner.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "progress": {**progress, "seconds": self.seconds()},
            "random": random,
            "ranks": ranks,
            "metrics_length": self._directory.metrics_length(),
            "threads": torch.get_num_threads(),
        }
        save_checkpoint(self._directory.checkpoint, state)
        self._directory.upload()

    def _own_state(self) -> dict[str, Any]:
        """What each process has of its own: random streams and, between averages, buffers."""
        state: dict[str, Any] = {"torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        if self.distributed.world_size > 1:
            buffers = self.learner.model.named_buffers()
            state["buffers"] = {name: buffer.cpu().clone() for name, buffer in buffers}
        return state

    def _restore_own(self, state: Mapping[str, Any]) -> None:
        torch.set_rng_state(state["torch"])
        if "cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)
        for name, buffer in self.learner.model.named_buffers():
            if name in state.get("buffers", ()):
                buffer.copy_(state["buffers"][name])

    def _average_buffers(self) -> None:
        """Running statistics are of each process's samples: their means go on everywhere."""
        if self.distributed.world_size == 1:
            return
        buffers = [b for b in self.learner.model.buffers() if b.is_floating_point()]
        self.distributed.all_reduce(buffers)
        for buffer in buffers:
            buffer /= self.distributed.world_size

    def _heed_signals(self) -> None:
        stopping = self._stop_signal is not None
        # All stop after the same step, though the signal reaches them at different ones.
        if self.distributed.any_of([stopping])[0] if self.distributed.world_size > 1 else stopping:
            raise _StopAsked

    def _interrupt(self) -> NoReturn:
        self.save()
        name = signal.Signals(self._stop_signal or signal.SIGINT).name
        raise Interrupted(
            f"stopped by {name} after step {self.progress.step} of {self.total_steps}; saved. "
            f"Go on with: mtl run --resume --out {self._directory.location}"
        )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM finishes the step and saves; a second one stops at once.

        Not so in one of several processes: torchrun passes on what the terminal has sent already.
        """

        before = {one: signal.getsignal(one) for one in STOPPING}

        def request(number: int, _frame: object) -> None:
            self._stop_signal = number
            if self.distributed.world_size > 1:
                return
            for one in STOPPING:
                signal.signal(one, before[one])
            # A print that the signal came in the midst of refuses a second one.
            with suppress(RuntimeError):
                self._display.note("stopping after this step; once more stops at once")

        with handled(request):
            yield


def _told(stop: Stop) -> str:
    since = f"no better validation since epoch {stop.best_epoch}"
    if stop.task is not None:
        return f"{stop.task} learns no more ({since})"
    return f"the run ends ({'no task is left' if stop.best_epoch is None else since})"
