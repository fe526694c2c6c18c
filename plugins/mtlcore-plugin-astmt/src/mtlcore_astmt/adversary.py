"""An adversary that tells from a gradient whose task it is, so that gradients come to hide it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlcore.data import Batch
from mtlcore.errors import UsageError
from mtlcore.features import FeatureInfo, Features
from mtlcore.losses import CrossTaskLoss
from mtlcore.models import StepContext
from mtlcore.ranges import NonNegative, Positive
from mtlcore.tasks import Task

# Keeps a gradient of zero, which has no direction, finite.
_EPSILON = 1e-10
# How fast the reversal sets in (Ganin and Lempitsky, ICML 2015).
_STEEPNESS = 10.0


@final
class GradientAdversary(CrossTaskLoss):
    """Cross-entropy of a discriminator that sees gradients, which is reversed on its way back.

    Maninis, Radosavovic and Kokkinos, CVPR 2019, section 4.4. With the gradient
    `g_t = dL_t / dx_t` of a task's loss at the main map x_t that its head reads, a discriminator D
    sees at every place the direction `g_t / (|g_t| + 1e-10)` and predicts t. The term is

        weight * sum over t of the mean over places of CE(D(direction), t),

    where places whose label is missing do not count. D learns to tell tasks apart. What made the
    gradients learns the opposite, times `2 / (1 + exp(-10 p)) - 1` after the part p of the run:
    the derivative of a gradient is taken, so that a step takes a second pass through the heads.

    D is two convolutions with ReLU between, as wide as the map, the first one without bias; weights
    are drawn normally with a deviation of .01.

    Args:
        weight: of the term. In the authors' code tasks weigh 1 - weight instead of 1.
        kernel: height and width of D's convolutions; published are 1 for PASCAL-Context and 3 for
            NYUD.
        rate: learning rate of D divided by the run's.
    """

    needs_losses = True
    progress: Tensor

    def __init__(
        self,
        tasks: Sequence[Task],
        features: FeatureInfo,
        *,
        weight: NonNegative = 0.01,
        kernel: Literal[1, 3] = 1,
        rate: Positive = 10.0,
    ) -> None:
        super().__init__()
        self._numbers = {task.name: number for number, task in enumerate(tasks)}
        self._are_maps = {task.name: task.layout == "map" for task in tasks}
        self._weight, self._rate = weight, rate
        self._place, self._stride = features.main_map, features.strides[features.main_map]
        channels, padding = features.channels[self._place], kernel // 2
        self.discriminator = nn.Sequential(
            nn.Conv2d(channels, channels, kernel, padding=padding, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels, len(tasks), kernel, padding=padding),
        )
        for layer in self.discriminator:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
        self.register_buffer("progress", torch.zeros(()))

    def needs(self, batch: Batch, tasks: Sequence[str]) -> Iterable[str]:
        """Return the tasks that have a label in the batch."""
        return batch.present(tasks)

    def forward(
        self, batch: Batch, features: Features, predictions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Compute the term `gradient_adversary`; none where no map that heads read learns.

        Raises:
            UsageError: a head does not read the main map.
        """
        found = []
        for task, loss in self.losses.items():
            x = features.of(task)[self._place]
            if not x.requires_grad:
                continue
            (gradient,) = torch.autograd.grad(loss, x, create_graph=True, allow_unused=True)
            if gradient is None:
                raise UsageError(
                    "cross_task: gradient-adversary compares gradients at the main map of the "
                    f"backbone, which the head of {task!r} does not read; choose another head, "
                    "such as pointwise"
                )
            found.append(self._told(task, gradient.float(), batch))
        return {"gradient_adversary": self._weight * torch.stack(found).sum()} if found else {}

    def after_step(self, context: StepContext) -> None:
        """Note how much of the run is done."""
        self.progress.fill_(context.progress)

    def parameter_groups(self) -> Iterator[dict[str, Any]]:
        """Yield the discriminator, which learns at a rate of its own."""
        if self._rate != 1:
            yield {"params": [*self.discriminator.parameters()], "lr_scale": self._rate}

    def _told(self, task: str, gradient: Tensor, batch: Batch) -> Tensor:
        """Return how badly the discriminator tells whose gradient it is.

        Args:
            task: whose it is.
            gradient: (B, C, H, W) or (B, C).
            batch: of which it is.
        """
        maps = gradient[:, :, None, None] if gradient.dim() == 2 else gradient
        directions = maps / (maps.norm(dim=1, keepdim=True) + _EPSILON)
        seen = self._counts(task, batch, maps)
        scale = 2 / (1 + (-_STEEPNESS * self.progress).exp()) - 1
        # The same values, whose derivative has the other sign and is scaled.
        hidden = (1 + scale) * directions.detach() - scale * directions
        labels = torch.full_like(seen, self._numbers[task], dtype=torch.long)
        told = F.cross_entropy(self.discriminator(hidden), labels, reduction="none")
        return (told * seen).sum() / seen.sum().clamp(min=1)

    def _counts(self, task: str, batch: Batch, maps: Tensor) -> Tensor:
        """Return for each place of a map (B, C, H, W) whether its label counts, (B, H, W)."""
        height, width = maps.shape[2:]
        valid = batch.valid[task]
        if self._are_maps[task] and self._stride:
            # The model pads images; what is padded has no label.
            bottom = height * self._stride - valid.shape[-2]
            right = width * self._stride - valid.shape[-1]
            valid = F.pad(valid, (0, right, 0, bottom))[..., :: self._stride, :: self._stride]
        else:
            valid = valid.flatten(1).any(1) if valid.dim() > 1 else valid
            valid = valid[:, None, None].expand(-1, height, width)
        first = torch.tensor([view == 0 for view in batch.view], device=valid.device)
        return valid & first[:, None, None]
