"""What holds for every episode sampler."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch

from mtlcore.balancing import BalancerContext
from mtlcore.episodes import EpisodeSampler, StepPlan, StepSampler
from mtlcore.metrics import MetricValues
from mtlcore.testing.base import (
    global_stream_untouched,
    lacking,
    same,
    some_metrics,
    through_checkpoint,
)


class EpisodeSamplerContract:
    """Subclass it, write `make`, and pytest checks the sampler.

    Attributes:
        tasks: their names.
        splits: the number of samples per split.
        batch_sizes: with which epochs are drawn.
        learns_from: the splits that batches may come from.
    """

    tasks: tuple[str, ...] = ("first", "second", "third")
    splits: Mapping[str, int] = {"train": 23, "val": 9}
    batch_sizes: tuple[int, ...] = (1, 4, 11, 30)
    learns_from: tuple[str, ...] = ("train",)

    def make(self, tasks: Sequence[str], splits: Mapping[str, int]) -> EpisodeSampler:
        """Return the sampler."""
        raise NotImplementedError

    def metrics(self, number: int) -> MetricValues:
        """Return what the evaluation of this number finds, for a sampler that reads metrics.

        Args:
            number: from 0.
        """
        return some_metrics(self.tasks, number)

    def test_steps_are_as_announced(self) -> None:
        """Otherwise schedules end before the run does, or after it."""
        sampler = self._new()
        for size in self.batch_sizes:
            announced, drawn = sampler.steps(size), len(self._epoch(sampler, size))
            assert announced == drawn > 0, f"steps({size}) is {announced}, an epoch has {drawn}"

    def test_epochs_follow_the_generator_alone(self) -> None:
        """Otherwise a resumed run sees other batches than the one that was interrupted."""
        for size in self.batch_sizes:
            torch.manual_seed(1)
            first = self._epoch(self._new(), size, seed=3)
            torch.manual_seed(2)
            sampler = self._new()
            before = copy.deepcopy(sampler.state_dict())
            self._epoch(sampler, size, seed=4)  # an earlier epoch must not matter either
            sampler.load_state_dict(before)
            with global_stream_untouched("epoch"):
                second = self._epoch(sampler, size, seed=3)
            assert first == second, "the same state and generator state give another epoch"

    def test_horizon_is_a_number_of_steps(self) -> None:
        """Otherwise plans do not hear of what the run finds, or the run is refused."""
        sampler = self._new()
        if sampler.horizon is None:
            return
        assert isinstance(sampler, StepSampler), (
            f"horizon is {sampler.horizon}, but only a StepSampler plans less than an epoch"
        )
        assert sampler.horizon > 0, f"horizon {sampler.horizon} is not a number of steps"

    def test_state_comes_back(self) -> None:
        """Otherwise a run that is resumed in the middle of an epoch sees other batches."""
        for size in self.batch_sizes:
            sampler, generator = self._new(), torch.Generator().manual_seed(5)
            for epoch in range(2):
                for first in self._blocks(sampler, size):
                    restored, again = self._restored(sampler), torch.Generator()
                    again.set_state(generator.get_state())
                    plans = self._block(sampler, first, size, generator)
                    assert self._block(restored, first, size, again) == plans, (
                        f"restored before step {first} of epoch {epoch}, it plans other steps: "
                        "something it knows is not part of its state"
                    )
                    assert same(sampler.state_dict(), restored.state_dict()), (
                        "restored and asked for the same plans, its state differs"
                    )
                    with global_stream_untouched("after_step"):
                        self._tell(sampler, plans, epoch, first)
                with global_stream_untouched("after_evaluation"):
                    sampler.after_evaluation(self.metrics(epoch))

    def test_evaluations_may_lack_values(self) -> None:
        """Otherwise a run stops where the validation split has no label of a task."""
        sampler, generator = self._new(), torch.Generator().manual_seed(0)
        for metrics in lacking(self.metrics(0)):
            sampler.after_evaluation(metrics)
            plans = list(sampler.epoch(self.tasks, 4, generator))
            assert len(plans) == sampler.steps(4), f"{len(plans)} steps after {metrics}"

    def test_epochs_differ(self) -> None:
        """Otherwise every epoch repeats the batches of the first."""
        generator = torch.Generator().manual_seed(0)
        sampler = self._new()
        first, second = (list(sampler.epoch(self.tasks, 4, generator)) for _ in range(2))
        assert first != second, "two epochs from one generator are the same"

    def test_indices_are_in_range(self) -> None:
        """Otherwise a worker fails in the middle of an epoch."""
        for plan in self._plans():
            for batch in plan.batches:
                assert batch.split in self.splits, f"there is no split {batch.split!r}"
                size = self.splits[batch.split]
                assert batch.indices, "a batch without samples"
                wrong = [i for i in batch.indices if not 0 <= i < size]
                assert not wrong, f"{batch.split} has {size} samples, not {wrong}"

    def test_batches_are_of_the_size_asked_for(self) -> None:
        """Otherwise a step needs more memory than the configuration says."""
        for size in self.batch_sizes:
            for plan in self._epoch(self._new(), size):
                largest = max(len(batch.indices) for batch in plan.batches)
                # A last sample that is left over may join the batch before it.
                assert largest <= size + 1, f"a batch of {largest} where {size} was asked for"

    def test_batches_are_changed_at_random_each_in_its_way(self) -> None:
        """Otherwise every batch of an epoch is cropped and mirrored alike."""
        for size in self.batch_sizes:
            plans = self._epoch(self._new(), size)
            seeds = [batch.seed for plan in plans for batch in plan.batches if batch.augment]
            assert len(set(seeds)) == len(seeds), "batches with the same seed"

    def test_only_training_samples_are_learnt_from(self) -> None:
        """Otherwise validation judges what was trained on."""
        for plan in self._plans():
            splits = {batch.split for batch in plan.batches}
            assert splits <= set(self.learns_from), (
                f"batches of {sorted(splits)}, not of {', '.join(self.learns_from)} alone"
            )

    def test_episodes_name_batches_of_their_plan(self) -> None:
        """Otherwise the optimizer reads a batch that was never loaded."""
        for plan in self._plans():
            assert plan.episodes, "a step without episodes learns nothing"
            for episode in plan.episodes:
                for number in (episode.support, episode.query):
                    assert number is None or 0 <= number < len(plan.batches), (
                        f"episode {episode} in a plan of {len(plan.batches)} batches"
                    )
                assert episode.group == 0 and not plan.validation, (
                    "independent batches and validation batches are made by the core, of plans "
                    "of one group without validation"
                )

    def test_only_the_tasks_asked_for(self) -> None:
        """Otherwise a task that stopped early goes on learning."""
        sampler = self._new()
        for asked in (self.tasks, self.tasks[1:], self.tasks[:1]):
            for plan in self._epoch(sampler, 4, tasks=asked):
                for episode in plan.episodes:
                    assert episode.tasks, "an episode without tasks"
                    assert set(episode.tasks) <= set(asked), (
                        f"episode of {episode.tasks}, asked for {asked}"
                    )
                    assert len(set(episode.tasks)) == len(episode.tasks), "a task twice"

    def test_a_last_task_goes_on_learning(self) -> None:
        """Otherwise the task that stops last has fewer steps than its patience says."""
        sampler = self._new()
        for task in self.tasks:
            plans = self._epoch(sampler, 4, tasks=(task,))
            assert len(plans) == sampler.steps(4), (
                f"an epoch of {task} alone has {len(plans)} steps"
            )
            for plan in plans:
                assert plan.episodes, f"a step of {task} alone has no episode"

    def test_every_task_learns(self) -> None:
        """Otherwise a task of the run never gets a step."""
        planned: set[str] = set()
        for size in self.batch_sizes:
            sampler, generator = self._new(), torch.Generator().manual_seed(0)
            for first in self._blocks(sampler, size):
                plans = self._block(sampler, first, size, generator)
                planned.update(t for plan in plans for e in plan.episodes for t in e.tasks)
                self._tell(sampler, plans, 0, first)
        assert planned == set(self.tasks), f"an epoch only has {sorted(planned)}"

    def test_query_samples_are_not_learnt_from(self) -> None:
        """Otherwise an adapted model is judged on what it adapted to."""
        for plan in self._plans():
            for episode in plan.episodes:
                if episode.query is None:
                    continue
                support, query = plan.batches[episode.support], plan.batches[episode.query]
                shared = set(support.indices) & set(query.indices)
                assert support.split != query.split or not shared, (
                    f"support and query share {support.split} samples {sorted(shared)}"
                )

    def _new(self) -> EpisodeSampler:
        return self.make(self.tasks, self.splits)

    def _restored(self, sampler: EpisodeSampler) -> EpisodeSampler:
        """Return a new sampler with the state of another one, as a checkpoint holds it."""
        restored = self._new()
        restored.load_state_dict(through_checkpoint({"sampler": sampler.state_dict()})["sampler"])
        return restored

    def _blocks(self, sampler: EpisodeSampler, size: int) -> Iterator[int]:
        """Yield the number of the first plan of each block of an epoch."""
        steps = sampler.steps(size)
        yield from range(0, steps, sampler.horizon or steps)

    def _block(
        self, sampler: EpisodeSampler, first: int, size: int, generator: torch.Generator
    ) -> list[StepPlan]:
        if sampler.horizon is None:
            return list(sampler.epoch(self.tasks, size, generator))
        assert isinstance(sampler, StepSampler)
        end = min(first + sampler.horizon, sampler.steps(size))
        return [sampler.plan(n, self.tasks, size, generator) for n in range(first, end)]

    def _tell(
        self, sampler: EpisodeSampler, plans: Sequence[StepPlan], epoch: int, first: int
    ) -> None:
        """Tell it of every second step of a block, as if the others had been skipped."""
        for number, plan in list(enumerate(plans, first))[::2]:
            present = tuple(t for t in self.tasks if any(t in e.tasks for e in plan.episodes))
            sampler.after_step(
                BalancerContext(
                    tasks=self.tasks,
                    generator=torch.Generator().manual_seed(number),
                    step=number,
                    epoch=epoch,
                    progress=number / 100,
                    present=present,
                    losses={t: 1 / (1 + self.tasks.index(t) + number) for t in present},
                )
            )

    def _plans(self) -> list[StepPlan]:
        sampler = self._new()
        return [plan for size in self.batch_sizes for plan in self._epoch(sampler, size)]

    def _epoch(
        self,
        sampler: EpisodeSampler,
        batch_size: int,
        seed: int = 0,
        tasks: Sequence[str] | None = None,
    ) -> list[StepPlan]:
        generator = torch.Generator().manual_seed(seed)
        return list(sampler.epoch(tasks or self.tasks, batch_size, generator))
