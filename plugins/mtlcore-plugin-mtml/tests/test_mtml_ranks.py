"""Two processes take the steps that one takes with all of their samples."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mtlcore.distributed import Distributed
from mtlcore.errors import UsageError
from mtlcore.storage import load_checkpoint
from mtlcore.testing import tiny_learner
from mtlcore_mtml.bilevel import MTML

# Each rank has every second sample of both batches; batch norms use running statistics. The second
# step has a task that one rank has no support label of, the third is not finite on one rank only,
# in its support.
WORKER = """
import sys
from pathlib import Path
import attrs, torch
from mtlcore.storage import load_checkpoint, save_checkpoint
from mtlcore.balancing import GramianBalancer
from mtlcore.episodes import Episode, LoadedPlan
from mtlcore.distributed import init_distributed
from mtlcore.standard.balancers import Uncertainty
from mtlcore.testing import tiny_batch, tiny_learner
from mtlcore_mtml.bilevel import MTML

PAIRS = [("segmentation", "depth"), ("depth", "normals"), ("segmentation", "depth", "normals")]

class Normalised(GramianBalancer):
    def weights(self, gramian, context=None):
        return gramian.diagonal().rsqrt()

def share(batch, distributed):
    mine = list(range(len(batch))[distributed.rank :: distributed.world_size])
    valid = {n: v[mine] for n, v in batch.valid.items()}
    targets = {n: t[mine] for n, t in batch.targets.items()}
    targets = {n: t.double() if t.is_floating_point() else t for n, t in targets.items()}
    return attrs.evolve(
        batch, inputs=batch.inputs[mine].double(), targets=targets, valid=valid,
        count={n: int(v.sum()) for n, v in valid.items()}, view=batch.view[: len(mine)],
        keys=batch.keys[: len(mine)], meta=batch.meta[: len(mine)],
    )

with init_distributed() as distributed:
    for restore in (True, False):
        learner = tiny_learner([Uncertainty(form="mtml"), Normalised()]).double()
        learner.context.distributed = distributed
        learner.model.eval()
        optimizer = MTML(learner, inner_lr=0.05, inner_steps=2, weight_decay=0.1, restore=restore)
        skipped, losses = [], []
        for number in range(5):
            batches = [tiny_batch(5, seed=2 * number), tiny_batch(4, seed=2 * number + 1)]
            if number == 1:
                batches[0].valid["depth"][1::2] = False
            if number == 2:
                batches[0].inputs[1] = float("nan")
            plan = LoadedPlan(
                tuple(share(b, distributed) for b in batches),
                tuple(Episode(t, 0, 1) for t in PAIRS),
            )
            report = optimizer.step(learner, plan)
            skipped.append(report.skipped is not None)
            losses.append([report.losses.get(n, -1.0) for n in learner.tasks])
        state = {"learner": dict(learner.state_dict()), "skipped": skipped, "losses": losses}
        file = f"{restore}-{distributed.rank}-of-{distributed.world_size}.safetensors"
        save_checkpoint(Path(sys.argv[1]) / file, state)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "worker.py").write_text(WORKER)
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for options in ([], several):
        subprocess.run(
            [sys.executable, *options, "worker.py", str(folder)],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
            timeout=300,
        )
    return folder


@pytest.mark.parametrize("restore", [True, False])
def test_two_processes_are_as_one(trained: Path, restore: bool) -> None:
    alone, first, second = (
        load_checkpoint(trained / f"{restore}-{rank}-of-{size}.safetensors")
        for rank, size in ((0, 1), (0, 2), (1, 2))
    )
    assert alone["skipped"] == [False, False, True, False, False]
    assert first["skipped"] == second["skipped"] == alone["skipped"]
    for one, other in zip(first["losses"], alone["losses"], strict=True):
        if torch.tensor(other).isfinite().all():
            assert one == pytest.approx(other, rel=1e-9)
    for name, value in alone["learner"].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(first["learner"][name], second["learner"][name]), name
            torch.testing.assert_close(first["learner"][name], value, rtol=1e-7, atol=1e-10)


def test_second_order_is_refused() -> None:
    learner = tiny_learner()
    learner.context.distributed = Distributed(rank=0, world_size=2)
    with pytest.raises(UsageError, match="use one process, or first order"):
        MTML(learner, second_order=True)
