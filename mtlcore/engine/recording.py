"""What a run writes down: lines of metrics.jsonl, skipped steps, facts about its data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

from mtlcore.engine.session import Session
from mtlcore.engine.stopping import Stop
from mtlcore.errors import MtlError
from mtlcore.optimizers import StepReport

# Training values are written so many times over a run, evenly spread.
_RECORDS_PER_RUN = 200


@final
class Recorder:
    """Writes what happens in a session into its directory.

    Args:
        session: The run.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def describe_data(self) -> None:
        """Tell how many samples are used, and write which labels of them."""
        session = self._session
        for name, split in session.splits.items():
            if split.examples < split.available:
                session.display.note(
                    f"data.{name} = {split.examples}: so many of {split.available} samples are used"
                )
            if repeated := len(split) - split.examples:
                session.display.note(
                    f"{name}: {repeated} samples more, for {', '.join(split.self_labelled)}"
                )
        regime = session.splits["train"].regime
        if regime is not None:
            session.directory.write_json("labels.json", regime.to_json())
            counts = ", ".join(f"{task} {count}" for task, count in regime.counts().items())
            session.display.note(f"labels of {session.splits['train'].examples} samples: {counts}")
            names = session.splits["train"].names()
            for told in () if names is None else regime.mismatches(names):
                session.display.warn(f"data.labels: {told}")

    def step(self, report: StepReport) -> None:
        """Take in a step's report, and write the values of the last steps when they are due.

        Raises:
            MtlError: Too many steps in a row were skipped.
        """
        session, progress = self._session, self._session.progress
        if report.skipped is not None:
            self._count_skipped(report.skipped)
        else:
            progress.skipped_in_a_row = 0
            progress.measure_step(report)
        every = max(1, session.total_steps // _RECORDS_PER_RUN)
        if progress.step % every == 0 or progress.done == session.steps_per_epoch:
            progress.measure_weights(session.learner.balancing.chain)
            progress.measure_backbone(session.learner.model.backbone)
            self._write("train", progress.take_window())

    def evaluation(self, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """Write the metrics of the validation split, per task."""
        self._write(
            "val",
            (
                (task, metric, value)
                for task, values in metrics.items()
                for metric, value in values.items()
            ),
        )

    def refuse_idleness(self, *, finished: bool) -> None:
        """Let a run fail that has learnt nothing.

        Args:
            finished: Whether the run is at its end. Before, steps without any label are enough,
                as the next epoch has the same samples; skipped ones may yet learn.

        Raises:
            MtlError: No step had a loss to learn from.
        """
        config, progress = self._session.config, self._session.progress
        if progress.learnt or (progress.skipped and not finished):
            return
        if progress.skipped == progress.step:
            why = "all of them were skipped, for the reasons above"
        else:
            why = f"no training sample has a label of {', '.join(config.learning)}"
            if config.data.labels != "full":
                why += (
                    f". data.labels = {config.data.labels!r} says which samples have one: are its "
                    "names those of the samples' files, without folder and ending?"
                )
        raise MtlError(f"nothing was learnt in {progress.step} steps: {why}")

    def stops(self, epoch: int, stops: Iterable[Stop]) -> None:
        """Write and tell which tasks stop learning after an epoch, or that the run ends."""
        stops = list(stops)
        self._write("train", ((stop.task or "", "stopped", float(epoch)) for stop in stops))
        for stop in stops:
            self._session.display.note(f"epoch {epoch}: {_sentence(stop)}")

    def _write(self, split: str, values: Iterable[tuple[str, str, float]]) -> None:
        session, progress = self._session, self._session.progress
        seconds = round(session.seconds, 3)  # of all values of a step the same
        lines: Iterable[dict[str, Any]] = (
            {
                "step": progress.step,
                "epoch": progress.epoch + 1,
                "split": split,
                "task": task or None,
                "metric": metric,
                "value": value,
                "seconds": seconds,
            }
            for task, metric, value in values
        )
        session.directory.record(lines)

    def _count_skipped(self, reason: str) -> None:
        session, progress = self._session, self._session.progress
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        session.display.warn(f"step {progress.step}: skipped, {reason}")
        if progress.skipped_in_a_row < session.config.training.max_skipped:
            return
        raise MtlError(
            f"stopped at step {progress.step}: {progress.skipped_in_a_row} steps in a row were "
            f"skipped, the last because {reason}. The last good checkpoint is "
            f"{session.directory.checkpoint}; try a lower optimizer.lr or optimizer.clip, and look "
            "at the data of that task"
        )


def _sentence(stop: Stop) -> str:
    since = f"no better validation since epoch {stop.best_epoch}"
    if stop.task is not None:
        return f"{stop.task} learns no more ({since})"
    return f"the run ends ({'no task is left' if stop.best_epoch is None else since})"
