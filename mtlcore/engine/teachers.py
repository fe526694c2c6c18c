"""The teachers of a run: loaded, handed to who asks for them, and recognised on resuming."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Mapping
from typing import Any, final

import torch
from torch import Tensor

from mtlcore.config import RunConfig
from mtlcore.engine.building import build_model, restoring
from mtlcore.errors import MtlError, UsageError, outline
from mtlcore.inputs import Inputs, describe_inputs
from mtlcore.learner import Learner
from mtlcore.loading import Split
from mtlcore.models import AVERAGE, MultiTaskModel
from mtlcore.storage import model_of, read_weights
from mtlcore.system import out_of_memory
from mtlcore.teachers import Teacher


@final
class Teachers:
    """The frozen models that a run learns from.

    Args:
        config: Names the trained runs.
        learner: Whose cross-task losses ask for teachers; each gets those that it names.
        splits: Whose datasets may ask for some too, and get copies on the CPU.
        device: Where the others work.
        average: The averaged copy of the learner's model as a teacher; None if the run keeps none.

    Attributes:
        unused: Names of teachers of the configuration that nobody asks for.
        fingerprints: Name -> digest of a teacher's weights; all that a checkpoint has of them.

    Raises:
        UsageError: A loss or dataset asks for a teacher that there is not.
        MtlError: The checkpoint of a teacher is missing, damaged or of another model.
    """

    def __init__(
        self,
        config: RunConfig,
        learner: Learner,
        splits: Collection[Split],
        device: torch.device,
        average: Teacher | None,
    ) -> None:
        self.fingerprints: dict[str, str] = {}
        self._config = config
        self._known: dict[str, Teacher] = {}
        by_splits = {name for split in splits for name in split.needs_teachers}
        on_cpu: dict[str, Teacher] = {}
        for name in config.teachers:
            model, self.fingerprints[name] = _load(config, name)
            if name in by_splits:
                on_cpu[name] = Teacher(copy.deepcopy(model))
            self._known[name] = Teacher(model.to(device), learner.dtype)
        if average is not None:
            self._known[AVERAGE] = average
        asked = set(by_splits)
        for split in splits:
            split.take_teachers(
                {name: _given(name, "data: it", on_cpu) for name in split.needs_teachers}
            )
        for loss in learner.cross_task_losses:
            asked |= set(loss.needs_teachers)
            who = f"cross_task: {type(loss).__name__}"
            loss.teachers = {name: _given(name, who, self._known) for name in loss.needs_teachers}
        self.unused = [name for name in config.teachers if name not in asked]

    def check(self, inputs: Inputs) -> None:
        """Refuse a teacher that cannot read inputs of the run.

        Raises:
            UsageError: It cannot; the message names it.
        """
        for name, teacher in self._known.items():
            try:
                teacher.predict(inputs, list(teacher.tasks))
            except (RuntimeError, ValueError, IndexError) as error:
                if out_of_memory(error):
                    raise
                where = self._config.teachers[name].location if name != AVERAGE else "training.ema"
                raise UsageError(
                    f"teachers.{name}: the model of {where} cannot read a sample of "
                    f"{describe_inputs(inputs)} ({outline(error)}); choose a run on such inputs"
                ) from error

    def recognise(self, fingerprints: Mapping[str, str]) -> None:
        """Refuse to go on with other teachers than a run has begun with.

        Args:
            fingerprints: From the checkpoint.

        Raises:
            UsageError: They are others.
        """
        for name in sorted(fingerprints.keys() ^ self.fingerprints.keys()):
            begun = ", ".join(fingerprints) or "no teacher"
            raise UsageError(
                f"teachers.{name}: the run has begun with {begun}; go on with the same"
            )
        for name in fingerprints:
            if fingerprints[name] != self.fingerprints[name]:
                raise UsageError(
                    f"teachers.{name}: {self._config.teachers[name].location} has other weights "
                    "than the teacher that the run has begun with; put that one back, or start a "
                    "run of its own with another --out"
                )


def _given(name: str, who: str, known: Mapping[str, Teacher]) -> Teacher:
    if name in known:
        return known[name]
    how = f'name its run, teachers.{name} = "runs/..."'
    if name == AVERAGE:
        how = "set training.ema, such as 0.999 (losses can have it, datasets cannot)"
    raise UsageError(f"{who} asks for a teacher {name!r}, and there is none; {how}")


def _load(config: RunConfig, name: str) -> tuple[MultiTaskModel, str]:
    teacher = config.teachers[name]
    path, weights = read_weights(teacher.location, teacher.checkpoint)
    state = model_of(weights)
    with torch.random.fork_rng(devices=[]):  # what the learner draws stays as it was
        model = build_model(restoring(teacher.config))
    try:
        model.load_state_dict(state)
    except (RuntimeError, KeyError) as error:
        if out_of_memory(error):
            raise
        raise MtlError(f"{path}: belongs to another model: {outline(error)}") from error
    return model, _fingerprint(state)


def _fingerprint(state: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()
