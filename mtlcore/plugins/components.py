"""The result of a scan: what became of each plugin, and the components found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, final, get_type_hints

import attrs

from mtlcore.errors import MtlError
from mtlcore.plugins.specs import MethodSpec, Spec

Status = Literal["ok", "failed", "incompatible", "blocked"]


@final
@attrs.frozen
class PluginInfo:
    """What became of one plugin.

    Args:
        id: Its entry-point name, or the stem of its file.
        distribution: The installed distribution that brings it, or the path of its file.
        version: That distribution's version; empty for a file.
        status: `ok`, `failed`, `incompatible` (not imported) or `blocked` (not imported).
        reason: One line that follows the plugin's name, such as `failed to import: ...`.
        error: The exception behind the reason, for chaining.
        seconds: How long its import took.
        provides: Kind of component -> names of its components.
    """

    id: str
    distribution: str = ""
    version: str = ""
    status: Status = "ok"
    reason: str = ""
    error: BaseException | None = attrs.field(default=None, eq=False)
    seconds: float = 0.0
    provides: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)

    def __str__(self) -> str:
        source = f"{self.distribution} {self.version}".strip()
        return f"plugin {self.id}{f' ({source})' if source else ''} {self.reason}".strip()


@final
@attrs.frozen
class Component:
    """A record together with the plugin that it comes from.

    Args:
        kind: The kind of component, one of `KINDS`.
        spec: The record.
        plugin: The plugin's id.
        distribution: The distribution of the plugin, or the path of its file.
        version: The distribution's version; empty for a file.
    """

    kind: str
    spec: Spec
    plugin: str
    distribution: str
    version: str

    @property
    def full_name(self) -> str:
        """`plugin/name`, which no other plugin can shadow."""
        return f"{self.plugin}/{self.spec.name}"

    @property
    def source(self) -> str:
        """The distribution and its version, or the file."""
        return f"{self.distribution} {self.version}".strip()

    def load(self) -> Any:
        """Return the component's class or function (for a method: its preset), importing it now."""
        try:
            return self.spec.load()
        except MtlError as error:
            raise MtlError(f"plugin {self.plugin} ({self.source}): {error}") from error

    def made(self) -> Any:
        """Return the class of what the target makes, importing it now.

        That is the target itself, or, of a function, what it says that it returns; None if it does
        not say.
        """
        target = self.load()
        return target if isinstance(target, type) else get_type_hints(target).get("return")


@final
@attrs.frozen
class Selection:
    """What `--plugin WORD` adds to a configuration.

    Args:
        plugin: The id of the plugin.
        preset: The configuration that is merged; empty where a plugin file was only loaded.
        component: The selected method, balancer or logger, if there is one.
        logger: The name of a logger that is added to those of the configuration; None: none is.
    """

    plugin: str
    preset: Mapping[str, Any] = attrs.field(factory=dict)
    component: Component | None = None
    logger: str | None = None

    @property
    def method(self) -> MethodSpec | None:
        """The method's record, where a method was selected; None elsewhere."""
        spec = self.component.spec if self.component else None
        return spec if isinstance(spec, MethodSpec) else None
