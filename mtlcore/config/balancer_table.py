"""The table `[balancer]`, and the components that the selected methods require."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mtlcore.config.merging import name_of
from mtlcore.config.reader import ConfigReader
from mtlcore.config.run_config import Chosen
from mtlcore.config.schema import BALANCING_KEYS, BalancingConfig
from mtlcore.plugins import Component, Selection


def read_balancing(reader: ConfigReader) -> tuple[tuple[Chosen, ...], BalancingConfig]:
    """Return the chain of balancers, and how often and of what gradients are compared."""
    table = reader.table("balancer")
    kept = {key: table[key] for key in BALANCING_KEYS if key in table}
    how = reader.build(BalancingConfig, kept, "balancer") or BalancingConfig()
    if "chain" not in table:
        chosen = reader.component("balancers", "balancer", core=BALANCING_KEYS)
        return ((chosen,) if chosen else ()), how
    for key in table:
        if key not in ("chain", *BALANCING_KEYS):
            reader.problems.append(
                f"balancer.{key}: a chain has no settings of its own; write them in its links"
            )
    return reader.components("balancers", "balancer.chain"), how


def check_required(
    reader: ConfigReader, selections: Sequence[Selection], chain: Sequence[Chosen]
) -> None:
    """Report components that a selected method requires and the configuration does not use."""
    used = {f"balancers/{chosen.component.spec.name}" for chosen in chain}
    for path, kind in (("episodes", "episode-samplers"), ("optimizer", "optimizers"),
                       ("model.backbone", "backbones"), ("model.neck", "necks"),
                       ("data", "datasets")):  # fmt: skip
        used.add(f"{kind}/{name_of(reader.table(path))}")
    for path, kind in (("cross_task", "losses"), ("data.augmentations", "augmentations"),
                       ("loggers", "loggers")):  # fmt: skip
        tables = reader.at(path)
        for table in tables if isinstance(tables, list) else ():
            if isinstance(table, Mapping):
                used.add(f"{kind}/{name_of(table)}")
    for method in [selection.method for selection in selections if selection.method]:
        for required in method.requires:
            if required not in used:
                reader.problems.append(
                    f"method {method.name!r} is not itself without {required}: "
                    + _advice(reader, required, chain)
                )


def _advice(reader: ConfigReader, required: str, chain: Sequence[Chosen]) -> str:
    """Return how to have a required component, or why it cannot be had beside the others."""
    from mtlcore.balancing import LossBalancer

    kind, _, name = required.partition("/")
    if kind != "balancers":
        return f"it needs {required}"
    names = [chosen.component.spec.name for chosen in chain]
    of_gradients = [c for c in chain if not _is_a(c.component, LossBalancer)]
    of_losses = _is_a(reader.plugins.get(kind, name), LossBalancer)
    if of_gradients and not of_losses:
        return (
            f"{name} and {of_gradients[-1].component.spec.name} both weigh task gradients, and a "
            "run can have one of such balancers: choose one"
        )
    # A balancer of gradients ends a chain.
    ordered = [name, *names] if of_losses else [*names, name]
    links = ", ".join(f'{{name = "{link}"}}' for link in ordered)
    return f"write balancer.chain = [{links}] (with its settings) instead"


def _is_a(component: Component, base: type) -> bool:
    target = component.load()
    return isinstance(target, type) and issubclass(target, base)
