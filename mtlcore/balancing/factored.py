"""Gradients at the weights of linear layers, kept as factors instead of matrices.

For outputs Z = X W^T of n samples (times positions), task k's gradient at W is B_k^T X, with B_k
the gradient of its loss at Z. So inner products of tasks are sums over (X X^T) * (B_k B_l^T), and
the weighted sum of the gradients is (sum_k w_k B_k)^T X: exact, without a matrix (out, in) per
task. That is cheaper where n is small beside the width: vectors through wide layers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, final

import attrs
import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from mtlcore.balancing.products import WIDER, total_there
from mtlcore.balancing.rows import SMALL, Key

__all__ = ["FactoredRows"]

# A layer that costs so many times more with factors ends the search: in a network of maps or of
# long sequences no layer will pay, and its graph is long.
_HOPELESS = 4.0


@final
class FactoredRows:
    """The rows of tasks at weights of linear layers, as factors.

    Args:
        parameters: What rows are gradients of.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        # Small weights share a buffer with all others that are small, which is cheaper still.
        self._places = {
            id(p): place
            for place, p in enumerate(parameters)
            if p.ndim == 2 and p.numel() > SMALL and not p.is_complex()
        }
        self._blocks: dict[int, list[_Block]] = {}

    @property
    def places(self) -> Collection[int]:
        """Places of the weights that may be kept as factors."""
        return self._places.values()

    def __bool__(self) -> bool:
        """Whether a weight is kept as factors in this step."""
        return bool(self._blocks)

    def begin(self, losses: Sequence[Tensor], first: bool) -> Mapping[int, GradientEdge]:
        """Look for layers in the graph of losses, before a backward pass.

        Args:
            losses: A scalar per task.
            first: Whether these are the first of the step: what becomes factors is decided there.

        Returns:
            For the place of each weight that is kept as factors, the output of its layer, whose
            gradient `add` wants.
        """
        if not self._places or not (first or self._blocks):
            return {}
        layers = _layers(losses, self._places)
        if first:
            paying = {p for p, layer in layers.items() if layer.price(len(losses)) < 1}
        else:
            paying = layers.keys() & self._blocks.keys()
        for place in paying:
            self._blocks.setdefault(place, []).append(_Block(inputs=layers[place].inputs))
        return {place: layers[place].output for place in paying}

    def add(self, key: Key, place: int, gradient: Tensor | None) -> None:
        """Add to a row what the layer's last appearance gave it.

        Args:
            key: Whose row it is.
            place: Of the weight.
            gradient: Of the layer's outputs, (n, out); None where the task does not reach it.
        """
        if gradient is not None:
            self._blocks[place][-1].gradients[key] = gradient

    def scale(self, factor: float) -> None:
        """Multiply every row."""
        for blocks in self._blocks.values():
            for block in blocks:
                block.gradients = {key: g * factor for key, g in block.gradients.items()}

    def gramian(self, keys: Sequence[Key]) -> Tensor:
        """(K, K) float64 inner products where the rows are, of the rows of these keys."""
        return total_there(
            [_gramian(b, keys) for b in self._blocks.values()], (len(keys), len(keys))
        )

    def direction(self, weights: Mapping[Key, float]) -> dict[int, Tensor]:
        """Return place -> weighted sum of the rows, without places that no task reaches."""
        found = {}
        for place, blocks in self._blocks.items():
            parts = [block.weighted(weights) for block in blocks if block.gradients]
            if parts:
                found[place] = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
        return found

    def unfold(self, places: Sequence[int] | None = None) -> Iterator[tuple[Key, int, Tensor]]:
        """Yield key, place and the matrix of every row, and forget the factors.

        Args:
            places: Only of these; None: of all.
        """
        for place in list(self._blocks) if places is None else places:
            for block in self._blocks.pop(place, []):
                for key, gradient in block.gradients.items():
                    yield key, place, gradient.T @ block.inputs

    def lost(self, edges: Mapping[int, GradientEdge]) -> list[int]:
        """Return the places whose layers were there before, and are not among these."""
        return [place for place in self._blocks if place not in edges]

    def clear(self) -> None:
        """Forget all rows."""
        self._blocks = {}


@attrs.define(eq=False)
class _Block:
    """What one batch says of a weight.

    Args:
        inputs: Of the layer, (n, in).
        gradients: Of its outputs by row, (n, out) each.
    """

    inputs: Tensor
    gradients: dict[Key, Tensor] = attrs.field(factory=dict)

    def weighted(self, weights: Mapping[Key, float]) -> Tensor:
        """(out, in) weighted sum of the rows."""
        outputs = sum(weights[key] * gradient for key, gradient in self.gradients.items())
        assert isinstance(outputs, Tensor)
        return outputs.T @ self.inputs


def _gramian(blocks: Sequence[_Block], keys: Sequence[Key]) -> Tensor:
    """(K, K) float64 inner products at one weight; of several batches, the rows are their sums."""
    wide = WIDER.get(blocks[0].inputs.dtype, blocks[0].inputs.dtype)
    inputs = torch.cat([block.inputs for block in blocks]).to(wide)
    like = next((g for b in blocks for g in b.gradients.values()), None)
    if like is None:
        return inputs.new_zeros(len(keys), len(keys), dtype=torch.float64)
    rows = []
    for key in keys:
        parts = [
            b.gradients[key] if key in b.gradients else like.new_zeros(len(b.inputs), like.shape[1])
            for b in blocks
        ]
        rows.append(torch.cat(parts))
    outputs = torch.cat(rows).to(wide)
    count = len(inputs)
    products = (outputs @ outputs.T).double().view(len(keys), count, len(keys), count)
    return torch.einsum("kilj,ij->kl", products, (inputs @ inputs.T).double())


@attrs.frozen(eq=False)
class _Layer:
    """A linear layer in a graph.

    Args:
        inputs: (n, in).
        width: Number of its outputs.
        output: Where their gradient is found.
    """

    inputs: Tensor
    width: int
    output: GradientEdge

    def price(self, tasks: int) -> float:
        """Return multiplications with factors, divided by those with a matrix per task."""
        count, inputs = self.inputs.shape
        size = inputs * self.width
        factors = count * count * (inputs + tasks * tasks * self.width) + count * size
        # A matrix per task: made, multiplied with all others, and added up.
        matrices = tasks * count * size + tasks * tasks * size / 2 + tasks * size
        return factors / matrices


def _layers(losses: Sequence[Tensor], places: Mapping[int, int]) -> dict[int, _Layer]:
    """Return the linear layers of weights that the graph uses once, by their places.

    None at all where one would cost much more with factors.
    """
    found: dict[int, _Layer] = {}
    uses: dict[int, int] = {}
    waiting: list[Any] = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
    seen = set(waiting)
    for node in waiting:
        for other, _ in node.next_functions:
            if other is None:
                continue
            place = places.get(id(getattr(other, "variable", None)))
            if place is not None:
                uses[place] = uses.get(place, 0) + 1
            if other not in seen:
                seen.add(other)
                waiting.append(other)
        layer = _layer(node, places)
        if layer is not None:
            place, made = layer
            if made.price(len(losses)) > _HOPELESS:
                return {}
            # Of a transposed weight that two layers share, the second is a use too.
            uses[place] = uses.get(place, 0) + (place in found)
            found[place] = made
    return {place: layer for place, layer in found.items() if uses[place] == 1}


def _layer(node: Any, places: Mapping[int, int]) -> tuple[int, _Layer] | None:
    """Return place and layer of a node that multiplies vectors with one of the weights."""
    kind = type(node).__name__
    if kind == "AddmmBackward0":
        factor, scaled = node.next_functions[2][0], node._saved_alpha != 1
    elif kind == "MmBackward0":
        factor, scaled = node.next_functions[1][0], False
    else:
        return None
    if scaled or type(factor).__name__ != "TBackward0":
        return None
    weight = getattr(factor.next_functions[0][0], "variable", None)
    place = places.get(id(weight))
    # A hook of the weight is to see its gradient.
    if weight is None or place is None or weight._backward_hooks:
        return None
    inputs = node._saved_mat1 if kind == "AddmmBackward0" else node._saved_self
    return place, _Layer(inputs=inputs.detach(), width=len(weight), output=GradientEdge(node, 0))
