"""What loading costs above the decoding of its files.

All read the same files in one process, in turn: the loader a run has, with a model that does
nothing; the same with `data.cache`, which has what it needs from the second epoch on; and a loop
that opens and decodes every file of every sample with Pillow. A turn is an epoch; ratios are
medians of the ratios within a turn. Photographs are drawn into a temporary folder, or read from
`--root`; `--spec` describes them.

    python benchmarks/loading.py [--root FOLDER] [--spec FILE] [--turns N] [--json]
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import product
from operator import truediv
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mtlcore.config import Layer, resolve
from mtlcore.engine.building import make_loader, open_splits
from mtlcore.episodes import BatchPlan
from mtlcore.plugins import Plugins

SAMPLES, SIZE, BATCH = 48, (240, 320), 8
_CACHE = 1000  # MB, more than all samples need
SPEC = Path(__file__).parents[1] / "examples" / "tabletop.toml"


def draw(root: Path) -> None:
    """Write smooth photographs with some noise, and the labels that `SPEC` describes."""
    random = np.random.default_rng(0)
    height, width = SIZE
    for number in range(SAMPLES):
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + random.normal(0, 6, smooth.shape)
        depth = 800 + 4 * smooth[..., 0] + random.integers(0, 9, SIZE)
        files = {
            "rgb": noisy.clip(0, 255),
            "segmentation": smooth[..., 1] > 127,
            "depth": depth,
            "normal": smooth,
            "edge": random.random(SIZE) < 0.05,
        }
        for split, (kind, values) in product(("train", "val"), files.items()):
            folder = root / split / kind
            folder.mkdir(parents=True, exist_ok=True)
            stored = values.astype(np.uint16 if kind == "depth" else np.uint8)
            Image.fromarray(stored).save(folder / f"{number:03}.png")


def loaded(root: str, spec: str, size: Sequence[int], cache: int) -> Callable[[], int]:
    """An epoch of the loader of a run with so many MB of cache; returns the number of batches."""
    data = {"name": "folder", "root": root, "spec": spec, "size": [*size], "workers": 0}
    data |= {"cache": cache}
    config = resolve(Plugins.from_environment(()), (), [Layer("benchmark", {"data": data})])
    splits = open_splits(config)
    loader = make_loader(config, splits)
    order = range(len(splits["train"]))
    plans = [
        BatchPlan("train", tuple(order[start : start + BATCH]), start, False)
        for start in order[::BATCH]
    ]
    return lambda: sum(batch is not None for batch in loader.batches(plans))


def decoded(root: Path) -> Callable[[], int]:
    """All files of the training split, read and decoded; returns their number."""
    files = sorted((root / "train").rglob("*.png"))

    def epoch() -> int:
        for file in files:
            with Image.open(io.BytesIO(file.read_bytes())) as image:
                np.asarray(image)
        return len(files)

    return epoch


def main() -> None:
    """Measure what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="a folder with train and val, all of it .png")
    parser.add_argument("--spec", default=str(SPEC), help="its description")
    parser.add_argument("--size", nargs=2, type=int, default=SIZE, help="height and width")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print a list instead of a table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mtl-benchmark-") as drawn:
        root = given.root or Path(drawn)
        if given.root is None:
            draw(root)
        epochs = {
            "decoding": decoded(root),
            "loader": loaded(str(root), given.spec, given.size, 0),
            "cached": loaded(str(root), given.spec, given.size, _CACHE),
        }
        times: dict[str, list[float]] = {name: [] for name in epochs}
        for turn in range(given.turns + 1):
            for name, epoch in epochs.items():
                began = time.perf_counter()
                epoch()
                if turn:  # the first one fills the system's cache
                    times[name].append(1e3 * (time.perf_counter() - began))
    bare = times.pop("decoding")
    decoding = statistics.median(bare)
    rows = []
    for name, found in times.items():
        low, ratio, high = statistics.quantiles(map(truediv, found, bare), n=4)
        row = {"what": name, "decoding": decoding, "loader": statistics.median(found)}
        rows.append({**row, "ratio": ratio, "quartiles": [low, high]})
    if given.json:
        print(json.dumps(rows, indent=1))
        return
    print("| | decoding, ms | loader, ms | loader / decoding (quartiles) |")
    print("| --- | ---: | ---: | ---: |")
    for row in rows:
        low, high = row["quartiles"]
        print(
            f"| {row['what']} | {decoding:.0f} | {row['loader']:.0f} | {row['ratio']:.2f} "
            f"({low:.2f}-{high:.2f}) |"
        )


if __name__ == "__main__":
    main()
