"""What a network of another library does between the maps of its stages, seen in a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import attrs
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.errors import UsageError
from mtlcore.models.contracts import ExchangePoint

__all__ = ["StageTrace", "traced"]


@attrs.define
class StageTrace:
    """What a forward pass did up to the map of a stage, and after that of the stage before.

    Names, not modules: adapters may take the place of modules later.

    Args:
        name: Of the module that returned the map.
        channels: Of the map.
        layout: Of the map; None: what the module returned is no map of so many channels.
        parameters: Names of those that were used, in this order.
    """

    name: str
    channels: int
    layout: Literal["NCHW", "NHWC", "NLC"] | None
    parameters: list[str]

    def point(self, network: nn.Module) -> ExchangePoint:
        """Return the place in the network at which the map can be exchanged.

        Raises:
            UsageError: The module returned no map.
        """
        if self.layout is None:
            raise UsageError(
                f"model.backbone.backbone: what {self.name} of {type(network).__name__} returns is "
                "no map that networks could exchange; choose another model"
            )
        return ExchangePoint(
            module=network.get_submodule(self.name),
            channels=self.channels,
            parameters=tuple(_parameter(network, name) for name in self.parameters),
            layout=self.layout,
        )


@contextmanager
def traced(network: nn.Module, channels: Mapping[str, int]) -> Iterator[list[StageTrace]]:
    """Trace a forward pass of a network on an image that is no square.

    Args:
        network: That computes maps.
        channels: Name of a module within it -> the channels of the map that it returns.

    Yields:
        One trace for each of these modules, in the order in which they ran; empty until then.
    """
    traces: list[StageTrace] = []
    used: dict[str, None] = {}

    def runs(name: str, module: nn.Module, _: Any) -> None:
        inside = (path for path, _ in module.named_parameters(recurse=False))
        used.update(dict.fromkeys(f"{name}.{path}" if name else path for path in inside))

    def returns(name: str, module: nn.Module, _: Any, output: Any) -> None:
        before = {path for trace in traces for path in trace.parameters}
        new = [path for path in used if path not in before]
        layout = _layout(output, channels[name])
        traces.append(StageTrace(name, channels[name], layout, new))

    hooks = []
    for name, module in network.named_modules() if channels else ():
        hooks.append(module.register_forward_pre_hook(partial(runs, name)))
        if name in channels:
            hooks.append(module.register_forward_hook(partial(returns, name)))
    try:
        yield traces
    finally:
        for hook in hooks:
            hook.remove()
    if traces:
        # Of modules that were not called as such: embeddings of positions are added before all.
        rest = [path for path, _ in network.named_parameters() if path not in used]
        traces[0].parameters[:0] = rest


def _layout(output: Any, channels: int) -> Literal["NCHW", "NHWC", "NLC"] | None:
    """Return where the channels are in the map of one image that is no square."""
    if isinstance(output, tuple) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        return None
    shape = tuple(output.shape)
    if len(shape) == 3 and shape[2] == channels:
        return "NLC"
    if len(shape) == 4 and shape[1] == channels:
        return "NCHW"
    return "NHWC" if len(shape) == 4 and shape[3] == channels else None


def _parameter(network: nn.Module, name: str) -> Parameter:
    """Return a parameter, or what `functional_call` has put in its place, by its name."""
    path, _, last = name.rpartition(".")
    found: Parameter = getattr(network.get_submodule(path), last)
    return found
