"""Judging a run while it trains: evaluations, the best epoch, early stopping, constants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

from mtlcore.balancing import Balancer
from mtlcore.config import TrainingConfig
from mtlcore.data import Batch
from mtlcore.engine.building import make_metrics
from mtlcore.engine.checkpointing import save_best
from mtlcore.engine.evaluation import evaluate, evaluate_constants
from mtlcore.engine.recording import Recorder
from mtlcore.engine.seeding import seeded
from mtlcore.engine.session import Session
from mtlcore.engine.stop_request import StopRequest
from mtlcore.episodes import BatchPlan, EpisodeSampler, in_order
from mtlcore.metrics import MetricValues, beats


def is_due(training: TrainingConfig, epochs: int, epoch: int) -> bool:
    """Return whether the model is evaluated after an epoch.

    Args:
        training: Says how often.
        epochs: Of the whole run.
        epoch: Its number, from 0.
    """
    patient = training.task_patience is not None or training.patience is not None
    every = training.evaluate_every or (1 if patient else -(-epochs // 10))
    left = epochs - 1 - epoch
    # Counted from the end, so that the last epochs are always among the evaluated ones.
    return left % every == 0 or left < training.average_last


@final
class Validation:
    """Evaluates a session on its validation split and decides by what it finds.

    Args:
        session: The run.
        recorder: Writes the metrics.
        stop: Is heeded between batches.
    """

    def __init__(self, session: Session, recorder: Recorder, stop: StopRequest) -> None:
        self._session, self._recorder, self._stop = session, recorder, stop
        made = make_metrics(session.config)
        # Of each task that learns, the name of its first metric, and whether higher is better.
        self._first = {t: next(iter(made[t].higher_is_better.items()))
                       for t in session.config.learning}  # fmt: skip

    def fit_constants(self) -> dict[str, MetricValues]:
        """Return the metrics of the best constant predictors, fitted on training labels."""
        session = self._session
        plans, used = session.fitting_plans()
        session.display.note(f"fitting the best constant predictors on {used} training samples")
        return evaluate_constants(
            session.config.tasks,
            self._batches(plans),
            lambda: self._batches(self._plans()),
            lambda: make_metrics(session.config),
        )

    def is_due(self) -> bool:
        """Whether the model is evaluated after the current epoch."""
        session = self._session
        return is_due(session.config.training, session.epochs, session.progress.epoch)

    def evaluate(self) -> MetricValues:
        """Evaluate the model, record its metrics, and keep its weights if they are the best."""
        session, progress = self._session, self._session.progress
        rank, world_size = session.distributed.rank, session.distributed.world_size
        batches = self._batches(self._plans()[rank::world_size])
        # An interrupted evaluation is repeated on resuming: what it draws must not count.
        with seeded(session.device, session.config.seed + progress.step):
            metrics = evaluate(
                session.learner,
                batches,
                make_metrics(session.config),
                session.device,
                session.distributed,
                session.predict,
            )
        self._recorder.evaluation(metrics)
        progress.evaluations.append((progress.epoch, metrics))
        self._keep_best(metrics)
        self._tell(metrics)
        return metrics

    def stop_early(self, metrics: MetricValues) -> None:
        """Let tasks stop learning, or the run end, whose patience is over."""
        training, progress = self._session.config.training, self._session.progress
        if training.task_patience is None and training.patience is None:
            return
        self._session.learner.context.asked.evaluated("training.patience")
        epoch = progress.epoch + 1
        stops = progress.stopping.update(
            epoch,
            {task: metrics[task]["loss"] for task in self._session.config.learning},
            self._compared(metrics),
            task_patience=training.task_patience,
            patience=training.patience,
        )
        self._recorder.stops(epoch, stops)

    def _tell(self, metrics: MetricValues) -> None:
        """Tell all that learn from evaluations, on every rank alike."""
        session = self._session
        learning = {task: dict(metrics[task]) for task in session.config.learning}
        session.optimizer.after_evaluation(learning)
        session.learner.balancing.after_evaluation(learning)
        session.sampler.after_evaluation(learning)
        asked = session.learner.context.asked
        for balancer in session.learner.balancing.chain:
            if type(balancer).after_evaluation is not Balancer.after_evaluation:
                asked.evaluated("balancer")
        if type(session.sampler).after_evaluation is not EpisodeSampler.after_evaluation:
            asked.evaluated("episodes")

    def _keep_best(self, metrics: MetricValues) -> None:
        progress = self._session.progress
        values = [self._compared(values) for _, values in progress.evaluations]
        epochs = [epoch + 1 for epoch, _ in progress.evaluations]
        if progress.best is not None and not beats(values, epochs.index(progress.best["epoch"])):
            return
        progress.best = {
            "epoch": progress.epoch + 1,
            "split": "val",
            "by": [f"{task}.{name}" for task, (name, _) in self._first.items()],
            "metrics": metrics,
        }
        save_best(self._session)

    def _compared(self, metrics: MetricValues) -> dict[str, float]:
        """Return what evaluations are compared by: first metrics, negated where higher is better.

        Of the tasks that learn. They are compared by ranks, so that neither the scale nor the sign
        of a metric counts.
        """
        return {
            task: -metrics[task][name] if higher else metrics[task][name]
            for task, (name, higher) in self._first.items()
        }

    def _plans(self) -> list[BatchPlan]:
        size = len(self._session.splits["val"])
        return in_order("val", size, self._session.config.training.batch_size)

    def _batches(self, plans: Sequence[BatchPlan]) -> Iterator[Batch | None]:
        # Several processes stop together; here each has batches of its own, or none.
        alone = self._session.distributed.world_size == 1
        for batch in self._session.loader.batches(plans):
            if alone:
                self._stop.check()
            yield batch
        if alone:
            self._stop.check()
