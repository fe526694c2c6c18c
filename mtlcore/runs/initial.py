"""Starting from a trained run's weights, by their names; what is made for new tasks starts anew.

`[initial]` of a configuration names the run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor

from mtlcore.config import RunConfig
from mtlcore.engine import restoring
from mtlcore.errors import UsageError
from mtlcore.learner import Learner
from mtlcore.models import made_for
from mtlcore.storage import read_weights, trained_config
from mtlcore.tasks import task_key


def begins_with(config: RunConfig, *, resumed: bool = False) -> RunConfig:
    """Return what a run is built from: no file of weights is read that a run's replace.

    Args:
        config: The run's configuration.
        resumed: Whether a checkpoint of the run's own follows.
    """
    initial = config.initial is not None and config.initial.run is not None
    return restoring(config) if resumed or initial else config


def load_initial(learner: Learner, config: RunConfig) -> list[str]:
    """Take over the weights of `initial.run`, if there is one; returns notes for people.

    The whole model is taken, but for what is made for new tasks. Losses, losses between tasks and
    the balancer come along where their settings are those of the run; what they know of old tasks
    is kept. Optimizers start anew.

    Raises:
        UsageError: no run there, or one of another model.
        MtlError: its checkpoint is missing or damaged.
    """
    initial = config.initial
    if initial is None or initial.run is None:
        return []
    stored = trained_config(initial.run)
    path, found = read_weights(initial.run, initial.checkpoint)
    new = {task_key(name) for name in initial.new}
    known = [str(name) for name in stored.get("tasks", ())]
    absent = [task.name for task in config.tasks if task.name not in [*known, *initial.new]]
    if absent:
        raise UsageError(
            f"initial.run: {initial.run} has not learnt {', '.join(absent)}; let initial.new name "
            "every task that starts anew"
        )
    gone = {task_key(name) for name in known} - {task.key for task in config.tasks}
    own = dict(learner.state_dict())
    taken = _model(own, found, new, gone, path)
    notes = []
    for part, there, here in _parts(stored, config):
        names = [name for name in own if name.startswith(f"{part}.") and not made_for(name, new)]
        if names and there == here and all(_fits(name, own, found) for name in names):
            taken |= {name: _merged(own[name], found[name]) for name in names}
        elif names:
            notes.append(f"initial.run: {part} starts anew, {initial.run} has another one")
    learner.load_state_dict({**own, **taken})
    return notes


def _model(
    own: Mapping[str, Any],
    found: Mapping[str, Any],
    new: Collection[str],
    gone: Collection[str],
    path: str,
) -> dict[str, Any]:
    """Return the tensors that the model takes from a run: all of them, or an error."""
    wanted = [name for name in own if name.startswith("model.") and not made_for(name, new)]
    missing = [name for name in wanted if name not in found]
    unknown = [
        name
        for name in found
        if name.startswith("model.") and name not in own and not made_for(name, {*new, *gone})
    ]
    for names, what in ((missing, "has no"), (unknown, "has")):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise UsageError(
                f"initial.run: {path} {what} {names[0]}{more}: it belongs to another model; keep "
                "its backbone and heads"
            )
    for name in wanted:
        if not _fits(name, own, found):
            here, there = (tuple(tensor.shape) for tensor in (own[name], found[name]))
            raise UsageError(
                f"initial.run: {path} has {name} of shape {there} where this run needs {here}: "
                "keep the run's backbone, heads and classes, or let initial.new name the task"
            )
    return {name: found[name] for name in wanted}


def _parts(stored: Mapping[str, Any], config: RunConfig) -> Iterator[tuple[str, Any, Any]]:
    """Yield what else has a state: its path in the learner, its settings there and here."""
    for task in config.tasks:
        there, here = (tree.get("losses", {}).get(task.name) for tree in (stored, config.tree))
        yield f"losses.{task.key}", there, here
    links = list(stored.get("cross_task", ()))
    for number, here in enumerate(config.tree["cross_task"]):
        there = links[number] if number < len(links) else None
        yield f"cross_task.{number}", there, here
    yield "balancing", stored.get("balancer"), config.tree["balancer"]


def _fits(name: str, own: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether a tensor is there in its own shape; what is no tensor has none."""
    if name not in found or not isinstance(own[name], Tensor):
        return name in found
    return isinstance(found[name], Tensor) and own[name].shape == found[name].shape


def _merged(own: Any, found: Any) -> Any:
    """Merge two states that are no tensors; what is known of new tasks stays."""
    if isinstance(own, dict) and isinstance(found, dict):
        return {**own, **{key: _merged(own.get(key), value) for key, value in found.items()}}
    return found
