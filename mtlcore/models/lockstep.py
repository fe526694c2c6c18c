"""Calls of networks that stop on the way, hand out a map, and go on with another one.

A network computes its maps in one call, which another library may have written, and nothing but a
thread can hold such a call halfway. Threads take turns here: while one runs, all others wait, so
that order, random numbers and results are those of a single thread. (torch's `DataParallel` runs
modules in threads as well, and hands on the same states of the caller.)

`torch.export` follows a single thread. While it traces, a call is therefore run anew for every map
that it hands out, each time with the maps that it was given before: what it computes again is used
by nobody, and drops out of the program.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, final

import attrs
import torch
from torch import Tensor, nn, overrides
from torch.overrides import _get_current_function_mode_stack
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from mtlcore.models.contracts import ExchangePoint
from mtlcore.models.exporting import is_exporting

__all__ = ["Lockstep"]

_Result = TypeVar("_Result")
#: Kinds of devices that have an autocast of their own.
_CASTS = ("cpu", "cuda", "mps", "xpu")


class _Stopped(BaseException):
    """Ends a call that nobody waits for; no `except Exception` on its way may hold it up."""


@attrs.frozen
class _Paused:
    """The map that a call hands out."""

    x: Tensor


@attrs.frozen
class _Ended:
    """What a call returned."""

    value: Any


@attrs.frozen
class _Failed:
    """What a call raised."""

    error: BaseException


@final
class _Call(Generic[_Result]):
    """One call in a thread of its own, which waits at each of these points."""

    def __init__(self, call: Callable[[], _Result], points: Sequence[ExchangePoint]) -> None:
        self._call = call
        self._to: SimpleQueue[Tensor | None] = SimpleQueue()
        self._from: SimpleQueue[_Paused | _Ended | _Failed] = SimpleQueue()
        self._passed = 0
        self._over = False
        # Before other hooks: a library may collect its maps by some.
        self._hooks = [
            point.module.register_forward_hook(self._pause, prepend=True) for point in points
        ]
        self._points = points
        self._states = _states_of_this_thread()
        context = copy_context()
        self._thread = threading.Thread(target=lambda: context.run(self._run), daemon=True)
        self._thread.start()

    def next_map(self) -> Tensor:
        """Wait until the call has reached the next point; return its map.

        Raises:
            RuntimeError: the call ended first, or passed another point.
        """
        message = self._from.get()
        if isinstance(message, _Paused):
            return message.x
        self._over = True
        if isinstance(message, _Failed):
            raise message.error
        raise RuntimeError(_ended(self._passed))

    def go_on(self, x: Tensor) -> None:
        """Let the call go on with this map in place of the one it handed out."""
        self._to.put(x)

    def result(self) -> _Result:
        """Wait for the call to end; return what it returned."""
        message = self._from.get()
        self._over = True
        if isinstance(message, _Failed):
            raise message.error
        assert isinstance(message, _Ended)
        value: _Result = message.value
        return value

    def stop(self) -> None:
        """End the call, wherever it is."""
        if not self._over:
            self._to.put(None)
        self._thread.join()
        for hook in self._hooks:
            hook.remove()

    def _run(self) -> None:
        try:
            with self._states():
                self._from.put(_Ended(self._call()))
        except _Stopped:
            pass
        except BaseException as error:
            self._from.put(_Failed(error))

    def _pause(self, module: nn.Module, _: Any, output: Any) -> Any:
        point = self._points[self._passed] if self._passed < len(self._points) else None
        if point is None or module is not point.module:
            raise RuntimeError(_out_of_order(module))
        self._passed += 1
        self._from.put(_Paused(point.map_in(output)))
        received = self._to.get()
        if received is None:
            raise _Stopped
        return point.with_map(output, received)


@final
class _Repeated(Generic[_Result]):
    """One call that is run as a whole for every map that it hands out, in the caller's thread."""

    def __init__(self, call: Callable[[], _Result], points: Sequence[ExchangePoint]) -> None:
        self._call = call
        self._received: list[Tensor] = []
        self._seen: list[Tensor] = []
        self._hooks = [
            point.module.register_forward_hook(partial(self._exchange, number, point), prepend=True)
            for number, point in enumerate(points)
        ]

    def next_map(self) -> Tensor:
        """Run the call; return its map at the first point for which none was received."""
        self._run()
        if len(self._seen) == len(self._received):
            raise RuntimeError(_ended(len(self._seen)))
        return self._seen[len(self._received)]

    def go_on(self, x: Tensor) -> None:
        """Let further runs go on with this map after the last one that was handed out."""
        self._received.append(x)

    def result(self) -> _Result:
        """Run the call with all maps that were received; return what it returned."""
        return self._run()

    def stop(self) -> None:
        """Leave the network as it was."""
        for hook in self._hooks:
            hook.remove()

    def _run(self) -> _Result:
        self._seen = []
        return self._call()

    def _exchange(
        self, number: int, point: ExchangePoint, module: nn.Module, _: Any, output: Any
    ) -> Any:
        if len(self._seen) != number:
            raise RuntimeError(_out_of_order(module))
        self._seen.append(point.map_in(output))
        if number < len(self._received):
            return point.with_map(output, self._received[number])
        return output


_PROMISE = "the modules of Backbone.exchange_points must be called in their order, each once"


def _ended(number: int) -> str:
    return f"the network ended before its exchange point {number}: {_PROMISE}"


def _out_of_order(module: nn.Module) -> str:
    return f"{type(module).__name__} was called out of order: {_PROMISE}"


@final
class Lockstep(Generic[_Result]):
    """Several calls, which take turns; leaving the context ends those that are still on their way.

    Only one thread runs at a time: a call runs from `start` or `go_on` to its next point, and both
    wait for that.
    """

    def __init__(self) -> None:
        self._calls: dict[str, _Call[_Result] | _Repeated[_Result]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for call in self._calls.values():
            call.stop()

    def start(
        self, name: str, call: Callable[[], _Result], points: Sequence[ExchangePoint]
    ) -> Tensor:
        """Start a call; return its map at the first point.

        Args:
            name: by which the call is known here.
            call: a call of a network.
            points: at which it hands out its map, in the order in which it reaches them.
        """
        self._calls[name] = (_Repeated if is_exporting() else _Call)(call, points)
        return self._calls[name].next_map()

    def go_on(self, name: str, x: Tensor) -> Tensor:
        """Let a call go on with this map; return its map at the next point."""
        self._calls[name].go_on(x)
        return self._calls[name].next_map()

    def end(self, name: str, x: Tensor) -> _Result:
        """Let a call go on with this map, past all points; return what it returns."""
        self._calls[name].go_on(x)
        return self._calls[name].result()


def _states_of_this_thread() -> Callable[[], Any]:
    """Return what brings another thread into the states of this one that torch keeps by thread."""
    gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    streams = []
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        streams.append(torch.cuda.current_stream())
    casts = [
        (kind, torch.get_autocast_dtype(kind)) for kind in _CASTS if torch.is_autocast_enabled(kind)
    ]
    cache = torch.is_autocast_cache_enabled()
    # Such as that of a counter of operations, and that of `with torch.device(...)`. torch has no
    # public names for these; entering them anew would begin their counts anew.
    modes = _get_current_dispatch_mode_stack()
    function_modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]

    @contextmanager
    def entered() -> Iterator[None]:
        with ExitStack() as stack:
            for stream in streams:
                stack.enter_context(torch.cuda.stream(stream))
            stack.enter_context(torch.inference_mode(inference))
            stack.enter_context(torch.set_grad_enabled(gradients))
            for kind, dtype in casts:
                stack.enter_context(torch.autocast(kind, dtype, cache_enabled=cache))
            for mode in function_modes:
                overrides._push_mode(mode)  # type: ignore[no-untyped-call]
                stack.callback(overrides._pop_mode)
            for mode in modes:
                _python_dispatch._push_mode(mode)
                stack.callback(_python_dispatch._pop_mode)
            yield

    return entered
