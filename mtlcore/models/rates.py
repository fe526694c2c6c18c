"""Learning rates of parts: groups that components ask for, and lower rates in a backbone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
from torch import nn

from mtlcore.errors import UsageError
from mtlcore.models.contracts import Backbone

__all__ = ["SAME_RATES", "BackboneRates", "groups_of"]


@attrs.frozen(kw_only=True)
class BackboneRates:
    """Factors on the learning rates of a backbone's parameters.

    A backbone of n groups of layers (`Backbone.layer_groups`) learns in group k, counted from 0 at
    the input, at lr_scale * layer_decay^(n - k) times the rate of the heads, and in everything else
    of it at lr_scale times that rate. So the last layers of the encoder are already one step below
    the heads, as in BEiT (Bao et al. 2022) and timm.

    Args:
        lr_scale: Factor on all rates of the backbone.
        layer_decay: Factor from each group of layers to the one before it.
    """

    lr_scale: float = 1.0
    layer_decay: float = 1.0

    def factors(self, backbone: Backbone) -> dict[int, float]:
        """Return the factor of each parameter of the backbone, by the parameter's `id`.

        Raises:
            UsageError: Rates are to fall from layer to layer, and the backbone names no layers.
        """
        found = {id(p): self.lr_scale for p in backbone.parameters()}
        if self.layer_decay == 1:
            return found
        layers = backbone.layer_groups()
        if not layers:
            raise UsageError(
                f"model.backbone.layer_decay: {type(backbone).__name__} names no groups of layers "
                "(layer_groups); leave it out, or set model.backbone.lr_scale for the whole "
                "backbone"
            )
        for number, layer in enumerate(layers):
            factor = self.lr_scale * self.layer_decay ** (len(layers) - number)
            found |= {id(p): factor for p in layer}
        return found

    def applied(
        self, groups: Sequence[Mapping[str, Any]], backbone: Backbone
    ) -> list[dict[str, Any]]:
        """Return groups of parameters, split where factors differ.

        Args:
            groups: Of all that learns, as torch's optimizers take them; the first one stays first,
                with what has the factor 1.
            backbone: Whose parameters have factors.

        Returns:
            Groups, those with another factor than 1 with the key "lr_scale".
        """
        if self == SAME_RATES:
            return [dict(group) for group in groups]
        factors = self.factors(backbone)
        found: list[dict[str, Any]] = []
        for number, group in enumerate(groups):
            parts: dict[float, list[nn.Parameter]] = {} if number else {1.0: []}
            for parameter in group["params"]:
                parts.setdefault(factors.get(id(parameter), 1.0), []).append(parameter)
            for factor, parameters in parts.items():
                scaled = {} if factor == 1 else {"lr_scale": factor * group.get("lr_scale", 1.0)}
                found.append({**group, "params": parameters, **scaled})
        return found


#: All of a backbone learns at the rate of the heads.
SAME_RATES = BackboneRates()


def groups_of(modules: Iterable[nn.Module]) -> list[dict[str, Any]]:
    """Return the groups of parameters that modules ask for by a method `parameter_groups`.

    Parameters that do not require gradients are left out, and groups that hold no other.

    Args:
        modules: Those that may have the method; not those inside them.

    Raises:
        UsageError: A parameter is in two groups.
    """
    groups: list[dict[str, Any]] = []
    owners: dict[int, str] = {}
    for module in modules:
        asked = getattr(module, "parameter_groups", None)
        for group in asked() if callable(asked) else ():
            learning = [p for p in group["params"] if p.requires_grad]
            for parameter in learning:
                if id(parameter) in owners:
                    raise UsageError(
                        f"parameter_groups: a parameter of shape {list(parameter.shape)} is in two "
                        f"groups, of {owners[id(parameter)]} and {type(module).__name__}"
                    )
            if learning:
                owners |= {id(p): type(module).__name__ for p in learning}
                groups.append({**group, "params": learning})
    return groups
