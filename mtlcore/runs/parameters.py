"""How many parameters a method's model has, without data and without memory for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mtlcore.config import resolve, set_layer
from mtlcore.engine import build_learner, parameter_table
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
