"""Features: what a backbone hands to heads, and where the two can be separated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import attrs
from torch import Tensor

__all__ = ["Announcing", "Boundary", "EarlyPrediction", "FeatureInfo", "Features"]


class Announcing(Protocol):
    """What says which features it gives: a backbone, or a neck."""

    out_channels: tuple[int, ...]
    strides: tuple[int, ...]
    main_map: int


@attrs.frozen
class FeatureInfo:
    """Channels and strides of the features that a head receives, in their order.

    Args:
        channels: of each map or vector.
        strides: of each map: the height of the input divided by the height of the map; 0 for a
            vector (B, C) beside maps, such as the class token of a transformer.
        main_map: place of the map that a head of a single map reads: the one computed from most of
            the network. That is the last one where a decoder made it, and the deepest one, 0, of
            an encoder's pyramid.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    main_map: int = -1

    @classmethod
    def of(cls, part: Announcing) -> FeatureInfo:
        """Return what a backbone or a neck announces."""
        return cls(tuple(part.out_channels), tuple(part.strides), part.main_map)

    @property
    def pyramid(self) -> tuple[int, ...]:
        """Places of all maps, the deepest (largest stride) first; vectors are left out."""
        places = [place for place, stride in enumerate(self.strides) if stride]
        return tuple(sorted(places, key=lambda place: -self.strides[place]))

    @property
    def vector(self) -> int | None:
        """Place of the last vector beside the maps; None: there is none."""
        return max((n for n, stride in enumerate(self.strides) if stride == 0), default=None)


@dataclass  # not attrs: torch.compile can follow this one
class EarlyPrediction:
    """A prediction that a backbone makes on the way, for deep supervision.

    Args:
        prediction: Raw as a head's, (B, task.channels, H / s, W / s) at any stride s, or
            (B, task.channels). Maps are resized bilinearly to the size of the target.
        weight: Factor on its loss; the loss of the head's prediction has the factor 1.
    """

    prediction: Tensor
    weight: float = 1.0


@dataclass(kw_only=True)
class Features:
    """What a backbone returns.

    Args:
        shared: maps that all tasks share, the deepest (largest stride) first; a vector (B, C) is
            announced with the stride 0.
        per_task: task name -> maps of this task alone; its head receives them after the shared
            ones.
        cut: tensors such that every path from a shared parameter to a loss, of early predictions
            too, crosses exactly one of them.
            Balancers with the scope "features" compare gradients there. Leave it empty if the maps
            that heads read will do: the core then compares gradients at those (see `separated`).
        early: Task -> the predictions that the backbone makes on the way; none in evaluation mode.
            The task's own loss judges them, and the weighted sum is added to that of its head's
            prediction: balancers see one loss per task.
        terms: Name -> scalar that is added to the total loss with weight 1, outside the balancing,
            as a cross-task term is; none in evaluation mode.
    """

    shared: tuple[Tensor, ...] = ()
    per_task: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    cut: tuple[Tensor, ...] = ()
    early: Mapping[str, Sequence[EarlyPrediction]] = field(default_factory=dict)
    terms: Mapping[str, Tensor] = field(default_factory=dict)

    def of(self, task: str) -> tuple[Tensor, ...]:
        """Return the maps that the head of `task` receives: the shared ones, then its own."""
        return (*self.shared, *self.per_task.get(task, ()))

    def separated(self) -> tuple[Features, Boundary]:
        """Detach every map, so that backward passes of heads end where the backbone does.

        Returns:
            Features of detached maps for the heads, and what leads back into the backbone.
        """
        boundary = Boundary()
        shared = tuple(boundary.leaf(x, None) for x in self.shared)
        per_task = {
            task: tuple(boundary.leaf(x, task) for x in maps)
            for task, maps in self.per_task.items()
        }
        early = {
            task: tuple(
                replace(one, prediction=boundary.leaf(one.prediction, task)) for one in several
            )
            for task, several in self.early.items()
        }
        features = Features(shared=shared, per_task=per_task, early=early, terms=self.terms)
        return features, boundary


@attrs.define
class Boundary:
    """The maps at which heads were separated from the backbone.

    Args:
        maps: outputs of the backbone.
        leaves: for each map, the detached copy that heads read.
        owners: for each map, the only task that reads it; None if several do.
    """

    maps: list[Tensor] = attrs.field(factory=list)
    leaves: list[Tensor] = attrs.field(factory=list)
    owners: list[str | None] = attrs.field(factory=list)

    def leaf(self, x: Tensor, owner: str | None) -> Tensor:
        """Return the detached copy of a map, always the same one; a constant map is its own."""
        if not x.requires_grad:
            return x
        for place, known in enumerate(self.maps):
            if known is x:
                if self.owners[place] != owner:
                    self.owners[place] = None
                return self.leaves[place]
        self.maps.append(x)
        self.leaves.append(x.detach().requires_grad_())
        self.owners.append(owner)
        return self.leaves[-1]
