"""Contexts: what a target task gathers from the map of a source task, by four kinds of attention.

Bruggemann, Kanakis, Obukhov, Georgoulis and Van Gool, "Exploring Relational Context for Multi-Task
Dense Prediction", ICCV 2021 (arXiv 2104.13874), section 3, with the layers of the authors' code.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias, final, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlcore.models import is_exporting

#: What a target gathers from a source, by the names that the paper has for it.
Kind: TypeAlias = Literal["none", "global", "local", "t-label", "s-label"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Where queries and keys are all but orthogonal, global attention would divide by nothing.
_LEAST = 1e-12


@final
class _RowByRow(torch.autograd.Function):
    """Leaves a map as it is, and hands its gradient on in the usual order of memory.

    The gradient of a factor that a product reads transposed is a transposed one. Of a single sample
    torch's batch norm on CPUs takes it for one of another order and returns wrong gradients (torch
    2.13), without a word.
    """

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        """Return a view of the map."""
        return x.view_as(x)

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the gradient, copied if its order is another one."""
        return gradients[0].contiguous()


@final
class Values(nn.Module):
    """What is gathered: a 1x1 convolution, batch norm, a scale and a shift per channel, and ReLU.

    Batch norm has no scale and shift while contexts are searched for, so that none of them is
    larger than another one of itself; `scaled` says whether they count.

    Args:
        channels: of the map that it reads.
        inner: of what it returns.
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.conv = _pointwise(channels, inner)
        self.norm = nn.BatchNorm2d(inner, affine=False)
        self.scale = nn.Parameter(torch.ones(inner))
        self.shift = nn.Parameter(torch.zeros(inner))

    def forward(self, x: Tensor, *, scaled: bool) -> Tensor:
        """Compute the values, (B, channels, h, w) -> (B, inner, h, w)."""
        x = self.norm(self.conv(x))
        if scaled:
            x = x * self.scale[:, None, None] + self.shift[:, None, None]
        return _row_by_row(x.relu())


@final
class Projection(nn.Module):
    """Makes queries or keys: two 1x1 convolutions with batch norm.

    Args:
        channels: of the map that it reads.
        inner: of what it returns.
        last: what ends it; a ReLU stands between the two.
    """

    def __init__(self, channels: int, inner: int, last: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _pointwise(channels, inner),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            _pointwise(inner, inner),
            nn.BatchNorm2d(inner),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute (B, channels, h, w) -> (B, inner, h, w)."""
        return _row_by_row(self.layers(x))


class Context(nn.Module, abc.ABC):
    """What a target gathers: values of a source, weighed by likeness of queries and keys.

    Queries are made of the target's map, keys and values of the source's, by 1x1 convolutions with
    batch norm. It has 3 c n + 2 n^2 + 10 n parameters for c channels and n inner ones.

    Args:
        channels: c, of the maps of both tasks.
        inner: n, of queries, keys and values.
        last: what ends queries and keys, beside a ReLU between their two convolutions.
    """

    def __init__(self, channels: int, inner: int, last: type[nn.Module]) -> None:
        super().__init__()
        self.query = Projection(channels, inner, last())
        self.key = Projection(channels, inner, last())
        self.value = Values(channels, inner)

    @abc.abstractmethod
    def forward(
        self, target: Tensor, source: Tensor, labels: Tensor | None, *, scaled: bool
    ) -> Tensor:
        """Gather from the source.

        Args:
            target: the map of the task that gathers, (B, channels, h, w).
            source: the map of the task that it gathers from, of the same shape.
            labels: where each label is, (B, labels, h w), summing up to 1 over places; only for
                what pools by labels.
            scaled: whether values have a scale and a shift.

        Returns:
            (B, inner, h, w)
        """


@final
class GlobalContext(Context):
    """From all places: linear attention.

    With non-negative queries q, keys k and values v, what is gathered at place i is

        V_i = sum_j (q_i . k_j) v_j / sum_j (q_i . k_j).

    Args:
        channels: of the maps.
        inner: of queries, keys and values.
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__(channels, inner, nn.Softplus)

    def forward(
        self, target: Tensor, source: Tensor, labels: Tensor | None, *, scaled: bool
    ) -> Tensor:
        """Gather from all places."""
        query, key = self.query(target).flatten(2), self.key(source).flatten(2)
        value = self.value(source, scaled=scaled).flatten(2)
        # Sums over all places leave the range of half precision.
        with torch.autocast(target.device.type, enabled=False):
            wide = torch.promote_types(query.dtype, torch.float32)
            query, key, value = query.to(wide), key.to(wide), value.to(wide)
            gathered = (value @ key.transpose(1, 2)) @ query
            whole = key.sum(2).unsqueeze(1) @ query
            found: Tensor = gathered / whole.clamp_min(_LEAST)
        return found.reshape(*found.shape[:2], *target.shape[2:])


@final
class LocalContext(Context):
    """From a window around the same place, by the softmax of q_i . k_j / sqrt(n).

    Beyond the border keys and values are 0: those places take a part of the softmax and add
    nothing.

    Args:
        channels: of the maps.
        inner: n, of queries, keys and values.
        window: height and width of the window, odd.
    """

    def __init__(self, channels: int, inner: int, window: int) -> None:
        super().__init__(channels, inner, nn.ReLU)
        self._window = window

    def forward(
        self, target: Tensor, source: Tensor, labels: Tensor | None, *, scaled: bool
    ) -> Tensor:
        """Gather from the window."""
        query, key = self.query(target), self.key(source)
        value = self.value(source, scaled=scaled)
        # Row by row: the whole window of every place would not fit into memory.
        alike = [(query.unsqueeze(4) * row).sum(1) for row in self._rows(key)]
        likeness = torch.stack(alike, dim=3) / query.shape[1] ** 0.5  # (B, h, w, rows, columns)
        weights = likeness.flatten(3).softmax(3).to(value.dtype)
        found = torch.zeros_like(value)
        parts = weights.unsqueeze(1).split(self._window, dim=4)
        for weight, row in zip(parts, self._rows(value), strict=True):
            found = found + (weight * row).sum(4)
        return found

    def _rows(self, x: Tensor) -> Iterator[Tensor]:
        """Yield each row of the window around every place, (B, C, h, w, columns); views."""
        reach = self._window // 2
        padded = F.pad(x, (reach, reach, reach, reach))
        for row in range(self._window):
            yield padded.narrow(2, row, x.shape[2]).unfold(3, self._window, 1)


@final
class LabelContext(Context):
    """From labels: the source's map averaged over the places of each label, a key for each.

    With the share a_lj of place j in label l, c_l = sum_j a_lj s_j is what keys and values are made
    of, and weights are the softmax over labels of q_i . k_l / sqrt(n).

    Args:
        channels: of the maps.
        inner: n, of queries, keys and values.
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__(channels, inner, nn.ReLU)

    def forward(
        self, target: Tensor, source: Tensor, labels: Tensor | None, *, scaled: bool
    ) -> Tensor:
        """Gather from labels."""
        assert labels is not None
        pooled = (source.flatten(2) @ labels.transpose(1, 2)).unsqueeze(3)  # (B, C, labels, 1)
        key, value = self.key(pooled).flatten(2), self.value(pooled, scaled=scaled).flatten(2)
        query = self.query(target).flatten(2)
        weights = (key.transpose(1, 2) @ query / query.shape[1] ** 0.5).softmax(1)
        gathered: Tensor = value @ weights.to(value.dtype)
        return gathered.reshape(*gathered.shape[:2], *target.shape[2:])


def make_context(kind: Kind, channels: int, inner: int, window: int) -> Context:
    """Return a context of a kind that gathers something.

    Args:
        kind: any but "none".
        channels: of the maps of both tasks.
        inner: of queries, keys and values.
        window: of a local one.
    """
    if kind == "global":
        return GlobalContext(channels, inner)
    if kind == "local":
        return LocalContext(channels, inner, window)
    return LabelContext(channels, inner)


def _pointwise(channels: int, outputs: int) -> nn.Conv2d:
    """Return a 1x1 convolution without a bias, drawn as Glorot and Bengio do."""
    conv = nn.Conv2d(channels, outputs, 1, bias=False)
    nn.init.xavier_uniform_(conv.weight)
    return conv


def _row_by_row(x: Tensor) -> Tensor:
    if is_exporting():  # nobody asks for gradients
        return x
    found: Tensor = _RowByRow.apply(x)  # type: ignore[no-untyped-call]
    return found
