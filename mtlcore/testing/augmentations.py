"""What holds for every augmentation, of a sample or of a batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from mtlcore.data import DataError, Sample, collate, complete
from mtlcore.errors import UsageError
from mtlcore.loading import BatchAugmentation, SampleAugmentation
from mtlcore.tasks import Task
from mtlcore.testing.base import global_stream_untouched, same

_TASKS = (
    Task(name="segmentation", kind="segmentation", channels=5),
    Task(name="depth", kind="depth", channels=1),
    Task(name="normals", kind="normals", channels=3),
    Task(name="scene", kind="classification", channels=5),
    Task(name="objects", kind="multilabel", channels=4),
)
_SEEDS = range(12)
# Classes that only what is not valid has: the safe value, and what a file may hold there.
_NEVER_VALID = (0, 4)


class AugmentationContract:
    """Subclass it, write `make`, and pytest checks the augmentation.

    Attributes:
        size: height and width of the images.
        images_only: whether it refuses inputs that are no images.
    """

    size: tuple[int, int] = (24, 32)
    images_only: bool = True

    def make(self, tasks: Sequence[Task]) -> SampleAugmentation | BatchAugmentation:
        """Return the augmentation."""
        raise NotImplementedError

    def test_the_seed_decides(self) -> None:
        """Otherwise workers and resuming change what a run sees."""
        torch.manual_seed(1)
        first = self._augmented(self._samples(), 3)
        torch.manual_seed(2)
        change = self.make(_TASKS)
        self._augmented(self._samples(), 4, change)  # an earlier call must not matter either
        with global_stream_untouched("the augmentation"):
            second = self._augmented(self._samples(), 3, change)
        assert _same(first, second), "the same generator state gives another result"

    def test_seeds_differ(self) -> None:
        """Otherwise every epoch shows the samples in the same way."""
        first, *others = (self._augmented(self._samples(), seed) for seed in _SEEDS)
        assert not all(_same(first, other) for other in others), "all seeds give the same result"

    def test_what_is_given_stays(self) -> None:
        """Otherwise a dataset that keeps its samples gives changed ones in the next epoch."""
        samples = [complete(sample, _TASKS) for sample in self._samples()]
        before = copy.deepcopy(samples)
        for seed in _SEEDS:
            self._augmented(samples, seed)
        assert _same(before, samples), "the given samples are changed"

    def test_every_sample_comes_back(self) -> None:
        """Otherwise pictures and errors name the wrong file, and views lose their crop."""
        for number in (1, 4):
            samples = self._samples(number)
            for seed in _SEEDS:
                for given, result in zip(samples, self._augmented(samples, seed), strict=True):
                    assert given.key == result.key, f"{given.key} is called {result.key}"
                    kept = {name: result.meta.get(name) for name in given.meta}
                    assert kept == given.meta, f"meta of {given.key} is lost or changed"
                    assert given.view == result.view

    def test_inputs_stay_images(self) -> None:
        """Otherwise a network sees what no camera makes, or no batch can be stacked."""
        for seed in _SEEDS:
            for result in self._augmented(self._samples(), seed):
                inputs = result.inputs
                assert inputs.shape == (3, *self.size), f"inputs become {tuple(inputs.shape)}"
                assert inputs.dtype == torch.float32, f"inputs become {inputs.dtype}"
                low, high = float(inputs.min()), float(inputs.max())
                assert low >= 0 and high <= 1, f"inputs from {low:g} to {high:g}, not in [0, 1]"

    def test_labels_fit_their_tasks(self) -> None:
        """Otherwise the run stops in the middle: a label does not fit its task."""
        for seed in _SEEDS:
            samples = self._augmented(self._samples(), seed)
            for sample in samples:
                for task in _TASKS:
                    if task.name in sample.targets:
                        given, mask = sample.targets[task.name], sample.valid.get(task.name)
                        assert mask is not None, f"{task.name} has a label and no mask"
                        dtypes = (str(given.dtype).removeprefix("torch."), mask.dtype)
                        assert dtypes == (task.dtype, torch.bool), f"{task.name} has {dtypes}"
            try:
                collate(samples, _TASKS)
            except DataError as error:
                raise AssertionError(str(error)) from error

    def test_what_is_missing_stays_missing(self) -> None:
        """Otherwise a network learns from holes of a sensor, or from labels that nobody made."""
        samples = self._samples()
        for seed in _SEEDS:
            batch = collate(self._augmented(samples, seed), _TASKS)
            for name in ("normals", "objects"):
                assert batch.count[name] == 0, f"{name} is valid, and no sample has such a label"
            for name in ("segmentation", "scene"):
                valid = batch.targets[name][batch.valid[name]]
                known = set(valid.tolist())
                assert not known & {*_NEVER_VALID}, f"{name}: what was not valid is valid"
            depth = batch.targets["depth"][batch.valid["depth"].unsqueeze(1)]
            assert (depth < 100).all() and (depth != 1).all(), "depth: what was not valid is valid"

    def test_pixels_and_labels_move_together(self) -> None:
        """Otherwise labels, masks and pictures do not belong to each other any more."""
        for seed in _SEEDS:
            for sample in self._augmented(self._samples(), seed):
                classes, depth = sample.targets["segmentation"], sample.targets["depth"][0]
                known = sample.valid["segmentation"]
                assert torch.equal(known, sample.valid["depth"]), "masks move apart"
                bright, dark = known & (classes == 2), known & (classes == 1)
                if not bright.any() or not dark.any():
                    continue
                light = sample.inputs.mean(0)
                assert float(light[bright].mean()) > float(light[dark].mean()), (
                    "pixels lie elsewhere than their classes"
                )
                assert float(depth[bright].min()) > float(depth[dark].max()), (
                    "depths lie elsewhere than classes"
                )

    def test_what_is_no_image_is_refused(self) -> None:
        """Otherwise a run on a table or on tokens ends with a traceback, or learns nonsense."""
        if not self.images_only:
            return
        scene = next(task for task in _TASKS if task.name == "scene")
        samples = [
            Sample(
                inputs=torch.rand(7),
                targets={"scene": torch.tensor(1)},
                valid={"scene": torch.tensor(True)},
                key=f"table/{number}",
            )
            for number in range(4)
        ]
        try:
            self._augmented(samples, 0, self.make(_TASKS), (scene,))
        except UsageError as error:
            assert "table/" in str(error), f"the refusal does not name the sample: {error}"
        else:
            raise AssertionError("inputs that are no images are not refused")

    def _augmented(
        self,
        samples: Sequence[Sample],
        seed: int,
        change: SampleAugmentation | BatchAugmentation | None = None,
        tasks: Sequence[Task] = _TASKS,
    ) -> list[Sample]:
        """Return samples as the loader would augment them."""
        change = self.make(tasks) if change is None else change
        generator = torch.Generator().manual_seed(seed)
        if isinstance(change, SampleAugmentation):
            return [change(sample, generator) for sample in samples]
        return list(change([complete(sample, tasks) for sample in samples], generator))

    def _samples(self, number: int = 4) -> list[Sample]:
        """Return samples whose labels can be read off the picture; some labels are missing.

        Light pixels are class 2 and far away, dark ones class 1 and near. No sample has a label of
        `normals` and `objects`. What is not valid is class 4 and far too deep.
        """
        generator = torch.Generator().manual_seed(7)
        samples = []
        for index in range(number):
            light = _blocks(self.size, generator)
            noise = 0.1 * torch.rand(3, *self.size, generator=generator)
            valid = torch.rand(self.size, generator=generator) > 0.2
            scene_known = index % 2 == 0
            samples.append(
                Sample(
                    inputs=0.2 + 0.5 * light + noise,
                    targets={
                        "segmentation": torch.where(valid, 1 + light.long(), 4),
                        "depth": torch.where(valid, 3.3 + 20 * light + index, 777.0)[None],
                        "normals": torch.full((3, *self.size), 777.0),
                        "scene": torch.tensor(1 + index % 3 if scene_known else 4),
                    },
                    valid={
                        "segmentation": valid,
                        "depth": valid,
                        "normals": torch.zeros(self.size, dtype=torch.bool),
                        "scene": torch.tensor(scene_known),
                    },
                    key=f"contract/{index}",
                    meta={"crop": (0, index, *self.size), "scale": 1.0, "flip": False},
                )
            )
        return samples


def _blocks(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return ones and zeros (H, W) in random blocks of four by four pixels, both always there."""
    coarse = (torch.rand(-(-size[0] // 4), -(-size[1] // 4), generator=generator) > 0.5).float()
    coarse[0, 0], coarse[-1, -1] = 1.0, 0.0
    fine = coarse.repeat_interleave(4, 0).repeat_interleave(4, 1)
    return fine[: size[0], : size[1]]


def _same(one: Sequence[Sample], other: Sequence[Sample]) -> bool:
    return same([attrs.asdict(sample) for sample in one], [attrs.asdict(s) for s in other])
