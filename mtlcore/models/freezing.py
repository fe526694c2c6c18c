"""Parts of a model by their names, and keeping some of them from learning."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import final

import attrs
from torch import Tensor, nn

from mtlcore.errors import UsageError, did_you_mean

__all__ = ["Freezing", "Frozen", "made_for", "parts_of_others", "path_of"]


@attrs.frozen
class Frozen:
    """What one call of `Freezing.freeze` froze that was not frozen before.

    Args:
        modules: that stay in evaluation mode.
        parameters: path -> whether it required a gradient before.
    """

    modules: tuple[nn.Module, ...]
    parameters: Mapping[str, bool]


@final
class Freezing:
    """Which parts of a model are frozen.

    Attributes:
        modules: that stay in evaluation mode.
        parameters: paths of those that do not learn.
        changes: how often that has changed.
    """

    def __init__(self) -> None:
        self.modules: list[nn.Module] = []
        self.parameters: set[str] = set()
        self.changes = 0

    def freeze(self, model: nn.Module, paths: Iterable[str]) -> Frozen:
        """Freeze the modules and parameters at these paths; return what was not frozen before."""
        modules: list[nn.Module] = []
        parameters: dict[str, bool] = {}
        for path in paths:
            module = dict(model.named_modules(remove_duplicate=False)).get(path)
            if module is None:
                found = {path: model.get_parameter(path)}
            else:
                named = module.named_parameters(remove_duplicate=False)
                found = {f"{path}.{name}": parameter for name, parameter in named}
                if not any(module is known for known in (*self.modules, *modules)):
                    modules.append(module)
            for name, parameter in found.items():
                if name not in self.parameters and name not in parameters:
                    parameters[name] = parameter.requires_grad
                parameter.requires_grad_(False)
        self.modules += modules
        self.parameters |= parameters.keys()
        self.changes += 1
        return Frozen(tuple(modules), parameters)

    def thaw(self, model: nn.Module, frozen: Frozen) -> None:
        """Let learn again what a call of `freeze` froze."""
        self.modules = [m for m in self.modules if not any(m is one for one in frozen.modules)]
        self.parameters -= frozen.parameters.keys()
        for name, learnt in frozen.parameters.items():
            model.get_parameter(name).requires_grad_(learnt)
        self.changes += 1

    def holds(self, part: nn.Module) -> bool:
        """Return whether a module is frozen as a whole."""
        return any(part is inner for module in self.modules for inner in module.modules())

    def tensors(self, model: nn.Module) -> list[Tensor]:
        """Return the frozen parameters, and the buffers of frozen modules."""
        buffers = [buffer for module in self.modules for buffer in module.buffers()]
        found = [*map(model.get_parameter, sorted(self.parameters)), *buffers]
        return list({id(tensor): tensor for tensor in found}.values())


def path_of(model: nn.Module, part: str, names: Mapping[str, str]) -> str:
    """Return the path of a named part of a model.

    Args:
        model: that has the part.
        part: its path, in which tasks may stand under their names.
        names: `Task.key` -> name of the task.

    Raises:
        UsageError: There is no such part.
    """
    modules = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    paths = dict.fromkeys([*modules, *parameters])
    shown = {".".join(names.get(x, x) for x in path.split(".")): path for path in paths}
    if part in paths or part in shown:
        return part if part in paths else shown[part]
    inside = part
    while inside and inside not in shown:
        inside = inside.rpartition(".")[0]
    there = [name for name in shown if name.rpartition(".")[0] == inside]
    raise UsageError(
        f"model.freeze: the model has no part {part!r}{did_you_mean(part, shown)} "
        f"({inside or 'it'} holds: {', '.join(there)})"
    )


def parts_of_others(model: nn.Module, keys: Collection[str]) -> list[str]:
    """Return the outermost parts of a model that are not made for one of these keys of tasks."""
    names = [name for name, _ in [*model.named_modules(), *model.named_parameters()]]
    # A module is live if it is made for one of the tasks, or holds something that is.
    live = {""}
    for name in names:
        if made_for(name, keys):
            parts = name.split(".")
            live.update(".".join(parts[:end]) for end in range(1, len(parts) + 1))
    others = [name for name in names if name not in live]
    # Of what lies in one another, the outermost.
    return [name for name in others if name.rpartition(".")[0] in live]


def made_for(name: str, keys: Collection[str]) -> bool:
    """Return whether the path of a module or tensor contains one of these keys (see `Task.key`)."""
    return any(part in keys for part in name.split("."))
