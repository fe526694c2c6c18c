"""How long a step of a published method takes at its full size, and how much memory.

Each method is run as `mtl run` runs it, with loading, on arrays of random content in the form in
which NYUv2 is published (288x384 pixels): first without anything else, then in bf16.
Steps are medians without the first; on a GPU memory is that of torch's tensors there.

    python benchmarks/methods.py [--method atinet-nyuv2]... [--steps 60] [--device cuda] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import devices
import numpy as np

import mtlcore
from mtlcore.display import SilentDisplay

METHODS = ("atinet-nyuv2", "mtpsl-nyuv2")
SIZE, SAMPLES = (288, 384), 16


def draw(root: Path, samples: int = SAMPLES, size: tuple[int, int] = SIZE) -> None:
    """Write arrays of random content as NYUv2 is published: image, label, depth and normal."""
    random = np.random.default_rng(0)
    for split, number in (("train", samples), ("val", 2)):
        for index in range(number):
            arrays = {
                "image": random.random((*size, 3)),
                "label": random.integers(0, 13, size).astype(np.float64),
                "depth": random.uniform(1, 9, (*size, 1)),
                "normal": random.standard_normal((*size, 3)),
            }
            for kind, values in arrays.items():
                folder = root / split / kind
                folder.mkdir(parents=True, exist_ok=True)
                np.save(folder / f"{index}.npy", values)


def measure(method: str, root: Path, steps: int, training: Mapping[str, Any]) -> dict[str, Any]:
    """A run of so many steps, told in numbers.

    Args:
        method: its name.
        root: the data.
        steps: at least two, as the first is not counted.
        training: further settings of the training.
    """
    settings = {"epochs": steps, "steps": steps, "evaluate_every": steps, "average_last": 1}
    config = {
        "device": devices.device().type,
        "data": {"root": str(root), "workers": min(4, os.cpu_count() or 1)},
        "training": {**settings, **training},
    }
    with tempfile.TemporaryDirectory(prefix="mtl-benchmark-") as out:
        summary = mtlcore.run(config, plugins=[method], out=out, display=SilentDisplay())
    return {
        "method": method,
        "precision": training.get("precision", "fp32"),
        "parameters": summary["parameters"]["total"],
        "ms": 1e3 * summary["seconds_per_step"],
        "peak_gb": summary["peak_memory"] / 1e9,
        "losses_are_finite": summary["skipped_steps"] == 0,
    }


def main() -> None:
    """Measure what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", action="append", help="by default those of ATI-Net and MTPSL")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", action="store_true", help="print a list instead of a table")
    devices.add_option(parser)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mtl-benchmark-") as folder:
        draw(Path(folder))
        rows = [
            measure(method, Path(folder), given.steps, {"precision": precision})
            for method in given.method or METHODS
            for precision in ("fp32", "bf16")
        ]
    if given.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{devices.described()}\n")
    print("| method | precision | parameters | a step, ms | peak, GB |")
    print("| --- | --- | ---: | ---: | ---: |")
    for row in rows:
        print(
            f"| {row['method']} | {row['precision']} | {row['parameters']:,} | {row['ms']:.1f} | "
            f"{row['peak_gb']:.2f} |" + ("" if row["losses_are_finite"] else " steps skipped")
        )


if __name__ == "__main__":
    main()
