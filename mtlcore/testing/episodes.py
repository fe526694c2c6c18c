"""What holds for every episode sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from mtlcore.episodes import EpisodeSampler, StepPlan
from mtlcore.testing.base import global_stream_untouched


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
            self._epoch(sampler, size, seed=4)  # an earlier epoch must not matter either
            with global_stream_untouched("epoch"):
                second = self._epoch(sampler, size, seed=3)
            assert first == second, "the same generator state gives another epoch"

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
        planned = {t for plan in self._plans() for episode in plan.episodes for t in episode.tasks}
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
