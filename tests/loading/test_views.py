"""Several views of a sample: how they are made, what sees them, and that view 0 stays as it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import attrs
import pytest
import torch
from torch import Tensor, nn

from mtlcore.balancing import BalancerContext, LossBalancer
from mtlcore.config import Layer, resolve
from mtlcore.data import Batch, DataError, Dataset, Sample
from mtlcore.engine import build_learner, make_loader
from mtlcore.episodes import BatchPlan
from mtlcore.errors import UsageError
from mtlcore.features import Features
from mtlcore.loading import Augmentation, PlanReader, Split, as_seen_in
from mtlcore.losses import CrossTaskLoss
from mtlcore.plugins import Plugins
from mtlcore.tasks import Task
from mtlcore.testing import TINY_TASKS, tiny_batch, tiny_learner
from mtlcore.testing.base import same

TASKS = (
    Task(name="segmentation", kind="segmentation", channels=9),
    Task(name="depth", kind="depth", channels=1),
    Task(name="normals", kind="normals", channels=3),
)
SIZE = (24, 32)
AUGMENTATION = Augmentation(scales=(1.0, 1.2, 1.5), flip=True)


class Gradients(Dataset):
    """Smooth pictures whose labels are read off the picture itself."""

    def __init__(self, broken: Iterable[int] = ()) -> None:
        self.broken = set(broken)
        self.read: list[int] = []

    @classmethod
    def describe(cls, root: str | None, **settings: object) -> tuple[Task, ...]:
        return TASKS

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Sample:
        self.read.append(index)
        if index in self.broken:
            raise DataError(f"gradients/{index}: broken")
        down = torch.linspace(0, 1, SIZE[0]).view(-1, 1).expand(*SIZE)
        across = torch.linspace(0, 1, SIZE[1]).expand(*SIZE)
        inputs = torch.stack([down, across, torch.full(SIZE, index / 8)])
        normals = nn.functional.normalize(torch.stack([across, down, -torch.ones(SIZE)]), dim=0)
        targets = {
            "segmentation": (3 * down).long().clamp(max=2) * 3 + (3 * across).long().clamp(max=2),
            "depth": 1 + across[None],
            "normals": normals,
        }
        everywhere = torch.ones(SIZE, dtype=torch.bool)
        return Sample(
            inputs=inputs,
            targets=targets,
            valid=dict.fromkeys(targets, everywhere),
            key=f"gradients/{index}",
        )


def reader(views: int, dataset: Dataset | None = None, on_error: str = "stop") -> PlanReader:
    split = Split(dataset or Gradients(), TASKS, None, None)
    return PlanReader({"train": split}, TASKS, AUGMENTATION, on_error, views)  # type: ignore[arg-type]


PLAN = BatchPlan("train", (5, 1, 6), seed=11, augment=True)


def batch_of(views: int, plan: BatchPlan = PLAN) -> Batch:
    batch = reader(views)[plan].batch
    assert batch is not None
    return batch


@pytest.mark.parametrize("views", [2, 3])
def test_views_follow_one_another_and_view_0_is_what_it_was(views: int) -> None:
    batch = batch_of(views)
    assert batch.view == tuple(number for number in range(views) for _ in range(3))
    assert batch.keys == ("gradients/5", "gradients/1", "gradients/6") * views
    alone = batch_of(1)
    assert same(attrs.asdict(batch.first_views()), attrs.asdict(alone))
    assert batch.count == alone.count
    assert alone.first_views() is alone
    # The third channel is the same everywhere in a picture: it tells which sample a row is of.
    assert batch.inputs[:, 2, 0, 0].tolist() == [5 / 8, 1 / 8, 6 / 8] * views


def test_a_sample_is_read_once_and_another_view_is_another_crop() -> None:
    dataset = Gradients()
    batch = reader(2, dataset)[PLAN].batch
    assert batch is not None
    assert dataset.read == [5, 1, 6]
    geometry = [(meta["crop"], meta["flip"]) for meta in batch.meta]
    assert geometry[:3] != geometry[3:]
    assert same(attrs.asdict(batch_of(2)), attrs.asdict(batch))


def test_samples_that_cannot_be_read_lose_all_their_views() -> None:
    loaded = reader(2, Gradients(broken=[1]), "skip")[PLAN]
    assert loaded.batch is not None
    assert loaded.batch.view == (0, 0, 1, 1)
    assert loaded.batch.keys == ("gradients/5", "gradients/6") * 2
    assert loaded.errors == ("gradients/1: broken",)


def test_only_what_asks_for_augmentation_has_views() -> None:
    assert batch_of(2, attrs.evolve(PLAN, augment=False)).view == (0, 0, 0)


@pytest.mark.parametrize("seed", range(6))
def test_predictions_follow_a_view_as_its_labels_do(seed: int) -> None:
    """What is true of view 0, changed by `as_seen_in`, is what the labels of view 1 say."""
    batch = batch_of(2, attrs.evolve(PLAN, seed=seed))
    inside = (slice(None), slice(3, -3), slice(3, -3))  # bilinear values differ at the border
    for first, second in zip(range(3), range(3, 6), strict=True):
        for task in TASKS[1:]:
            labels = batch.targets[task.name]
            seen = as_seen_in(task, labels[first], batch.meta[second])
            assert seen.shape == labels[second].shape
            # Pixels are picked for labels and mixed for predictions: up to a pixel of difference.
            gap = 1.5 * (labels[first].diff(dim=-1).abs().max() + 1 / SIZE[0])
            assert float((seen - labels[second])[inside].abs().max()) < float(gap)
            assert not torch.equal(seen, labels[first]) or batch.meta[second]["scale"] == 1
        classes = nn.functional.one_hot(batch.targets["segmentation"][first], 9).movedim(-1, 0)
        seen = as_seen_in(TASKS[0], classes.float(), batch.meta[second]).argmax(0)
        assert float((seen == batch.targets["segmentation"][second]).float().mean()) > 0.9


def test_mirrors_and_enlargements_change_values() -> None:
    meta = {"crop": (0, 0, 4, 4), "scale": 1.5, "flip": True}
    depth, normals = torch.full((1, 6, 6), 3.0), torch.full((3, 6, 6), 0.5)
    assert torch.allclose(as_seen_in(TASKS[1], depth, meta), torch.tensor(2.0))
    seen = as_seen_in(TASKS[2], normals, meta)
    assert torch.allclose(seen, torch.tensor([-0.5, 0.5, 0.5]).view(3, 1, 1).expand(3, 6, 6))


class Both(CrossTaskLoss):
    """Predictions on two views of a sample agree; it has a parameter that it draws."""

    views = 2

    def __init__(self, tasks: object, features: object) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(()))

    def needs(self, batch: Batch, tasks: Sequence[str]) -> Iterable[str]:
        return [task for task in tasks if task == "depth"]

    def forward(
        self, batch: Batch, features: Features, predictions: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        half = len(batch) // 2
        depth = predictions["depth"]
        return {"both": self.scale * (depth[:half] - depth[half:]).square().mean()}


class Reads(LossBalancer):
    """Notes what it is given besides the losses."""

    needs_maps = True

    def transform(self, losses: dict[str, Tensor], context: BalancerContext) -> dict[str, Tensor]:
        self.batch, self.maps = context.batch, context.maps
        return losses


def test_maps_and_labels_of_a_balancer_are_of_view_0() -> None:
    reads = Reads()
    learner = tiny_learner([reads], cross_task=[Both(None, None)])
    assert learner.views == 2
    batch = tiny_batch(4, views=(0, 0, 1, 1))
    learner(batch, learner.tasks)
    assert reads.batch is not None
    assert len(reads.batch) == 2
    for task in TINY_TASKS:
        assert reads.maps[task.name].shape == reads.batch.valid[task.name].shape
        assert torch.equal(reads.batch.valid[task.name], batch.valid[task.name][:2])
        assert torch.equal(reads.batch.targets[task.name], batch.targets[task.name][:2])
        assert batch.labelled[task.name] == (True,) * 4


def test_a_batch_without_the_views_is_refused() -> None:
    learner = tiny_learner(cross_task=[Both(None, None)])
    with pytest.raises(UsageError, match="compares 2 views of each sample, and the batch has 1"):
        learner(tiny_batch(4), learner.tasks)


def test_two_terms_of_one_name_are_refused() -> None:
    learner = tiny_learner(cross_task=[Both(None, None), Both(None, None)])
    with pytest.raises(UsageError, match="has a term 'both', as another loss"):
        learner(tiny_batch(4, views=(0, 0, 1, 1)), learner.tasks)


SMALL = {
    "device": "cpu",
    "data": {"train": 4, "val": 2, "size": [32, 32], "workers": 0},
    "training": {"batch_size": 2, "epochs": 2},
}


def test_without_augmentation_views_are_refused() -> None:
    config = resolve(Plugins.from_environment(), [], [Layer("test", SMALL)])
    with pytest.raises(UsageError, match=r"data\.augment\.scales"):
        make_loader(config, {}, views=2)
    assert make_loader(config, {}, views=1) is not None


def test_a_cross_task_loss_leaves_the_global_stream_alone() -> None:
    """Otherwise adding one changes the dropout of every step after."""
    config = resolve(Plugins.from_environment(), [], [Layer("test", SMALL)])
    torch.manual_seed(3)
    build_learner(config)
    plain = torch.rand(3)
    torch.manual_seed(3)
    build_learner(attrs.evolve(config, cross_task=(_Chosen(),)))
    assert torch.equal(plain, torch.rand(3))


class _Chosen:
    """Stands for a chosen component that draws while it is made."""

    def make(self, tasks: object, features: object) -> Both:
        return Both(tasks, features)
