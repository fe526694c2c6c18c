"""A learner and batches so small that a step takes a millisecond."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import pairwise

import attrs
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.balancing import Balancer, Balancing, DepthSettings
from mtlcore.data import Batch, Sample, collate
from mtlcore.features import EarlyPrediction, FeatureInfo, Features
from mtlcore.learner import Learner
from mtlcore.losses import CrossTaskLoss, Loss, Normalisation, ScalarLoss
from mtlcore.models import Backbone, MultiTaskModel
from mtlcore.standard.heads import ConvHead
from mtlcore.standard.losses import L1, Cosine, CrossEntropy
from mtlcore.tasks import Task
from mtlcore.testing.base import draw_labels

TINY_TASKS = (
    Task(name="segmentation", kind="segmentation", channels=4),
    Task(name="depth", kind="depth", channels=1, unit="m"),
    Task(name="normals", kind="normals", channels=3),
)
TINY_SIZE = (8, 12)

_LOSSES: dict[str, type[Loss]] = {"segmentation": CrossEntropy, "depth": L1, "normals": Cosine}


def any_names(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """Return the tasks under names that torch's containers refuse."""
    awkward = ("type", "keys", "half", "training", "parameters", "forward", "items", "float")
    return tuple(attrs.evolve(task, name=name) for task, name in zip(tasks, awkward, strict=False))


class TinyBackbone(Backbone):
    """A convolution with batch norm that all tasks share, and a smaller one for each task.

    Maps: a shared one (6 channels, stride 2) and the task's own (5 channels, stride 2).
    """

    out_channels = (6, 5)
    strides = (2, 2)
    input_multiple = 2

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6), nn.Tanh()
        )
        self.keys = {task.name: task.key for task in tasks}
        self.branches = nn.ModuleDict(
            {
                key: nn.Sequential(nn.Conv2d(6, 5, 1, bias=False), nn.BatchNorm2d(5), nn.Tanh())
                for key in self.keys.values()
            }
        )

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        """Compute the two maps of images (B, 3, H, W); only the named tasks' branches run."""
        shared = self.trunk(inputs)
        own = {task: (self.branches[self.keys[task]](shared),) for task in tasks}
        return Features(shared=(shared,), per_task=own, cut=(shared,))

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return the parameters of the task's branch."""
        return self.branches[self.keys[task]].parameters()


class TinyPyramid(Backbone):
    """Maps that all tasks share, small enough to compute by hand; the deepest is the main one.

    What runs over another backbone is tested over it.

    Args:
        tasks: of the model.
        channels: of each map, the finest first; their strides are 2, 4, and so on.
        predicts: whether it predicts every task on the way, at half the weight, and has a term.
    """

    def __init__(
        self, tasks: Sequence[Task], *, channels: Sequence[int] = (4, 6), predicts: bool = False
    ) -> None:
        super().__init__()
        self.out_channels = tuple(reversed(channels))
        self.strides = tuple(2 ** (level + 1) for level in reversed(range(len(channels))))
        self.input_multiple, self.main_map = self.strides[0], 0
        self.keys = {task.name: task.key for task in tasks}
        self.levels = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1)
            for before, after in pairwise((3, *channels))
        )
        self.early = nn.ModuleDict(
            {t.key: nn.Conv2d(channels[-1], t.channels, 1) for t in tasks if predicts}
        )

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        """Compute a map per level from images (B, 3, H, W), the deepest first."""
        maps: list[Tensor] = []
        for level in self.levels:
            maps.insert(0, level(maps[0] if maps else inputs).tanh())
        features = Features(shared=tuple(maps))
        if self.training and self.early:
            heads = {task: self.early[self.keys[task]] for task in tasks}
            features.early = {t: [EarlyPrediction(h(maps[0]), 0.5)] for t, h in heads.items()}
            features.terms = {"size": maps[0].abs().mean()}
        return features

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return the parameters of the task's prediction on the way."""
        return self.early[self.keys[task]].parameters() if self.early else ()

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the deepest level."""
        return self.levels[-1].parameters()


def tiny_learner(
    balancers: Sequence[Balancer] = (),
    *,
    seed: int = 0,
    tasks: Sequence[Task] = TINY_TASKS,
    losses: Mapping[str, Loss | ScalarLoss] | None = None,
    cross_task: Sequence[CrossTaskLoss] = (),
    normalisation: Normalisation = "valid",
    update_every: int = 1,
    depth: DepthSettings | None = None,
    data: Iterable[Batch] | None = None,
    backbone: Callable[[Sequence[Task]], Backbone] = TinyBackbone,
) -> Learner:
    """Return a learner around a tiny backbone, its balancers prepared, in training mode.

    Args:
        balancers: the chain; none is the plain sum.
        seed: of the parameters; torch's global stream is left as it was.
        tasks: by default segmentation, depth and normals.
        losses: by task, where not the standard one.
        cross_task: losses between tasks.
        normalisation: see `mtlcore.losses.reduce_loss`.
        update_every: see `mtlcore.balancing.Balancing`.
        depth: the same; None: that of the balancers' scope.
        data: what balancers may look at in `prepare`.
        backbone: makes the backbone for the tasks.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = backbone(tasks)
        features = FeatureInfo(made.out_channels, made.strides)
        heads = {task.name: ConvHead(task, features) for task in tasks}
        chosen = dict(losses or {})
        for task in tasks:
            if task.name not in chosen:
                chosen[task.name] = _LOSSES[task.kind](task)
        learner = Learner(
            MultiTaskModel(tasks, made, heads),
            chosen,
            cross_task,
            Balancing(balancers, update_every, depth or DepthSettings()),
            normalisation,
        )
        learner.balancing.prepare(tasks, data)
    learner.context.generator = torch.Generator().manual_seed(seed)
    return learner.train()


def tiny_batch(
    count: int = 4,
    *,
    seed: int = 0,
    tasks: Sequence[Task] = TINY_TASKS,
    size: tuple[int, int] = TINY_SIZE,
    absent: Collection[str] = (),
    masked: float = 0.3,
    views: Sequence[int] | None = None,
) -> Batch:
    """Return a batch of noise with plausible labels.

    Args:
        count: number of samples.
        seed: another seed, another batch.
        tasks: that it has labels for.
        size: height and width.
        absent: names of tasks without a single label in it.
        masked: the part of all other labels that is missing.
        views: number of each sample's view; by default all are views 0. Other views are noise of
            their own, said to be mirror images.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(count, 3, *size, generator=generator)
    labels = {task.name: draw_labels(task, count, size, generator, masked) for task in tasks}
    kept = {name: pair for name, pair in labels.items() if name not in absent}
    samples = [
        Sample(
            inputs=inputs[i],
            targets={name: target[i] for name, (target, _) in kept.items()},
            valid={name: valid[i] for name, (_, valid) in kept.items()},
            key=f"tiny/{seed}/{i}",
            view=views[i] if views else 0,
            meta={"crop": (0, 0, *size), "scale": 1.0, "flip": bool(views and views[i])},
        )
        for i in range(count)
    ]
    return collate(samples, tasks)
