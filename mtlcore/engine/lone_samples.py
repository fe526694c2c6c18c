"""Batches of one sample, on which a model with batch norm may not be able to train."""

from __future__ import annotations

from typing import final

from mtlcore.data import Batch, empty_batch
from mtlcore.engine.session import Session
from mtlcore.inputs import describe_inputs


@final
class LoneSamples:
    """Leaves out a sample that is alone in its batch, where the model cannot be trained on it.

    Plans avoid such batches, but a process may get one sample of a small batch, and one may be all
    of a batch that can be read. Whether it is too little depends on the maps that batch norm sees,
    so the model is asked: once an epoch for each shape, as its phases may change the answer.

    Args:
        session: The run; what is left out is among the samples that its loader has skipped.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._epoch = 0
        self._answers: dict[str, bool] = {}

    def without(self, batch: Batch) -> Batch:
        """Return the batch, or an empty one.

        Args:
            batch: On the learner's device.
        """
        if len(batch) != 1:
            return batch
        session = self._session
        if session.progress.epoch != self._epoch:
            self._epoch, self._answers = session.progress.epoch, {}
        shape = describe_inputs(batch.inputs)
        if shape not in self._answers:
            self._answers[shape] = session.learner.trains_on(batch.inputs)
        if self._answers[shape]:
            return batch
        session.loader.skipped.append(
            f"{batch.keys[0]}: alone in its batch, where batch norm would see a single value per "
            "channel"
        )
        return empty_batch(session.config.tasks)
