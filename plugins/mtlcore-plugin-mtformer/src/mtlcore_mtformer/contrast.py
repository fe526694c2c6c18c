"""The contrast between what two tasks make of one image and of others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlcore.data import Batch
from mtlcore.features import FeatureInfo, Features
from mtlcore.losses import CrossTaskLoss
from mtlcore.models import StepContext
from mtlcore.ranges import Channels, Decay, NonNegative, Positive, Range
from mtlcore.tasks import Task
from mtlcore_mtformer.memory import Memory, number_of


@final
class TaskContrast(CrossTaskLoss):
    """What two tasks make of an image is alike, and unlike what they make of other images.

    Xu, Zhao, Vineet, Lim and Torralba, "MTFormer", ECCV 2022, with the noise-contrastive estimation
    of the authors' code. The map that a task's head reads, averaged over places, passes two linear
    layers with a ReLU between, of the task's own, and is brought to unit length: v_t. A memory has
    an average of it for each image (`Memory`). With x_0 what the memory of another task u has of
    the same image, and x_1, ..., x_K rows of that memory drawn at random, the term of the pair is
    the mean over images of

        -log h(x_0) - sum over k > 0 of log(1 - h(x_k)),    h(x) = p(x) / (p(x) + K / N),

    with p(x) = exp(v_t . x / temperature) / Z and N the number of rows. Z is N times the mean of
    that exponential in the first step. Terms of all ordered pairs of tasks are added up; the rows
    that are drawn are the same for all of them.

    Of an image that is not in the memory, x_0 is v_u itself, as it is without its derivative.
    Labels play no part: whatever an image has, all tasks that still learn are run for it. A lone
    task has no term. Of several processes each draws its own rows; what they remember is the same.

    Args:
        tasks: the run's tasks.
        features: what heads read.
        weight: of the term.
        negatives: K, the number of rows that an image is compared with.
        temperature: of the comparison.
        momentum: factor on what the memory has of an image; the new vector has the rest.
        outputs: length of v_t.
        samples: N, the number of images in the memory, best that of all training images.
    """

    constants: Tensor
    new_constants: Tensor

    def __init__(
        self,
        tasks: Sequence[Task],
        features: FeatureInfo,
        *,
        weight: NonNegative = 0.01,
        negatives: Annotated[int, Range(ge=1, le=1_000_000)] = 2000,
        temperature: Positive = 0.07,
        momentum: Decay = 0.5,
        outputs: Channels = 128,
        samples: Annotated[int, Range(ge=1, le=1_000_000)] = 4998,
    ) -> None:
        super().__init__()
        self._weight, self._negatives, self._temperature = weight, negatives, temperature
        self._place, self._samples = features.main_map, samples
        # A lone task, or a weight of 0, has nothing to learn and to remember.
        self._keys = {t.name: t.key for t in tasks} if weight and len(tasks) > 1 else {}
        self._numbers = {task: number for number, task in enumerate(self._keys)}
        width, keys = features.channels[self._place], tuple(self._keys.values())
        self.projectors = nn.ModuleDict({key: _projector(width, outputs) for key in keys})
        self.memories = nn.ModuleDict({key: Memory(samples, outputs, momentum) for key in keys})
        # Of each ordered pair of tasks the logarithm of Z; NaN until it is known.
        unknown = torch.full((len(keys), len(keys)), math.nan)
        self.register_buffer("constants", unknown)
        self.register_buffer("new_constants", unknown.clone(), persistent=False)

    def needs(self, batch: Batch, tasks: Sequence[str]) -> Iterable[str]:
        """Return all tasks, where there are two or more."""
        asked = [task for task in tasks if task in self._keys]
        return asked if len(asked) > 1 else ()

    def forward(
        self, batch: Batch, features: Features, predictions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Compute the term; there is none for fewer than two tasks."""
        tasks = [task for task in self._keys if task in predictions]
        # Each image once, in its first view.
        rows: dict[str, int] = {}
        for row, (key, view) in enumerate(zip(batch.keys, batch.view, strict=True)):
            if view == 0:
                rows.setdefault(key, row)
        if len(tasks) < 2 or not rows:
            return {}
        vectors = {task: self._vectors(task, features)[[*rows.values()]] for task in tasks}
        device = vectors[tasks[0]].device
        owners = torch.tensor([number_of(key) for key in rows], device=device)
        drawn = torch.randint(self._samples, (len(rows), self._negatives), device=device)
        terms = []
        for other in tasks:
            memory = self.memories[self._keys[other]]
            assert isinstance(memory, Memory)
            remembered, known = memory.find(owners)
            positive = torch.where(known[:, None], remembered, vectors[other].detach())
            # Rows change once the step is taken, and in some before its backward pass.
            everything = memory.vectors.clone()
            for task in tasks:
                if task != other:
                    here = (vectors[task] * positive).sum(1, keepdim=True)
                    there = (vectors[task] @ everything.t()).gather(1, drawn)
                    terms.append(self._term(task, other, here, there))
            if self.training:
                memory.offer(owners, vectors[other])
        return {"task_contrast": self._weight * torch.stack(terms).sum()}

    @torch.no_grad()
    def after_step(self, context: StepContext) -> None:
        """Remember the vectors of the step, of all processes."""
        memories = [m for m in self.memories.values() if isinstance(m, Memory)]
        own = [memory.offered() for memory in memories]
        everybody = context.distributed.all_gather((own, self.new_constants.cpu()))
        for number, memory in enumerate(memories):
            parts = [offers[number] for offers, _ in everybody]
            owners = [owner for part, _ in parts for owner in part]
            memory.remember(owners, torch.cat([vectors for _, vectors in parts]))
        found = torch.stack([constants for _, constants in everybody]).nanmean(0)
        self.constants.copy_(
            self.constants.where(~self.constants.isnan(), found.to(self.constants))
        )

    def _vectors(self, task: str, features: Features) -> Tensor:
        """Return the projected vectors (B, outputs) of a task, of unit length."""
        maps = features.of(task)[self._place].float()
        pooled = maps.flatten(2).mean(2) if maps.dim() > 2 else maps
        return F.normalize(self.projectors[self._keys[task]](pooled), dim=1)

    def _term(self, task: str, other: str, here: Tensor, there: Tensor) -> Tensor:
        """Return the term of a pair from cosines with x_0 (B, 1) and x_1, ..., x_K (B, K)."""
        place = self._numbers[task], self._numbers[other]
        scores = torch.cat([here, there], dim=1) / self._temperature
        mean = scores.detach().flatten().logsumexp(0) - math.log(scores.numel())
        self.new_constants[place] = (mean + math.log(self._samples)).to(self.new_constants)
        known, new = self.constants[place], self.new_constants[place]
        constant = known.where(~known.isnan(), new)
        # The logarithm of p(x) / (K / N), of which h is the logistic function.
        odds = scores - constant - math.log(self._negatives / self._samples)
        losses = F.softplus(-odds[:, 0]) + F.softplus(odds[:, 1:]).sum(1)
        return losses.mean()


def _projector(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, outputs), nn.ReLU(), nn.Linear(outputs, outputs))
