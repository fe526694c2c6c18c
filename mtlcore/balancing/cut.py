"""Where the trunk ends: gradients that meet there, and the way back through the trunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import final

from torch import Tensor
from torch.nn import Parameter

from mtlcore.balancing.graphs import gradients
from mtlcore.balancing.products import Row
from mtlcore.features import Boundary


@final
class Cut:
    """The features of one step, over all of its batches, at which rows are compared.

    They are either tensors in the graph, which a backbone names, or the places at which heads were
    separated from the backbone. In the second case no gradient passes by itself: those of losses
    that are not balanced, and of parameters of single tasks behind the cut, are led on too.
    """

    def __init__(self) -> None:
        self._outputs: list[Tensor] = []
        self.leaves: list[Tensor] = []
        self._owners: list[str | None] = []
        # Gradients at places of the cut: of the task that owns the place, and beside all rows.
        self._own: dict[int, Tensor] = {}
        self._unbalanced: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._outputs)

    def extend(self, cut: Sequence[Tensor]) -> Sequence[Tensor]:
        """Add tensors that a backbone names; return those at which rows are taken."""
        learning = [x for x in cut if x.requires_grad]
        self._outputs += learning
        return learning

    def separate(self, boundary: Boundary) -> Sequence[Tensor]:
        """Add the places at which heads were separated; return what rows are taken at."""
        self._outputs += boundary.maps
        self.leaves += boundary.leaves
        self._owners += boundary.owners
        return boundary.leaves

    def keep_own(self, task: str, row: Row) -> None:
        """Keep a task's gradient at its own places, as heads may have other weights than rows.

        Args:
            task: Name of the task.
            row: Its gradient at the places that were added last; it is written over later.
        """
        if not self.leaves:
            return
        places = range(len(self) - len(row), len(self))
        own = (
            (place, gradient.clone())
            for place, gradient in zip(places, row, strict=True)
            if gradient is not None and self._owners[place] == task
        )
        _accumulate(self._own, own)

    def through(self, row: Row, parameters: Sequence[Parameter]) -> Row:
        """Lead a task's gradient on to parameters of the trunk, whose graph stays.

        Args:
            row: At the places that were added last.
            parameters: Of the trunk.
        """
        places = range(len(self) - len(row), len(self))
        at = {p: g for p, g in zip(places, row, strict=True) if g is not None}
        if not at:
            return [None] * len(parameters)
        outputs = [self._outputs[place] for place in at]
        return gradients(outputs, parameters, True, [*at.values()])

    def add_unbalanced(self, at_leaves: Row) -> None:
        """Add the gradient of losses that are not balanced, at every leaf."""
        _accumulate(self._unbalanced, enumerate(at_leaves))

    def lead_on(
        self,
        direction: Row,
        heads: Mapping[str, float],
        own: Sequence[Parameter],
        shared: Sequence[Parameter],
    ) -> Iterator[tuple[Sequence[Parameter], Row]]:
        """Yield parameters of the trunk with their gradients.

        Args:
            direction: The balanced gradient at each place.
            heads: Weight of each task's gradient at parameters of its own.
            own: Parameters of single tasks. A task's own maps may come from some of them
                (attention, decoders), which are weighted as heads are.
            shared: All other parameters of the trunk.
        """
        if self.leaves and own:
            at_maps = {
                place: heads[owner] * self._own[place]
                for place, owner in enumerate(self._owners)
                if owner is not None and owner in heads and place in self._own
            }
            yield own, self._gradients(at_maps, own, retain_graph=True)
        at_maps = {place: g for place, g in enumerate(direction) if g is not None}
        yield shared, self._gradients(at_maps, shared, retain_graph=False)

    def _gradients(
        self, at_maps: dict[int, Tensor], parameters: Sequence[Parameter], retain_graph: bool
    ) -> Row:
        _accumulate(at_maps, self._unbalanced.items())
        if not at_maps:
            return [None] * len(parameters)
        outputs = [self._outputs[place] for place in at_maps]
        return gradients(outputs, parameters, retain_graph, list(at_maps.values()))


def _accumulate(sums: dict[int, Tensor], more: Iterable[tuple[int, Tensor | None]]) -> None:
    """Add tensors to those that are there under the same number."""
    for number, tensor in more:
        if tensor is not None:
            sums[number] = sums[number] + tensor if number in sums else tensor
