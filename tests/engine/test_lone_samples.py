"""A sample alone in its batch: learnt from where the network can, left out and told where not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mtlcore
from mtlcore.config import Layer, resolve
from mtlcore.display import SilentDisplay
from mtlcore.engine import Session, Training
from mtlcore.episodes import Episode, LoadedPlan
from mtlcore.errors import MtlError, UsageError
from mtlcore.plugins import Plugins
from mtlcore.storage import RunDirectory
from mtlcore.testing.base import same, state_of

pytestmark = pytest.mark.usefixtures("no_pictures")

DEEPLAB = {"name": "deeplab", "rates": [1], "channels": 4}
RESNET = {"name": "resnet", "depth": 18, "width": 0.0625}
# Both with many pixels in every map but DeepLab's pooled one, and with one pixel in the deepest.
NETWORKS: dict[str, tuple[dict[str, Any], int, bool]] = {
    "large maps": ({"backbone": {"name": "resnet", "depth": 18, "width": 0.0625}}, 64, True),
    "small maps": ({"backbone": RESNET}, 32, False),
    "deeplab": ({"backbone": {**RESNET, "output_stride": 8}, "head": DEEPLAB}, 64, False),
}


def config(network: str, *, train: int = 7, **training: Any) -> dict[str, Any]:
    model, side, _ = NETWORKS[network]
    return {
        "tasks": ["segmentation", "depth"],
        "device": "cpu",
        "data": {"train": train, "val": 2, "size": [side, side], "workers": 0},
        "model": model,
        "training": {"epochs": 1, "batch_size": 2, "threads": 1, **training},
    }


@pytest.mark.parametrize("network", NETWORKS)
def test_what_reaches_the_network_decides(network: str, tmp_path: Path) -> None:
    learns = NETWORKS[network][2]
    resolved = resolve(Plugins(allow=()), (), [Layer("test", config(network, max_skipped=3))])
    session = Session(resolved, RunDirectory(str(tmp_path / "x"), resume=True), SilentDisplay())
    training = Training(session)
    session.learner.train()
    plan = next(iter(session.loader.plans(training.plan_block())))
    assert plan is not None
    rows = [0]
    batch = plan.batches[0]
    lone = type(batch)(
        inputs=batch.inputs[rows],
        targets={t: x[rows] for t, x in batch.targets.items()},
        valid={t: x[rows] for t, x in batch.valid.items()},
        count={t: int(x[rows].sum()) for t, x in batch.valid.items()},
        labelled={t: x[:1] for t, x in batch.labelled.items()},
        view=(0,),
        keys=batch.keys[:1],
        meta=batch.meta[:1],
    )
    before, drawn = state_of(session.learner), torch.get_rng_state()
    assert session.learner.trains_on(lone.inputs) == learns
    assert same(state_of(session.learner), before)
    assert torch.equal(torch.get_rng_state(), drawn)

    report = training.step(LoadedPlan((lone,), (Episode(session.learner.tasks, 0),)))
    assert (report.skipped is None) == learns
    assert len(session.loader.skipped) == (0 if learns else 1)
    if not learns:
        assert session.loader.skipped[0].startswith(f"{batch.keys[0]}: alone in its batch")
        assert "one sample is left" in str(report.skipped)
        assert same(state_of(session.learner), before)
        # Beside another batch of the step, the step is taken.
        episodes = (Episode(session.learner.tasks, 0), Episode(session.learner.tasks, 1))
        assert training.step(LoadedPlan((lone, batch), episodes)).skipped is None


@pytest.mark.parametrize("network", NETWORKS)
def test_batches_of_one_are_refused_where_none_could_be_learnt_from(
    network: str, tmp_path: Path
) -> None:
    for given in ({"train": 2, "batch_size": 1}, {"train": 1}):
        settings = config(network, **given)
        if NETWORKS[network][2]:
            mtlcore.run(settings, out=str(tmp_path / f"run{len(given)}"))
        else:
            with pytest.raises(UsageError, match=r"training\.batch_size: batches hold one sample"):
                mtlcore.run(settings, out=str(tmp_path / f"run{len(given)}"))


FOLDER = """
image = "{split}/{name}.png"
[tasks.a]
kind = "segmentation"
file = "{split}-a/{name}.png"
classes = ["x", "y"]
"""


def test_a_batch_of_which_one_sample_can_be_read(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for split, count in (("train", 4), ("val", 2)):
        for kind in (split, f"{split}-a"):
            (data / kind).mkdir(parents=True)
        for number in range(count):
            drawn = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(drawn).save(data / split / f"{number}.png")
            Image.fromarray(drawn[..., 0] // 128).save(data / f"{split}-a/{number}.png")
    (data / "train/2.png").write_text("broken")
    (data / "dataset.toml").write_text(FOLDER)
    settings = config("small maps", max_skipped=2)
    settings["tasks"] = ["a"]
    settings["data"] = {"name": "folder", "root": str(data), "workers": 0, "on_error": "skip"}
    summary = mtlcore.run(settings, out=str(tmp_path / "run"))
    assert (summary["steps"], summary["skipped_steps"]) == (2, 1)
    assert sum("alone in its batch" in line for line in summary["skipped_samples"]) == 1
    # Where it happens again and again, the run ends and says why.
    for number in (0, 1, 3):
        (data / f"train/{number}.png").write_text("broken" if number else "")
    image = Image.fromarray(np.zeros((32, 32, 3), np.uint8))
    image.save(data / "train/0.png")
    settings["training"]["epochs"] = 9
    with pytest.raises(MtlError, match=r"2 steps in a row .* (one sample is left|can be read)"):
        mtlcore.run(settings, out=str(tmp_path / "again"))
