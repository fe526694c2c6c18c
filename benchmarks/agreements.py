"""How far each library's balanced update is from the exact one, on golden Gramians.

    python benchmarks/agreements.py [--json]

The exact updates are those of tests/golden, computed with 60 digits: 20 matrices of task gradients
(2 and 5 tasks, 10 and 1000 parameters) of five sorts (its README says which). All libraries compute
in float64. The error is that of the direction, `|u - v|` of vectors brought to length 1, as
libraries differ in scale by design: 0 is exact, 2 the opposite direction. A cell has the largest of
a sort. *Silently wrong* counts the cases whose direction is off by more than 1 % while nothing was
raised and no warning given; *refused* those in which the library raised an error.

Peers are measured where they can be imported: torchjd, and LibMTL, whose weightings run on a model
of one parameter whose gradients are the rows. Both are asked for the settings of the golden files.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtlcore.balancing import BalancerContext
from mtlcore.errors import MtlError
from mtlcore.plugins import Plugins

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
SORTS = ("gauss", "conflict", "neardup", "scales", "mixed")
WRONG = 0.01
Update = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Method:
    """A method, as each library calls it.

    Args:
        balancer: ours.
        golden: names of the exact update in the archives, with the case's id in place of `*`.
        settings: of ours.
        torchjd: its class and arguments, made for so many tasks; None if it has none.
        libmtl: the name of its class and its arguments; None if it has none.
        most: number of tasks up to which the exact update is known.
    """

    balancer: str
    golden: str
    settings: dict[str, Any] | None = None
    torchjd: Callable[[Any, int], Any] | None = None
    libmtl: tuple[str, dict[str, Any]] | None = None
    most: int = 5


METHODS = (
    Method("mgda", "mgda_dir_*", None, lambda a, _: a.MGDA(), ("MGDA", {"mgda_gn": "none"})),
    Method("cagrad", "cagrad_dir_*", {"c": 0.4}, lambda a, _: a.CAGrad(c=0.4),
           ("CAGrad", {"calpha": 0.4, "rescale": 0})),
    Method("imtl-g", "imtlg_dir_*", None, lambda a, _: a.IMTLG(), ("IMTL", {})),
    Method("aligned-mtl", "aligned_sum_dir_*", None, lambda a, _: a.AlignedMTL()),
    # Two tasks have but one order.
    Method("pcgrad", "pcgrad_sum_*", None, lambda a, _: a.PCGrad(), ("PCGrad", {}), most=2),
    Method("nash-mtl", "nash_dir_*", None, lambda a, k: a.NashMTL(n_tasks=k, max_norm=0)),
    Method("fairgrad", "fairgrad2_dir_*", {"alpha": 2.0}, lambda a, _: a.FairGrad(alpha=2.0)),
    Method("upgrad", "upgrad_mean_dir_*", None, lambda a, _: a.UPGrad()),
    Method("dual-proj", "dualproj_mean_dir_*", None, lambda a, _: a.DualProj()),
    Method("config", "config_dir_*", None, lambda a, _: a.ConFIG()),
)  # fmt: skip


def cases() -> list[dict[str, Any]]:
    """The golden matrices with everything that is known of them."""
    archives: dict[str, Any] = {}
    for name in ("balancers.npz", "golden_more.npz"):
        with np.load(GOLDEN / name) as archive:
            archives |= {key: torch.from_numpy(archive[key]) for key in archive.files}
    found = json.loads((GOLDEN / "balancers.json").read_text("utf-8"))["cases"]
    return [
        {**case, "rows": archives[case["matrix"]].double(), "arrays": archives} for case in found
    ]


@cache
def plugins() -> Plugins:
    """What is installed."""
    return Plugins.from_environment(())


def ours(method: Method, count: int) -> Update:
    """Our balancer on the Gramian, as a run calls it."""
    balancer = plugins().get("balancers", method.balancer).load()(**(method.settings or {}))
    names = tuple(f"t{place}" for place in range(count))
    context = BalancerContext(tasks=names, present=names, generator=torch.Generator())

    def update(rows: Tensor) -> Tensor:
        weights = balancer.weights(rows @ rows.T, context=context)
        return (weights if weights.dim() == 1 else weights[0]) @ rows

    return update


def of_torchjd(method: Method, count: int) -> Update | None:
    """TorchJD's aggregator."""
    if method.torchjd is None or find_spec("torchjd") is None:
        return None
    made: Update = method.torchjd(importlib.import_module("torchjd.aggregation"), count)
    return made


def of_libmtl(method: Method, count: int) -> Update | None:
    """LibMTL's weighting on a model of one parameter; its package itself needs torchvision."""
    found = find_spec("LibMTL")
    if method.libmtl is None or found is None or found.submodule_search_locations is None:
        return None
    if "LibMTL" not in sys.modules:
        package = types.ModuleType("LibMTL")
        package.__path__, package.__spec__ = list(found.submodule_search_locations), found
        sys.modules["LibMTL"] = package
    name, arguments = method.libmtl
    base = getattr(importlib.import_module(f"LibMTL.weighting.{name}"), name)

    class Model(base):  # type: ignore[misc]
        def __init__(self, rows: Tensor) -> None:
            super().__init__()
            self.task_num, self.device, self.rep_grad = len(rows), torch.device("cpu"), False
            self.task_name = [f"t{place}" for place in range(len(rows))]
            self.theta = nn.Parameter(torch.zeros(rows.shape[1]))
            self.init_param()

        def get_share_params(self) -> list[nn.Parameter]:
            return [self.theta]

        def zero_grad_share_params(self) -> None:
            if self.theta.grad is not None:
                self.theta.grad.zero_()

    def update(rows: Tensor) -> Tensor:
        before = torch.get_default_dtype()
        torch.set_default_dtype(rows.dtype)  # its vectors are made in the default
        try:
            model = Model(rows)
            model.backward(rows @ model.theta + 1.0, **arguments)
        finally:
            torch.set_default_dtype(before)
        found: Tensor = model.theta.grad
        return found

    return update


LIBRARIES: dict[str, Callable[[Method, int], Update | None]] = {
    "mtlcore": ours,
    "torchjd": of_torchjd,
    "libmtl": of_libmtl,
}


def error(found: Tensor, exact: Tensor) -> float:
    """Distance of the directions; 1 for an update of 0, and where it is not finite."""
    length = float(found.norm())
    if not 0 < length < float("inf"):
        return 1.0
    return float((found / length - exact / exact.norm()).norm())


def agreements() -> list[dict[str, Any]]:
    """A row per method and library."""
    installed = {component.spec.name for component in plugins().all("balancers")}
    known, rows = cases(), []
    for method in METHODS:
        if method.balancer not in installed:
            continue
        for library, make in LIBRARIES.items():
            worst: dict[str, float | None] = dict.fromkeys(SORTS)
            silent, refused, reasons = 0, 0, set[str]()
            solved = [case for case in known if case["K"] <= method.most]
            if make(method, 2) is None:
                continue
            for case in solved:
                exact = case["arrays"][method.golden.replace("*", case["id"])]
                update = make(method, case["K"])
                assert update is not None
                with warnings.catch_warnings(record=True) as heard:
                    warnings.simplefilter("always")
                    try:
                        off = error(update(case["rows"]).detach().double(), exact)
                    except MtlError:
                        raise
                    except Exception as reason:  # a peer's failure is a result
                        refused += 1
                        reasons.add(type(reason).__name__)
                        continue
                worst[case["variant"]] = max(worst[case["variant"]] or 0.0, off)
                silent += off > WRONG and not heard
            rows.append(
                {"method": method.balancer, "library": library, "errors": worst}
                | {"cases": len(solved), "silently_wrong": silent, "refused": refused}
                | {"reasons": sorted(reasons)}
            )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = [
        f"| method | library | {' | '.join(SORTS)} | silently wrong | refused |",
        f"| --- | --- | {' | '.join(['---:'] * len(SORTS))} | ---: | --- |",
    ]
    for row in rows:
        errors = [row["errors"][sort] for sort in SORTS]
        cells = ["-" if error is None else f"{error:.0e}" for error in errors]
        refused = f"{row['refused']} ({', '.join(row['reasons'])})" if row["refused"] else "0"
        lines.append(
            f"| {row['method']} | {row['library']} | {' | '.join(cells)} | "
            f"{row['silently_wrong']} of {row['cases']} | {refused} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print a list instead of a table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = agreements()
    print(json.dumps(rows, indent=1) if given.json else table(rows))


if __name__ == "__main__":
    main()
