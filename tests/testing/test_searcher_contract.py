"""Searchers that are wrong on purpose, and the contract that catches them."""

from __future__ import annotations

import random

import pytest

from mtlcore.searchers import Searcher
from mtlcore.standard.searchers import Random
from mtlcore.testing import SearcherContract


class Wrapped(Searcher):
    """What a good searcher does."""

    def __init__(self, space, objectives, seed):
        self.space, self.seed = space, seed
        self.inner = Random(space, objectives, seed)

    def ask(self, number, trials):
        return self.inner.ask(number, trials)


class LeavesRanges(Wrapped):
    def ask(self, number, trials):
        return {**super().ask(number, trials), "data.size": 33}


class ForgetsSettings(Wrapped):
    def ask(self, number, trials):
        return dict(list(super().ask(number, trials).items())[1:])


class RepeatsItself(Wrapped):
    def ask(self, number, trials):
        return self.inner.ask(number // 2, trials)


class Remembers(Wrapped):
    def __init__(self, space, objectives, seed):
        super().__init__(space, objectives, seed)
        self.random = random.Random(seed)

    def ask(self, number, trials):
        return {path: one.at(self.random.random()) for path, one in self.space.items()}


class NoSeed(Wrapped):
    def __init__(self, space, objectives, seed):
        super().__init__(space, objectives, 0)


class OnlyFinishedTrials(Wrapped):
    def ask(self, number, trials):
        assert all(trial.values for trial in trials), "a trial without a value"
        return super().ask(number, trials)


class StopsTheBest(Wrapped):
    def prunes(self, trial, trials):
        return True


SEARCHERS = [
    (LeavesRanges, "test_values_lie_in_their_ranges", "data.size = 33"),
    (ForgetsSettings, "test_values_lie_in_their_ranges", "another set"),
    (RepeatsItself, "test_trials_differ", "the same values again"),
    (Remembers, "test_another_start_goes_on_alike", "depends on more"),
    (NoSeed, "test_the_seed_decides", "two seeds give the same"),
    (OnlyFinishedTrials, "test_every_fate_of_a_trial_is_taken", "without a value"),
    (StopsTheBest, "test_a_trial_that_is_best_goes_on", "the best trial is pruned"),
]


@pytest.mark.parametrize(("component", "test", "message"), SEARCHERS)
def test_searchers(component, test, message, held_to, catches):
    catches(held_to(SearcherContract, component), test, message)


def test_good_searchers_pass(held_to, passes):
    passes(held_to(SearcherContract, Random))


def test_every_check_catches_something(catch_all):
    catch_all(SearcherContract, SEARCHERS)
