"""The search finds what helps: what sees far where the truth is far away, and near where near."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mtlcore.features import Features
from mtlcore.models import Backbone
from mtlcore.tasks import Task
from mtlcore_atrc.backbone import ATRC
from mtlcore_atrc.contexts import KINDS

SOURCE = Task(name="source", kind="anything", channels=1)
TARGET = Task(name="target", kind="anything", channels=1)


class Pixels(Backbone):
    """Hands on the image."""

    out_channels, strides, input_multiple = (3,), (1,), 1

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()

    def forward(self, inputs: Tensor, tasks: Sequence[str]) -> Features:
        return Features(shared=(inputs,))


def found(far: bool) -> dict[str, dict[str, float]]:
    """Search for what the target gathers, and return how likely each kind of each source is.

    The truth is the brightness of a corner, the same everywhere, or the mean of the neighbours of
    each pixel, all of which are drawn.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    backbone = ATRC((SOURCE, TARGET), backbone=Pixels, search=1.0, channels=12, window=3, labels=4)
    head = torch.nn.Conv2d(12, 1, 1)
    optimizer = torch.optim.Adam([*backbone.parameters(), *head.parameters()], lr=1e-2)
    steps = 120
    for step in range(steps):
        backbone.at_progress(step / steps)
        images = torch.rand(8, 3, 8, 8)
        truth = F.avg_pool2d(images[:, :1], 3, 1, 1)
        if far:
            level = torch.rand(8, 1, 1, 1)
            images[:, :1] = 0.0
            images[:, :1, :3, :3] = level
            truth = level.expand(8, 1, 8, 8)
        features = backbone(images, ["target"])
        loss = 12 * F.mse_loss(head(features.of("target")[0]), truth) + features.terms["entropy"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    values = backbone.current_values()
    return {
        source: {k: values[f"{k}/{source}"].get("target", 0.0) for k in KINDS}
        for source in ("source", "target")
    }


@pytest.mark.slow
def test_it_gathers_from_a_window_what_is_near() -> None:
    for chances in found(far=False).values():
        local = chances.pop("local")
        assert local > 2 * max(chances.values()), chances


def test_it_gathers_from_everywhere_what_is_far() -> None:
    for chances in found(far=True).values():
        best = max(chances, key=chances.__getitem__)
        assert best in ("global", "t-label", "s-label"), chances
        assert chances[best] > 1.5 * chances["local"], chances
