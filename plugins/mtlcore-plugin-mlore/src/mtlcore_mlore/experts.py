"""The mixture of low-rank experts, and the router by which each task picks among them.

Yang, Jiang, Hou, Zhang, Chen and Li, "Multi-Task Dense Prediction via Mixture of Low-Rank Experts",
CVPR 2024 (arXiv 2403.17749), with the layers of the authors' code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter


@final
class LowRankExpert(nn.Module):
    """A 3x3 convolution of low rank: to a few channels, and back by a 1x1 convolution.

    There is nothing in between, so that it is a linear map.

    Args:
        channels: of the map.
        rank: channels in between.
    """

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, rank, 3, padding=1)
        self.expand = nn.Conv2d(rank, channels, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Compute (B, channels, H, W) -> the same shape."""
        found: Tensor = self.expand(self.reduce(maps))
        return found


@final
class Router(nn.Module):
    """Scores of the experts for every image, from what is at its places and from where it is.

    Half of what decides are means over places of a small network at each; the other half is a
    weighed sum over places, with a weight learnt for each of a fixed grid.

    Args:
        channels: of the map, a multiple of four.
        experts: number of experts that all tasks share.
        grid: height and width of the grid.
    """

    def __init__(self, channels: int, experts: int, grid: tuple[int, int]) -> None:
        super().__init__()
        inner = channels // 4
        self._experts, self._grid = experts, grid
        self.reduce = nn.Conv2d(channels, inner, 1)
        self.norm_places = nn.LayerNorm(inner)
        self.places = nn.Linear(inner, inner)
        self.sum = nn.Linear(grid[0] * grid[1], 1)
        self.norm_sum = nn.LayerNorm(channels)
        self.summed = nn.Linear(channels, inner)
        self.scores = nn.Linear(2 * inner, 2 * experts + 1)
        nn.init.trunc_normal_(self.sum.weight, std=0.02)
        nn.init.zeros_(self.sum.bias)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute what decides for maps (B, channels, H, W).

        Returns:
            Scores of the experts (B, experts), the standard deviations of the noise that training
            adds to them, up to the sign, and the factor of the task's own expert (B, 1).
        """
        here = self.norm_places(self.reduce(maps).movedim(1, -1))
        # The mean is taken after the linear layer in the authors' code, which is the same.
        places = self.places(F.gelu(here).mean((1, 2)))
        pooled = F.adaptive_avg_pool2d(maps, self._grid).flatten(2)
        summed = self.summed(F.gelu(self.norm_sum(self.sum(pooled).squeeze(2))))
        found = self.scores(torch.cat([places, summed], dim=1))
        scores, spreads, own = found.split((self._experts, self._experts, 1), dim=1)
        return scores, spreads, own


@final
class TaskPart(nn.Module):
    """What a task has for itself in a mixture.

    Args:
        channels: of the map.
        experts: number of experts that all tasks share.
        rank: of the task's own expert.
        grid: see `Router`.
    """

    def __init__(self, channels: int, experts: int, rank: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, channels, 1)
        self.router = Router(channels, experts, grid)
        self.expert = LowRankExpert(channels, rank)
        self.norm_mixture = nn.BatchNorm2d(channels)
        self.norm = nn.BatchNorm2d(channels)
        self.leave = nn.Conv2d(channels, channels, 1)


@final
class Mixture(nn.Module):
    """A mixture of low-rank experts that all tasks share, with a part of each task's own.

    A task's map is the sum of three: the experts that its router picks for the image, weighed and
    normalised; an expert of the task's own, times a factor; and a 3x3 convolution that all tasks
    share, which learns from all of them and through which nothing learns that comes before. A norm,
    GELU and a 1x1 convolution follow.

    Args:
        keys: of the tasks.
        channels: of the maps, a multiple of four.
        ranks: of the experts that all tasks share.
        chosen: number of experts that count for an image.
        task_rank: of each task's own expert.
        renormalise: whether the weights of those that count add up to one.
        grid: see `Router`.
    """

    def __init__(
        self,
        keys: Sequence[str],
        channels: int,
        ranks: Sequence[int],
        chosen: int,
        task_rank: int,
        *,
        renormalise: bool,
        grid: tuple[int, int],
    ) -> None:
        super().__init__()
        self._chosen, self._renormalise = chosen, renormalise
        experts = [LowRankExpert(channels, rank) for rank in ranks]
        self.experts = nn.ModuleList(experts)
        for expert in experts:
            # Weights begin as torch has them.
            for layer in (expert.reduce, expert.expand):
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        self.shared = nn.Conv2d(channels, channels, 3, padding=1)
        self.tasks = nn.ModuleDict(
            {key: TaskPart(channels, len(ranks), task_rank, grid) for key in keys}
        )

    def forward(self, maps: Tensor, key: str) -> tuple[Tensor, Tensor]:
        """Compute a task's map of a map (B, channels, H, W).

        Args:
            maps: that is read.
            key: of the task.

        Returns:
            (B, channels, H, W), and the weights of the experts (B, experts), 0 where one does not
            count.
        """
        part = self.tasks[key]
        assert isinstance(part, TaskPart)
        entered = part.enter(maps)
        scores, spreads, factor = part.router(entered)
        if self.training:
            scores = scores + torch.randn_like(scores) * spreads
        weights = self._picked(scores)
        mixture = torch.zeros_like(entered)
        for expert, weight in zip(self.experts, weights.unbind(1), strict=True):
            mixture = mixture + weight[:, None, None, None] * expert(entered)
        joined = (
            part.norm_mixture(mixture)
            + factor[:, :, None, None] * part.expert(entered)
            + self.shared(entered.detach())
        )
        left: Tensor = part.leave(F.gelu(part.norm(joined)))
        return left, weights

    def last_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the last layers that tasks share."""
        yield from self.shared.parameters()
        for expert in self.experts:
            assert isinstance(expert, LowRankExpert)
            yield from expert.expand.parameters()

    def _picked(self, scores: Tensor) -> Tensor:
        """Return the weights (B, experts) of scores, 0 for all but the largest."""
        weights = scores.softmax(dim=1)
        places = weights.topk(self._chosen, dim=1).indices
        weights = weights * torch.zeros_like(weights).scatter(1, places, 1.0)
        return weights / weights.sum(1, keepdim=True) if self._renormalise else weights
