"""What backbones, necks and heads are."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import attrs
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.distributed import Distributed
from mtlcore.features import Features
from mtlcore.inputs import Inputs

__all__ = [
    "AVERAGE",
    "INITIAL",
    "Backbone",
    "ExchangePoint",
    "Head",
    "Neck",
    "ResidualBlock",
    "StepContext",
    "Transition",
]


#: The name under which the averaged copy of the model teaches.
AVERAGE = "ema"

#: The name under which `mtl adapt` lets the run teach that it starts from.
INITIAL = "initial"


class StepContext(Protocol):
    """What backbones, heads and cross-task losses may know of a step that was taken."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks of the run."""

    @property
    def present(self) -> tuple[str, ...]:
        """The tasks that had a loss in the step."""

    @property
    def losses(self) -> Mapping[str, float]:
        """Mean loss per present task, that of early predictions included."""

    @property
    def step(self) -> int:
        """Number of the step, from 0."""

    @property
    def epoch(self) -> int:
        """Number of the epoch, from 0."""

    @property
    def progress(self) -> float:
        """The fraction of the run that was done before the step, 0 to 1.

        A run in which anything reads it cannot be made longer; see `reached`.
        """

    def reached(self, fraction: float) -> bool:
        """Return whether at least this fraction of the run was done before the step."""

    @property
    def generator(self) -> torch.Generator | None:
        """The only source of randomness, on the CPU; the same on every rank."""

    @property
    def distributed(self) -> Distributed:
        """The processes that train together, each with its own part of the step."""


@attrs.frozen(kw_only=True)
class Transition:
    """What a backbone changed in itself at a point of the training.

    Args:
        reset: names, within the backbone, of the parameters that it re-initialised; the optimizer
            drops their state.
        reset_heads: whether the heads are re-initialised as well, and what stands before them.
        reset_balancer: whether the balancer is reset as well.
    """

    reset: tuple[str, ...] = ()
    reset_heads: bool = False
    reset_balancer: bool = False


@attrs.frozen(kw_only=True, eq=False)
class ExchangePoint:
    """A place in a backbone after which several of its kind can exchange their maps.

    Args:
        module: a part of the backbone that is called once per forward pass and returns the map with
            which the network goes on, or a tuple that begins with it. What a forward hook puts in
            its place is used instead.
        channels: of the map.
        parameters: what the network has used since the point before, in the order of use.
        layout: of the map: N samples, C channels, H rows, W columns, L tokens.
    """

    module: nn.Module
    channels: int
    parameters: tuple[Parameter, ...]
    layout: Literal["NCHW", "NHWC", "NLC", "NC"] = "NCHW"

    def map_in(self, output: Any) -> Tensor:
        """Return the map in what the module returned.

        Raises:
            TypeError: there is none.
        """
        found = output[0] if isinstance(output, tuple) and output else output
        if not isinstance(found, Tensor):
            raise TypeError(f"{type(self.module).__name__} returned no map, which it says it does")
        return found

    @staticmethod
    def with_map(output: Any, x: Tensor) -> Any:
        """Return what the module returned, with another map."""
        return (x, *output[1:]) if isinstance(output, tuple) else x

    @property
    def weight(self) -> Parameter | None:
        """The last weight since the point before that has a filter for each channel of the map."""
        fitting = (p for p in self.parameters if p.dim() > 1 and p.shape[0] == self.channels)
        return next(reversed([*fitting]), None)


@attrs.frozen(kw_only=True, eq=False)
class ResidualBlock:
    """A part of a backbone that adds a branch to what it reads.

    Its map is `activation(shortcut(x) + branch(x))`, or that without an activation.

    Args:
        name: of the block, within the backbone; it is called once per forward pass with the map x
            and returns a map (B, C, H, W).
        last: name, within the backbone, of the module that the branch ends with.
        channels: C of the block's map.
        shortcut: name, within the backbone, of the module on the shortcut; None: it is x itself.
    """

    name: str
    last: str
    channels: int
    shortcut: str | None = None


class Backbone(nn.Module, abc.ABC):
    """A network from inputs to features, made as `Backbone(tasks, **settings)`.

    Attributes:
        out_channels: channels of each map in `Features.of(task)`; the same for every task.
        strides: strides of the same maps; 0 for a vector (B, C) beside maps.
        main_map: place of the map that heads of a single map read: the last one where a decoder
            made it, the deepest one, 0, of an encoder's pyramid.
        input_multiple: number that the height and width of an image must be multiples of;
            `MultiTaskModel` pads to it.
        input_kind: what it reads: "image", "vector", "tokens" or any other word that datasets call
            their inputs by.
        reads_through: of a backbone around another one: the setting that is this other one, whose
            kind of inputs counts then. Empty: it reads them itself.
        first_weights: names of settings that say with which weights it begins, such as a path; they
            keep their defaults where the weights of a checkpoint follow.
    """

    out_channels: tuple[int, ...]
    strides: tuple[int, ...]
    main_map: int = -1
    input_multiple: int = 1
    input_kind: str = "image"
    reads_through: str = ""
    first_weights: tuple[str, ...] = ()

    @abc.abstractmethod
    def forward(self, inputs: Inputs, tasks: Sequence[str]) -> Features:
        """Compute the features.

        Args:
            inputs: images (B, 3, H, W), vectors (B, F), or any other tensor or tree of tensors that
                the dataset makes of a batch.
            tasks: names of the tasks whose heads will run; what only other tasks need may be
                left out.

        Returns:
            The features. In evaluation mode (`self.training` is False) they hold no early
            predictions and no terms: nobody would look at them.
        """

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return the parameters that only this task's loss can reach; all others are shared."""
        return ()

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return the last shared parameters before the heads, such as those of the last layer.

        Balancers with the scope "last_shared" compare the tasks' gradients at these parameters.
        If it returns none, such balancers are refused.
        """
        return ()

    def layer_groups(self) -> Sequence[Sequence[Parameter]]:
        """Return the layers of the encoder from the input on, each as its parameters.

        Fine-tuning lowers the learning rate from group to group towards the input
        (`model.backbone.layer_decay`). What is in no group, such as a decoder, counts as nearest to
        the heads. If it returns none, such a setting is refused.
        """
        return ()

    def trunk_blocks(self) -> Sequence[Sequence[Parameter]]:
        """Return the parts of the network in the order in which they run, each as its parameters.

        `balancer.depth` compares the tasks' gradients at the last of them. Each parameter is in one
        block. If it returns none, such a setting is refused.

        Here, they are the groups of layers, and after them what is in no group.
        """
        groups = self.layer_groups()
        if not groups:
            return ()
        known = {id(p) for group in groups for p in group}
        rest = [p for p in self.parameters() if id(p) not in known]
        return [*groups, rest] if rest else groups

    def exchange_points(self) -> Sequence[ExchangePoint]:
        """Return the places at which networks that run side by side can exchange maps, in order.

        Such as after each stage. Backbones that give each task a network of its own mix maps
        there. If it returns none, such backbones refuse it.

        Raises:
            UsageError: as the backbone is set, no maps can be exchanged.
        """
        return ()

    def residual_blocks(self) -> Sequence[ResidualBlock]:
        """Return the residual blocks, in the order in which they run.

        Backbones that give tasks parts of them, or let tasks leave some out, ask for them. If it
        returns none, such backbones refuse it.
        """
        return ()

    def facts(self) -> Mapping[str, str]:
        """Return what people should know of the network beyond its settings; here, nothing.

        Such as where its weights came from (`weights`, `weights_sha256`), their `licence` and what
        inputs are normalised by. `run.json` keeps them, and `mtl show` prints them.
        """
        return {}

    def current_values(self) -> Mapping[str, Mapping[str, float]]:
        """Return what a run should record of the network, such as gates; here, nothing.

        Only asked for when a record is due, as it may wait for a device. Nothing of it is added to
        a loss.

        Returns:
            Name -> task -> value; recorded as the metric `backbone/NAME` of the task.
        """
        return {}

    @property
    def has_phases(self) -> bool:
        """Whether `at_progress` changes what the network learns: at other steps of a longer run.

        Here, whether the class overrides it. A run whose backbone has phases cannot be made longer.
        """
        return type(self).at_progress is not Backbone.at_progress

    def at_progress(self, fraction: float) -> Transition | None:
        """Enter the next phase if it is time; called before every step.

        Whether a phase has begun must be part of the state (a buffer, or `get_extra_state` with
        JSON values).

        Args:
            fraction: part of the run that is done, 0 to 1.

        Returns:
            What the backbone changed in itself, at the one step at which it does; otherwise None.
        """
        return None

    def learn_alone(self) -> Iterable[Parameter]:
        """Return the parameters that alone learn in the step that is taken; none: all of them.

        All others rest: of the backbone, of heads, losses and balancers. So a backbone learns some
        of its parameters in turn with everything else. Asked for in every step, after its backward
        passes, and alike on every process.
        """
        return ()

    def after_step(self, context: StepContext) -> None:
        """Update the state after a step that was taken, on every process; here, do nothing.

        A skipped step does not call it. What it changes must be part of the state, as buffers or
        in `get_extra_state`, and alike on every process. Steps call it only where a class
        overrides it.

        Args:
            context: What is known of the step.
        """


class Neck(nn.Module, abc.ABC):
    """A network from the features of a backbone to others: `Neck(features, **settings)`.

    `features` is a `FeatureInfo`. It knows no task: a run has one neck for all tasks, or one for
    each (`model.neck.per_task`).

    Attributes:
        out_channels: channels of each map that it returns.
        strides: strides of the same maps.
        main_map: place among them of the map that heads of a single map read.
    """

    out_channels: tuple[int, ...]
    strides: tuple[int, ...]
    main_map: int = -1

    @abc.abstractmethod
    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute the maps that heads read.

        Args:
            features: maps (B, C, H / stride, W / stride) and vectors (B, C), as the `FeatureInfo`
                says.

        Returns:
            Maps as `out_channels` and `strides` announce them, the deepest first.
        """

    def reset_parameters(self) -> None:
        """Re-initialise all parameters and buffers, as the constructor does.

        Here, every module inside is asked to.
        """
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if module is not self and callable(reset):
                reset()

    def last_parameters(self) -> Iterable[Parameter]:
        """Return the parameters of the last layer.

        Balancers with the scope "last_shared" compare the tasks' gradients there if all tasks share
        the neck. If it returns none, such balancers are refused.
        """
        return ()


class Head(nn.Module, abc.ABC):
    """A network from a task's features to its prediction: `Head(task, features, **settings)`.

    `features` is a `FeatureInfo`. Predictions are raw (logits, unnormalised normals) and have the
    resolution of the padded input.
    """

    @abc.abstractmethod
    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Compute the prediction.

        Args:
            features: maps (B, C, H / stride, W / stride) or vectors (B, C), as the `FeatureInfo`
                says.

        Returns:
            (B, task.channels, H, W) for a task with the layout "map", otherwise
            (B, task.channels).
        """

    @abc.abstractmethod
    def reset_parameters(self) -> None:
        """Re-initialise all parameters and buffers, as the constructor does."""

    def after_step(self, context: StepContext) -> None:
        """Update the state after a step that was taken, on every process; here, do nothing.

        A skipped step does not call it. What it changes must be part of the state, as buffers or
        in `get_extra_state`, and alike on every process. Steps call it only where a class
        overrides it.

        Args:
            context: What is known of the step.
        """
