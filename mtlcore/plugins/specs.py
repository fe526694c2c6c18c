"""The records a plugin yields: frozen, validated when they are made, and light to import.

A record says what a component is called and where it lives. The code it points to is imported when
the component is first used, so that listing what is installed never imports torch.
"""

from __future__ import annotations

import copy
import re
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from importlib import import_module, resources
from types import MappingProxyType
from typing import Any, final

import attrs

from mtlcore.errors import MtlError
from mtlcore.plugins.foreign import called
from mtlcore.tasks import LAYOUTS

__all__ = [
    "ANY_KIND",
    "KINDS",
    "AugmentationSpec",
    "BackboneSpec",
    "BalancerSpec",
    "ComponentSpec",
    "CrossTaskLossSpec",
    "DatasetSpec",
    "EpisodeSamplerSpec",
    "ExporterSpec",
    "HeadSpec",
    "LauncherSpec",
    "LoggerSpec",
    "LossSpec",
    "MethodSpec",
    "MetricSpec",
    "NeckSpec",
    "OptimizerSpec",
    "SearcherSpec",
    "Spec",
    "TaskSpec",
    "hook_name",
    "singular",
]

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_TARGET = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")
_PRESET = re.compile(r"\w+(\.\w+)*:[\w./-]+\.toml")
ANY_KIND = "*"


def _check_name(record: Spec, _: attrs.Attribute[str], name: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"{type(record).__name__} name {name!r}: use lower-case letters and digits, "
            "in words joined by single dashes (such as 'nash-mtl')"
        )


def _check_target(record: Spec, _: attrs.Attribute[Any], target: object) -> None:
    if not callable(target) and not (isinstance(target, str) and _TARGET.fullmatch(target)):
        raise ValueError(f"{record}: target {target!r} is not 'package.module:Name' or a callable")


def _check_preset(record: Spec, _: attrs.Attribute[Any], preset: object) -> None:
    if isinstance(preset, Mapping) or (isinstance(preset, str) and _PRESET.fullmatch(preset)):
        return
    raise ValueError(f"{record}: preset {preset!r} is neither 'package:file.toml' nor a dict")


def _check_task_kinds(record: Spec, _: attrs.Attribute[Any], kinds: tuple[str, ...]) -> None:
    if not kinds or not all(isinstance(kind, str) and kind for kind in kinds):
        raise ValueError(f"{record}: task_kinds must name the kinds of task served, or '*' for any")


def _check_default_for(record: Any, _: attrs.Attribute[Any], kinds: tuple[str, ...]) -> None:
    served = set(kinds) if ANY_KIND in record.task_kinds else set(record.task_kinds)
    if wrong := sorted(set(kinds) - (served - {ANY_KIND})):
        raise ValueError(f"{record}: default_for has {', '.join(wrong)}, not among its task_kinds")


def _check_layouts(record: Spec, _: attrs.Attribute[Any], layouts: tuple[str, ...]) -> None:
    if not layouts or not set(layouts) <= set(LAYOUTS):
        raise ValueError(f"{record}: layouts {list(layouts)}: name some of {', '.join(LAYOUTS)}")


def _check_requires(record: Spec, _: attrs.Attribute[Any], requires: tuple[str, ...]) -> None:
    for name in requires:
        kind, _slash, component = name.partition("/")
        if kind not in KINDS or not component:
            raise ValueError(f"{record}: requires {name!r}: write it as 'balancers/ira'")


def _words(value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        raise TypeError(f"expected a tuple of names, got the string {value!r}")
    return tuple(value)


@attrs.frozen(kw_only=True, repr=False)
class Spec(ABC):
    """A record: what all of them have in common.

    Args:
        name: What users write, in lower case with dashes.
        summary: One line for `mtl list`.
        paper: The publication: authors, title, year, link.
    """

    name: str = attrs.field(validator=_check_name)
    summary: str = ""
    paper: str = ""

    def __str__(self) -> str:
        return f"{type(self).__name__} {self.name!r}"

    @abstractmethod
    def load(self) -> Any:
        """Import and return what the record points to."""


@attrs.frozen(kw_only=True)
class ComponentSpec(Spec, ABC):
    """A record with a target: the class or function that makes the component.

    Args:
        target: `"package.module:Name"`, or the class or function itself (for plugins of one
        file).
    """

    target: str | Callable[..., Any] = attrs.field(validator=_check_target)

    def load(self) -> Any:
        """Return the target.

        Raises:
            MtlError: The module cannot be imported or has no such attribute.
        """
        if not isinstance(self.target, str):
            return self.target
        module, _, path = self.target.partition(":")
        return called(
            f"{self}: cannot load target '{self.target}'",
            lambda: reduce(getattr, path.split("."), import_module(module)),
        )


@attrs.frozen(kw_only=True)
class TaskSpec(ComponentSpec, ABC):
    """A component that serves one task at a time.

    Args:
        task_kinds: The kinds of task it serves; `"*"` stands for any.
        default_for: The kinds for which it is taken when the configuration names none; a head only
            for tasks of its layouts.
    """

    task_kinds: tuple[str, ...] = attrs.field(converter=_words, validator=_check_task_kinds)
    default_for: tuple[str, ...] = attrs.field(
        default=(), converter=_words, validator=_check_default_for
    )

    def serves(self, task_kind: str) -> bool:
        """Return whether it serves tasks of a kind."""
        return task_kind in self.task_kinds or ANY_KIND in self.task_kinds


@final
@attrs.frozen(kw_only=True)
class BackboneSpec(ComponentSpec):
    """A backbone: called with the tasks."""


@final
@attrs.frozen(kw_only=True)
class NeckSpec(ComponentSpec):
    """A neck between backbone and heads: called with the features it reads."""


@final
@attrs.frozen(kw_only=True)
class HeadSpec(TaskSpec):
    """A head: called with its task and the features it reads.

    Args:
        layouts: The layouts of labels that it predicts (see `Task.layout`): "map" for a value per
            pixel, "vector" and "label" for one per sample. Tasks of others are refused.
    """

    layouts: tuple[str, ...] = attrs.field(
        default=LAYOUTS, converter=_words, validator=_check_layouts
    )


@final
@attrs.frozen(kw_only=True)
class LossSpec(TaskSpec):
    """A loss of one task: called with the task."""


@final
@attrs.frozen(kw_only=True)
class CrossTaskLossSpec(ComponentSpec):
    """A loss over several tasks of a batch: called with the tasks and the features."""


@final
@attrs.frozen(kw_only=True)
class MetricSpec(TaskSpec):
    """A metric of one task: called with the task."""


@final
@attrs.frozen(kw_only=True)
class BalancerSpec(ComponentSpec):
    """A balancer: called with its settings alone."""


@final
@attrs.frozen(kw_only=True)
class EpisodeSamplerSpec(ComponentSpec):
    """An episode sampler: called with the tasks and the splits."""


@final
@attrs.frozen(kw_only=True)
class OptimizerSpec(ComponentSpec):
    """An optimizer: called with the learner."""


@final
@attrs.frozen(kw_only=True)
class DatasetSpec(ComponentSpec):
    """A dataset: called with its root and a split."""


@final
@attrs.frozen(kw_only=True)
class AugmentationSpec(ComponentSpec):
    """An augmentation of samples or batches: called with the tasks."""


@final
@attrs.frozen(kw_only=True)
class LoggerSpec(ComponentSpec):
    """A logger of runs: called with its settings alone."""


@final
@attrs.frozen(kw_only=True)
class LauncherSpec(ComponentSpec):
    """A launcher of a study's cells: called with the study's directory and its lock."""


@final
@attrs.frozen(kw_only=True)
class SearcherSpec(ComponentSpec):
    """A searcher of a study: called with the space, the number of objectives and the seed."""


@final
@attrs.frozen(kw_only=True)
class ExporterSpec(ComponentSpec):
    """A file format of programs that trained runs are written as: called with nothing."""


@final
@attrs.frozen(kw_only=True)
class MethodSpec(Spec):
    """A method: a preset that names components and their settings.

    Args:
        preset: `"package:file.toml"`, or the preset itself as a dict.
        requires: Components without which this is not the method, such as `"balancers/ira"`.
    """

    preset: str | Mapping[str, Any] = attrs.field(validator=_check_preset)
    requires: tuple[str, ...] = attrs.field(default=(), converter=_words, validator=_check_requires)

    def read(self) -> dict[str, Any]:
        """Return the preset as a dict of the caller's own.

        Raises:
            MtlError: The file is missing or is not TOML.
        """
        if not isinstance(self.preset, str):
            return copy.deepcopy(dict(self.preset))
        package, _, file = self.preset.partition(":")
        try:
            return tomllib.loads(resources.files(package).joinpath(file).read_text("utf-8"))
        except (ImportError, OSError, ValueError) as error:
            raise MtlError(f"{self}: cannot read preset '{self.preset}': {error}") from error

    def load(self) -> dict[str, Any]:
        """Return the preset, as `read` does."""
        return self.read()


#: Kind of component -> the records its hook may yield. Commands, documentation and tests read this.
KINDS: Mapping[str, tuple[type[Spec], ...]] = MappingProxyType(
    {
        "backbones": (BackboneSpec,),
        "necks": (NeckSpec,),
        "heads": (HeadSpec,),
        "losses": (LossSpec, CrossTaskLossSpec),
        "metrics": (MetricSpec,),
        "balancers": (BalancerSpec,),
        "episode-samplers": (EpisodeSamplerSpec,),
        "optimizers": (OptimizerSpec,),
        "datasets": (DatasetSpec,),
        "augmentations": (AugmentationSpec,),
        "loggers": (LoggerSpec,),
        "launchers": (LauncherSpec,),
        "searchers": (SearcherSpec,),
        "exporters": (ExporterSpec,),
        "methods": (MethodSpec,),
    }
)


def hook_name(kind: str) -> str:
    """Return the name of the hook that yields records of a kind."""
    return "mtl_" + kind.replace("-", "_")


def singular(kind: str) -> str:
    """Return what one component of a kind is called, for messages."""
    return "loss" if kind == "losses" else kind.removesuffix("s")
