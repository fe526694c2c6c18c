"""Making a model of transformers: with random weights or with those of a file, and its layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from mtlcore.errors import MtlError, describe
from mtlcore.loading import WeightFile
from mtlcore.models import no_checkpointing
from mtlcore_transformers.library import quiet

#: Layers that a backbone adds behind those of the model that was trained.
_NEW = "hidden_states_norms."


def with_weights(
    kind: Any, configuration: Any, file: WeightFile, **extra: Any
) -> tuple[Any, list[str]]:
    """Return a model with the weights of a file, and the names of those that it has no use for.

    The library brings names of older releases, and of models with a head, to those of this one.

    Args:
        kind: The model's class.
        configuration: Of the model.
        file: The weights.
        extra: For the class.

    Raises:
        MtlError: Something is missing or of another shape; the message lists it.
    """
    try:
        with quiet():
            model, report = kind.from_pretrained(
                None,
                config=configuration,
                state_dict=dict(file.tensors),
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **extra,
            )
    except Exception as error:  # it takes for granted what a release has
        raise MtlError(
            f"{file.source}: transformers cannot make weights of {kind.__name__} of it "
            f"({describe(error)})"
        ) from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(_NEW))
    shapes = [
        f"{name} {tuple(given)}, not {tuple(own)}"
        for name, given, own in sorted(report["mismatched_keys"])
    ]
    problems = [*_listed("missing", missing), *_listed("of another shape", shapes)]
    if problems:
        raise MtlError(
            f"{file.source}: are these weights of {kind.__name__}? {'; '.join(problems)}"
        )
    return model, sorted(report["unexpected_keys"])


def freeze_unreached(model: nn.Module, outputs: Callable[[], Sequence[Tensor]]) -> None:
    """Keep from learning what no output depends on, such as the token that stands for masked ones.

    Args:
        model: Whose parameters these are.
        outputs: Computes its outputs for any input.
    """
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        parameters = [p for p in model.parameters() if p.requires_grad]
        found = torch.autograd.grad([x.sum() for x in outputs()], parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, found, strict=True):
        parameter.requires_grad_(gradient is not None)


def layers_of(model: nn.Module) -> list[list[Parameter]]:
    """Return the parameters of a model layer by layer, from the input on.

    A layer is what a list of modules holds, of lists within one another the innermost. What comes
    before the first one, such as an embedding, is a layer too; what comes after one belongs to it.
    """
    layers: list[list[Parameter]] = [[]]
    current: str | None = None
    blocks = [
        f"{name}.{number}."
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        for number, block in enumerate(module)
        if not any(isinstance(inner, nn.ModuleList) for inner in block.modules())
    ]
    for name, parameter in model.named_parameters():
        block = next((block for block in blocks if name.startswith(block)), None)
        if block is not None and block != current:
            current = block
            layers.append([])
        layers[-1].append(parameter)
    return [layer for layer in layers if layer]


def compute_again(model: Any, name: str) -> None:
    """Turn gradient checkpointing on.

    Raises:
        UsageError: The model has none.
    """
    if not model.supports_gradient_checkpointing:
        raise no_checkpointing(name)
    # Releases before 5.24 know it under its older name.
    older = model.gradient_checkpointing_enable
    # The other way gives parameters no gradient where the input needs none.
    getattr(model, "activation_checkpointing_enable", older)({"use_reentrant": False})


def weight_facts(file: WeightFile, unused: Sequence[str]) -> Mapping[str, str]:
    """Return what `Backbone.facts` tells of weights that were loaded."""
    return file.facts | ({"weights_unused": ", ".join(unused)} if unused else {})


def _listed(what: str, items: Sequence[str]) -> list[str]:
    if not items:
        return []
    more = f" and {len(items) - 5} more" if len(items) > 5 else ""
    return [f"{what}: {', '.join(items[:5])}{more}"]
