"""A multi-layer perceptron for inputs that are vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.errors import UsageError
from mtlcore.features import Features
from mtlcore.models import Backbone, ExchangePoint
from mtlcore.ranges import Channels, Layers
from mtlcore.tasks import Task


class MLP(Backbone):
    """Linear layers, each followed by ReLU, that all tasks share ("hard sharing").

    Inputs are (B, F); the features are the output (B, C) of the last layer. There is no
    normalisation, of inputs or of layers; initial weights are those of `nn.Linear`.

    Args:
        inputs: F, the number of values per sample.
        hidden: number of outputs of each layer.

    Raises:
        ValueError: there is no layer, or a number is not positive.
    """

    strides = (1,)
    input_kind = "vector"

    def __init__(
        self, tasks: Sequence[Task], *, inputs: Channels, hidden: Layers = (128, 64)
    ) -> None:
        super().__init__()
        if not hidden or min(inputs, *hidden) < 1:
            raise ValueError(
                f"inputs {inputs} and hidden {list(hidden)} must name at least one layer, and "
                "positive numbers"
            )
        self._inputs = inputs
        self._hidden = tuple(hidden)
        self.out_channels = (hidden[-1],)
        layers: list[nn.Module] = []
        for before, after in zip((inputs, *hidden), hidden, strict=False):
            layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the last linear layer."""
        return self.layer_groups()[-1]

    def layer_groups(self) -> list[list[Parameter]]:
        """Return every linear layer."""
        # Whatever stands in a linear layer's place: adapters go around one.
        return [[*layer.parameters()] for layer in [*self.layers][::2]]

    def exchange_points(self) -> list[ExchangePoint]:
        """Return the output of every layer."""
        pairs = zip([*self.layers][::2], [*self.layers][1::2], strict=True)
        return [
            ExchangePoint(
                module=relu, channels=channels, parameters=(*layer.parameters(),), layout="NC"
            )
            for (layer, relu), channels in zip(pairs, self._hidden, strict=True)
        ]

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        """Compute (B, F) -> (B, C).

        Raises:
            UsageError: the inputs are not vectors of F values.
        """
        if inputs.dim() != 2 or inputs.shape[1] != self._inputs:
            raise UsageError(
                f"model.backbone.inputs is {self._inputs}, but a sample has shape "
                f"{list(inputs.shape[1:])}; mlp reads vectors of that many values"
            )
        shared = self.layers(inputs)
        return Features(shared=(shared,), cut=(shared,))
