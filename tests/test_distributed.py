"""Several processes train as one would with all of their samples."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from mtlcore.data import empty_batch
from mtlcore.episodes import BatchPlan, Episode, StepPlan, share_of
from mtlcore.errors import UsageError
from mtlcore.storage import load_checkpoint
from mtlcore.testing import TINY_TASKS, tiny_learner
from mtlcore.testing.base import same

# Trains tiny learners in float64 under every chain, each rank on its share of every batch; batch
# norms use running statistics. Steps: accumulation, a task that one rank has no label of, a batch
# with fewer samples than ranks, a step that only one rank finds not finite.
WORKER = """
import sys
from collections.abc import Callable
from pathlib import Path
import attrs, torch
import mtlcore
from mtlcore.storage import load_checkpoint, save_checkpoint
from mtlcore.balancing import DepthSettings, GramianBalancer
from mtlcore.data import Batch, empty_batch
from mtlcore.episodes import Episode, LoadedPlan
from mtlcore.distributed import init_distributed
from mtlcore.features import EarlyPrediction
from mtlcore.standard.optimizers import sgd
from mtlcore.testing import TINY_TASKS, TinyBackbone, tiny_batch, tiny_learner

class Early(TinyBackbone):
    def forward(self, inputs, tasks):
        features = super().forward(inputs, tasks)
        channels = {task.name: task.channels for task in TINY_TASKS}
        features.early = {
            t: [EarlyPrediction(features.per_task[t][0][:, :channels[t]], 0.5)] for t in tasks
        }
        features.terms = {"size": features.shared[0].square().mean()}
        return features

    def after_step(self, context):
        for task, loss in context.losses.items():  # the same on every rank
            self.branches[self.keys[task]][1].running_mean += 0.01 * loss

class Comparing(GramianBalancer):
    batches, validation = 2, "val"

    def __init__(self, scope):
        super().__init__()
        self.scope, self.validation = scope, "val" if scope == "shared" else None

    def weights(self, gramian, context=None):
        kept = context.gramians[0, 1].diagonal() / gramian.trace()
        if self.validation is None:
            return 1 + kept
        weights = torch.stack([1 + kept, 2 - kept])
        products, own = context.validation_products(weights, 0.1)
        again, _ = context.validation_products()
        kept = kept + (products.sum(1) + own + again.diagonal()).tanh()
        one = torch.stack([1 + kept, 2 - kept])
        return torch.stack([one, one.flip(0)])

class LastShared(TinyBackbone):
    def last_shared_parameters(self):
        return [self.trunk[0].weight]

class Blocks(TinyBackbone):
    def layer_groups(self):
        return [[self.trunk[0].weight], [*self.trunk[1].parameters()]]

CHAINS = {
    "depth 1": ["nash-mtl"], "depth features": ["unit-norm"],
    "batches": ["batches"], "batches at the last": ["batches at the last"],
    "equal": [], "uncertainty": ["uncertainty"], "dwa": ["dwa"], "pcgrad": ["pcgrad"],
    "nash-mtl": ["nash-mtl"], "uncertainty+pcgrad": ["uncertainty", "pcgrad"],
    "features": ["features"], "rlw+pcgrad": ["rlw", "pcgrad"], "every third": ["nash-mtl"],
    "ira": ["ira"], "early": ["dwa", "pcgrad"],
    "graddrop": ["graddrop"], "db-mtl": ["db-mtl"], "excessmtl": ["excessmtl"],
    "gradvac": ["gradvac"],
}
NAMES = tuple(task.name for task in TINY_TASKS)

def balancer(name):
    if name.startswith("batches"):
        return Comparing("shared" if name == "batches" else "last_shared")
    if name == "ira":  # elementwise losses, summed up over the ranks
        return mtlcore.create("balancers", name, main="depth", alpha=0.05)
    if name == "gradvac":  # one target for each parameter
        return mtlcore.create("balancers", name, granularity="parameter", beta=0.5)
    if name == "graddrop":  # draws for the features of each rank's own samples
        return mtlcore.create("balancers", name, scope="features")
    if name == "excessmtl":
        return mtlcore.create("balancers", name, eta=1.0)
    if name != "features":
        return mtlcore.create("balancers", name)
    found = mtlcore.create("balancers", "nash-mtl")
    found.scope = "features"
    return found

def double(batch):
    targets = {n: t.double() if t.is_floating_point() else t for n, t in batch.targets.items()}
    return attrs.evolve(batch, inputs=batch.inputs.double(), targets=targets)

def share(batch, distributed):
    mine = range(len(batch))[distributed.rank :: distributed.world_size]
    if not mine:
        return empty_batch(TINY_TASKS)
    pick = lambda values: values[list(mine)]
    valid = {n: pick(v) for n, v in batch.valid.items()}
    return Batch(
        inputs=pick(batch.inputs), targets={n: pick(t) for n, t in batch.targets.items()},
        valid=valid, count={n: int(v.sum()) for n, v in valid.items()},
        labelled={n: tuple(map(bool, v.flatten(1).any(1))) for n, v in valid.items()},
        view=batch.view[: len(mine)], keys=batch.keys[: len(mine)], meta=batch.meta[: len(mine)],
    )

def steps():
    yield [tiny_batch(4, seed=0)]
    yield [tiny_batch(3, seed=1), tiny_batch(4, seed=2)]
    lacking = tiny_batch(4, seed=3)
    for row in (1, 3):
        lacking.valid["depth"][row] = False
    left = int(lacking.valid["depth"].sum())
    yield [attrs.evolve(lacking, count={**lacking.count, "depth": left})]
    yield [tiny_batch(1, seed=4)]
    broken = tiny_batch(4, seed=5)
    broken.inputs[1] = float("nan")
    yield [broken]
    yield [tiny_batch(4, seed=6, absent=["normals"])]
    yield [tiny_batch(5, seed=7)]

def comparing(plan, number, distributed):
    # A second batch, and a validation batch of two parts, some of which one rank has nothing of.
    absent = [[], ["depth"], ["normals"]][number % 3]
    more = [tiny_batch(3, seed=50 + number, absent=absent), tiny_batch(1, seed=60 + number),
            tiny_batch(4, seed=70 + number, absent=absent)]
    if number == 2:
        more[1].inputs[:] = float("nan")
    more = [share(double(batch), distributed) for batch in more]
    first = len(plan.batches)
    return LoadedPlan(
        (*plan.batches, *more), (*plan.episodes, Episode(NAMES, first, group=1)),
        (Episode(NAMES, first + 1), Episode(NAMES, first + 2)),
    )

with init_distributed() as distributed:
    for name, chain in CHAINS.items():
        every = 3 if name == "every third" else 1
        backbone = Early if name == "early" else LastShared if "last" in name else TinyBackbone
        depth = None
        if name.startswith("depth"):
            backbone, depth = Blocks, 1 if name == "depth 1" else "features"
            depth = DepthSettings(depth=depth, norms_every=2, verify_every=3)
        learner = tiny_learner(
            [balancer(n) for n in chain], update_every=every, backbone=backbone, depth=depth
        ).double()
        learner.context.distributed = distributed
        learner.model.eval()
        optimizer = sgd(learner, lr=0.05, momentum=0.9)
        skipped, losses = [], []
        for number, batches in enumerate(steps()):
            learner.context.step = number
            loaded = tuple(share(double(batch), distributed) for batch in batches)
            plan = LoadedPlan(loaded, tuple(Episode(NAMES, n) for n in range(len(loaded))))
            if name.startswith("batches"):
                plan = comparing(plan, number, distributed)
            report = optimizer.step(learner, plan)
            skipped.append(report.skipped is not None)
            losses.append([report.losses.get(n, -1.0) for n in NAMES])
        state = dict(learner.state_dict()) | {"skipped": skipped, "losses": losses}
        state["random"] = learner.context.generator.get_state()
        file = f"{name}-{distributed.rank}-of-{distributed.world_size}.safetensors"
        save_checkpoint(Path(sys.argv[1]) / file, state)
"""


def torchrun(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            *arguments]  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "worker.py").write_text(WORKER)
    for command in ([sys.executable], torchrun()):
        subprocess.run(
            [*command, "worker.py", str(folder)], cwd=folder, env=environment(), check=True,
            timeout=300,
        )  # fmt: skip
    return folder


CHAINS = ["equal", "uncertainty", "dwa", "pcgrad", "nash-mtl", "uncertainty+pcgrad", "features",
          "every third", "ira", "early", "batches", "batches at the last", "db-mtl", "excessmtl",
          "gradvac", "depth 1", "depth features"]  # fmt: skip


def state(folder: Path, chain: str, rank: int, size: int) -> dict[str, object]:
    return load_checkpoint(folder / f"{chain}-{rank}-of-{size}.safetensors")


@pytest.mark.parametrize("chain", [*CHAINS, "rlw+pcgrad", "graddrop"])
def test_ranks_stay_identical_bit_for_bit(trained: Path, chain: str) -> None:
    first, second = (state(trained, chain, rank, 2) for rank in range(2))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert same(value, second[name]), name


@pytest.mark.parametrize("chain", CHAINS)
def test_agrees_with_one_process_and_all_samples(trained: Path, chain: str) -> None:
    alone, shared = state(trained, chain, 0, 1), state(trained, chain, 0, 2)
    skipped = [4] if chain != "batches" else [2, 4]
    assert alone["skipped"] == shared["skipped"] == [n in skipped for n in range(7)]
    taken = [number for number, skipped in enumerate(alone["skipped"]) if not skipped]
    for number in taken:
        assert shared["losses"][number] == pytest.approx(alone["losses"][number], abs=1e-9)
    for name, value in alone.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            torch.testing.assert_close(shared[name], value, rtol=0, atol=1e-6, msg=name)


def test_a_share_is_every_so_manieth_sample() -> None:
    plan = StepPlan((BatchPlan("train", (4, 1, 3), seed=7),), (Episode(("depth",), 0),))
    shares = [share_of(plan, rank, 2).batches[0] for rank in range(2)]
    assert [share.indices for share in shares] == [(4, 3), (1,)]
    assert shares[0].seed != shares[1].seed
    assert share_of(plan, 3, 4).batches[0].indices == ()


def test_an_empty_batch_has_no_task() -> None:
    batch = empty_batch(TINY_TASKS)
    assert len(batch) == 0
    assert batch.present([task.name for task in TINY_TASKS]) == ()


def test_a_wrapped_model_is_refused(tmp_path: Path) -> None:
    learner = tiny_learner()
    file = tmp_path / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    try:
        learner.model.backbone.trunk = nn.parallel.DistributedDataParallel(
            learner.model.backbone.trunk
        )
        with pytest.raises(UsageError, match="DistributedDataParallel"):
            type(learner)(learner.model, {}, (), learner.balancing)
    finally:
        torch.distributed.destroy_process_group()


SETTINGS = [
    # The last batch of an epoch has three samples: one process gets a single one, whose deepest map
    # is one pixel, too little for batch norm.
    "tasks=['segmentation', 'depth']", "data.train=7", "data.val=5", "data.size=32x32",
    "data.workers=0", "model.backbone.name='resnet'", "model.backbone.depth=18",
    "model.backbone.width=0.0625", "training.batch_size=2", "training.evaluate_every=1",
    "training.threads=1", "training.ema=0.9", "training.evaluate_ema=true",
    "plugins=['imitate.py']", "cross_task=[{name='imitate'}]",
]  # fmt: skip

# What the average predicts counts, and so do the running statistics that each rank has of its own.
IMITATE = """
from mtlcore import CrossTaskLossSpec, hookimpl

@hookimpl
def mtl_losses():
    from mtlcore.losses import CrossTaskLoss

    class Imitate(CrossTaskLoss):
        needs_teachers = ("ema",)

        def __init__(self, tasks, features):
            super().__init__()

        def needs(self, batch, tasks):
            return tasks

        def forward(self, batch, features, predictions):
            found = self.teachers["ema"].predict(batch.inputs, list(predictions))
            return {t: (predictions[t] - x).square().mean() for t, x in found.items()}

    yield CrossTaskLossSpec(name="imitate", target=Imitate)
"""


def command(out: str, epochs: int, *more: str) -> list[str]:
    depth = ["balancer.depth=2", "balancer.norms_every=2"]
    settings = [*SETTINGS, *depth, f"training.epochs={epochs}"]
    return ["-m", "mtlcore", "run", "--plugin=nashmtl", *(f"--set={s}" for s in settings),
            "--out", out, *more]  # fmt: skip


def figures(run: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads((run / "summary.json").read_text())["final"][
        "val"
    ]
    return found


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def workers(parent: int) -> Sequence[int]:
    """Process numbers of the ranks that torchrun has started, by rank."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = [v for v in variables if v.startswith(b"RANK=")]
        if int(status[1]) == parent and rank:
            found[int(rank[0][5:])] = int(folder.name)
    return [found[rank] for rank in sorted(found)]


@pytest.mark.slow
def test_run_is_killed_resumed_and_the_same_as_undisturbed(
    tmp_path: Path, spawn: Callable[..., subprocess.Popen[bytes]]
) -> None:
    (tmp_path / "imitate.py").write_text(IMITATE)
    whole = subprocess.run(
        torchrun(*command("whole", 6)), cwd=tmp_path, env=environment(), capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.count("run: whole") == 1
    assert json.loads((tmp_path / "whole/run.json").read_text())["processes"] == 2
    lines = [
        json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()
    ]
    left_out = json.loads((tmp_path / "whole/summary.json").read_text())["skipped_samples"]
    assert left_out and all("alone in its batch" in line for line in left_out)
    keys = [(line["step"], line["split"], line["task"], line["metric"]) for line in lines]
    assert len(keys) == len(set(keys))

    with (tmp_path / "log").open("w") as log:
        process = spawn(
            torchrun(*command("killed", 6)), cwd=tmp_path, env=environment(), stdout=log, stderr=log
        )
        metrics = tmp_path / "killed/metrics.jsonl"
        while not (metrics.exists() and '"val"' in metrics.read_text()):
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.01)
        os.kill(workers(process.pid)[1], signal.SIGKILL)
        assert process.wait(300) != 0
    told = (tmp_path / "log").read_text()
    assert "another process of this run has ended" in told or "stopped by SIGTERM" in told
    assert "--resume" in told
    assert json.loads((tmp_path / "killed/run.json").read_text())["status"] != "finished"

    again = subprocess.run(
        torchrun(*command("killed", 6, "--resume")), cwd=tmp_path, env=environment(),
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    last = "checkpoints/last.safetensors"
    expected, found = (load_checkpoint(tmp_path / run / last) for run in ("whole", "killed"))
    for part in ("learner", "average"):
        assert expected[part].keys() == found[part].keys()
        for name, value in expected[part].items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, found[part][name]), f"{part}.{name}"
    for rank, (one, other) in enumerate(zip(expected["ranks"], found["ranks"], strict=True)):
        for name, value in one["buffers"].items():
            assert torch.equal(value, other["buffers"][name]), f"rank {rank}: {name}"
    assert figures(tmp_path / "whole") == figures(tmp_path / "killed")


ASKED = """
import sys
import mtlcore
from mtlcore.display import Display
from mtlcore.errors import Pruned
from mtlcore.storage import request_stop
from mtlcore.system import is_main_process

class Asks(Display):
    def epoch(self, epoch, *more):
        if is_main_process():
            request_stop("asked", "it is no better")

    def note(self, message): ...
    def stop(self): ...
    def _begin(self, title): ...

try:
    mtlcore.run(sys.argv[1], out="asked", display=Asks())
except Pruned as error:
    print("asked", error)
"""


def test_all_processes_stop_after_the_epoch_in_which_one_is_asked(tmp_path: Path) -> None:
    (tmp_path / "asked.py").write_text(ASKED)
    (tmp_path / "imitate.py").write_text(IMITATE)
    lines = [s for s in SETTINGS if not s.startswith("data.size")] + ["training.epochs=4"]
    (tmp_path / "mine.toml").write_text("data.size = [32, 32]\n" + "\n".join(lines))
    done = subprocess.run(
        torchrun("asked.py", "mine.toml"), cwd=tmp_path, env=environment(), capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("asked asked to stop after epoch 1 of 4 (it is no better)") == 2
    state = load_checkpoint(tmp_path / "asked/checkpoints/last.safetensors")
    assert len(state["ranks"]) == 2
    assert state["progress"]["epoch"] == 1


# Writes down what it plans, and asks the second process to stop after a step.
WATCHED = """
import os, signal, sys
sys.path.insert(0, os.getcwd())
import by_loss
from mtlcore import EpisodeSamplerSpec, hookimpl

@hookimpl
def mtl_episode_samplers():
    (record,) = by_loss.mtl_episode_samplers()

    class Watched(record.load()):
        def plan(self, *arguments):
            plan = super().plan(*arguments)
            with open(os.environ["MTL_TEST_PLANS"] + os.environ["RANK"], "a") as file:
                print(plan, file=file)
            return plan

        def after_step(self, context):
            super().after_step(context)
            if f"{context.step} {os.environ['RANK']}" == os.environ["MTL_TEST_STRIKE"]:
                os.kill(os.getpid(), signal.SIGTERM)

    yield EpisodeSamplerSpec(name="watched", target=Watched)
"""


def train_watched(
    folder: Path, out: str, strike: str = "", resume: bool = False
) -> subprocess.CompletedProcess[str]:
    """Two epochs of six steps in two processes."""
    settings = [
        "tasks=['segmentation', 'depth']", "data.train=24", "data.val=4", "data.size=32x32",
        "data.workers=0", "model.backbone.width=0.03125", "training.batch_size=2",
        "training.epochs=2", "training.threads=1", "episodes.name=watched", "episodes.horizon=4",
    ]  # fmt: skip
    plans = f"{out} resumed" if resume else out
    return subprocess.run(
        torchrun("-m", "mtlcore", "run", "--plugin=watched.py", "--out", out,
                 *(f"--set={s}" for s in settings), *(["--resume"] if resume else [])),
        cwd=folder, capture_output=True, text=True, timeout=300,
        env={**environment(), "MTL_TEST_STRIKE": strike, "MTL_TEST_PLANS": f"{plans} "},
    )  # fmt: skip


@pytest.mark.slow
def test_a_sampler_that_learns_plans_the_same_everywhere_and_goes_on_bit_for_bit(
    tmp_path: Path,
) -> None:
    page = (Path(__file__).parents[1] / "docs/hooks/episode-samplers.md").read_text("utf-8")
    code = page.split("<!-- test: file by_loss.py -->\n```python\n")[1].split("```")[0]
    (tmp_path / "by_loss.py").write_text(code)
    (tmp_path / "watched.py").write_text(WATCHED)
    whole = train_watched(tmp_path, "whole")
    assert whole.returncode == 0, whole.stderr
    # The second epoch begins before step 6; of its first block two steps are taken.
    stopped = train_watched(tmp_path, "stopped", "7 1")
    assert "after step 8 of 12; saved" in stopped.stderr, stopped.stderr
    resumed = train_watched(tmp_path, "stopped", resume=True)
    assert resumed.returncode == 0, resumed.stderr
    for run in ("whole", "stopped", "stopped resumed"):
        first, second = ((tmp_path / f"{run} {rank}").read_text() for rank in range(2))
        assert first == second, run
    drawn = (tmp_path / "whole 0").read_text().splitlines()
    assert len(drawn) == 12
    # The block of steps 6 to 9 is drawn again, and all after it.
    assert (tmp_path / "stopped 0").read_text().splitlines() == drawn[:10]
    assert (tmp_path / "stopped resumed 0").read_text().splitlines() == drawn[6:]
    last = "checkpoints/last.safetensors"
    expected, found = (load_checkpoint(tmp_path / run / last) for run in ("whole", "stopped"))
    assert set(expected["plans"]["sampler"]["losses"]) == {"segmentation", "depth"}
    for part in ("learner", "optimizer", "plans", "random", "ranks"):
        assert same(found[part], expected[part]), part
