"""Low-rank adapters on a backbone that stands still: one for all tasks, or one per task."""

from __future__ import annotations

import copy
import dataclasses
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from types import ModuleType
from typing import Annotated, Any, Self, final

from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.errors import ConfigError, UsageError, describe, did_you_mean
from mtlcore.features import EarlyPrediction, Features
from mtlcore.inputs import Inputs
from mtlcore.loading import library
from mtlcore.models import Backbone, WrappingBackbone, computes_again
from mtlcore.ranges import Nested, Positive, Range
from mtlcore.tasks import Task

#: The name of the adapter of all tasks; `Task.key` never is.
_SHARED = "all_tasks"
#: Fields of peft's configuration that settings name, and those that are for its own wrappers.
_SETTINGS = {
    "r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "targets",
}  # fmt: skip
_NOT_HERE = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "modules_to_save", "layer_replication", "trainable_token_indices",
    "target_parameters", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
}  # fmt: skip
#: Layers that get an adapter where no setting names any.
_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d)


def peft() -> ModuleType:
    """Import peft, which takes seconds, and return it.

    Raises:
        MtlError: It is not installed, or cannot be imported.
    """
    return library("peft", "backbone 'lora'", "peft", "peft.tuners.tuners_utils")


@final
class LoRA(WrappingBackbone):
    """A backbone whose encoder stands still and learns through low-rank adapters.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022 (arXiv 2106.09685):
    a layer with the weight W computes W x + (alpha / rank) B A x, of which A and B alone learn. B
    begins as zero, so that the network begins as the backbone inside.

    The encoder is what the backbone's groups of layers hold (`Backbone.layer_groups`), or all of it
    where there are none. It does not learn, and its batch norm keeps its statistics; dropout and
    stochastic depth stay as they are. What is in no group, such as a decoder or a pyramid that is
    new, learns as ever.

    With `per_task` each task has an adapter of its own on the same encoder, and what the backbone
    computes is computed for every task by itself: time and memory grow with the number of tasks. An
    adapter that a new task brings (`mtl adapt`) changes nothing for the others.

    Args:
        backbone: any backbone, with its settings, such as {name = "timm",
            model = "vit_tiny_patch16_224", weights = "pretrained"}.
        per_task: whether each task has an adapter of its own; otherwise all have one together.
        rank: number of columns of A's and B's factors.
        alpha: what B A x is multiplied by, times the rank.
        dropout: probability with which an adapter leaves out values of its input in training.
        targets: ends of the names of the layers with an adapter, such as "attn.qkv" or "fc1";
            unset: all linear layers, and convolutions without groups, of the encoder.
        options: other fields of peft's LoraConfig, such as {use_rslora = true, use_dora = true}.

    Raises:
        UsageError: no layer has such a name or can have an adapter, or adapters per task are to
            be computed again by gradient checkpointing.
        ConfigError: peft has no such option.
        MtlError: peft is missing.
    """

    reads_through = "backbone"

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        backbone: Annotated[Callable[[Sequence[Task]], Backbone], Nested("backbones")],
        per_task: bool = False,
        rank: Annotated[int, Range(ge=1, le=2**16)] = 8,
        alpha: Positive = 16.0,
        dropout: Annotated[float, Range(ge=0, lt=1)] = 0.0,
        targets: tuple[str, ...] | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        inner = backbone(tasks)
        given = _checked(options or {})
        self.out_channels, self.strides = inner.out_channels, inner.strides
        self.main_map, self.input_multiple = inner.main_map, inner.input_multiple
        self.input_kind = inner.input_kind
        self._keys = {task.name: task.key if per_task else _SHARED for task in tasks}
        self.per_task = per_task
        if per_task and any(computes_again(module) for module in inner.modules()):
            raise UsageError(
                "model.backbone.per_task: gradient checkpointing computes layers again with the "
                "adapter of the last task; turn off gradient_checkpointing, or per_task"
            )
        layers = inner.layer_groups() or [[*inner.parameters()]]
        encoder = {id(p) for layer in layers for p in layer}
        names = _targets(inner, encoder, targets)
        learning = [p for p in inner.parameters() if p.requires_grad and id(p) not in encoder]
        # By whole names: peft takes a list for the ends of names.
        given["target_modules"] = "|".join(map(re.escape, names))
        _inject(inner, dict.fromkeys(self._keys.values()), rank, alpha, dropout, given)
        for parameter in learning:
            parameter.requires_grad_(True)
        self.backbone = inner
        self._norms = [
            module
            for module in inner.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            and any(id(p) in encoder for p in module.parameters())
        ]
        self._layers = [name for name, _ in _adapted(inner)]
        # Listed once: walking the modules takes longer than a small one of them.
        self._adapters = [layer for _, layer in _adapted(inner)]
        self.train(self.training)

    def forward(self, inputs: Inputs, tasks: Sequence[str]) -> Features:
        """Compute the features of the backbone inside; with `per_task`, of each task by itself."""
        if not self.per_task:
            features: Features = self.backbone(inputs, tasks)
            return features
        own: dict[str, tuple[Tensor, ...]] = {}
        early: dict[str, Sequence[EarlyPrediction]] = {}
        terms: dict[str, Tensor] = {}
        for task in tasks:
            # peft's own way to choose an adapter lets the others stop learning.
            for layer in self._adapters:
                layer._active_adapter = [self._keys[task]]
            features = self.backbone(inputs, [task])
            own[task] = features.of(task)
            early |= features.early
            terms |= {f"{name}.{task}": term for name, term in features.terms.items()}
        return Features(per_task=own, early=early, terms=terms)

    def wrapped(self) -> Sequence[Backbone]:
        """Return the backbone inside."""
        return (self.backbone,)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules; batch norm of the encoder stays in evaluation mode."""
        super().train(mode)
        for norm in self._norms:
            norm.train(False)
        return self

    def task_parameters(self, task: str) -> Iterable[Parameter]:
        """Return the task's adapter, and what is its own in the backbone inside."""
        own = self._adapter(self._keys[task]) if self.per_task else iter(())
        return chain(self.backbone.task_parameters(task), own)

    def last_shared_parameters(self) -> Iterable[Parameter]:
        """Return those of the backbone inside if they learn, or the last adapter of all tasks."""
        own = {id(p) for task in self._keys for p in self.task_parameters(task)}
        last = [
            parameter
            for parameter in self.backbone.last_shared_parameters()
            if parameter.requires_grad and id(parameter) not in own
        ]
        if last or self.per_task:
            return last
        layer = self.backbone.get_submodule(self._layers[-1])
        return [p for p in layer.parameters() if p.requires_grad]

    def facts(self) -> Mapping[str, str]:
        """Return what the backbone inside tells, and where adapters are."""
        each = "for each task" if self.per_task else "for all tasks"
        return {**super().facts(), "adapters": f"LoRA on {len(self._layers)} layers, {each}"}

    def merged(self, task: str | None = None) -> Backbone:
        """Return a copy of the backbone inside, with an adapter made part of its weights.

        It computes what this one does, without adapters and in less time.

        Args:
            task: whose adapter; None where all tasks have one together.

        Raises:
            UsageError: each task has an adapter of its own, and none of them is named.
        """
        if self.per_task and task not in self._keys:
            raise UsageError(
                f"merged: each task has an adapter; name one of {', '.join(self._keys)}"
            )
        key = self._keys[task] if self.per_task and task is not None else _SHARED
        found = copy.deepcopy(self.backbone)
        for name, layer in list(_adapted(found)):
            layer.merge(safe_merge=True, adapter_names=[key])
            parent, _, last = name.rpartition(".")
            setattr(found.get_submodule(parent), last, layer.get_base_layer())
        del found.peft_config
        return found

    def _adapter(self, key: str) -> Iterator[Parameter]:
        for name in self._layers:
            layer = self.backbone.get_submodule(name)
            for path, parameter in layer.named_parameters():
                if key in path.split("."):
                    yield parameter


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are peft's.

    Raises:
        ConfigError: One of them is not, or is said otherwise.
    """
    known = {field.name for field in dataclasses.fields(peft().LoraConfig)} - _NOT_HERE
    problems = []
    for key in options:
        path = f"model.backbone.options.{key}"
        if key in _SETTINGS:
            problems.append(f"{path}: set model.backbone.{_SETTINGS[key]} instead")
        elif key not in known:
            hint = did_you_mean(key, known - _SETTINGS.keys())
            problems.append(f"{path}: no field of LoraConfig that can be set here{hint}")
    if problems:
        raise ConfigError(problems)
    return dict(options)


def _targets(backbone: nn.Module, encoder: set[int], wanted: Sequence[str] | None) -> list[str]:
    """Return the names of the layers that get an adapter.

    Raises:
        UsageError: There are none, or none of a name that is wanted.
    """
    inside = [
        f"{name}."
        for name, module in backbone.named_modules()
        if isinstance(module, nn.MultiheadAttention)  # it reads the weights of its layers itself
    ]
    able = [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, _KINDS)
        and id(module.weight) in encoder
        and getattr(module, "groups", 1) == 1
        and not name.startswith(tuple(inside))
    ]
    if wanted is None:
        if not able:
            raise UsageError(
                f"model.backbone.backbone: the encoder of {type(backbone).__name__} has no linear "
                "layer and no convolution that could have an adapter"
            )
        return able
    found: dict[str, None] = {}
    for end in wanted:
        chosen = [name for name in able if name == end or name.endswith(f".{end}")]
        if not chosen:
            ends = list(dict.fromkeys(name.rpartition(".")[2] for name in able))
            raise UsageError(
                f"model.backbone.targets: no layer of the encoder that can have an adapter has a "
                f"name that ends in {end!r}{did_you_mean(end, [*ends, *able])} (their last parts: "
                f"{', '.join(ends[:20])})"
            )
        found |= dict.fromkeys(chosen)
    if not found:
        raise UsageError("model.backbone.targets: names no layer; leave it out for all")
    return list(found)


def _inject(
    backbone: nn.Module,
    keys: Iterable[str],
    rank: int,
    alpha: float,
    dropout: float,
    options: Mapping[str, Any],
) -> None:
    """Give layers adapters, in place.

    Raises:
        UsageError: peft refuses an option.
    """
    for key in keys:
        try:
            configuration = peft().LoraConfig(
                r=rank, lora_alpha=alpha, lora_dropout=dropout, **options
            )
            with warnings.catch_warnings():
                # There are to be several.
                warnings.filterwarnings("ignore", "Already found a `peft_config`")
                peft().inject_adapter_in_model(configuration, backbone, adapter_name=key)
        except Exception as error:  # its checks of options raise what they like
            raise UsageError(
                f"model.backbone.options: peft refuses them ({describe(error)})"
            ) from error
    # Of several adapters peft lets the last one learn.
    for _, layer in _adapted(backbone):
        for name, parameter in layer.named_parameters():
            if any(key in name.split(".") for key in keys):
                parameter.requires_grad_(True)


def _adapted(backbone: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the layers with adapters, with their names."""
    adapted = peft().tuners.tuners_utils.BaseTunerLayer
    for name, module in backbone.named_modules():
        if isinstance(module, adapted):
            yield name, module
