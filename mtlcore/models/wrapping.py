"""Backbones around other backbones."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import attrs
from torch import Tensor
from torch.nn import Parameter

from mtlcore.errors import UsageError
from mtlcore.features import Features
from mtlcore.models.contracts import Backbone, StepContext, Transition

__all__ = ["WrappingBackbone", "joined", "shared_maps"]


class WrappingBackbone(Backbone, abc.ABC):
    """A backbone that runs over the maps of others, or of none.

    What the others do in the course of a run goes on: their phases, what they learn from steps,
    their groups of layers and their facts. (Groups of parameters, buffers and state are found
    wherever they are in a module.) What `forward` returns should hold their early predictions and
    terms, and `task_parameters` those of theirs.

    A class that enters phases itself adds its own to those of the backbones inside:
    `joined(super().at_progress(fraction), its_own)`.
    """

    @abc.abstractmethod
    def wrapped(self) -> Sequence[Backbone]:
        """Return the backbones inside; of several, layers correspond to one another."""

    def layer_groups(self) -> Sequence[Sequence[Parameter]]:
        """Return the layers of the backbones inside, those of one depth together."""
        groups = [backbone.layer_groups() for backbone in self.wrapped()]
        return [list(chain(*layers)) for layers in zip(*groups, strict=True)]

    def facts(self) -> Mapping[str, str]:
        """Return what the backbones inside tell."""
        return {key: fact for backbone in self.wrapped() for key, fact in backbone.facts().items()}

    def current_values(self) -> Mapping[str, Mapping[str, float]]:
        """Return what the backbones inside tell; of one name, for the tasks of all of them."""
        found: dict[str, dict[str, float]] = {}
        for backbone in self.wrapped():
            for name, values in backbone.current_values().items():
                found.setdefault(name, {}).update(values)
        return found

    @property
    def has_phases(self) -> bool:
        """Whether the class enters phases itself, or a backbone inside does."""
        return type(self).at_progress is not WrappingBackbone.at_progress or any(
            backbone.has_phases for backbone in self.wrapped()
        )

    def at_progress(self, fraction: float) -> Transition | None:
        """Let the backbones inside enter their next phase; return what they changed."""
        found: Transition | None = None
        for backbone in self.wrapped():
            inner = backbone.at_progress(fraction)
            if inner is not None:
                (path,) = (name for name, module in self.named_modules() if module is backbone)
                reset = tuple(f"{path}.{name}" for name in inner.reset)
                found = joined(found, attrs.evolve(inner, reset=reset))
        return found

    def learn_alone(self) -> Iterable[Parameter]:
        """Return what the backbones inside let learn alone."""
        return [p for backbone in self.wrapped() for p in backbone.learn_alone()]

    def after_step(self, context: StepContext) -> None:
        """Tell the backbones inside of a step that was taken."""
        for backbone in self.wrapped():
            backbone.after_step(context)


def joined(one: Transition | None, other: Transition | None) -> Transition | None:
    """Return two transitions as one; None where there is neither."""
    if one is None or other is None:
        return one or other
    return Transition(
        reset=one.reset + other.reset,
        reset_heads=one.reset_heads or other.reset_heads,
        reset_balancer=one.reset_balancer or other.reset_balancer,
    )


def shared_maps(setting: str, backbone: Backbone, features: Features) -> tuple[Tensor, ...]:
    """Return the features of a backbone inside that all tasks share, as `out_channels` has them.

    Args:
        setting: the path of the setting that is the backbone, for the message.
        backbone: that computed the features.
        features: that it returned.

    Raises:
        UsageError: it gives tasks maps of their own.
    """
    if features.per_task:
        name = type(backbone).__name__
        raise UsageError(
            f"{setting}: {name} gives tasks maps of their own, and what is around it reads maps "
            f"that tasks share; let it share them (unet: {setting}.decoder=none), or choose "
            "another encoder"
        )
    return features.shared
