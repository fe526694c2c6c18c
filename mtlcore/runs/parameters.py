"""What can be told of a model without data and without memory for its parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mtlcore.config import resolve, resolve_backbone, set_layer
from mtlcore.engine import build_learner, build_model, count_flops, parameter_table
from mtlcore.models import Backbone, count_parameters
from mtlcore.plugins import Plugins

# Deep enough to tell the first convolution of a level from the rest of it.
_DEPTH = 4


def count_method_parameters(
    plugins: Plugins, method: str, overrides: Sequence[str] = ()
) -> dict[str, object]:
    """Return the numbers for the model as the method's preset builds it, see `parameter_table`.

    Args:
        plugins: where the method comes from.
        method: its name, or "plugin/name".
        overrides: `path=value` as for `--set`.

    Raises:
        ConfigError: the method with these overrides is no valid configuration.
    """
    config = resolve(plugins, [method], [set_layer(overrides)])
    with torch.device("meta"):
        learner = build_learner(config)
        learner.balancing.prepare(config.tasks, None)
    return parameter_table(learner, depth=_DEPTH)


def count_method_flops(
    plugins: Plugins, method: str, overrides: Sequence[str] = ()
) -> dict[str, object]:
    """Return the operations of one prediction of all tasks, for the model of a method's preset.

    Args:
        plugins: where the method comes from.
        method: its name, or "plugin/name".
        overrides: `path=value` as for `--set`.

    Returns:
        `size`, the image's height and width, and `flops`, see `count_flops`; or `not counted`, the
        reason.

    Raises:
        ConfigError: the method with these overrides is no valid configuration.
    """
    config = resolve(plugins, [method], [set_layer(overrides)])
    dataset = config.dataset.component.load()
    if dataset.kind_of_inputs(config.data.root, **config.dataset.settings) != "image":
        return {"not counted": "its inputs are no images"}
    size = config.data.size
    if size is None and dataset.renders_size:
        size = dataset.default_size(config.data.root, **config.dataset.settings)
    if size is None:
        return {"not counted": "the size of images is not known; set data.size"}
    with torch.device("meta"):
        learner = build_learner(config)
        image = torch.zeros(1, 3, *size)
    try:
        with torch.device("meta"):
            learner.model.backbone.at_progress(1.0)  # a run ends with the network of the last phase
        flops = count_flops(learner, image)
    except RuntimeError as error:
        if "meta" not in str(error):
            raise
        return {"not counted": "which operations run depends on values"}
    return {"size": list(size), "flops": flops}


def describe_backbone(
    plugins: Plugins, selected: Sequence[str], overrides: Sequence[str]
) -> dict[str, object]:
    """Return the maps of a configuration's backbone, its parameters, and what it tells of itself.

    Where nothing is selected, the dataset need not give what the backbone reads: only its tasks
    count.

    Args:
        plugins: Where components come from.
        selected: Names as for `--plugin`.
        overrides: `path=value` as for `--set`.

    Raises:
        ConfigError: That is no valid configuration.
        UsageError: The backbone refuses a setting.
    """
    layers = [set_layer(overrides)]
    with torch.device("meta"):
        if selected:
            backbone: Backbone = build_model(resolve(plugins, selected, layers)).backbone
        else:
            chosen, tasks = resolve_backbone(plugins, layers)
            backbone = chosen.make(tasks)
    return {
        "channels": list(backbone.out_channels),
        "strides": list(backbone.strides),
        "parameters": count_parameters(backbone.parameters()),
        "trainable": count_parameters(p for p in backbone.parameters() if p.requires_grad),
        **backbone.facts(),
    }
