"""The map of balancers: a table for each thing that they look at, of what is installed.

What a class says of itself is read from it: what it looks at, what it needs, what a step costs.
What it guarantees, with the test that shows it, and what was published, is in `balancers.toml`
beside this file; ranks of our own are in the tables of docs/results.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtlcore.balancing import Balancer, LossBalancer, RowBalancer
from mtlcore.cli.descriptions import balancers_by_group
from mtlcore.plugins import Plugins

HERE = Path(__file__).parent
PAGES = HERE.parent / "methods"
TABLES = HERE.parent / "results" / "tables"
#: What balancers were compared on -> the table of it.
RANKS = {
    "rooms": TABLES / "balancers.md",
    "photographs": TABLES / "balancers-photographs.md",
    "census": TABLES / "balancers-census.md",
}
KNOWN = HERE / "balancers.toml"
READ = (KNOWN, *RANKS.values())
BENCHMARKS = ("NYUv2", "Cityscapes", "CelebA", "QM9")
TITLES = {
    "losses": "Losses",
    "Gramian": "The Gramian of the tasks' gradients",
    "gradients": "The gradients themselves",
}
COSTS = {
    "shared": "K backward",
    "features": "K backward through the heads, 1 through the trunk",
    "last_shared": "K backward to the last shared layer, 1 through everything",
}


def known() -> dict[str, Any]:
    """What stands in balancers.toml."""
    return tomllib.loads(KNOWN.read_text("utf-8"))


def measured(table: Path) -> dict[str, str]:
    """The mean ranks of a table of our own, by balancer."""
    first = table.read_text("utf-8").partition("\n## ")[0]
    rows = re.findall(r"^\| (\S+)[^|]*\|[^|]*\| *\**([\d.]+)\** *\|", first, re.MULTILINE)
    return {name.removesuffix("-tuned"): rank for name, rank in rows}


def published(name: str, benchmark: str) -> str:
    """What was published of a balancer, with the marks of the sources."""
    found = [
        f"{table['values'][name]:+.2f} {table['mark']}"
        for table in known()["published"]
        if table["benchmark"] == benchmark and name in table["values"]
    ]
    return ", ".join(found) or "-"


def needs(target: type[Balancer]) -> str:
    """What a step must bring beside losses and gradients."""
    found = []
    if issubclass(target, LossBalancer) and target.needs_maps:
        found.append("elementwise losses")
    if target.reevaluates:
        found.append("the losses after the step")
    if target.after_evaluation is not Balancer.after_evaluation:
        found.append("validation metrics")
    if target.batches > 1:
        found.append(f"{target.batches} independent batches")
    if target.validation is not None:
        found.append("a validation batch")
    if issubclass(target, RowBalancer) and target.scope != "shared":
        found.append({"features": "features", "last_shared": "a last shared layer"}[target.scope])
    return ", ".join(found) or "-"


def cost(target: type[Balancer]) -> str:
    """Passes of a step, beside the one forward pass of each batch."""
    if not issubclass(target, RowBalancer):
        return "1 backward, 1 more forward" if target.reevaluates else "1 backward"
    text = COSTS[target.scope]
    if target.batches > 1:
        text += f", on each of {target.batches} batches"
    if target.validation is not None:
        text += ", as many and 1 forward on the validation batch"
    return text


def lines(plugins: Plugins) -> Iterator[str]:
    """The tables, as Markdown."""
    guarantees = known()["guarantees"]
    ranks = [measured(table) for table in RANKS.values()]
    rows = balancers_by_group(plugins)
    for group, title in TITLES.items():
        members = [row for row in rows if row["looks at"] == group]
        if not members:
            continue
        yield from ("", f"## {title}", "")
        ours = [f"our rank, {name}" for name in RANKS]
        heads = ("balancer", "needs", "cost of a step", "guarantees", *BENCHMARKS, *ours)
        yield f"| {' | '.join(heads)} |"
        yield f"| --- | --- | --- | --- |{' ---: |' * (len(heads) - 4)}"
        for row in members:
            name, plugin = row["name"], row["plugin"]
            target = plugins.get("balancers", f"{plugin}/{name}").made()
            page = plugin if (PAGES / f"{plugin}.md").exists() else "standard"
            cells = [
                f"[`{name}`]({page}.md)",
                needs(target),
                cost(target),
                guarantees.get(name, {}).get("text", "-"),
                *(published(name, benchmark) for benchmark in BENCHMARKS),
                *(found.get(name, "-") for found in ranks),
            ]
            yield f"| {' | '.join(cells)} |"


def sources() -> list[str]:
    """What the marks stand for."""
    return [f"* {t['mark']}: {t['benchmark']}, {t['source']}." for t in known()["published"]]
