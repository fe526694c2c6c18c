"""How far an update by the end of the trunk is from the exact one (`balancer.depth`).

    python benchmarks/depth_error.py [--quick] [--json] [--only conv] [--balancer nash-mtl]
                                     [--weights FILE]

Tasks are what frozen networks drawn at random make of the inputs, and their losses differ up to a
hundredfold in scale. The trunk learns them by Adam along the exact updates; in every step each
scheme says what it would have done, and the cosine of that update to the exact one counts. A row
has their median and 5th percentile over the steps.

Trunks: three linear layers; five convolutions with batch norm; ResNet-50 from random weights; and
timm's EfficientNet-Lite0 with the weights of `--weights` (left out without).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

import mtlcore
from mtlcore.balancing import BalancerContext, GramianBalancer
from mtlcore.balancing.depth import DepthEstimate, DepthSettings
from mtlcore.tasks import Task

SCHEMES = {
    "features": DepthSettings(depth="features", verify_every=1),
    "last block": DepthSettings(depth=1, verify_every=1),
    "last block, norms every 8": DepthSettings(depth=1, norms_every=8, verify_every=1),
}
HELD = 8


@dataclass
class Trunk:
    """A network whose features all heads read.

    Args:
        net: inputs -> (n, channels) features.
        channels: of the features.
        last: parameters of its last block.
        inputs: makes a batch.
        steps: to measure.
    """

    net: nn.Module
    channels: int
    last: Sequence[Parameter]
    inputs: Callable[[], Tensor]
    steps: int


def mlp() -> Trunk:
    """Three linear layers on 64 vectors of 64 values."""
    layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise((64, 128, 192, 96))]
    return Trunk(
        nn.Sequential(*layers), 96, [*layers[-1].parameters()], lambda: torch.randn(64, 64), 100
    )


def conv() -> Trunk:
    """Five convolutions with batch norm on 32 images of 16x16."""
    layers: list[nn.Module] = []
    for number, (a, b) in enumerate(pairwise((3, 16, 32, 32, 64, 64))):
        unit = [nn.Conv2d(a, b, 3, 2 if number in (1, 3) else 1, 1, bias=False), nn.BatchNorm2d(b)]
        layers.append(nn.Sequential(*unit, nn.ReLU()))
    last = [*layers[-1].parameters()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Trunk(net, 64, last, lambda: _images(32, 16), 100)


def resnet50() -> Trunk:
    """ResNet-50 from random weights on 8 images of 64x64."""
    backbone = mtlcore.create("backbones", "resnet", _tasks(1), depth=50)
    return _over(backbone, 8, 64)


def pretrained(weights: str) -> Trunk:
    """EfficientNet-Lite0 with pretrained weights on 8 images of 96x96."""
    backbone = mtlcore.create(
        "backbones", "timm", _tasks(1), model="tf_efficientnet_lite0", weights=weights
    )
    return _over(backbone, 8, 96)


def _over(backbone: Any, samples: int, size: int) -> Trunk:
    """The deepest map of a backbone, averaged over its pixels."""
    last = [*backbone.trunk_blocks()[-1]]
    deepest = max(range(len(backbone.strides)), key=lambda place: backbone.strides[place])

    class Deepest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone

        def forward(self, images: Tensor) -> Tensor:
            features = self.backbone(images, ["t0"])
            return features.shared[deepest].mean((2, 3))

    return Trunk(
        Deepest(), backbone.out_channels[deepest], last, lambda: _images(samples, size), 30
    )


def _images(count: int, size: int) -> Tensor:
    """Smooth noise in three channels, about as bright as normalised photographs."""
    coarse = torch.randn(count, 3, size // 4, size // 4)
    fine = nn.functional.interpolate(coarse, (size, size), mode="bilinear", align_corners=False)
    return fine * 1.5 + 0.2 * torch.randn(count, 3, size, size)


def _tasks(count: int) -> list[Task]:
    return [Task(name=f"t{number}", kind="depth", channels=1) for number in range(count)]


@dataclass
class Tasks:
    """Heads, and the frozen networks that they are to follow.

    Args:
        heads: a linear layer of the features each.
        teachers: a network of the inputs each.
        scales: of the losses.
    """

    heads: nn.ModuleList
    teachers: list[nn.Module]
    scales: Tensor
    names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = [f"t{number}" for number in range(len(self.heads))]

    def losses(self, features: Tensor, inputs: Tensor) -> list[Tensor]:
        found = []
        for head, teacher, scale in zip(self.heads, self.teachers, self.scales, strict=True):
            with torch.no_grad():
                target = teacher(inputs)
            found.append(scale * (head(features) - target).square().mean())
        return found


def _drawn(count: int, trunk: Trunk) -> Tasks:
    example = trunk.inputs()
    teachers: list[nn.Module] = []
    for _ in range(count):
        if example.ndim == 2:
            body: list[nn.Module] = [nn.Linear(example.shape[1], 32), nn.Tanh()]
        else:
            body = [nn.Conv2d(3, 32, 5, 4), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        teachers.append(nn.Sequential(*body, nn.Linear(32, 4)).requires_grad_(False))
        for parameter in teachers[-1].parameters():
            parameter.mul_(3)
    heads = nn.ModuleList(nn.Linear(trunk.channels, 4) for _ in range(count))
    return Tasks(heads, teachers, 10 ** (2 * torch.rand(count) - 1))


def cosines(make: Callable[[], Trunk], count: int, balancer: str, share: float) -> dict[str, Any]:
    """Return scheme -> cosines to the exact update, over the steps of a training."""
    torch.manual_seed(0)
    trunk = make()
    tasks = _drawn(count, trunk)
    chosen = mtlcore.create("balancers", balancer)
    assert isinstance(chosen, GramianBalancer)
    chosen.prepare(_tasks(count))
    context = BalancerContext(tasks=tasks.names, present=tasks.names)
    shared = [p for p in trunk.net.parameters() if p.requires_grad]
    places = {id(p): place for place, p in enumerate(shared)}
    last = [places[id(p)] for p in trunk.last if id(p) in places]
    optimizer = torch.optim.Adam([*shared, *tasks.heads.parameters()], 1e-3)
    estimates = {name: DepthEstimate(settings) for name, settings in SCHEMES.items()}
    found: dict[str, list[float]] = {
        name: [] for name in ("sum", "1/norm", f"held {HELD}", *SCHEMES)
    }
    held: Tensor | None = None

    def weights(gramian: Tensor) -> Tensor:
        return chosen.weights(gramian, context=context)

    for step in range(max(10, round(trunk.steps * share))):
        inputs = trunk.inputs()
        features = trunk.net(inputs)
        losses = tasks.losses(features, inputs)
        rows = [torch.autograd.grad(x, [*shared, features], retain_graph=True) for x in losses]
        exact = _gramian([row[:-1] for row in rows])
        here = {
            "features": _gramian([row[-1:] for row in rows]),
            "last block": _gramian([[row[place] for place in last] for row in rows]),
        }
        right = weights(exact)
        if step % HELD == 0:
            held = right
        assert held is not None
        found["sum"].append(_cosine(torch.ones(count), right, exact))
        found["1/norm"].append(_cosine(1 / exact.diagonal().sqrt(), right, exact))
        if step % HELD:
            found[f"held {HELD}"].append(_cosine(held, right, exact))
        for name, estimate in estimates.items():
            estimate.begin(step)
            gramian = here["features" if name == "features" else "last block"]
            *_, error = estimate.answer(tasks.names, gramian, exact, weights, None)
            estimate.commit()
            if error is not None:
                found[name].append(error.cosine)
        optimizer.zero_grad()
        torch.stack(losses).sum().backward(inputs=[*tasks.heads.parameters()])
        for place, parameter in enumerate(shared):
            parameter.grad = sum(
                w * row[place] for w, row in zip(right.tolist(), rows, strict=True)
            )
        optimizer.step()
    return found


def _gramian(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    flat = torch.stack([torch.cat([x.flatten() for x in row]) for row in rows])
    return (flat @ flat.T).double()


def _cosine(first: Tensor, second: Tensor, gramian: Tensor) -> float:
    a, b = first.double(), second.double()
    return float(a @ gramian @ b / ((a @ gramian @ a) * (b @ gramian @ b)).sqrt())


def main() -> None:
    """Measure what was asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a third of the steps")
    parser.add_argument("--json", action="store_true", help="print a list instead of a table")
    parser.add_argument("--only", default="", help="trunks whose name has this in it")
    parser.add_argument("--balancer", default="nash-mtl", help="of Gramians")
    parser.add_argument("--weights", help="EfficientNet-Lite0's, a file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    trunks: dict[str, tuple[Callable[[], Trunk], tuple[int, ...]]] = {
        "mlp": (mlp, (3, 10, 40)),
        "conv": (conv, (3, 10, 40)),
        "ResNet-50": (resnet50, (3, 10)),
    }
    if given.weights is None:
        print("pretrained: not measured: no --weights", file=sys.stderr)
    else:
        trunks["EfficientNet-Lite0, pretrained"] = (lambda: pretrained(given.weights), (3, 10))
    rows = []
    for name, (make, counts) in trunks.items():
        for count in counts if given.only in name else ():
            found = cosines(make, count, given.balancer, 1 / 3 if given.quick else 1.0)
            for scheme, values in found.items():
                low = statistics.quantiles(values, n=20)[0]
                rows.append(
                    {"trunk": name, "tasks": count, "scheme": scheme, "steps": len(values)}
                    | {"median": statistics.median(values), "low": low}
                )
    if given.json:
        print(json.dumps(rows, indent=1))
        return
    print("| trunk | tasks | scheme | median | 5th percentile |")
    print("| --- | ---: | --- | ---: | ---: |")
    for row in rows:
        print(
            f"| {row['trunk']} | {row['tasks']} | {row['scheme']} | {row['median']:.3f} "
            f"| {row['low']:.3f} |"
        )


if __name__ == "__main__":
    main()
