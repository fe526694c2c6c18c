"""What MTPSL's cross-task part costs when its pairs go through the mapping together.

Both sides compute the same terms and gradients (checked before anything is timed) for five tasks
at 64x64: mtlcore maps all pairs of a batch in one pass; the other side maps one image and one pair
at a time, as the published code does, through plain torch layers with the same parameters. They
take turns in one process, so that a machine whose speed drifts slows both; medians and quartiles
of the ratios within a turn are shown, and the ratio of the shortest times. The backbone is not
part of it.

    python benchmarks/mtpsl.py [--turns N] [--threads N] [--json] [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import devices
import torch
import torch.nn.functional as F
from torch import Tensor

from mtlcore.data import Batch
from mtlcore.features import FeatureInfo, Features
from mtlcore.tasks import Task
from mtlcore.testing import tiny_batch
from mtlcore_mtpsl import encoding
from mtlcore_mtpsl.mapping import Use
from mtlcore_mtpsl.mtpsl import MTPSL
from mtlcore_mtpsl.pairs import find_pairs

TASKS = (
    Task(name="segmentation", kind="segmentation", channels=13),
    Task(name="depth", kind="depth", channels=1),
    Task(name="normals", kind="normals", channels=3),
    Task(name="edges", kind="edges", channels=1),
    Task(name="saliency", kind="saliency", channels=1),
)
NAMED = {task.name: task for task in TASKS}
SIZE = (64, 64)
# Width of the mapping, images, and labels per image.
CASES = [(1 / 16, 8, 1), (1 / 16, 8, 5), (1 / 4, 8, 1), (1 / 4, 8, 5), (1 / 4, 2, 5)]


class Case:
    """A loss, a batch and predictions.

    Args:
        width: of the mapping.
        images: in the batch.
        labels: per image, 1 or 5.
        dtype: of all arithmetic.
    """

    def __init__(
        self, width: float, images: int, labels: int, dtype: torch.dtype = torch.float32
    ) -> None:
        torch.manual_seed(0)
        channels = round(512 * width)
        where = devices.device()
        self.loss = MTPSL(TASKS, FeatureInfo((channels,), (32,)), views=1).to(where, dtype)
        batch = tiny_batch(images, tasks=TASKS, size=SIZE).to(where)
        if labels == 1:
            known = {
                task.name: tuple(row % 5 == number for row in range(images))
                for number, task in enumerate(TASKS)
            }
            batch.labelled.update(known)
        self.batch: Batch = batch
        self.predictions = {
            task.name: torch.randn(
                images, task.channels, *SIZE, dtype=dtype, device=where, requires_grad=True
            )
            for task in TASKS
        }
        shared = torch.rand(images, channels, 2, 2, dtype=dtype, device=where)
        self.features = Features(shared=(shared,))

    def together(self) -> Tensor:
        """The terms, as mtlcore computes them."""
        terms = self.loss(self.batch, self.features, self.predictions)
        return torch.stack([*terms.values()]).sum()

    def one_by_one(self) -> Tensor:
        """The same, for every image and pair by itself."""
        batch, network = self.batch, self.loss.space.network
        state = dict(network.named_parameters())
        losses = []
        for pair in find_pairs(batch, NAMED, 0, NAMED):
            row = slice(pair.row, pair.row + 1)
            source, target = NAMED[pair.source], NAMED[pair.target]
            code = network.code_of(Use(pair.source, 0, (pair.source, pair.target), 0))
            prediction = encoding.of_prediction(source, self.predictions[pair.source][row])
            label = encoding.of_label(
                target, batch.targets[pair.target][row], batch.valid[pair.target][row]
            )
            one = _mapped(state, prediction, source, code)
            other = _mapped(state, label.to(prediction.dtype), target, code)
            f = self.features.shared[0][row]
            losses.append(_far(one, other) + 0.5 * (_far(one, f) + _far(other, f)))
        return torch.stack(losses).sum() / len(batch)


def _mapped(state: Mapping[str, Tensor], maps: Tensor, task: Task, code: int) -> Tensor:
    """One map through the network in the published arithmetic: batch norms of a batch of one."""
    maps = _unit(state, maps, f"inputs.{task.key}", None)
    for level, units in enumerate((2, 2, 3, 3, 3)):
        for number in range(units):
            maps = _unit(state, maps, f"levels.{level}.{number}", code)
        maps = F.max_pool2d(maps, 2)
    return maps


def _unit(state: Mapping[str, Tensor], maps: Tensor, at: str, code: int | None) -> Tensor:
    maps = F.conv2d(maps, state[f"{at}.conv.weight"], state[f"{at}.conv.bias"], padding=1)
    maps = F.batch_norm(maps, None, None, state[f"{at}.weight"], state[f"{at}.bias"], True)
    if code is not None:
        matrix = state[f"{at}.film.gamma"]
        hot = F.one_hot(torch.tensor([code], device=matrix.device), matrix.shape[1]).to(maps.dtype)
        gamma, beta = F.linear(hot, matrix), F.linear(hot, state[f"{at}.film.beta"])
        maps = gamma[:, :, None, None] * maps + beta[:, :, None, None]
    return F.relu(maps, inplace=True)


def _far(one: Tensor, other: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(one, other, dim=1, eps=1e-12).mean()


def check(case: Case) -> None:
    """Both give the same value and the same gradients, in float64; draws are taken out."""
    drawn = encoding._drawn
    encoding._drawn = lambda logits: logits.softmax(1)
    try:
        leaves = [*case.loss.parameters(), *case.predictions.values()]
        results = []
        for compute in (case.together, case.one_by_one):
            value = compute()
            rows = torch.autograd.grad(value, leaves, allow_unused=True)
            results.append((value.detach(), rows))
    finally:
        encoding._drawn = drawn
    (value, rows), (other, others) = results
    torch.testing.assert_close(value, other, rtol=0, atol=1e-10)
    for row, twin in zip(rows, others, strict=True):
        assert (row is None) == (twin is None)
        if row is not None and twin is not None:
            torch.testing.assert_close(row, twin, rtol=0, atol=1e-8)


def timed(compute: Callable[[], Tensor]) -> float:
    """Milliseconds of a forward and a backward pass."""
    began = devices.now()
    compute().backward()  # type: ignore[no-untyped-call]
    return 1e3 * (devices.now() - began)


def measure(width: float, images: int, labels: int, turns: int) -> dict[str, Any]:
    """Medians of both, in turn."""
    check(Case(width, images, labels, torch.float64))
    case = Case(width, images, labels)
    times: dict[str, list[float]] = {"together": [], "one_by_one": []}
    for number in range(turns + 1):
        for name in times:
            spent = timed(getattr(case, name))
            if number:
                times[name].append(spent)
    ratios = [a / b for a, b in zip(*times.values(), strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "width": width,
        "images": images,
        "labels": labels,
        "pairs": len(find_pairs(case.batch, NAMED, 0, NAMED)),
        "together_ms": statistics.median(times["together"]),
        "one_by_one_ms": statistics.median(times["one_by_one"]),
        "least_ms": [min(spent) for spent in times.values()],
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [quartiles[0], quartiles[2]],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    devices.add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = [measure(*case, arguments.turns) for case in CASES]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        low, high = row["ratio_quartiles"]
        print(
            f"width {row['width']:<6.4g} {row['images']} images, {row['labels']} label(s): "
            f"{row['pairs']:>3} pairs  together {row['together_ms']:8.1f} ms  one by one "
            f"{row['one_by_one_ms']:8.1f} ms  ratio {row['ratio']:.2f} ({low:.2f}-{high:.2f}), "
            f"of the least {row['least_ms'][0] / row['least_ms'][1]:.2f}"
        )


if __name__ == "__main__":
    main()
